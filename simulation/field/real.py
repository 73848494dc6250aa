"""The same run on real processes, each client behind a line of its own that is shaped: what virtual time is measured against.

With root, lines are the kernel's (``simulation.shaped``): server and broker at the hub, a client at each end, losses and round trips as
TCP has them. Without, each client has a proxy (``simulation.proxy``), which cannot lose packets.

What is counted. Servers are started first; when all of them have reached the broker, all clients are started. ``time_s`` begins when the
first client has reached the broker (its first link event) and ends when the last client has left, its goodbye flushed (its event
``finished``): dialling counts as little as the start of an interpreter, and nothing of what a modem does before TCP (``setup_s``). The
weather's time begins with ``time_s``. MQTT bytes are the parties' own counts of PUBLISH packets. Bytes of the line are the kernel's,
counted as the link's rate is; of a proxy, as a line of packets would have had them. Those of the history, too, are the line's. No joules,
and no seconds by kind: a process that waits does not know for what.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from export.prepare import build_segments, export_run
from simulation.field.link import CLEAR, Link
from simulation.field.presets import constants_of
from simulation.field.real_lines import LineKind, Lines, Outages, lines_for, shape_of
from simulation.field.result import FieldResult, Moment, PartyResult
from simulation.field.simulate import check_line, codec_of
from simulation.namespaces import why_not
from simulation.parties import Parties
from simulation.screen import Screen
from simulation.watch import Watch, numbers_of, own_command, result_of
from wire.errors import UsageError
from wire.runfile import Run

__all__ = ["run_over_line"]


def run_over_line(run: Run, link: Link, *, screen: Screen, lines: LineKind | None = None) -> FieldResult:
    """Run all parties to the end over ``link``. ``lines``: how lines are made; None: in the kernel where that is possible here.

    Raises UsageError, before anything is started: a link that these lines cannot be, or that carries nothing, with the reason; a run
    that was begun before. CutlayerError with the words of a party that failed. Whatever happens, no process and no network is left.
    """
    chosen = lines or ("proxy" if why_not() else "namespaces")
    shape_of(link, chosen)
    check_line(run, link)
    _check_new(run)
    if run.broker.tls:
        raise UsageError("[broker] asks for TLS, and `--real` runs over a broker of its own without it; leave `url` and certificates out")
    if not all((run.bundles / name / "manifest.json").is_file() for name in run.client_segments):
        export_run(run, run.bundles)
    begun_s = time.monotonic()
    with lines_for(link, len(run.clients), chosen) as held:
        told = _Told(run, screen, held)
        told.watch_parties(link)
        return told.result(link, chosen, wall_s=time.monotonic() - begun_s)


def _check_new(run: Run) -> None:
    """What an earlier run has done would be missing from the time and the bytes of this one."""
    begun = [client.name for client in run.clients if (run.state_of(client.name) / "party.json").exists()]
    if begun:
        raise UsageError(f"run {run.name} was begun before; remove {run.path(run.state_dir) / run.name} or name another folder")


# ------------------------------------------------------------ the run


@dataclass(slots=True)
class _Told:
    """What parties say of one run, and when, in seconds of its time."""

    run: Run
    screen: Screen
    lines: Lines
    begun_s: float | None = None  # time.monotonic
    ended_s: dict[str, float] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)
    history: list[Moment] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    drained: bool = False

    @property
    def names(self) -> list[str]:
        return [client.name for client in self.run.clients]

    def watch_parties(self, link: Link) -> None:
        """Start all parties and listen to them until all have ended."""
        segments = build_segments(self.run)
        servers = {server.name: own_command(self.run, server.name, segments, self.lines.server_url) for server in self.run.all_servers}
        clients = {name: own_command(self.run, name, segments, self.lines.client_url(at)) for at, name in enumerate(self.names)}
        with Parties(self.run) as parties, self.screen.bar("real") as advance, contextlib.ExitStack() as weather:
            watch = Watch(self.run, self.screen, advance)
            for name, command in servers.items():
                with self.lines.at_server():
                    parties.start(name, command)
            self._await_servers(parties, watch, set(servers))
            for at, (name, command) in enumerate(clients.items()):
                with self.lines.at_client(at):
                    parties.start(name, command)
            outages = Outages(link, self.lines, clients=len(clients), seed=self.run.seed, fail=parties.fail)
            for event in parties.events():
                watch.hear(event)
                if self._hear(event) and link.weather is not CLEAR:
                    weather.enter_context(outages)
            watch.over()
        self.metrics, self.drained = watch.metrics, watch.drained

    def _await_servers(self, parties: Parties, watch: Watch, waiting: set[str]) -> None:
        for event in parties.events():
            watch.hear(event)
            if event["event"] == "link" and event["up"]:
                waiting.discard(str(event["party"]))
            if not waiting:
                return
        raise UsageError(f"the servers of run {self.run.name} ended before a client was started")

    def _hear(self, event: Mapping[str, Any]) -> bool:
        """Whether the time of the run begins with this event."""
        party, heard_s = str(event.get("party")), float(event["heard_s"])
        begins = False
        if party in self.names and event["event"] == "link" and event["up"]:
            begins = self.begun_s is None
            self.begun_s = heard_s if self.begun_s is None else self.begun_s
            self.connections[party] = self.connections.get(party, 0) + 1
        if party in self.names and event["event"] in ("finished", "drained"):
            self.ended_s[party] = heard_s - (self.begun_s or heard_s)
        if event["event"] == "metrics" and party == self.run.coordinator and event["split"] == self.run.evaluate.splits[0]:
            self.history.append(self._moment(event, heard_s - (self.begun_s or heard_s)))
        return begins

    def _moment(self, event: Mapping[str, Any], time_s: float) -> Moment:
        carried = [self.lines.carried(at) for at in range(len(self.names))]
        return Moment(
            epoch=int(event["epoch"]),
            time_s=time_s,
            metrics=numbers_of(event),
            bytes_up=sum(each.up for each in carried),
            bytes_down=sum(each.down for each in carried),
            joules=0.0,
            busy_joules=0.0,
        )

    # ------------------------------------------------------------ what came of it

    def result(self, link: Link, lines: LineKind, *, wall_s: float) -> FieldResult:
        results = {name: result_of(self.run, name) for name in self.run.graph().parties}
        clients = [self._party(at, name, results[name]) for at, name in enumerate(self.names)]
        return FieldResult(
            run=self.run.name,
            mode="real",
            link=link.name,
            device="this",
            codec=codec_of(self.run),
            schedule=self.run.schedule,
            clients=len(clients),
            seed=self.run.seed,
            finished=not self.drained,
            why="the run was drained" if self.drained else "",
            time_s=max(self.ended_s.values(), default=0.0),
            samples=sum(int(results[name].get("samples", 0)) for name in self.names),
            metrics=self.metrics,
            history=self.history,
            parties=clients,
            constants={"link": constants_of(link), "lines": lines},
            wall_s=wall_s,
            version=importlib.metadata.version("cutlayer"),
            **{key: sum(getattr(client, key) for client in clients) for key in _SUMMED},
        )

    def _party(self, at: int, name: str, found: Mapping[str, Any]) -> PartyResult:
        carried, counts = self.lines.carried(at), found["counts"]
        return PartyResult(
            name=name,
            spent_s={},
            bytes_up=int(found["bytes_up"]),
            bytes_down=int(found["bytes_down"]),
            line_bytes_up=carried.up,
            line_bytes_down=carried.down,
            connections=self.connections.get(name, 0),
            applied=int(counts.get("applied", 0)),
            voided=int(counts.get("voided", 0)),
            joules=0.0,
            busy_joules=0.0,
        )


_SUMMED = ("applied", "voided", "bytes_up", "bytes_down", "line_bytes_up", "line_bytes_down", "joules", "busy_joules")
