"""A run over lines that are shaped in the kernel, and the phases of a run in which such a line is cut."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulation.shaped import LineShape, ShapedLines, broker_at_hub
from tests.e2e.field import Field, field, small_run
from wire.runfile import load_run

__all__ = ["CUT_LINE", "PHASES", "STEPS_A_LANE", "WIDE_STEPS", "Cut", "Phase", "cut_in_each_phase", "lines_run", "shaped_field", "wide_run"]

STEPS_A_LANE = 2 * 4
KEEPALIVE_S = 5
WIDE_STEPS = 20
_WIDTH, _WIDE_BATCH = 256, 64
# Long enough that a message is still under way when the line is cut upon word that it leaves.
CUT_LINE = LineShape(up_bps=64_000, down_bps=64_000, round_trip_s=0.2)


def lines_run(folder: Path, **changes: Any) -> Path:
    """A run of some seconds over 64 kbit/s: every phase that there is, few and small messages, and timers to match."""
    broker = {"keepalive_s": KEEPALIVE_S, "part_bytes": 4096}
    table = {"samples": 64, "test_samples": 16, "checkpoint_every": 4, "resend_after_s": 5.0, "broker": broker}
    return small_run(folder, **(table | changes))


def wide_run(folder: Path, *, in_flight: int, **changes: Any) -> Path:
    """One client and messages of 66 kB, of which ``in_flight`` are under way: ``WIDE_STEPS`` of them in each of two epochs."""
    (folder / "wide.py").write_text(
        "from torch import nn\n\n\ndef build() -> nn.Module:\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear(64, {_WIDTH}), nn.ReLU(), nn.Linear({_WIDTH}, 10))\n"
    )
    table = {
        "samples": _WIDE_BATCH * WIDE_STEPS,
        "test_samples": 16,
        "batch_size": _WIDE_BATCH,
        "in_flight": in_flight,
        "checkpoint_every": 1000,
        "resend_after_s": 1.0,
        "model": {"build": "wide.py:build", "cut": ["2"], "input_shape": [1, 8, 8]},
        "codec": {"forward": "fp32", "backward": "fp32"},
        "broker": {"keepalive_s": KEEPALIVE_S},
        "clients": [{"name": "c0", "threads": 1}],
    }
    return small_run(folder, **(table | changes))


@contextlib.contextmanager
def shaped_field(path: Path, shape: LineShape) -> Iterator[tuple[Field, ShapedLines]]:
    """Server and broker are at the hub, each client at the end of a line of its own."""
    clients = [client.name for client in load_run(path).clients]
    with ShapedLines(*[shape] * len(clients)) as lines, broker_at_hub(lines) as broker:

        def place(name: str) -> contextlib.AbstractContextManager[None]:
            return lines.at_end(clients.index(name)) if name in clients else lines.at_hub()

        with field(path, broker, place) as run:
            yield run, lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """``when``: of what the parties say, what marks the moment at which the line of client ``lane`` is cut."""

    name: str
    lane: int
    party: str
    event: str
    op: str | None = None

    def when(self, event: dict[str, Any]) -> bool:
        return event["party"] == self.party and event["event"] == self.event and event.get("op") == self.op


# Whoever says it is about to send: so what is cut is that message, on its way.
PHASES = (
    Phase(name="join", lane=0, party="c0", event="command", op="join"),
    Phase(name="restore", lane=0, party="server", event="command", op="restore"),
    Phase(name="train, forward", lane=0, party="c0", event="step"),
    Phase(name="train, backward", lane=0, party="server", event="step"),
    Phase(name="checkpoint", lane=0, party="c0", event="command", op="save"),
    Phase(name="hand-over, from the client", lane=0, party="c0", event="command", op="give"),
    Phase(name="hand-over, to the client", lane=1, party="server", event="command", op="take"),
    Phase(name="evaluation", lane=0, party="c0", event="command", op="evaluate"),
    Phase(name="weights collected", lane=1, party="c1", event="command", op="collect"),
    Phase(name="end", lane=0, party="server", event="command", op="end"),
    Phase(name="goodbye", lane=1, party="c1", event="command", op="end"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """When the line was cut, and when it was there again, by time.monotonic."""

    phase: Phase
    began_s: float
    ended_s: float

    def noticed(self, seen: list[dict[str, Any]]) -> bool:
        """The client's transport gave the connection up."""
        client = f"c{self.phase.lane}"
        downs = (event for event in seen if event["event"] == "link" and not event["up"] and event["party"] == client)
        return any(self.began_s < event["heard_s"] < self.ended_s + KEEPALIVE_S for event in downs)

    def recovery_s(self, seen: list[dict[str, Any]]) -> float | None:
        """From the line's return until the run moved on; None: it did not have to, as nothing had waited for the line."""
        signs = [event["heard_s"] for event in seen if event["event"] in ("command", "step", "finished", "checkpoint", "metrics")]
        return min((heard_s - self.ended_s for heard_s in signs if heard_s > self.ended_s), default=None)


def cut_in_each_phase(run: Field, lines: ShapedLines, cut_s: float, *, phases: tuple[Phase, ...] = PHASES) -> list[Cut]:
    """Cut a line once in each phase, as the phases come; returns when the last is through. Fails where one never comes."""
    left, cuts = list(phases), []
    while left:
        assert run.await_event(lambda event: any(phase.when(event) for phase in left), "the next phase", 120 + cut_s), run.words()
        phase = next(phase for phase in left if phase.when(run.seen[-1]))
        left.remove(phase)
        with lines.being_cut(phase.lane):
            began_s = time.monotonic()
            time.sleep(cut_s)
        cuts.append(Cut(phase=phase, began_s=began_s, ended_s=time.monotonic()))
    return cuts
