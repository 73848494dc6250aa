"""Secrets stay in their files: not in logs, lines, JSON, the registry, the list of processes, what travels, or the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cutlayer
from tests.fleet.deploys import Field
from tests.fleet.fleets import PATIENCE_S, until

ROOT = Path(__file__).parents[2]
KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+([A-Za-z0-9+/=]{40,})")


def secrets_of(field: Field) -> dict[str, bytes]:
    """By file: a line of each private key, and the tokens."""
    fleet = field.authority.fleet.folder
    keys = [fleet / "ca/ca.key", fleet / "ca/serve.key", fleet / "deploy.key", fleet / "operator/key.pem"]
    keys += [field.broker.folder / "broker.key", *(field.folder / name / "key.pem" for name in ("c0", "c1", "c2"))]
    found = {str(path): match[1] for path in keys if (match := KEY.search(path.read_bytes())) is not None}
    assert len(found) == len(keys)
    return found | {str(path): path.read_bytes().strip() for path in fleet.glob("tokens/*.token")}


def processes() -> bytes:
    """What anybody on this computer can see of them."""
    found = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += path.read_bytes()
        except OSError:
            continue
    return found


def test_no_secret_leaves_its_file(field: Field, capfd: pytest.CaptureFixture[str]) -> None:
    fleet = ["--fleet", str(field.authority.fleet.folder)]
    assert cutlayer.main(["device", "add", "c3", "--group", "west", *fleet]) == 0
    seen: dict[str, bytes] = {}
    with field.agent("c0", hold_at=1) as agent:
        command = [sys.executable, "-m", "cutlayer", *field.words("--to", "c0", "--json")]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda: agent.pieces or None, "a piece")
        seen["the list of processes"] = processes()
        agent.finish()
        seen["what deploy prints"] = b"".join(process.communicate(timeout=PATIENCE_S))
        assert process.returncode == 0
        for words in (["devices", "--json"], ["device", "list", "--json"], ["device", "list"], ["device", "revoke", "c2"]):
            assert cutlayer.main([*words, *fleet]) == 0
    assert cutlayer.main(["device", "approve", "c3", *fleet]) == 2
    said = capfd.readouterr()
    seen["what other verbs print"] = (said.out + said.err).encode()
    seen["the authority's log"] = "\n".join(field.authority.log).encode()
    seen["the broker's log"] = (field.broker.folder / "log").read_bytes()
    seen["what the device got"] = b"".join(agent.files.values()) + agent.signed
    for path in sorted(field.authority.fleet.folder.glob("fleet.sqlite*")):
        seen[path.name] = path.read_bytes()
    secrets = secrets_of(field)
    assert len(secrets) == 9
    assert [(where, file) for where, text in seen.items() for file, secret in secrets.items() if secret in text] == []
    assert all(len(text) > 20 for text in seen.values())


def test_files_that_hold_one_are_their_owners_alone(field: Field) -> None:
    with field.agent("c0"):
        assert field.deploy("--to", "c0").end() == ""
    for name in secrets_of(field):
        assert Path(name).stat().st_mode & 0o077 == 0, name
    for path in (field.authority.fleet.folder / "releases").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_the_repository_holds_none() -> None:
    names = (
        "cutlayer.py",
        "wire",
        "edge_client",
        "server",
        "export",
        "simulation",
        "fleet",
        "docs",
        "tests",
        "benchmarks",
        "tools",
        "examples",
    )
    files = [path for name in names for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*")) if path.is_file()]
    assert len(files) > 500
    found = [str(path) for path in files if "__pycache__" not in path.parts and KEY.search(path.read_bytes())]
    assert found == []
    assert [str(path) for path in files if path.suffix in (".key", ".token")] == []
