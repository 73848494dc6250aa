"""Real-line mode: the run that is simulated, on real processes behind lines that are shaped; and what such lines cannot be."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from simulation.field.device import Device
from simulation.field.link import Link
from simulation.field.real import run_over_line
from simulation.field.real_lines import LineKind, shape_of
from simulation.field.simulate import Setting, simulate
from simulation.field.weather import Markov, Steps, outages
from simulation.namespaces import why_not
from simulation.screen import Screen
from tests.e2e.field import REPOSITORY, small_run
from wire.errors import UsageError
from wire.runfile import Run, load_run

REASON = why_not()
BOARD = Device(name="board", flops=2e10, step_s=0.0005, idle_w=0.0, flop_j=0.0, memory_bytes=1 << 30)
OUTAGE_S = 1.0
LINK = Link(name="field", up_bps=250_000, down_bps=250_000, round_trip_s=0.02, weather=outages([(0.1, OUTAGE_S)]))
STEPS = 4


def one_client(folder: Path) -> Run:
    folder.mkdir()
    clients = [{"name": "c0", "threads": 1}]
    codec = {"forward": "lowbit", "backward": "lowbit"}
    # Nobody becomes impatient on a busy computer, so no message goes twice.
    path = small_run(folder, samples=16 * STEPS, test_samples=16, epochs=1, clients=clients, codec=codec, resend_after_s=60.0)
    return load_run(path)


@pytest.mark.parametrize("lines", ["namespaces", "proxy"])
def test_a_run_over_real_lines_carries_the_bytes_of_the_simulated_one(lines: LineKind, tmp_path: Path) -> None:
    if lines == "namespaces" and REASON is not None:
        pytest.skip(REASON)
    wanted = simulate(one_client(tmp_path / "virtual"), Setting(link=LINK, device=BOARD, server_device=BOARD))
    run = one_client(tmp_path / "real")
    with Screen() as screen:
        found = run_over_line(run, LINK, screen=screen, lines=lines)
        with pytest.raises(UsageError, match="was begun before; remove"):
            run_over_line(run, LINK, screen=screen, lines=lines)
    assert (found.mode, found.link, found.clients, found.finished, found.why) == ("real", "field", 1, True, "")
    assert (found.applied, found.voided, found.samples) == (STEPS, 0, 16 * STEPS)
    assert (found.bytes_up, found.bytes_down) == (wanted.bytes_up, wanted.bytes_down)
    assert found.line_bytes_up > found.bytes_up
    assert found.line_bytes_down > found.bytes_down
    (moment,), (party,) = found.history, found.parties
    assert OUTAGE_S < moment.time_s < found.time_s < found.wall_s
    assert moment.metrics == found.metrics["test"]
    assert moment.metrics["accuracy"] == pytest.approx(wanted.metrics["test"]["accuracy"])
    assert 0 < moment.bytes_up <= party.line_bytes_up == found.line_bytes_up
    assert party.connections == 1
    assert found.constants["link"]["up_bps"] == {"value": 250_000, "source": "given by the user"}


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    run = one_client(tmp_path / "run")
    code = (
        "import sys\nfrom simulation.field.link import Link\nfrom simulation.field.real import run_over_line\n"
        "from simulation.screen import Screen\nfrom wire.runfile import load_run\n"
        "link = Link(name='slow', up_bps=2000, down_bps=2000, round_trip_s=0.1)\n"
        "with Screen() as screen: run_over_line(load_run(sys.argv[1]), link, screen=screen)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run" / "run.toml")], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline_s = time.monotonic() + 60
        while not (run.state_of("c0") / "ledger.sqlite").exists():
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.1)
        children = children_of(process.pid)
        assert len(children) >= 3, "a broker, a server and a client"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def children_of(pid: int) -> list[int]:
    """Those that some thread of the process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


WEATHERS = {"half the rate": {"up": 0.5, "down": 0.5}, "one way": {"up": 0.0, "down": 1.0}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"half_duplex": True}, "half duplex"),
        ({"duty_cycle": 0.1}, "duty cycle"),
        ({"cell": 3}, "clients share a cell"),
        ({"jitter_s": 0.1}, "jitter"),
        ({"up_bps": 500.0}, "below 1,000 bit/s"),
        ({"mtu_bytes": 200}, "`mtu_bytes` 576 to 1500"),
        ({"weather": Steps(begins_s=(0.0, 9.0), up=(1.0, 0.0), down=(1.0, 0.0))}, "down for good"),
        ({"setup_s": 5.0, "weather": Markov(up_s=60, down_s=5)}, "after each outage cannot be shaped; set setup_s=0"),
        *(
            (
                {"weather": dataclasses.replace(outages([(5, 5)]), up=(1.0, each["up"], 1.0), down=(1.0, each["down"], 1.0))},
                "either whole or down",
            )
            for each in WEATHERS.values()
        ),
    ],
)
def test_what_no_real_line_can_be(changes: dict[str, Any], reason: str) -> None:
    for lines in ("namespaces", "proxy"):
        with pytest.raises(UsageError, match=f"link `field` cannot be made of a real line: .*{reason}"):
            shape_of(dataclasses.replace(LINK, **changes), lines)


def test_what_a_proxy_cannot_be() -> None:
    lossy = dataclasses.replace(LINK, loss=0.01)
    assert shape_of(lossy, "namespaces").loss == 0.01
    with pytest.raises(UsageError, match=r"loses packets, .* need root"):
        shape_of(lossy, "proxy")


def test_a_link_becomes_a_shape() -> None:
    link = dataclasses.replace(LINK, frame_bytes=8, mtu_bytes=1000, setup_s=5.0, weather=Link(name="", up_bps=1, down_bps=1).weather)
    shape = shape_of(link, "namespaces")
    assert (shape.up_bps, shape.down_bps, shape.round_trip_s, shape.mtu_bytes, shape.frame_bytes) == (250_000, 250_000, 0.02, 1000, 8)
    assert shape_of(dataclasses.replace(LINK, weather=Markov(up_s=60, down_s=5)), "proxy").loss == 0
