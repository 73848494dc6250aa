"""What ``child.run_probe`` runs in a process of its own. Says in JSON lines what it is about to do and what it has found."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from wire.errors import CutlayerError

__all__ = ["MATMUL", "main"]

# In this order: a package comes after those that it needs.
_PACKAGES = {
    "numpy": "numpy",
    "safetensors": "safetensors.numpy",
    "paho-mqtt": "paho.mqtt.client",
    "cryptography": "cryptography.x509",
    "onnxruntime": "onnxruntime",
}
_STEPS, _FEWEST_STEPS = 20, 3
# The model y = x @ x of float32 [n, n], IR version 8, opset 17; tests/edge_client/test_doctor.py makes it anew with the onnx package.
MATMUL = bytes.fromhex(
    "08083a440a110a01780a017812017922064d61744d756c1201675a150a017812100a0e0801120a0a0312016e0a0312016e62150a017912100a0e0801"
    "120a0a0312016e0a0312016e42040a001011"
)


def main(words: Sequence[str]) -> None:
    """``packages``, or ``step FOLDER BATCH THREADS BUDGET_S`` with 0 threads for one a core."""
    if words[0] == "packages":
        _packages()
        return
    folder, batch, threads, budget_s = words[1:]
    try:
        _step(folder, int(batch), int(threads) or None, float(budget_s))
    except CutlayerError as exc:
        _tell(error=str(exc))


def _tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()  # the next line may never come


def _packages() -> None:
    for name, module in _PACKAGES.items():
        _tell(doing=f"import {name}")
        importlib.import_module(module)
        _tell(**{name: importlib.metadata.version(name)})
    _tell(doing="run a model in onnxruntime")
    import numpy as np
    import onnxruntime as ort

    x = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    (y,) = ort.InferenceSession(MATMUL, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    if not np.allclose(y, x @ x, rtol=1e-4, atol=1e-4):
        raise ArithmeticError("its matrix product differs from numpy's")


def _step(folder: str, batch: int, threads: int | None, budget_s: float) -> None:
    """Times training steps on random data, one at least, no new one after ``budget_s``."""
    _tell(doing="import the client")
    importlib.import_module("edge_client.process")  # what the client holds in memory beside the engine
    from edge_client.engine import load_engine
    from wire.process import peak_rss_bytes

    _tell(doing="open the bundle")
    engine = load_engine(folder, threads=threads)
    inputs = [_random(spec, batch) for spec in engine.inputs]
    grads = [] if engine.manifest.loss else [_random(spec, batch) for spec in engine.outputs]
    begin_s, times_s = time.perf_counter(), list[float]()
    while len(times_s) <= _STEPS and (len(times_s) <= _FEWEST_STEPS or time.perf_counter() - begin_s < budget_s):
        at_s = time.perf_counter()
        _tell(doing="forward")
        engine.forward(len(times_s), *inputs)
        _tell(doing="backward and update")
        engine.backward(len(times_s), *grads, lr=0.0)  # all of the work; but random steps could lead to numbers that are not finite
        times_s.append(time.perf_counter() - at_s)
    _tell(steps_s=times_s[1:], peak_rss_bytes=peak_rss_bytes())  # the first one makes the memory and warms up


def _random(spec: Any, batch: int) -> Any:
    """Floats from 0 to 1, which every loss takes; whole numbers are 0, which every table of classes or words has."""
    import numpy as np

    shape = spec.shape_at(batch)
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).random(shape).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)
