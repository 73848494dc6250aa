"""The device engine against PyTorch eager, onnxruntime-training and onnx-ad: seconds of a full training step, and memory.

Every contender is a process that trains one segment; they take turns, a few steps each, and wait while another one works.

    python -m benchmarks.engine [--rounds N] [--segments lenet,vgg11] [--ort-training-python PATH]

Writes docs/benchmarks/engine.md and engine.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import PAGES, hardware, write_page
from benchmarks.profile_steps import hottest
from benchmarks.segments import SEGMENTS, BenchSegment
from benchmarks.start import start_seconds
from export import SGD, export_segment
from wire.errors import ExportError

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ("torch", "stock-fast", "stock-low", "ort-training", "onnx-ad")
BAR_MEAN, BAR_EACH, BAR_LOW, BAR_START_S = 0.8, 1.2, 0.4, 0.5
TURN_S = 0.6  # how long a contender works before it is the next one's turn
MB = 1e6


@dataclass
class Contender:
    """What one engine did on one segment: the median of each turn, in seconds, and its memory."""

    seconds: list[float] = field(default_factory=list)
    imported_bytes: int = 0
    peak_bytes: int = 0
    refused: str = ""

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    def plain(self) -> dict[str, Any]:
        if not self.seconds:
            return {"refused": self.refused}
        low, _, high = statistics.quantiles(self.seconds, n=4)
        memory = {"imported_bytes": self.imported_bytes, "peak_bytes": self.peak_bytes}
        return {"median_s": self.median_s, "quartiles_s": [low, high], "turns": len(self.seconds), **memory}


@dataclass
class Row:
    segment: str
    threads: int
    found: dict[str, Contender] = field(default_factory=dict)

    def ratio(self, to: str = "torch") -> float | None:
        """Of the stock engine's step to another's: the median of the turns' ratios."""
        mine, other = self.found["stock-fast"].seconds, self.found[to].seconds
        return statistics.median([a / b for a, b in zip(mine, other, strict=True)]) if other else None


# ------------------------------------------------------------ contenders


class Worker:
    """A process of ``benchmarks.worker``."""

    def __init__(self, engine: str, bundle: Path, segment: str, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", engine, bundle, segment, SEGMENTS[segment].batch, threads]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([str(each) for each in command], cwd=ROOT, **pipes)
        self.steps = 3
        first = statistics.median(self.turn())
        self.steps = max(3, min(400, int(TURN_S / first)))

    def turn(self) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{self.steps}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.communicate()[1].strip().splitlines()[-1][:200])
        found: list[float] = json.loads(line)
        return found

    def memory(self) -> dict[str, int]:
        out, _ = self.process.communicate(timeout=60)
        found: dict[str, int] = json.loads(out.splitlines()[-1])
        return found


class OrtTraining:
    """onnxruntime-training 1.19.2, in its own environment: a new process each turn."""

    def __init__(self, python: str, bundle: Path, segment: str, threads: int) -> None:
        self.command = [python, "-m", "benchmarks.ort_training_step", str(bundle), "--threads", str(threads)]
        self.command += ["--batch", str(SEGMENTS[segment].batch)]
        self.last: dict[str, Any] = {}
        self.steps = 3
        self.steps = max(3, min(400, int(TURN_S / statistics.median(self.turn()))))

    def turn(self) -> list[float]:
        done = subprocess.run([*self.command, "--steps", str(self.steps)], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or f"died of {done.returncode}").splitlines()[-1][:200])
        self.last = json.loads(done.stdout)
        found: list[float] = self.last["step_s"]
        return found

    def memory(self) -> dict[str, int]:
        return {"imported_bytes": self.last["import_rss_bytes"], "peak_bytes": self.last["peak_rss_bytes"]}


def measured(row: Row, bundle: Path, artifacts: Path | str, python: str | None, rounds: int) -> None:
    workers: dict[str, Worker | OrtTraining] = {}
    for engine in CONTENDERS:
        row.found[engine] = Contender()
        try:
            if engine != "ort-training":
                workers[engine] = Worker(engine, bundle, row.segment, row.threads)
            elif python is None or isinstance(artifacts, str):
                row.found[engine].refused = artifacts if isinstance(artifacts, str) else "no interpreter was named"
            else:
                workers[engine] = OrtTraining(python, artifacts, row.segment, row.threads)
        except RuntimeError as exc:
            row.found[engine].refused = str(exc)
    for _ in range(rounds):
        for engine, worker in workers.items():
            row.found[engine].seconds.append(statistics.median(worker.turn()))
    for engine, worker in workers.items():
        memory = worker.memory()
        row.found[engine].imported_bytes, row.found[engine].peak_bytes = memory["imported_bytes"], memory["peak_bytes"]


def exported(name: str, segment: BenchSegment, folder: Path, python: str | None) -> tuple[Path, Path | str]:
    """The bundle, and the one with onnxruntime-training's artifacts, or why there is none."""
    torch.manual_seed(0)
    module, examples = segment.build(), (torch.randn(2, *segment.shape),)
    export_segment(module, examples, folder / name, optimizer=SGD(lr=0.01), name=name)
    if python is None:
        return folder / name, "no interpreter was named"
    both = folder / f"{name}-both"
    try:
        export_segment(
            module, examples, both, optimizer=SGD(lr=0.01), name=name, engines=("stock", "ort-training"), ort_training_python=python
        )
    except ExportError as exc:
        return folder / name, str(exc)
    return folder / name, both


# ------------------------------------------------------------ the page


def mean_ratio(rows: Sequence[Row]) -> float:
    ratios = [ratio for row in rows if (ratio := row.ratio()) is not None]
    return math.exp(sum(math.log(each) for each in ratios) / len(ratios))


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def milliseconds(one: Contender) -> str:
    if not one.seconds:
        return "-"
    low, middle, high = statistics.quantiles(one.seconds, n=4)
    return f"{middle * 1e3:.2f} ({low * 1e3:.2f} to {high * 1e3:.2f})"


def speed_table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| segment | threads | {' | '.join(f'{name}, ms' for name in CONTENDERS)} | stock-fast / torch | / ort-training | / onnx-ad |"
    yield "|---" * (len(CONTENDERS) + 5) + "|"
    for row in rows:
        ratios = [row.ratio(name) for name in ("torch", "ort-training", "onnx-ad")]
        cells = [milliseconds(row.found[name]) for name in CONTENDERS] + ["-" if each is None else f"{each:.2f}" for each in ratios]
        yield f"| {row.segment} | {row.threads} | {' | '.join(cells)} |"


def memory_table(rows: Sequence[Row]) -> Iterator[str]:
    titles = (f"{name}: peak, above its imports" for name in ("torch", "fast", "low"))
    yield f"| segment | {' | '.join(titles)} | low / torch | fast <= torch above |"
    yield "|---|---|---|---|---|---|"
    for row in (row for row in rows if row.threads == 1):
        cells, above = [], {}
        for name in ("torch", "stock-fast", "stock-low"):
            one = row.found[name]
            above[name] = one.peak_bytes - one.imported_bytes
            cells.append(f"{one.peak_bytes / MB:.0f}, {above[name] / MB:.0f} MB")
        share = row.found["stock-low"].peak_bytes / row.found["torch"].peak_bytes
        cells += [f"{share:.2f}: {verdict(share <= BAR_LOW)}", verdict(above["stock-fast"] <= above["torch"])]
        yield f"| {row.segment} | {' | '.join(cells)} |"


def summary(rows: Sequence[Row], start_s: Sequence[float]) -> Iterator[str]:
    for threads in sorted({row.threads for row in rows}):
        mine = [row for row in rows if row.threads == threads]
        mean, worst = mean_ratio(mine), max(mine, key=lambda row: row.ratio() or 0.0)
        yield f"- {threads} thread{'s' * (threads > 1)}: geometric mean {mean:.2f} (bar {BAR_MEAN}): {verdict(mean <= BAR_MEAN)}; " + (
            f"slowest against PyTorch: {worst.segment}, {worst.ratio():.2f} (bar {BAR_EACH}): {verdict((worst.ratio() or 0.0) <= BAR_EACH)}"
        )
    against = [(row, ratio) for row in rows if (ratio := row.ratio("ort-training")) is not None]
    slower = [f"{row.segment} at {row.threads} ({ratio:.2f})" for row, ratio in against if ratio >= 1]
    yield f"- faster than onnxruntime-training in {len(against) - len(slower)} of {len(against)}: {verdict(not slower)}" + (
        f"; not on {', '.join(slower)}" if slower else ""
    )
    middle = statistics.median(start_s)
    yield f"- start of a client's process to its first forward: {middle:.2f} s (bar {BAR_START_S}): {verdict(middle <= BAR_START_S)}"


def page(rows: Sequence[Row], start_s: Sequence[float], refusals: Sequence[str], hot: Sequence[str], rounds: int) -> list[str]:
    return [
        "# The device engine",
        "",
        f"A full training step (forward, backward, SGD) of a client's segment. Medians and quartiles of {rounds} turns of {TURN_S} s;",
        "contenders take turns, each in a process of its own. `stock-fast` and `stock-low` are the engine's memory modes on stock",
        "onnxruntime; `torch` is PyTorch eager; `ort-training` is onnxruntime-training 1.19.2 with its own Module and Optimizer; `onnx-ad`",
        "differentiates the bundle's forward graph. Split training needs the forward before the gradient is there: the first three take",
        "calls, the others one.",
        "",
        *hardware("torch", "onnxruntime", "numpy", "onnx-ad"),
        "- script: `make bench-engine`",
        f"- batches: {', '.join(f'{name} {SEGMENTS[name].batch}' for name in dict.fromkeys(row.segment for row in rows))}",
        "",
        *summary(rows, start_s),
        "",
        *speed_table(rows),
        "",
        "## Memory",
        "",
        "Peak resident memory of a process that only trains that segment, one thread. Bars: low at most "
        f"{BAR_LOW} of the PyTorch process; fast no more above its imports than PyTorch above its own.",
        "",
        *memory_table(rows),
        "",
        "## Segments",
        "",
        *(f"- {name}: {SEGMENTS[name].about}, {list(SEGMENTS[name].shape)}" for name in dict.fromkeys(row.segment for row in rows)),
        "",
        "## Where the time goes",
        "",
        "Shares of the stock engine's step by kind of node, one thread, from onnxruntime's profile:",
        "",
        *hot,
        *(["", "Not built by the others:", "", *refusals] if refusals else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--segments", default=",".join(SEGMENTS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--ort-training-python")
    args = parser.parse_args()
    rows: list[Row] = []
    refusals: list[str] = []
    hot: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cutlayer-bench-") as name:
        folder = Path(name)
        for segment in args.segments.split(","):
            bundle, artifacts = exported(segment, SEGMENTS[segment], folder, args.ort_training_python)
            for threads in map(int, args.threads.split(",")):
                rows.append(Row(segment, threads))
                measured(rows[-1], bundle, artifacts, args.ort_training_python, args.rounds)
                print("\n".join(speed_table(rows[-1:])), flush=True)
            refusals += [f"- {segment}, {name}: {one.refused}" for name, one in rows[-1].found.items() if one.refused]
            hot.append(f"- {segment}: {hottest(bundle, SEGMENTS[segment].batch)}")
        start_s = start_seconds(folder / args.segments.split(",")[0])
    write_page("engine", page(rows, start_s, refusals, hot, args.rounds))
    data = [{"segment": row.segment, "threads": row.threads, **{name: one.plain() for name, one in row.found.items()}} for row in rows]
    means = {str(threads): mean_ratio([row for row in rows if row.threads == threads]) for threads in {row.threads for row in rows}}
    (PAGES / "engine.json").write_text(json.dumps({"rows": data, "geometric_mean": means, "start_s": start_s}, indent=1) + "\n")


if __name__ == "__main__":
    main()
