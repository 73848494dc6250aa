#!/bin/sh
# The one place that names the enrolment command: at each start and each day it enrols, renews, or has nothing to do. It removes the token.
home=/var/lib/cutlayer
exec /opt/cutlayer/venv/bin/python -m edge_client.enroll --name @DEVICE@ --url https://@ENROL@ --ca $home/ca.pem \
    --token $home/identity/token --out $home/identity
