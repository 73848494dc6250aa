#!/bin/sh
# The one place that names the enrolment command. It makes the key, sends the token, keeps the certificate; then the token goes.
set -eu
home=/var/lib/cutlayer
/opt/cutlayer/venv/bin/cutlayer enroll --device @DEVICE@ --ca-url @ENROL@ --ca $home/ca.pem --token-file $home/identity/token --out $home/identity
rm -f $home/identity/token
