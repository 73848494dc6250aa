"""Devices of a fleet on this computer: an enrolled run over a secured mosquitto, with the agent of `c0` as a real process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.enroll.identity import Identity
from export.slicing import write_slice
from fleet.authority import pem_of
from fleet.state import Fleet
from tests.brokers import Broker, free_port
from tests.e2e.field import REPOSITORY, Field, small_run
from tests.fleet.fleets import secured
from tests.fleet.operator_peer import Operator, Signed, public_pem, signed
from wire.runfile import load_run

QUICK = ("--steady-s", "2", "--health-s", "60")


def enrolled(fleet: Fleet, name: str, folder: Path, *, agent: bool = False) -> Path:
    """The identity of ``name`` in ``folder``, with the agent's certificate beside it where wanted."""
    identity, authority = Identity(folder), fleet.authority()
    key = identity.key()
    identity.ca_pem.write_text(authority.pem)
    if agent:
        (folder / "agent.pem").write_text(pem_of(authority.sign_device(f"{name}.agent", key.public_key())))
    identity.cert_pem.write_text(pem_of(authority.sign_device(name, key.public_key())))
    return folder


@dataclass(kw_only=True)
class Board:
    """A device's folder as the card leaves it, and its agent once ``start`` was called."""

    name: str
    home: Path
    key: Ed25519PrivateKey
    files: dict[str, bytes]
    options: tuple[str, ...] = QUICK
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        words = [sys.executable, "-m", "edge_client.agent", "--home", str(self.home), "--name", self.name, *self.options]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        with open(self.home / "log", "ab") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def cut(self) -> None:
        """Power goes: agent and client are gone at once."""
        assert self.process is not None
        pids = [self.process.pid, *children(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def client_pid(self) -> int:
        assert self.process is not None
        found = children(self.process.pid)
        return found[0] if found else 0

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def release(self, version: int, files: dict[str, bytes | None] | None = None, **changes: Any) -> Signed:
        """What the card holds, with ``files`` added, changed or (None) left out."""
        whole = {path: data for path, data in ({**self.files, **(files or {})}).items() if data is not None}
        key = changes.pop("key", self.key)
        return signed(key, whole, version=version, device=changes.pop("device", self.name), **changes)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def board(name: str, home: Path, *, files: dict[str, bytes]) -> Board:
    """``files``: of release 0."""
    key = Ed25519PrivateKey.generate()
    for path, data in files.items():
        place = home / "releases/0" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    (home / "deploy.pub").write_bytes(public_pem(key))
    return Board(name=name, home=home, key=key, files=files)


def device_files(run_file: Path, party: str, *, home: Path, url: str, keys: Path) -> dict[str, bytes]:
    """run.toml and bundle/ of a party, as a card has them."""
    out = run_file.with_name(f"{party}.slice.toml")
    write_slice(run_file, party=party, out=out)
    table = tomllib.loads(out.read_text())
    table["slice"]["base"] = str(home)
    table["state_dir"] = "state"
    table["broker"] = {"url": url} | {name: str(keys / f"{name}.pem") for name in ("ca", "cert", "key")}
    bundles = load_run(run_file).bundles
    found = {f"bundle/{path.relative_to(bundles)}": path.read_bytes() for path in sorted(bundles.rglob("*")) if path.is_file()}
    return {"run.toml": tomli_w.dumps(table).encode()} | found


class AgentField(Field):
    """The server and `c1` as in any field; each with a run file that names its own identity."""

    def command(self, name: str) -> list[str]:
        return [word if word != str(self.path) else str(self.path.with_name(f"{name}.toml")) for word in super().command(name)]


@dataclass(kw_only=True)
class World:
    folder: Path
    fleet: Fleet
    broker: Broker
    field: AgentField
    board: Board

    def operator(self) -> Operator:
        return Operator(identity=self.folder / "operator", port=self.broker.port)


@contextlib.contextmanager
def world(folder: Path, **run: Any) -> Iterator[World]:
    """A broker that is up; nothing else is started. ``run``: of ``small_run``."""
    fleet = Fleet(folder=folder / "fleet")
    fleet.create("test fleet")
    port = free_port()
    url = f"mqtts://127.0.0.1:{port}"
    path = small_run(folder, broker={"url": url}, **run)
    for name in ("server", "c0", "c1", "operator"):
        enrolled(fleet, name, folder / name, agent=name == "c0")
    for name in ("server", "c1"):
        keys = {key: str(folder / name / f"{key}.pem") for key in ("ca", "cert", "key")}
        path.with_name(f"{name}.toml").write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | {"broker": {"url": url} | keys}))
    home = folder / "home"
    home.mkdir()
    mine = board("c0", home, files=device_files(path, "c0", home=home, url=url, keys=folder / "c0"))
    with secured(fleet, folder / "broker", run_file=path, port=port) as broker, contextlib.ExitStack() as stack:
        found = World(folder=folder, fleet=fleet, broker=broker, field=AgentField(path, url), board=mine)
        stack.callback(found.field.close)
        stack.callback(lambda: mine.process is None or mine.process.poll() is not None or mine.cut())
        yield found


def code_wheel(path: Path, *, version: str, members: dict[str, bytes] | None = None) -> Path:
    """The client's code as a wheel of ``version``; ``members``: files added to it, or put in place of its own."""
    found = {
        str(file.relative_to(REPOSITORY)): file.read_bytes()
        for room in ("wire", "edge_client")
        for file in (REPOSITORY / room).rglob("*.py")
    }
    about = f"cutlayer-{version}.dist-info"
    found |= {f"{about}/METADATA": f"Metadata-Version: 2.1\nName: cutlayer\nVersion: {version}\n".encode(), f"{about}/RECORD": b""}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in sorted((found | (members or {})).items()):
            wheel.writestr(name, data)
    return path
