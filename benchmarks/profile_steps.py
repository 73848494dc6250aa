"""Which kinds of nodes a training step's time goes to, from onnxruntime's own profile of the graphs of a bundle."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.worker import draw
from edge_client.bundle import read_bundle

__all__ = ["hottest"]

STEPS = 8
SHOWN = 8


def hottest(folder: Path, batch: int) -> str:
    """Shares of a step, largest first, and the milliseconds that all nodes take."""
    bundle = read_bundle(folder)
    feed: dict[str, Any] = {f"{kind}.{name}": array for name, array in bundle.tensors.items() for kind in "pb"}
    feed |= {f"in.{spec.name}": draw(spec.shape, batch) for spec in bundle.manifest.inputs}
    feed |= {f"g.{spec.name}": draw(spec.shape, batch) for spec in bundle.manifest.outputs}
    feed["lr"] = np.zeros((), np.float32)
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for graph in ("forward", "step"):
            options = ort.SessionOptions()
            options.enable_profiling, options.profile_file_prefix = True, f"{name}/{graph}"
            options.intra_op_num_threads, options.enable_mem_pattern = 1, False
            session = ort.InferenceSession(bundle.graph(graph), options)
            inputs, outputs = [each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]
            for _ in range(STEPS):
                found = session.run(outputs, {each: feed[each] for each in inputs})
            feed |= dict(zip(outputs, map(np.asarray, found), strict=True))
            spent.update(_spent(Path(session.end_profiling())))
    total = sum(spent.values())
    shares = ", ".join(f"{kind} {microseconds / total:.0%}" for kind, microseconds in spent.most_common(SHOWN))
    return f"{total / STEPS / 1e3:.2f} ms: {shares}"


def _spent(path: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for event in json.loads(path.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            found[event["args"]["op_name"]] += event["dur"]
    return found
