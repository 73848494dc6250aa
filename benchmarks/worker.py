"""One contender of the engine benchmark, in a process of its own: trains one segment whenever it is told to, and says what memory it took.

    python -m benchmarks.worker ENGINE FOLDER SEGMENT BATCH THREADS

Reads counts of steps on stdin, a line each, and answers with the seconds of each step; at the end of its input, with its memory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wire.process import peak_rss_bytes

Step = Callable[[int], None]


def resident_bytes() -> int:
    """Resident memory now."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS:"))


def stock(folder: Path, batch: int, threads: int, memory: str) -> tuple[Step, int]:
    from edge_client.engine import load_engine

    imported = resident_bytes()
    engine = load_engine(folder, threads=threads, memory=memory)
    inputs = [_draw(spec.shape, batch) for spec in engine.inputs]
    grads = [_draw(spec.shape, batch) for spec in engine.outputs]

    def step(at: int) -> None:
        engine.forward(at, *inputs)
        engine.backward(at, *grads)

    return step, imported


def eager(segment: str, batch: int, threads: int) -> tuple[Step, int]:
    import torch

    from benchmarks.segments import SEGMENTS

    torch.set_num_threads(threads)
    imported = resident_bytes()
    module = SEGMENTS[segment].build().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6, momentum=0.9)
    x = torch.from_numpy(_draw(("batch", *SEGMENTS[segment].shape), batch))
    with torch.no_grad():
        grad = torch.from_numpy(_draw(("batch", *module(x).shape[1:]), batch))

    def step(at: int) -> None:
        optimizer.zero_grad()
        module(x).backward(grad)
        optimizer.step()

    return step, imported


def _draw(shape: tuple[int | str, ...], batch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    sizes = [batch if dim == "batch" else int(dim) for dim in shape]
    return np.random.default_rng(0).standard_normal(sizes, dtype=np.float32) * np.float32(0.1)


def main(engine: str, folder: str, segment: str, batch: str, threads: str) -> None:
    if engine == "torch":
        step, imported = eager(segment, int(batch), int(threads))
    else:
        step, imported = stock(Path(folder), int(batch), int(threads), engine.partition("-")[2] or "fast")
    done = 0
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            begun = time.perf_counter()
            step(done)
            seconds.append(time.perf_counter() - begun)
            done += 1
        print(json.dumps(seconds), flush=True)
    print(json.dumps({"imported_bytes": imported, "peak_bytes": peak_rss_bytes()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
