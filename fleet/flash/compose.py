"""A compose project for a board that runs containers: the image's sources, the run, the bundle, and what may enter the fleet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wire.errors import UsageError
from wire.store import write_atomically

__all__ = ["compose_table", "write_compose"]

_SOURCE = Path(__file__).resolve().parents[2]
# What Dockerfile.arm copies.
_CONTEXT = ("Dockerfile.arm", "LICENSE", "cutlayer.py", "requirements-device.txt", "wire", "edge_client")
_USER = "10001:10001"  # the image's


def write_compose(
    out: Path, *, device: str, run: bytes, bundle: Mapping[str, bytes], ca: bytes | None, token: bytes | None, enrol: str, memory: str
) -> None:
    """Fill the new folder ``out``. ``run``: names its certificates below /keys. Raises UsageError where the folder is there, or where this
    is no source tree, which alone has the image's sources."""
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
    write_atomically(out / "data" / "run.toml", run)
    for path, data in bundle.items():
        write_atomically(out / "data" / "bundle" / path, data)
    for name, secret in (("ca.pem", ca), ("token", token)):
        if secret is not None:
            _write_private(out / "keys" / name, secret)
    table = compose_table(device, enrol=enrol if ca is not None else None, memory=memory)
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
        "command": ["/data/run.toml", "--party", device, "--bundle", "/data/bundle"],
        "volumes": ["./data:/data", "./keys:/keys:ro"],
        "mem_limit": memory,
        "restart": "on-failure",
    }
    if enrol is None:
        return {"services": {"client": client}}
    words = ["--name", device, "--url", f"https://{enrol}", "--ca", "/keys/ca.pem", "--token", "/keys/token", "--out", "/keys"]
    first = hardened | {"entrypoint": ["python3", "-m", "edge_client.enroll", *words], "volumes": ["./keys:/keys"]}
    client["depends_on"] = {"enrol": {"condition": "service_completed_successfully"}}
    return {"services": {"enrol": first, "client": client}}


def _write_private(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
