"""A fleet to deploy to: three devices that have enrolled, a run of which they are clients, a broker that lets them and the operator in."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cutlayer
from fleet.deploy.peer import Pace
from fleet.deploy.releases import ReleaseRow, Releases
from fleet.deploy.verb import DeployOptions, run_deploy
from tests.brokers import Broker
from tests.fleet.agents import Agent
from tests.fleet.fleets import PATIENCE_S, Served, secured, served, until
from wire.errors import CutlayerError

__all__ = ["DEVICES", "FAST", "Deploy", "Field", "deployable"]

FAST = Pace(ask_s=0.3, offer_s=1.0, away_s=2.0)
DEVICES = ("c0", "c1", "c2")


@dataclass(kw_only=True)
class Field:
    """``c0``, ``c1`` and ``c2`` are enrolled, with their identities in ``folder``, and are clients of ``run``."""

    folder: Path
    authority: Served
    broker: Broker
    run: Path
    bundle: Path

    def agent(self, name: str, **knobs: Any) -> Agent:
        port = self.broker.port
        return Agent(name=name, folder=self.folder / name, port=port, deploy_pub=self.authority.fleet.deploy_pub, **knobs)

    def words(self, *more: str) -> list[str]:
        """``cutlayer deploy`` to all; ``more`` options."""
        to = () if "--to" in more else ("--to", "all")
        fleet = str(self.authority.fleet.folder)
        return ["deploy", str(self.bundle), "--run", str(self.run), "--fleet", fleet, *to, *more]

    def deploy(self, *more: str) -> Deploy:
        return Deploy(self.words(*more))

    def find(self, device: str) -> ReleaseRow | None:
        with self.authority.fleet.registry() as registry:
            return Releases(registry).newest(device)

    def newest(self, device: str) -> ReleaseRow:
        row = self.find(device)
        assert row is not None
        return row

    def ends(self, device: str, outcome: str) -> None:
        """Wait for it."""
        until(lambda: ((row := self.find(device)) and row.outcome == outcome) or None, f"{device} {outcome}")


@dataclass
class Deploy:
    """One that is under way, in a thread of its own. ``end`` waits for it."""

    words: list[str]
    failure: CutlayerError | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        options = DeployOptions(**cutlayer._options(cutlayer._parser().parse_args(self.words)))
        try:
            run_deploy(options, slicer_of=cutlayer._slicer_of, pace=FAST)
        except CutlayerError as exc:
            self.failure = exc

    def end(self) -> str:
        """What it failed with, or nothing."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return "" if self.failure is None else str(self.failure)


@contextlib.contextmanager
def deployable(folder: Path, bundle: Path) -> Iterator[Field]:
    """``bundle``: of ``RUN``."""
    with served(folder / "fleet") as authority:
        for name in DEVICES:
            authority.device(name, folder)
        with secured(authority.fleet, folder / "broker") as broker:
            run = folder / "run.toml"
            run.write_text(run.read_text().replace('{ name = "c1" }', '{ name = "c1" }, { name = "c2" }'))
            yield Field(folder=folder, authority=authority, broker=broker, run=run, bundle=bundle)
