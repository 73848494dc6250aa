#!/bin/sh
# Installs what `cutlayer flash` laid beside this script: sh cutlayer-install.sh FOLDER [start]
# Needs root, Python 3.11 or newer and systemd; no network, no compiler, no pip. It may be ended at any point, by a power cut too, and run
# again: until its last lines everything that it needs lies in FOLDER, and a service runs it at the next start of the system.
set -eu
umask 022
from=$1
again=/etc/systemd/system/cutlayer-install.service
home=/var/lib/cutlayer
opt=/opt/cutlayer

say() { echo "cutlayer-install: $*"; }

# Written over before it is removed: what is removed from a card stays readable on it.
wipe() {
    [ -f "$1" ] || return 0
    head -c "$(wc -c <"$1")" /dev/zero 1<>"$1"
    sync "$1"
    rm -f "$1"
}

# All that happens in the client's folder happens as the client: over ssh there may be one of before, whose code may have laid links there.
# In: what it reads; $1: what it does, in its folder.
as_client() { (cd / && exec setpriv --reuid=cutlayer --regid=cutlayer --clear-groups /bin/sh -euc "umask 077; cd $home; $1"); }

[ "$(id -u)" = 0 ] || { say "run it as root" >&2; exit 2; }
if [ ! -f "$from/cutlayer-payload.tar" ]; then
    say "there is no $from/cutlayer-payload.tar: it has been installed already"
    exit 0
fi

# From here on a power cut only delays.
mkdir -p $opt
[ "$0" = $opt/install.sh ] || cp "$0" $opt/install.sh
cat >$again <<END
[Unit]
Description=Install the Cutlayer client
ConditionPathExists=$from/cutlayer-payload.tar
After=local-fs.target
RequiresMountsFor=$from

[Service]
Type=oneshot
ExecStart=/bin/sh $opt/install.sh $from start

[Install]
WantedBy=multi-user.target
END
systemctl enable cutlayer-install.service
sync -f $opt
sync -f /etc/systemd/system

say "checking and unpacking"
payload=$opt/payload
rm -rf $payload
mkdir -p $payload
chmod 700 $payload
# The name of the folder is not in the list, so the sum is compared by hand.
wanted=$(cut -d' ' -f1 <"$from/cutlayer-payload.sha256")
found=$(sha256sum <"$from/cutlayer-payload.tar" | cut -d' ' -f1)
[ "$wanted" = "$found" ] || { say "$from/cutlayer-payload.tar is damaged: write the card again" >&2; exit 1; }
tar -xf "$from/cutlayer-payload.tar" -C $payload --no-same-owner

getent group cutlayer >/dev/null || groupadd --system cutlayer
getent passwd cutlayer >/dev/null || useradd --system --gid cutlayer --home-dir $home --no-create-home --shell /usr/sbin/nologin cutlayer
install -d -o cutlayer -g cutlayer -m 700 $home
as_client '[ ! -L identity ] || rm identity; mkdir -p identity; chmod 700 identity' </dev/null

# First of all the token, from the partition that anybody can read to the one that they cannot.
if [ -f "$from/cutlayer-token" ]; then
    as_client 'cd identity; rm -rf token.new token; cat >token.new; sync token.new; mv -T token.new token' <"$from/cutlayer-token"
    sync -f $home
    wipe "$from/cutlayer-token"
fi

say "making the virtual environment"
rm -rf $opt/venv.new
python3 -m venv --without-pip $opt/venv.new
pip=$(find $payload/wheels -name 'pip-*.whl' | head -n 1)
$opt/venv.new/bin/python "$pip/pip" install --quiet --no-index --no-cache-dir --disable-pip-version-check --find-links $payload/wheels cutlayer
# Its programs name the folder in which it was made.
find $opt/venv.new/bin -maxdepth 1 -type f -exec sed -i "1s|$opt/venv.new/|$opt/venv/|" {} +
rm -rf $opt/venv.old
[ ! -d $opt/venv ] || mv $opt/venv $opt/venv.old
mv $opt/venv.new $opt/venv
rm -rf $opt/venv.old

say "laying down run file, bundle and services"
rm -rf $home/releases.new
mkdir $payload/home
for each in bundle run.toml state.json deploy.pub ca.pem; do
    [ ! -e "$payload/$each" ] || mv "$payload/$each" $payload/home/
done
tar -C $payload/home -cf - . | as_client '
    mkdir -p releases.new/0
    tar -xf - -C releases.new --no-same-permissions
    mv releases.new/bundle releases.new/run.toml releases.new/0/'
[ ! -d /run/systemd/system ] || systemctl stop cutlayer.service || true
rm -rf $home/releases $home/bundle $home/run.toml $home/deploy.pub
as_client '
    [ ! -f releases.new/deploy.pub ] || mv -fT releases.new/deploy.pub deploy.pub
    [ ! -f releases.new/ca.pem ] || mv -fT releases.new/ca.pem ca.pem
    mv -T releases.new releases' </dev/null
cp $payload/enrol.sh $opt/enrol.sh
cp $payload/cutlayer*.service $payload/cutlayer*.timer $payload/cutlayer*.path /etc/systemd/system/
mkdir -p /etc/systemd/system.conf.d
cp $payload/watchdog.conf /etc/systemd/system.conf.d/cutlayer-watchdog.conf
systemctl enable cutlayer.service cutlayer-enrol.service cutlayer-enrol.timer cutlayer-renewed.path

say "removing what was carried along"
rm -rf $payload
for name in network-config rpi-preseed.toml; do
    [ ! -f "$from/$name" ] || ! grep -q -e '"password"' -e '^password = ' "$from/$name" || wipe "$from/$name"
done
sync -f $opt
sync -f $home
sync -f /etc/systemd/system
# The run file in it names topics and may hold keys.
wipe "$from/cutlayer-payload.tar"
rm -f "$from/cutlayer-payload.sha256" "$from/cutlayer-install.sh"
systemctl disable cutlayer-install.service
rm -f $again $opt/install.sh
sync -f $opt
sync -f "$from"
if [ "${2-}" = start ] && [ -d /run/systemd/system ]; then
    {
        systemctl daemon-reload
        systemctl start --no-block cutlayer-enrol.service cutlayer-enrol.timer cutlayer-renewed.path cutlayer.service
    } || say "the client starts with the next start of the system"
fi
say "done"
