"""One contender of the engine benchmark, in a process of its own: trains one segment whenever it is told to, and says what memory it took.

    python -m benchmarks.worker ENGINE BUNDLE SEGMENT BATCH THREADS

ENGINE is torch, stock-fast, stock-low or onnx-ad. Reads counts of steps on stdin, a line each, and answers with the seconds of each step;
at the end of its input, with its memory. A step is forward, backward and update, from arrays in memory to updated weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wire.process import peak_rss_bytes

Step = Callable[[int], None]
LR = 1e-6  # random gradients for thousands of steps: the weights must stay where they are


def resident_bytes() -> int:
    """Resident memory now."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS:"))


def stock(folder: Path, batch: int, threads: int, memory: Any) -> tuple[Step, int]:
    from edge_client.engine import load_engine

    imported = resident_bytes()
    engine = load_engine(folder, threads=threads, memory=memory)
    inputs = [draw(spec.shape, batch) for spec in engine.inputs]
    grads = [draw(spec.shape, batch) for spec in engine.outputs]

    def step(at: int) -> None:
        engine.forward(at, *inputs)
        engine.backward(at, *grads, lr=LR)

    return step, imported


def eager(segment: str, batch: int, threads: int) -> tuple[Step, int]:
    import torch

    from benchmarks.segments import SEGMENTS

    torch.set_num_threads(threads)
    imported = resident_bytes()
    module = SEGMENTS[segment].build().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    x = torch.from_numpy(draw(("batch", *SEGMENTS[segment].shape), batch))
    with torch.no_grad():
        grad = torch.from_numpy(draw(("batch", *module(x).shape[1:]), batch))

    def step(at: int) -> None:
        optimizer.zero_grad()
        module(x).backward(grad)
        optimizer.step()

    return step, imported


def graph_autodiff(folder: Path, batch: int, threads: int) -> tuple[Step, int]:
    """The bundle's own forward, differentiated by onnx-ad; the bundle's own optimizer."""
    import onnx
    import onnxruntime as ort
    from onnx_ad import reverse

    from edge_client.bundle import read_bundle

    imported = resident_bytes()
    bundle = read_bundle(folder)
    trained = [f"p.{spec.name}" for spec in bundle.manifest.parameters if spec.gradient]
    outputs = [f"out.{spec.name}" for spec in bundle.manifest.outputs]
    forward = onnx.load_from_string(bundle.graph("forward_low"))
    for value in (*forward.graph.input, *forward.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = batch  # its gradients of convolutions want every shape declared
    forward = onnx.shape_inference.infer_shapes(forward)
    model = reverse(forward, inputs=trained, outputs=outputs, prefix="adj_", layout="onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    backward = ort.InferenceSession(model.SerializeToString(), options)
    optimizer = ort.InferenceSession(bundle.graph("optimizer"), options)
    state = {f"{kind}.{name}": array for name, array in bundle.tensors.items() for kind in "pb"}
    feed = {f"in.{spec.name}": draw(spec.shape, batch) for spec in bundle.manifest.inputs}
    feed |= {f"adj_out.{spec.name}": draw(spec.shape, batch)[..., None] for spec in bundle.manifest.outputs}
    names, updated = [each.name for each in backward.get_inputs()], [each.name for each in optimizer.get_outputs()]
    wanted = [*outputs, *(f"adj_{name}" for name in trained)]

    def step(at: int) -> None:
        found = backward.run(wanted, {name: (feed | state)[name] for name in names})
        gradients = {f"g{name}": grad.reshape(state[name].shape) for name, grad in zip(trained, found[len(outputs) :], strict=True)}
        given = gradients | {"lr": np.array(LR, np.float32)}
        new = optimizer.run(updated, {each.name: given.get(each.name, state.get(each.name)) for each in optimizer.get_inputs()})
        state.update({name.removesuffix(".new"): array for name, array in zip(updated, new, strict=True)})

    return step, imported


def draw(shape: tuple[int | str, ...], batch: int) -> Any:
    sizes = [batch if dim == "batch" else int(dim) for dim in shape]
    return np.random.default_rng(0).standard_normal(sizes, dtype=np.float32) * np.float32(0.1)


def opened(engine: str, folder: Path, segment: str, batch: int, threads: int) -> tuple[Step, int]:
    if engine == "torch":
        return eager(segment, batch, threads)
    if engine == "onnx-ad":
        return graph_autodiff(folder, batch, threads)
    return stock(folder, batch, threads, engine.removeprefix("stock-"))


def main(engine: str, folder: str, segment: str, batch: str, threads: str) -> None:
    step, imported = opened(engine, Path(folder), segment, int(batch), int(threads))
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
