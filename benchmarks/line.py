"""Goodput of a run on slow lines: server, broker and client are processes, the line between them is shaped in the kernel.

Needs root, iproute2 and iptables. Writes docs/benchmarks/line.md and line.json; takes about ten minutes, most of them waiting.

    python -m benchmarks.line
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import tomli_w
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.common import PAGES, hardware, write_page
from export.prepare import export_run
from simulation.datasets import materialize
from simulation.parties import Parties, client_command, server_command
from simulation.shaped import LineShape, ShapedLines, broker_at_hub
from wire.errors import CutlayerError
from wire.runfile import load_run

SAMPLE_UP_BYTES, SAMPLE_DOWN_BYTES = 2 * 400, 400  # 400 activations as fp16, their gradients as int8
STEPS = 400  # more than are ever waited for
BASE_ROUND_TRIP_S, LONG_ROUND_TRIP_S = 0.02, 0.6
BATCH = {9_600: 8, 64_000: 20, 250_000: 64}  # messages of 6, 16 and 51 kB
PIPELINED_BAR, SINGLE_BAR = 0.95, 0.85
TCP_SHARE = 1448 / 1514  # of a full frame, what TCP with timestamps leaves to its user
WINDOWS, WINDOW_STEPS = 3, 6
AT_ONCE = 3  # cells; a slow line leaves the processor alone

BIG_BYTES, BIG_LINE_BPS, BIG_KEEPALIVE_S, BIG_PATIENCE_S = 400_000, 160_000, 5, 120.0
_BIG_BATCH, _BIG_WIDTH = 50, 2000


_EXPORTING = threading.Lock()  # torch's tracing is for one thread at a time
_SS_KEYS = ("bytes_acked", "bytes_received", "bytes_retrans")


@dataclasses.dataclass(frozen=True)
class Counters:
    """Bytes so far: of Ethernet frames on the line, and of the client's socket (MQTT), which TCP may have sent more than once."""

    at_s: float
    step: int
    ethernet_up: int
    ethernet_down: int
    mqtt_up: int
    mqtt_down: int
    repeated_up: int

    @classmethod
    def read(cls, lines: ShapedLines, step: int) -> Counters:
        with lines.at_end(0):
            said = subprocess.run(["ss", "-tinH"], capture_output=True, text=True, check=True).stdout
        acked, received, repeated = (sum(map(int, re.findall(rf"\b{key}:(\d+)", said))) for key in _SS_KEYS)
        carried = lines.carried(0)
        return cls(time.monotonic(), step, carried.up, carried.down, acked, received, repeated)


@dataclasses.dataclass(frozen=True)
class Cell:
    rate_bps: int
    in_flight: int
    loss: float = 0.0
    round_trip_s: float = BASE_ROUND_TRIP_S

    @property
    def shape(self) -> LineShape:
        return LineShape(up_bps=self.rate_bps, down_bps=self.rate_bps, loss=self.loss, round_trip_s=self.round_trip_s)

    def share(self, first: Counters, last: Counters, up: float, down: float) -> float:
        """Of what the line can carry. Steps in flight: of the upward direction, which is the fuller one. One step: of one line's worth."""
        return (up if self.in_flight > 1 else up + down) * 8 / (last.at_s - first.at_s) / self.rate_bps

    def shares(self, first: Counters, last: Counters) -> dict[str, float]:
        samples = (last.step - first.step) * BATCH[self.rate_bps]
        counted = {
            "ethernet": (last.ethernet_up - first.ethernet_up, last.ethernet_down - first.ethernet_down),
            "mqtt": (last.mqtt_up - first.mqtt_up, last.mqtt_down - first.mqtt_down),
            "tensors": (samples * SAMPLE_UP_BYTES, samples * SAMPLE_DOWN_BYTES),
        }
        return {what: self.share(first, last, *both) for what, both in counted.items()}


def run_file(folder: Path, cell: Cell) -> Path:
    facts = materialize("fashion-mnist", folder / "data")
    batch = BATCH[cell.rate_bps]
    table = {
        "name": "line",
        "epochs": 1,
        "batch_size": batch,
        "in_flight": cell.in_flight,
        "checkpoint_every": 100_000,
        "model": {"build": "lenet", "cut": ["pool2"]},
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        "codec": {"forward": "fp16", "backward": "int8"},
        "data": dict(facts.data) | {"limit": batch * STEPS, "test": {"limit": batch}},
        "clients": [{"name": "c0", "threads": 1}],
        "server": {"threads": 1},
    }
    return written(folder, table)


def written(folder: Path, table: dict[str, Any]) -> Path:
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(table))
    run = load_run(path)
    with _EXPORTING:
        export_run(run, run.bundles)
    return path


@contextlib.contextmanager
def parties_on(lines: ShapedLines, path: Path) -> Iterator[Parties]:
    """Server and broker at the hub, the client at the end of the line."""
    run = load_run(path)
    with broker_at_hub(lines) as broker, Parties(run) as parties:
        with lines.at_hub():
            parties.start("server", server_command(path, broker.url))
        with lines.at_end(0):
            parties.start("c0", client_command(path, "c0", broker.url))
        yield parties


def windows(cell: Cell) -> list[tuple[Counters, Counters]]:
    """Counters at the ends of ``WINDOWS`` stretches of at least ``WINDOW_STEPS`` steps, once steps follow each other evenly."""
    marks: list[Counters] = []
    with (
        tempfile.TemporaryDirectory() as name,
        ShapedLines(cell.shape) as lines,
        parties_on(lines, run_file(Path(name), cell)) as parties,
    ):
        wanted = cell.in_flight + 2
        for event in parties.events():
            if event["party"] == "server" and event["event"] == "step" and event["global_step"] >= wanted:
                marks.append(Counters.read(lines, event["global_step"]))
                wanted = event["global_step"] + WINDOW_STEPS
                if len(marks) > WINDOWS:
                    break
    return list(itertools.pairwise(marks))


# ------------------------------------------------------------ one large message, a short keepalive


def big_file(folder: Path) -> Path:
    """Activations of 400,000 bytes."""
    (folder / "wide.py").write_text(
        "from torch import nn\n\n\ndef build() -> nn.Module:\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear(64, {_BIG_WIDTH}), nn.ReLU(), nn.Linear({_BIG_WIDTH}, 10))\n"
    )
    facts = materialize("digits", folder / "data")
    table = {
        "name": "big",
        "epochs": 1,
        "batch_size": _BIG_BATCH,
        "model": {"build": "wide.py:build", "cut": ["2"], "input_shape": [1, 8, 8]},
        "optimizer": {"kind": "sgd", "lr": 0.01},
        "codec": {"forward": "fp32", "backward": "int8"},
        "broker": {"keepalive_s": BIG_KEEPALIVE_S},
        "data": dict(facts.data) | {"limit": 10 * _BIG_BATCH, "test": {"limit": 10}},
        "clients": [{"name": "c0", "threads": 1}],
        "server": {"threads": 1},
    }
    return written(folder, table)


@dataclasses.dataclass
class Big:
    """``arrived_s``: of each message, from the client's last backward to the server's; fewer than asked for where patience ended."""

    arrived_s: list[float] = dataclasses.field(default_factory=list)
    link_down: int = 0


def big_messages() -> Big:
    found, sent_s = Big(), 0.0
    line = LineShape(up_bps=BIG_LINE_BPS, down_bps=BIG_LINE_BPS, round_trip_s=BASE_ROUND_TRIP_S)
    with tempfile.TemporaryDirectory() as name, ShapedLines(line) as lines, parties_on(lines, big_file(Path(name))) as parties:
        started_s = time.monotonic()
        for event in parties.events():
            now_s = time.monotonic()
            match event["party"], event["event"], event.get("op"):
                case ("c0", "command", "train") | ("c0", "step", None):
                    sent_s = now_s
                case "server", "step", None:
                    found.arrived_s.append(now_s - sent_s)
                case _, "link", None:
                    found.link_down += not event["up"]
            if len(found.arrived_s) == WINDOWS or now_s - started_s > WINDOWS * BIG_PATIENCE_S:
                return found
    return found


def paho_alone() -> tuple[int, int]:
    """(messages that arrived, connections lost) of paho with its own loop, one PUBLISH of the same size, the same line and keepalive."""
    arrived, lost = [0], [0]
    line = LineShape(up_bps=BIG_LINE_BPS, down_bps=BIG_LINE_BPS, round_trip_s=BASE_ROUND_TRIP_S)
    with ShapedLines(line) as lines:
        broker = broker_at_hub(lines)
        with lines.at_hub():
            receiver = paho.Client(CallbackAPIVersion.VERSION2, client_id="receiver")
            receiver.on_message = lambda *_: arrived.__setitem__(0, arrived[0] + 1)
            receiver.connect(lines.address, keepalive=60)
            receiver.subscribe("big", qos=1)
            receiver.loop_start()
        with broker:
            sender = paho.Client(CallbackAPIVersion.VERSION2, client_id="sender")
            sender.on_disconnect = lambda *_: lost.__setitem__(0, lost[0] + 1)
            with lines.at_end(0):
                sender.connect(lines.address, keepalive=BIG_KEEPALIVE_S)
                sender.loop_start()
            sender.publish("big", bytes(BIG_BYTES), qos=1)
            time.sleep(BIG_PATIENCE_S)
            counted = arrived[0], lost[0]
            for client in (sender, receiver):
                client.disconnect()
                client.loop_stop()
    return counted


# ------------------------------------------------------------ the page

CELLS = (
    *(Cell(rate_bps, in_flight) for rate_bps in BATCH for in_flight in (3, 1)),
    *(Cell(rate_bps, 3, loss, LONG_ROUND_TRIP_S) for rate_bps in BATCH for loss in (0.01, 0.02)),
    Cell(64_000, 1, 0.01, LONG_ROUND_TRIP_S),
)


def result(cell: Cell, found: Sequence[tuple[Counters, Counters]]) -> dict[str, Any]:
    shares = [cell.shares(first, last) for first, last in found]
    return {
        **dataclasses.asdict(cell),
        "batch": BATCH[cell.rate_bps],
        "seconds_a_step": [(last.at_s - first.at_s) / (last.step - first.step) for first, last in found],
        "shares": {what: [each[what] for each in shares] for what in shares[0]},
        "repeated_up": [(last.repeated_up - first.repeated_up) / max(1, last.mqtt_up - first.mqtt_up) for first, last in found],
    }


def percent(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def row(found: dict[str, Any]) -> str:
    shares, steps_s = found["shares"], found["seconds_a_step"]
    bar = PIPELINED_BAR if found["in_flight"] > 1 else SINGLE_BAR

    def judged(what: str) -> str:
        verdict = "met" if statistics.median(shares[what]) >= bar else "missed"
        return percent(shares[what]) + (f": {verdict}" if not found["loss"] else "")

    cells = [
        f"{found['rate_bps'] / 1000:g} kbit/s",
        f"{found['round_trip_s'] * 1000:.0f} ms",
        f"{found['loss']:.0%}",
        str(found["in_flight"]),
        f"{statistics.median(steps_s):.2f} s ({min(steps_s):.2f} to {max(steps_s):.2f})",
        judged("ethernet"),
        judged("mqtt"),
        percent(shares["tensors"]),
        f"{statistics.median(found['repeated_up']):.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def page(rows: Sequence[dict[str, Any]], big: Big, alone: tuple[int, int]) -> list[str]:
    sound = [each["shares"] for each in rows if each["in_flight"] > 1 and not each["loss"]]
    acks = [statistics.median(each["ethernet"]) - statistics.median(each["mqtt"]) / TCP_SHARE for each in sound]
    return [
        "# Goodput on slow lines",
        "",
        "LeNet on Fashion-MNIST, cut after the second pooling, one client; activations as fp16, gradients as int8, so that the way up is",
        "the fuller one. Server and mosquitto are in one network namespace, the client in another; the line between them is shaped in the",
        "kernel, the same rate both ways. Each cell is a run of its own; once steps follow each other evenly, its counters are read every",
        f"{WINDOW_STEPS} steps. Median (lowest to highest) of {WINDOWS} such windows.",
        "",
        *hardware("torch", "onnxruntime", "paho-mqtt"),
        "- script: `make bench-link-line` (root); raw figures: [line.json](line.json); accuracy against bytes: `make bench-link`",
        f"- batches of {', '.join(f'{batch} at {rate / 1000:g} kbit/s' for rate, batch in BATCH.items())}: messages up of"
        f" {', '.join(f'{batch * SAMPLE_UP_BYTES:,}' for batch in BATCH.values())} B, down of half of that",
        f"- bars, on a line without losses: {PIPELINED_BAR:.0%} with steps in flight, {SINGLE_BAR:.0%} with one, for either count",
        "",
        "What is counted is divided by what tbf lets through in Ethernet frames (1,500 B of IP and 14 B of header). With steps in",
        "flight it is the way up alone, against its own rate, both ways being used at once. With `in_flight = 1` one way rests while the",
        "other works, so it is both ways together, against the rate of one. *TCP/IP*: frames with all headers, acknowledgements and",
        "whatever TCP repeated. *MQTT*: bytes of the client's socket, each once. *Tensors*: the activations and gradients of the steps",
        "that were done. *Repeated*: what TCP sent again, of the bytes up.",
        "",
        "| line | round trip | packets lost | in flight | a step | TCP/IP | MQTT | tensors | repeated |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(row, rows),
        "",
        "The line is never idle while there is something to send: TCP/IP is at 100 %, and over it with `in_flight = 1`, as the",
        f"acknowledgements of one way go the other way meanwhile. MQTT cannot get there: TCP's headers leave it 1,448 of 1,514 B,"
        f" {TCP_SHARE:.1%}, and",
        f"the acknowledgements of what comes down, with packets that are not full, take another {min(acks):.1%} to {max(acks):.1%} of the"
        " way up. The client",
        "has each segment acknowledged at once, which a broker with Nagle's algorithm needs at the end of a message and no broker within",
        "it. On the long lines a lost packet costs its repetition, and TCP's smaller window after it.",
        "",
        "## A message of 400 kB, a line of 20 kB/s, a keepalive of 5 s",
        "",
        *big_lines(big, alone),
    ]


def big_lines(big: Big, alone: tuple[int, int]) -> list[str]:
    least_s = BIG_BYTES * 8 / BIG_LINE_BPS
    took = ", ".join(f"{each:.1f} s" for each in big.arrived_s) or "none"
    return [
        f"- Cutlayer, activations of {BIG_BYTES:,} B in a run with nothing but `keepalive_s = {BIG_KEEPALIVE_S}` set:"
        f" {len(big.arrived_s)} of {WINDOWS}",
        f"  arrived and were trained on ({took}; the bits alone take {least_s:.1f} s), connections lost: {big.link_down}.",
        f"- paho's own loop, one PUBLISH of the same size: {alone[0]} arrived within {BIG_PATIENCE_S:.0f} s, connections lost: {alone[1]}.",
    ]


def main() -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        alone, big = pool.submit(paho_alone), pool.submit(big_messages)
        rows = list(pool.map(lambda cell: result(cell, windows(cell)), CELLS))
    PAGES.mkdir(parents=True, exist_ok=True)
    facts = {
        "cells": rows,
        "big": dataclasses.asdict(big.result()),
        "paho_alone": {"arrived": alone.result()[0], "lost": alone.result()[1]},
    }
    (PAGES / "line.json").write_text(json.dumps(facts, indent=1) + "\n")
    write_page("line", page(rows, big.result(), alone.result()))


if __name__ == "__main__":
    try:
        main()
    except CutlayerError as exc:
        raise SystemExit(f"benchmarks.line: error: {exc}") from exc
