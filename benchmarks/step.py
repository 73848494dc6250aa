"""Seconds a training step: split over MQTT, against the unsplit step plus a bare MQTT round trip of the same bytes.

Each round measures all of them one after the other, so that what the machine does meanwhile befalls them alike.

    python benchmarks/step.py [ROUNDS]        writes docs/benchmarks/step.md
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import tomli_w
import torch

from benchmarks.common import hardware, spread, write_page
from edge_client.engine import load_engine
from export.prepare import build_model, build_segments, export_run
from server.broker import BrokerProcess, start_broker
from server.engine import TorchEngine
from server.losses import loss_of
from server.optimizers import torch_optimizer
from simulation.datasets import materialize
from simulation.parties import Parties, client_command, server_command
from simulation.run import feeds_of
from wire.codecs import PLAIN, decode_array, encode_array
from wire.codecs.affine import Int8
from wire.engine import Array
from wire.runfile import Run, load_run
from wire.tensors import decode_tensors, encode_tensors
from wire.transport.base import LinkUp, Received, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

BAR = 1.5
STEPS = 150  # of each client, in each round
WARM_UP = 15
BATCH = 64
T = TypeVar("T")


def run_file(folder: Path, name: str, schedule: str, threads: int) -> Path:
    facts = materialize("fashion-mnist", folder / "data")
    table = {
        "name": name,
        "epochs": 1,
        "batch_size": BATCH,
        "schedule": schedule,
        "weights_leave": schedule == "relay",
        "checkpoint_every": 100_000,
        "model": {"build": "lenet", "cut": ["pool2"]},
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        "codec": {"forward": "int8", "backward": "int8"},
        "data": dict(facts.data) | {"limit": BATCH * STEPS, "test": {"limit": BATCH}},
        "clients": [{"name": f"c{at}", "threads": threads, "data": {"shard": f"{at + 1}/2"}} for at in range(2)],
        "server": {"threads": threads},
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(table))
    return path


def split_steps(path: Path, url: str) -> tuple[float, int]:
    """(seconds a step, bytes of a step both ways): every party a process; start, hand-over and evaluation left out."""
    run = load_run(path)
    export_run(run, run.bundles)
    marks: list[list[tuple[int, float]]] = [[]]
    with Parties(run) as parties:
        parties.start("server", server_command(path, url))
        for client in run.clients:
            parties.start(client.name, client_command(path, client.name, url))
        moved = 0
        for event in parties.events():
            if event["party"] == "server" and event["event"] == "command":
                marks.append([])
            if event["party"] == "server" and event["event"] == "step":
                marks[-1].append((event["global_step"], time.perf_counter()))
            if event["event"] == "finished" and event["party"] != "server":
                moved += event["bytes_up"] + event["bytes_down"]
    pairs = [(turn[1], turn[-1]) for turn in marks if len(turn) > 2]
    seconds = sum(last[1] - first[1] for first, last in pairs) / sum(last[0] - first[0] for first, last in pairs)
    return seconds, moved // (2 * STEPS)


def unsplit_steps(run: Run, threads: int) -> list[float]:
    """Seconds of each step of the same network in one PyTorch process, batches included."""
    torch.set_num_threads(threads)
    model = build_model(run).train()
    optimizer = torch_optimizer(run.optimizer, list(model.parameters()))
    feed = feeds_of(run)[0]
    seconds = []
    for step in range(STEPS):
        begun = time.perf_counter()
        batch = feed.train(step)
        assert batch.target is not None
        optimizer.zero_grad()
        loss = loss_of(run.loss, model(torch.from_numpy(batch.inputs[0])), torch.from_numpy(batch.target))
        loss.backward()
        float(loss.detach())
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    return seconds[WARM_UP:]


def round_trips(url: str, size: int) -> list[float]:
    """Seconds of each publish and answer of ``size`` bytes, between two processes."""
    answers: SimpleQueue[TransportEvent] = SimpleQueue()
    peer = subprocess.Popen([sys.executable, __file__, "--echo", url], stdout=subprocess.PIPE)
    transport = MqttTransport(BrokerConfig(url=url), client_id="bench-a")
    try:
        assert peer.stdout is not None
        peer.stdout.readline()
        transport.open(("bench/b",), answers.put)
        while not isinstance(answers.get(timeout=10), LinkUp):
            pass
        seconds = []
        for turn in range(STEPS):
            begun = time.perf_counter()
            transport.publish("bench/f", bytes(size), turn)
            while not isinstance(answers.get(timeout=10), Received):
                pass
            seconds.append(time.perf_counter() - begun)
    finally:
        transport.close()
        peer.terminate()
        peer.wait()
        if peer.stdout is not None:
            peer.stdout.close()
    return seconds[WARM_UP:]


def echo(url: str) -> None:
    events: SimpleQueue[TransportEvent] = SimpleQueue()
    transport = MqttTransport(BrokerConfig(url=url), client_id="bench-b")
    transport.open(("bench/f",), events.put)
    while True:
        event = events.get()
        if isinstance(event, LinkUp):
            print("up", flush=True)
        if isinstance(event, Received):
            transport.publish("bench/b", event.payload, 0)


def payload(codec: Int8, array: Array) -> bytes:
    return encode_tensors([("x", array, encode_array(codec, codec, array, PLAIN))])


def received(data: bytes) -> Array:
    found = decode_tensors(data, lambda header, piece: decode_array(header.codec, piece, header.dtype, header.shape, PLAIN))
    return found["x"].array


def parts() -> dict[str, list[float]]:
    """Seconds of each part of a split step, in this process: the engines and codecs of both sides, one after the other."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        begun = time.perf_counter()
        made = work()
        found.setdefault(name, []).append(time.perf_counter() - begun)
        return made

    with tempfile.TemporaryDirectory() as folder:
        run = load_run(run_file(Path(folder), "parts", "independent", 1))
        export_run(run, run.bundles)
        client, feed = load_engine(run.bundles / "bottom", threads=1), feeds_of(run)[0]
        top = build_segments(run)["top"]
        codec = Int8()
        server = TorchEngine(top.module, inputs=top.inputs, outputs=top.outputs, optimizer=run.optimizer, loss=run.loss)
        for step in range(STEPS):
            batch = timed("client: batch", partial(feed.train, step))
            assert batch.target is not None
            (made,) = timed("client: forward", partial(client.forward, step, *batch.inputs))
            sent = timed("client: encode", partial(payload, codec, made))
            arrived = timed("server: decode", partial(received, sent))
            timed("server: forward", partial(server.forward, step, arrived, batch.target))
            grads = timed("server: backward and update", partial(server.backward, step))
            answer = timed("server: encode", partial(payload, codec, grads[0]))
            gradient = timed("client: decode", partial(received, answer))
            timed("client: backward and update", partial(client.backward, step, gradient))
    return {name: seconds[WARM_UP:] for name, seconds in found.items()}


@dataclasses.dataclass
class Row:
    """Medians of each round, in seconds. ``threads`` are the split run's, a process; unsplit, one process has 1 and then 2."""

    broker: str
    schedule: str
    threads: int
    split: list[float] = dataclasses.field(default_factory=list)
    unsplit: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    trip: list[float] = dataclasses.field(default_factory=list)
    size: int = 0

    @property
    def ratios(self) -> list[float]:
        """Against the faster of the two unsplit runs of the same round."""
        return [split / (min(unsplit) + trip) for split, unsplit, trip in zip(self.split, self.unsplit, self.trip, strict=True)]

    def measure(self, folder: Path, broker: BrokerProcess, turn: int) -> None:
        path = run_file(folder, f"{self.schedule}-{self.threads}-{broker.engine}-{turn}", self.schedule, self.threads)
        run = load_run(path)
        seconds, self.size = split_steps(path, broker.url)
        self.split.append(seconds)
        self.unsplit.append((statistics.median(unsplit_steps(run, 1)), statistics.median(unsplit_steps(run, 2))))
        self.trip.append(statistics.median(round_trips(broker.url, self.size // 2)))

    def line(self) -> str:
        ratio = statistics.median(self.ratios)
        verdict = "met" if ratio <= BAR else "missed"
        cells = [self.broker, self.schedule, str(self.threads), spread(self.split)]
        cells += [spread([pair[at] for pair in self.unsplit]) for at in (0, 1)]
        return f"| {' | '.join([*cells, spread(self.trip)])} | {ratio:.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f}): {verdict} |"


def measured(rounds: int) -> Iterator[Row]:
    rows = [
        Row(broker, schedule, threads)
        for broker in ("mosquitto", "embedded")
        for schedule in ("relay", "independent")
        for threads in (1, 2)
    ]
    with tempfile.TemporaryDirectory() as name, start_broker(engine="mosquitto") as first, start_broker(engine="embedded") as second:
        for turn in range(rounds):
            for row in rows:
                row.measure(Path(name), first if row.broker == "mosquitto" else second, turn)
    yield from rows


def main(rounds: int) -> None:
    rows, found = list(measured(rounds)), parts()
    write_page(
        "step",
        [
            "# Seconds a step",
            "",
            "LeNet on Fashion-MNIST, batch 64, cut after the second pooling, two clients, int8 both ways, loopback; every party a",
            f"process, on the cores of one machine. Median of {rounds} alternating rounds (quartiles); a ratio's range is the rounds'.",
            "Unsplit is one PyTorch process; the ratio is against the faster of its two columns, in the same round.",
            "",
            *hardware("torch", "onnxruntime", "paho-mqtt", "numpy"),
            f"- bytes a step, both ways, hand-over and evaluation shared out: {rows[0].size:,}",
            f"- script: `make bench-step`; bar: split <= {BAR} * (unsplit + round trip)",
            "",
            "| broker | schedule | threads a process | split | unsplit, 1 thread | unsplit, 2 threads | bare round trip | ratio |",
            "|---|---|---|---|---|---|---|---|",
            *(row.line() for row in rows),
            "",
            "Independent: while the server works for one client, the other computes; a step is what the slowest party needs. Relay: one",
            "client trains at a time, so a step is the sum of its parts. These parts, alone on the machine, one thread, make:",
            "",
            "| part | median (quartiles) |",
            "|---|---|",
            *(f"| {name} | {spread(seconds)} |" for name, seconds in found.items()),
            "",
            "What a relay step takes beyond their sum and a round trip is each frame's way between threads and processes that share",
            "the cores, and caches that the other parties have emptied.",
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--echo"]:
        echo(sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
