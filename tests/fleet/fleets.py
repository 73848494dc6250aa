"""A fleet of one computer: a real authority over TLS, devices that have enrolled there, mosquitto configured as for them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_client.enroll.enroll import Enrolment, enroll
from fleet.broker_config import write_broker_config
from fleet.enrolment import new_token, token_digest
from fleet.serve import AuthorityServer
from fleet.state import Fleet
from tests.brokers import MOSQUITTO, Broker, free_port, mosquitto_as_written

DAY_S = 86_400.0
PATIENCE_S = 30.0

RUN = """\
name = "clinics"
epochs = 1
schedule = "independent"
batch_size = 8
model = { build = "digits-cnn", cut = ["pool1"] }
optimizer = { kind = "sgd", lr = 0.1 }
data = { kind = "npz", path = "data.npz" }
clients = [{ name = "c0" }, { name = "c1" }]
[broker]
url = "mqtts://127.0.0.1:PORT"
"""


@dataclass(kw_only=True)
class Clock:
    """``now_s`` is to be set."""

    now_s: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now_s


@dataclass(kw_only=True)
class Served:
    """A running authority. ``log``: its lines."""

    fleet: Fleet
    server: AuthorityServer
    log: list[str]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.port}"

    def token(self, name: str, path: Path, *, hours: float = 1.0) -> str:
        """Adds the device; its token goes into ``path``."""
        token = new_token()
        with self.fleet.registry() as registry:
            registry.add(name, token_digest=token_digest(token), expires_s=self.fleet.clock() + hours * 3600)
        path.write_text(token + "\n")
        return token

    def enroll(self, name: str, folder: Path, *, token: Path | None = None, clock: Callable[[], float] | None = None) -> Enrolment:
        return enroll(
            name,
            url=self.url,
            ca=self.fleet.ca_pem,
            token=token,
            folder=folder,
            timeout_s=0.0,
            clock=clock or self.fleet.clock,
            say=lambda text: None,
        )

    def device(self, name: str, folder: Path) -> Path:
        """The folder of a device that has just enrolled."""
        self.token(name, folder / f"{name}.token")
        self.enroll(name, folder / name, token=folder / f"{name}.token")
        return folder / name


@contextlib.contextmanager
def served(folder: Path, *, approve: bool = False, clock: Callable[[], float] = time.time, whole_s: float = 30.0) -> Iterator[Served]:
    fleet = Fleet(folder=folder, clock=clock)
    if not fleet.ca_pem.exists():
        fleet.create("test fleet")
    log: list[str] = []
    with AuthorityServer(fleet, host="127.0.0.1", port=0, names=("127.0.0.1",), approve=approve, log=log.append, whole_s=whole_s) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Served(fleet=fleet, server=server, log=log)
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def secured(
    fleet: Fleet,
    out: Path,
    *,
    run_file: Path | None = None,
    port: int = 0,
    version: str | None = None,
    program: str = MOSQUITTO,
    plugin: str = "",
    insider: str = "",
) -> Iterator[Broker]:
    """A mosquitto with the configuration that is written for ``run_file``, whose broker has ``port``; left out, for ``RUN``.

    ``insider``: an identity that may read and write everything, as somebody at the broker can.
    """
    port = port or free_port()
    if run_file is None:
        run_file = out.parent / "run.toml"
        run_file.write_text(RUN.replace("PORT", str(port)))
    write_broker_config(
        fleet,
        [run_file],
        out=out,
        at=None,
        names=[],
        bind="127.0.0.1",
        mosquitto=version,
        acl_plugin=plugin or "mosquitto_acl_file.so",
        operator="operator",
        audit=True,
    )
    if insider:
        with open(out / "acl", "a") as acl:
            acl.write(f"\nuser {insider}\ntopic readwrite cl/#\n")
    with mosquitto_as_written(out, port=port, program=program) as broker:
        yield broker


def until(look: Callable[[], Any], what: object, *, patience_s: float = PATIENCE_S) -> Any:
    """What ``look`` finds that is not None."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        found = look()
        if found is not None:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not seen: {what}")
