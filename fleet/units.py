"""systemd units and a compose file for the computers on which the broker, the server and the authority run."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from wire.errors import UsageError

__all__ = ["compose_file", "units"]

_HARDENED = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
LockPersonality=yes
"""


def units(at: str, *, hosts: Sequence[str], run_file: Path, fleet: Path) -> dict[str, str]:
    """By file name. ``hosts``: by which devices reach the broker, and the authority beside it.

    The broker's runs as `mosquitto`, whom Debian's package makes; the others as who writes this. Raises UsageError."""
    user = getpass.getuser()
    names = " ".join(f"--name {_quoted(host)}" for host in hosts)
    command = _quoted(shutil.which("cutlayer") or str(Path(sys.executable).with_name("cutlayer")))
    return {
        "cutlayer-broker.service": _unit(
            "MQTT broker of the fleet (mosquitto, mutual TLS)",
            [
                "User=mosquitto",
                f"ExecStartPre=+/usr/bin/install -d -o mosquitto -m 0700 {_quoted(at + '/data')}",
                f"ExecStartPre=+/usr/bin/chown mosquitto {_quoted(at + '/broker.key')} {_quoted(at + '/acl')}",
                f"ExecStart=/usr/sbin/mosquitto -c {_quoted(at + '/mosquitto.conf')}",
                "ExecReload=/bin/kill -HUP $MAINPID",
                f"ReadWritePaths={_quoted('-' + at + '/data')}",
            ],
        ),
        "cutlayer-server.service": _unit(
            "server of a Cutlayer run",
            [
                f"User={user}",
                f"WorkingDirectory={_escaped(str(run_file.parent))}",
                f"ExecStart={command} serve {_quoted(str(run_file))}",
                f"ReadWritePaths={_quoted(str(run_file.parent))}",
                "SuccessExitStatus=130",
                "RestartPreventExitStatus=2",
            ],
            restart="on-failure",
        ),
        "cutlayer-ca.service": _unit(
            "certificate authority of the fleet",
            [
                f"User={user}",
                f"ExecStart={command} ca serve {names} --fleet {_quoted(str(fleet))}",
                f"ReadWritePaths={_quoted(str(fleet))}",
            ],
        ),
    }


def compose_file(at: str, port: int, *, version: tuple[int, int], run_file: Path) -> str:
    """The broker as who owns its folder: it reads a key that nobody else can. Strings are written as JSON has them, which YAML takes."""
    owner = json.dumps(f"{os.getuid()}:{os.getgid()}")
    return f"""\
# Written by `cutlayer broker config`; write it again rather than change it.
services:
  broker:
    image: {json.dumps(f"eclipse-mosquitto:{version[0]}.{version[1]}")}
    user: {owner}
    command: {json.dumps(["mosquitto", "-c", f"{at}/mosquitto.conf"])}
    ports: [{json.dumps(f"{port}:{port}")}]
    volumes: [{json.dumps(f"{at}:{at}")}]
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: unless-stopped
  server:
    build:
      context: .
      dockerfile_inline: |
        FROM python:3.12-slim
        RUN pip install --no-cache-dir 'cutlayer[server]'
        ENTRYPOINT ["cutlayer"]
    user: {owner}
    command: {json.dumps(["serve", str(run_file)])}
    working_dir: {json.dumps(str(run_file.parent))}
    volumes: [{json.dumps(f"{run_file.parent}:{run_file.parent}")}]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: on-failure
    depends_on: [broker]
"""


def _unit(what: str, rows: list[str], *, restart: str = "always") -> str:
    service = "\n".join([*rows, f"Restart={restart}", "RestartSec=5"])
    return (
        f"[Unit]\nDescription={what}\nWants=network-online.target\nAfter=network-online.target time-sync.target\n\n"
        f"[Service]\n{service}\n{_HARDENED}\n[Install]\nWantedBy=multi-user.target\n"
    )


def _escaped(text: str) -> str:
    """As systemd.unit(5) reads a path: % begins a specifier."""
    if not text.isprintable() or '"' in text or "\\" in text or "$" in text:
        raise UsageError(f"{text!r} cannot be written into a systemd unit; choose a path without quotes, backslashes and dollar signs")
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"' if " " in text else _escaped(text)
