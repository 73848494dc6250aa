"""Lets a world of virtual time run to its end, and says what came of it."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from export.prepare import export_run
from simulation.field.account import account, both
from simulation.field.cost import CostMaker, cost_maker
from simulation.field.device import Device
from simulation.field.energy import JOULES_PER_WH
from simulation.field.link import Link
from simulation.field.path import HEADER_BYTES, Stuck
from simulation.field.presets import constants_of
from simulation.field.result import FieldResult, Moment, PartyResult
from simulation.field.resume import Kept, Standing
from simulation.field.sizes import sampled_sizes
from simulation.field.train import TrainMaker
from simulation.field.world import Client, World
from wire.errors import UsageError
from wire.runfile import Run
from wire.transport.mqtt_connection import SILENCE
from wire.transport.window import SLOW_KEEPALIVE_S, SMALLEST_PART_BYTES

__all__ = ["LIMIT_S", "Interrupted", "Setting", "check_line", "codec_of", "simulate"]

LIMIT_S = 366 * 86400.0
_PARTIES = 200  # that a result tells of one by one
_TIMELINES = 24
_NOTES = 20  # of a kind that are shown
_LEAST_LOOK_S = 1.0  # between two looks at a battery


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. ``result``: of what was done by then."""

    def __init__(self, result: FieldResult) -> None:
        super().__init__()
        self.result = result


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run is simulated on. ``limit_s``: of line time, after which it counts as one that never ends."""

    link: Link
    device: Device
    server_device: Device
    limit_s: float = LIMIT_S


def check_line(run: Run, link: Link) -> None:
    """Raises UsageError where no connection over ``link`` would live long enough to carry one part of a message."""
    keepalive_s = run.broker.keepalive_s or SLOW_KEEPALIVE_S
    part_bytes = min(run.broker.part_bytes, SMALLEST_PART_BYTES) + HEADER_BYTES
    for way, rate_bps in (("up", link.up_bps * link.duty_cycle), ("down", link.down_bps * link.duty_cycle)):
        took_s = math.inf if rate_bps == 0 else 8 * part_bytes / rate_bps
        if took_s > SILENCE * keepalive_s:
            raise UsageError(
                f"the link `{link.name}` carries {rate_bps:g} bit/s {way}: a part of {part_bytes} bytes takes {took_s:.0f} s, but a "
                f"connection is given up after {SILENCE * keepalive_s:.0f} s of silence; lower `part_bytes` or raise `keepalive_s` in "
                "[broker], or take another link"
            )


def simulate(
    run: Run,
    setting: Setting,
    *,
    mode: Literal["train", "cost"] = "train",
    samples: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FieldResult:
    """Train ``run`` in virtual time, from its last checkpoint where it was interrupted. Its state lies where the run file says.

    ``mode`` "cost": nothing is trained, but for a few steps of the first clients; see ``simulation.field.cost``. ``samples``: in cost mode,
    so many for each client. Raises CutlayerError for what the parties' own processes would refuse, and UsageError for a line that cannot
    carry it. A run that does not end is a result that says why.
    """
    check_line(run, setting.link)
    if mode == "cost":
        say("training a few steps, to see how long messages are")
        sizes = sampled_sizes(run, run.path(run.state_dir) / "sample", samples=samples)
        with _rare_collections():
            return _Simulation(run, setting, cost_maker(run, sizes, samples=samples), say, progress).result()
    if not all((run.bundles / name / "manifest.json").is_file() for name in run.client_segments):
        export_run(run, run.bundles)
    return _Simulation(run, setting, TrainMaker(run), say, progress).result()


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Thousands of parties are millions of objects that stay to the end; looking through them again and again finds little."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Simulation:
    def __init__(
        self, run: Run, setting: Setting, maker: TrainMaker | CostMaker, say: Callable[[str], None], progress: Callable[[int, int], None]
    ) -> None:
        self._run, self._setting, self._say, self._progress = run, setting, say, progress
        self._maker = maker
        self._trains = isinstance(maker, TrainMaker)
        self._world = World(run, setting.link, setting.device, setting.server_device, maker, self._hear)
        words = repr((importlib.metadata.version("cutlayer"), run.digest, setting.link, setting.device, setting.server_device))
        self._kept = Kept(run.path(run.state_dir) / run.name / "field.json", words)
        self._begun = Standing()
        self._history: list[Moment] = []
        self._metrics: dict[str, dict[str, float]] = {}
        self._why = ""
        self._linked_s: float | None = None
        self._done = self._total = self._told = self._epoch = 0
        self._notes: Counter[str] = Counter()
        self._own: defaultdict[str, dict[str, dict[str, float]]] = defaultdict(dict)  # by split and client

    def result(self) -> FieldResult:
        begun_s = time.perf_counter()
        try:
            self._world.build()
            self._take_up()
            self._world.start()
            for client in self._world.clients.values():
                self._look_at_battery(client)
            self._go()
        except Stuck as exc:
            self._why = str(exc)
        except KeyboardInterrupt as exc:
            self._why = "interrupted; the same command " + ("goes on from the last checkpoint" if self._trains else "begins anew")
            self._world.close()
            raise Interrupted(self._summed(time.perf_counter() - begun_s)) from exc
        finally:
            self._world.close()
        return self._summed(time.perf_counter() - begun_s)

    def _take_up(self) -> None:
        """Go on where an interrupted simulation stood at the newest checkpoint that all parties have."""
        if not isinstance(self._maker, TrainMaker):
            return
        self._begun = self._kept.load(self._maker.checkpoints)
        self._world.clock.now_s = self._begun.time_s
        self._history, self._metrics = list(self._begun.history), dict(self._begun.metrics)

    def _go(self) -> None:
        clock, limit_s = self._world.clock, self._setting.limit_s
        while not self._world.over and not self._why:
            if not clock.step():
                self._why = "nothing is left that could happen: every party waits for another"
            elif clock.now_s > limit_s:
                self._why = f"it was not over after {limit_s / 86400:,.0f} days of line time"

    # ------------------------------------------------------------ what parties say

    def _hear(self, time_s: float, party: str, event: str, fields: Mapping[str, Any]) -> None:
        if event == "link" and fields["up"] and self._linked_s is None and party in self._world.clients:
            self._linked_s = time_s
        if event == "step" and party in self._world.servers:
            self._done = max(self._done, int(fields["global_step"]) + 1)
            self._advance()
        elif event == "metrics" and party in self._world.clients:
            self._own_measured(time_s, party, fields)
        elif party != self._run.coordinator:
            return
        elif event == "command":
            self._total = int(fields.get("total_steps", self._total))
            self._epoch = int(fields.get("epoch", self._epoch))
        elif event == "checkpoint" and self._trains:
            self._kept.save(int(fields["id"]), self._standing(time_s))
        elif event == "metrics" and self._trains:
            self._measured(time_s, fields)
        elif event == "note" and fields["kind"] not in ("repeat", "void"):
            self._note(time_s, str(fields["kind"]), str(fields["text"]))

    def _note(self, time_s: float, kind: str, text: str) -> None:
        self._notes[kind] += 1
        if self._notes[kind] <= _NOTES:
            self._say(f"after {time_s:,.0f} s: {text}")
        elif self._notes[kind] == _NOTES + 1:
            self._say(f"after {time_s:,.0f} s: more like this, which are not shown")

    def _advance(self) -> None:
        """Tell how far it is, not more often than anybody could see."""
        share = 1000 * self._done // max(1, self._total)
        if share != self._told or self._total < 1000:
            self._told = share
            self._progress(self._done, self._total)

    def _own_measured(self, time_s: float, party: str, fields: Mapping[str, Any]) -> None:
        """The loss is at the clients, and in the field each keeps what it measures to itself: here the mean is told, by samples."""
        clients = self._world.clients
        told = self._own[str(fields["split"])]
        told[party] = {key: value for key, value in fields.items() if isinstance(value, float)}
        if len(told) == len(clients):
            samples = sum(client.samples for client in clients.values())
            mean = {key: sum(told[name][key] * client.samples for name, client in clients.items()) / samples for key in told[party]}
            told.clear()
            self._measured(time_s, {**fields, **mean})

    def _measured(self, time_s: float, fields: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in fields.items() if isinstance(value, float)}
        split, epoch = str(fields["split"]), int(fields["epoch"])
        self._metrics[split] = numbers
        if split != self._run.evaluate.splits[0]:
            return
        clients = self._standing(time_s).clients.values()
        self._history.append(
            Moment(
                epoch=epoch,
                time_s=time_s,
                metrics=numbers,
                bytes_up=sum(client.bytes_up for client in clients),
                bytes_down=sum(client.bytes_down for client in clients),
                joules=sum(client.joules for client in clients),
                busy_joules=sum(client.busy_joules for client in clients),
            )
        )
        told = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items())
        self._say(f"epoch {epoch + 1}, after {time_s:,.0f} s of line time: {told}")

    def _standing(self, time_s: float) -> Standing:
        clients = {name: self._account(client, time_s) for name, client in self._world.clients.items()}
        return Standing(time_s=time_s, history=self._history, metrics=self._metrics, clients=clients)

    def _account(self, client: Client, end_s: float, *, timeline: bool = False) -> PartyResult:
        setting, begun = self._setting, self._begun
        found = account(client, setting.link, setting.device, begin_s=begun.time_s, end_s=end_s, timeline=timeline)
        before = begun.clients.get(found.name)
        return found if before is None else both(before, found)

    # ------------------------------------------------------------ batteries

    def _look_at_battery(self, client: Client) -> None:
        """Empty: the client falls silent. Otherwise look again when it could be, at full load."""
        device, link, clock = self._setting.device, self._setting.link, self._world.clock
        if device.battery_wh is None or client.party.ended_s is not None:
            return
        left_j = device.battery_wh * JOULES_PER_WH - self._account(client, clock.now_s).joules
        if left_j <= 0:
            client.battery_empty_s = clock.now_s
            client.party.stop()
            if not self._run.absences or self._world.over:
                over = len(self._history) if self._trains else self._epoch
                epoch = f"in epoch {over + 1}" if over else "before the first epoch was over"
                self._why = f"the battery of `{client.party.name}` was empty after {clock.now_s:,.0f} s, {epoch}"
            return
        most_w = device.idle_w + link.radio.idle_w + device.flop_j * device.flops + link.radio.tail_w
        most_w += link.radio.byte_j * (link.up_bps + link.down_bps) / 8
        clock.after(max(_LEAST_LOOK_S, left_j / most_w), lambda: self._look_at_battery(client))

    # ------------------------------------------------------------ the result

    def _summed(self, wall_s: float) -> FieldResult:
        run, setting, world = self._run, self._setting, self._world
        ends_s = [client.party.ended_s or world.clock.now_s for client in world.clients.values()]
        time_s = max(ends_s, default=world.clock.now_s)
        clients = [self._account(client, time_s, timeline=at < _TIMELINES) for at, client in enumerate(world.clients.values())]
        found = {key: sum(getattr(client, key) for client in clients) for key in _SUMMED}
        return FieldResult(
            run=run.name,
            mode="train" if self._trains else "cost",
            link=setting.link.name,
            device=setting.device.name,
            codec=codec_of(run),
            schedule=run.schedule,
            clients=len(clients),
            seed=run.seed,
            finished=not self._why,
            why=self._why,
            time_s=time_s,
            linked_s=self._linked_s or 0.0,
            samples=sum(client.samples for client in world.clients.values()),
            metrics=self._metrics,
            history=self._history,
            parties=clients[:_PARTIES],
            constants={
                "link": constants_of(setting.link),
                "device": constants_of(setting.device),
                "server": constants_of(setting.server_device),
            },
            wall_s=wall_s,
            version=importlib.metadata.version("cutlayer"),
            **found,
        )


_SUMMED = ("applied", "voided", "bytes_up", "bytes_down", "line_bytes_up", "line_bytes_down", "joules", "busy_joules")


def codec_of(run: Run) -> str:
    """The run's codecs, as the ``--codec`` of the demo has them."""
    codec = run.codec
    if run.averages and not run.edges:
        return codec.weights
    return codec.forward if codec.forward == codec.backward else f"{codec.forward}/{codec.backward}"
