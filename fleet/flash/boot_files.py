"""What each format of image takes on its boot partition, so that its first start installs what was carried along.

    firstrun    systemd runs firstrun.sh, named in cmdline.txt (Raspberry Pi OS Bookworm, and Trixie of 2025-10-01)
    cloud-init  user-data, network-config and meta-data (Trixie since then)
    preseed     rpi-preseed.toml (images that have the package rpi-preseed)

All of them start one script, ``cutlayer-install.sh``, which does the rest. JSON is YAML, and JSON's strings are TOML's, so that nothing
has to be quoted by hand.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleet.flash.wifi import Wifi

__all__ = ["CLOUD_INIT_KEYS", "FORMATS", "INSTALL", "PAYLOAD", "TOKEN", "FirstBoot", "Format", "host_name"]

PAYLOAD, INSTALL, TOKEN = "cutlayer-payload.tar", "cutlayer-install.sh", "cutlayer-token"
BOOT = "/boot/firmware"
# The kernel of Raspberry Pi OS leaves the memory controller off, and then a service's memory limit is none.
_MEMORY = " cgroup_enable=memory"
# cloud-init's schema lets an unknown key pass, which then does nothing: only these are ever written.
CLOUD_INIT_KEYS = frozenset({"hostname", "manage_etc_hosts", "user", "ssh_pwauth", "runcmd"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBoot:
    """``host``: the device's host name. ``user``: who may log in, by ``keys`` (lines of authorized_keys) alone; None: nobody. ``instance``:
    never used before, or cloud-init takes the card for one that it has set up."""

    host: str
    instance: str
    wifi: Wifi | None = None
    user: str | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """``python``: of the system that such images hold, for which wheels are needed. ``imager``: its name in Raspberry Pi Imager's lists.
    ``files`` makes the boot files by name; ``cmdline`` is what comes behind the kernel's command line."""

    name: str
    python: str
    imager: str
    files: Callable[[FirstBoot], Mapping[str, str]]
    cmdline: Callable[[FirstBoot], str]


def host_name(device: str) -> str:
    """A name that DNS allows, for a device's name, which may have underscores and capitals."""
    return re.sub("[^a-z0-9-]", "-", device.lower())[:63].strip("-") or "cutlayer"


# ------------------------------------------------------------------ firstrun.sh

_FIRSTRUN = """\
#!/bin/sh
# Runs once, before anything else is started, and again where the power went before its end. In braces: a shell reads it all before it is
# written over.
{{
for boot in {boot} /boot; do [ ! -f "$boot/firstrun.sh" ] || break; done
exec >>/var/log/cutlayer-install.log 2>&1
echo {host} >/etc/hostname
sed -i "s/^127\\.0\\.1\\.1.*/127.0.1.1\\t{host}/" /etc/hosts
{login}{wifi}sh "$boot/{install}" "$boot" || echo "{install} ended with $?; it is tried again at the next start"
sed -i 's| systemd\\.[^ ]*||g' "$boot/cmdline.txt"
sync -f "$boot" /etc
head -c "$(wc -c <"$boot/firstrun.sh")" /dev/zero 1<>"$boot/firstrun.sh"
sync "$boot/firstrun.sh"
rm -f "$boot/firstrun.sh"
sync -f "$boot"
exit 0
}}
"""
_LOGIN = """\
/usr/lib/userconf-pi/userconf {user} '*'
home=$(getent passwd {user} | cut -d: -f6)
install -d -m 700 -o {user} -g {user} "$home/.ssh"
printf '%s\\n' {keys} >"$home/.ssh/authorized_keys"
chown {user}:{user} "$home/.ssh/authorized_keys"
chmod 600 "$home/.ssh/authorized_keys"
systemctl enable ssh
"""
_NETWORK = """\
(umask 077; cat >/etc/NetworkManager/system-connections/cutlayer.nmconnection <<'CUTLAYER_END'
[connection]
id=cutlayer
type=wifi
[wifi]
mode=infrastructure
ssid={ssid}
{security}[ipv4]
method=auto
[ipv6]
method=auto
CUTLAYER_END
)
{country}rfkill unblock wifi
"""


def _firstrun(first: FirstBoot) -> dict[str, str]:
    login = ""
    if first.user is not None:
        login = _LOGIN.format(user=first.user, keys=" ".join(shlex.quote(key) for key in first.keys))
    wifi = ""
    if first.wifi is not None:
        security = f"[wifi-security]\nkey-mgmt=wpa-psk\npsk={first.wifi.psk}\n" if first.wifi.psk else ""
        country = f"raspi-config nonint do_wifi_country {first.wifi.country}\n" if first.wifi.country else ""
        wifi = _NETWORK.format(ssid=_octets(first.wifi.ssid), security=security, country=country)
    return {"firstrun.sh": _FIRSTRUN.format(boot=BOOT, install=INSTALL, host=first.host, login=login, wifi=wifi)}


def _octets(ssid: str) -> str:
    """NetworkManager's list of bytes, in which no character means anything else."""
    return "".join(f"{byte};" for byte in ssid.encode())


def _firstrun_cmdline(_: FirstBoot) -> str:
    # The first RAM disk of Bookworm knows this line by heart and puts in the place where the partition is mounted.
    return " systemd.run=/boot/firstrun.sh systemd.run_success_action=reboot systemd.unit=kernel-command-line.target" + _MEMORY


# ------------------------------------------------------------------ cloud-init


def _cloud_init(first: FirstBoot) -> dict[str, str]:
    user: dict[str, Any] = {"hostname": first.host, "manage_etc_hosts": True, "ssh_pwauth": False}
    runcmd: list[list[str]] = [["sh", f"{BOOT}/{INSTALL}", BOOT, "start"]]
    if first.user is not None:
        # `user`, for `users` would drop the groups of the system's own one; and no password-free sudo, which it would inherit.
        user["user"] = {"name": first.user, "lock_passwd": True, "ssh_authorized_keys": list(first.keys), "sudo": None}
        runcmd.insert(0, ["systemctl", "enable", "--now", "ssh"])
    user["runcmd"] = runcmd
    files = {"user-data": "#cloud-config\n" + _yaml(user), "meta-data": _yaml({"instance-id": first.instance})}
    if first.wifi is not None:
        files["network-config"] = _yaml(_netplan(first.wifi))
    return files


def _netplan(wifi: Wifi) -> dict[str, Any]:
    wired = {"dhcp4": True, "dhcp6": True, "optional": True}  # left out, a cable would get no address any more
    point: dict[str, Any] = {"password": wifi.psk} if wifi.psk else {"auth": {"key-management": "none"}}
    wireless: dict[str, Any] = {"dhcp4": True, "optional": True, "access-points": {wifi.ssid: point}}
    if wifi.country:
        wireless["regulatory-domain"] = wifi.country
    return {"network": {"version": 2, "ethernets": {"eth0": wired}, "wifis": {"wlan0": wireless}}}


def _yaml(table: Mapping[str, Any]) -> str:
    return json.dumps(table, indent=2) + "\n"


def _cloud_init_cmdline(first: FirstBoot) -> str:
    return f" ds=nocloud;i={first.instance}{_MEMORY}"


# ------------------------------------------------------------------ rpi-preseed


def _preseed(first: FirstBoot) -> dict[str, str]:
    tables: dict[str, dict[str, Any]] = {"system": {"hostname": first.host}}
    if first.user is not None:
        tables["user"] = {"name": first.user, "password": "*", "password_encrypted": True}
        tables["ssh"] = {"enabled": True, "password_authentication": False, "authorized_keys": list(first.keys)}
    if first.wifi is not None:
        tables["wlan"] = {"ssid": first.wifi.ssid}
        if first.wifi.psk:
            tables["wlan"] |= {"password": first.wifi.psk, "password_encrypted": True}
        if first.wifi.country:
            tables["wlan"]["country"] = first.wifi.country
    # A late command, for early ones are ended after seconds; it needs neither the clock nor the network.
    tables["runcmd"] = {"late": [f"sh {BOOT}/{INSTALL} {BOOT} start"], "late_require_time_sync": False}
    rows = ['config_version = "1.1"']
    for name, table in tables.items():
        rows += ["", f"[{name}]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items())]
    return {"rpi-preseed.toml": "\n".join(rows) + "\n"}


FORMATS = {
    each.name: each
    for each in (
        Format(name="firstrun", python="3.11", imager="systemd", files=_firstrun, cmdline=_firstrun_cmdline),
        Format(name="cloud-init", python="3.13", imager="cloudinit-rpi", files=_cloud_init, cmdline=_cloud_init_cmdline),
        Format(name="preseed", python="3.13", imager="rpi-preseed", files=_preseed, cmdline=lambda _: _MEMORY),
    )
}
