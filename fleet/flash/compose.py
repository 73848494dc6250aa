"""A compose project for a board that runs containers: the image's sources, the run, the bundle, and what may enter the fleet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fleet.flash.payload import Payload, first_state
from wire.errors import UsageError
from wire.fleet.release import DEPLOY_PUB
from wire.store import write_atomically

__all__ = ["compose_table", "write_compose"]

_SOURCE = Path(__file__).resolve().parents[2]
# What Dockerfile.arm copies.
_CONTEXT = ("Dockerfile.arm", "LICENSE", "cutlayer.py", "requirements-device.txt", "wire", "edge_client")
_USER = "10001:10001"  # the image's
_RUN_DIR = "/run/cutlayer"
_DAILY = 'while :; do "$$@"; sleep 86400; done'  # compose reads $$ as $


def write_compose(out: Path, *, payload: Payload, token: bytes | None) -> None:
    """Fill the new folder ``out``. The payload's run names its certificates below /keys, and its paths begin at /data; its wheels do not
    count. Raises UsageError where the folder is there, or where this is no source tree, which alone has the image's sources."""
    if out.exists():
        raise UsageError(f"{out} is there already; choose a new folder")
    lacking = [name for name in _CONTEXT if not (_SOURCE / name).exists()]
    if lacking:
        raise UsageError(f"{_SOURCE / lacking[0]} is not there: --compose needs Cutlayer's source tree, from which the image is built")
    (out / "keys").mkdir(parents=True, mode=0o700)
    for name in _CONTEXT:
        source, there = _SOURCE / name, out / "image" / name
        there.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, there, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, there)
    releases = out / "data" / "releases"
    write_atomically(releases / "0" / "run.toml", payload.run, private=True)  # it names topics and may hold keys
    for path, data in payload.bundle.items():
        write_atomically(releases / "0" / "bundle" / path, data)
    write_atomically(releases / "state.json", first_state(payload.floor))
    if payload.deploy is not None:
        write_atomically(out / "data" / DEPLOY_PUB, payload.deploy)
    for name, secret in (("ca.pem", payload.ca), ("token", token)):
        if secret is not None:
            write_atomically(out / "keys" / name, secret, private=True)
    table = compose_table(payload.device, enrol=payload.enrol if payload.ca is not None else None, memory=payload.memory)
    write_atomically(out / "compose.yaml", (json.dumps(table, indent=2) + "\n").encode())


def compose_table(device: str, *, enrol: str | None, memory: str) -> dict[str, Any]:
    """The project as compose reads it: JSON is YAML. ``enrol``: host:port of the authority; None: the device has no identity."""
    hardened = {
        "image": "cutlayer-client",
        "build": {"context": "image", "dockerfile": "Dockerfile.arm", "platforms": ["linux/arm64"]},
        "platform": "linux/arm64",
        "user": _USER,
        "network_mode": "host",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": 128,
    }
    client: dict[str, Any] = hardened | {
        "entrypoint": ["python3", "-m", "edge_client.agent", "--home", "/data", "--name", device],
        "volumes": ["./data:/data", "./keys:/keys:ro"],
        "tmpfs": [f"{_RUN_DIR}:uid=10001,gid=10001,mode=0700,size=1m"],
        "environment": {"RUNTIME_DIRECTORY": _RUN_DIR},
        "mem_limit": memory,
        "stop_grace_period": "90s",
        "restart": "always",
    }
    if enrol is None:
        return {"services": {"client": client}}
    words = ["--name", device, "--url", f"https://{enrol}", "--ca", "/keys/ca.pem", "--token", "/keys/token", "--out", "/keys"]
    command = ["python3", "-m", "edge_client.enroll", *words]
    first = hardened | {"entrypoint": command, "volumes": ["./keys:/keys"]}
    # The same command renews once it is time. At the start, too, for a board may be off each night.
    daily = first | {"entrypoint": ["sh", "-c", _DAILY, "sh", *command], "restart": "always", "stop_grace_period": "1s"}
    client["depends_on"] = daily["depends_on"] = {"enrol": {"condition": "service_completed_successfully"}}
    return {"services": {"enrol": first, "renew": daily, "client": client}}
