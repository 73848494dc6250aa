"""A run over a slow line that loses packets, is cut or is long ends with the same parameters as over loopback, bit for bit."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from server.broker import start_broker
from simulation.namespaces import why_not
from simulation.proxy import TcpProxy
from simulation.shaped import LineShape
from tests.e2e.field import Field, field
from tests.e2e.shaped import CUT_LINE, PHASES, STEPS_A_LANE, WIDE_STEPS, cut_in_each_phase, lines_run, shaped_field, wide_run

REASON = why_not()
needs_lines = pytest.mark.skipif(REASON is not None, reason=str(REASON))
pytestmark = pytest.mark.timeout(600)


class Outcome:
    """What a run leaves behind."""

    def __init__(self, run: Field, steps_a_lane: int = STEPS_A_LANE) -> None:
        run.finish()
        run.check_ledgers(steps_a_lane)
        self.weights, self.losses = run.weights(), run.losses()
        self.ledgers = {name: run.ledger(name) for name in run.names}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and vars(self) == vars(other)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Over loopback."""
    with start_broker() as broker, field(lines_run(tmp_path_factory.mktemp("calm")), broker) as run:
        return Outcome(run)


@needs_lines
def test_a_slow_line_that_loses_packets_changes_nothing(calm: Outcome, tmp_path: Path) -> None:
    with shaped_field(lines_run(tmp_path), LineShape(up_bps=64_000, down_bps=64_000, loss=0.02)) as (run, lines):
        assert Outcome(run) == calm
        for lane, client in enumerate(run.run.clients):
            (told,) = (event for event in run.seen if event["event"] == "finished" and event["party"] == client.name)
            carried = lines.carried(lane)
            assert carried.up > told["bytes_up"]
            assert carried.down > told["bytes_down"]


@needs_lines
def test_a_line_cut_in_every_phase_changes_nothing(calm: Outcome, tmp_path: Path) -> None:
    with shaped_field(lines_run(tmp_path), CUT_LINE) as (run, lines):
        cuts = cut_in_each_phase(run, lines, 1.0)
        assert {cut.phase for cut in cuts} == set(PHASES)
        assert Outcome(run) == calm


def test_a_line_that_is_late_stalls_and_breaks_changes_nothing(calm: Outcome, tmp_path: Path) -> None:
    """All parties reach the broker through a proxy; this needs no root."""
    with (
        start_broker() as broker,
        TcpProxy((broker.host, broker.port), delay_s=0.05) as proxy,
        field(lines_run(tmp_path), f"mqtt://127.0.0.1:{proxy.port}") as run,
    ):
        assert run.await_step(2)
        proxy.stall()
        time.sleep(2.0)
        proxy.go_on()
        assert run.await_step(6)
        proxy.cut("reset")
        assert run.await_step(9)
        proxy.cut("silent")
        assert Outcome(run) == calm
    downs = [event for event in run.seen if event["event"] == "link" and not event["up"]]
    assert {event["party"] for event in downs} == {"server", "c0", "c1"}
    assert len(downs) >= 2 * 3, "each of them was cut off twice"


@needs_lines
def test_steps_in_flight_on_a_long_line_that_goes_down(tmp_path: Path) -> None:
    """Eight steps under way: they cost less time than one would, a line that is down piles nothing up, and no bit changes."""
    round_trip_s, in_flight = 0.3, 8
    for name in ("loopback", "long"):
        (tmp_path / name).mkdir()
    with start_broker() as broker, field(wide_run(tmp_path / "loopback", in_flight=in_flight), broker) as run:
        wanted = Outcome(run, 2 * WIDE_STEPS)
    shape = LineShape(up_bps=20_000_000, down_bps=20_000_000, round_trip_s=round_trip_s)
    with shaped_field(wide_run(tmp_path / "long", in_flight=in_flight), shape) as (run, lines):
        begun_s, ended_s = (heard_s(run, op) for op in ("train", "evaluate"))
        # Not a bar for speed: no run with one step in flight can be this quick.
        assert ended_s - begun_s < WIDE_STEPS * round_trip_s
        assert run.await_step(WIDE_STEPS + 2)
        with lines.being_cut():
            time.sleep(1.5)  # what may still leave has left, and everybody waits
            before = {name: resident_bytes(run.processes[name].pid) for name in run.names}
            most = dict(before)
            for _ in range(40):
                time.sleep(0.2)
                most = {name: max(most[name], resident_bytes(run.processes[name].pid)) for name in run.names}
        # Another copy of all that is under way would be 0.5 MB, and the timers here would make one a second.
        assert max(most[name] - before[name] for name in run.names) < 2 << 20, (before, most)
        assert run.await_event(lambda event: event["event"] == "link" and not event["up"], "a line that is down")
        assert Outcome(run, 2 * WIDE_STEPS) == wanted


def heard_s(run: Field, op: str) -> float:
    """When the server said that it begins ``op``."""
    wanted = {"party": "server", "event": "command", "op": op}
    assert run.await_event(lambda event: event | wanted == event, f"command {op}")
    return float(run.seen[-1]["heard_s"])


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
