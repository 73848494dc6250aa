"""Runs inside the ARM image, on what the image has: trains bundles and compares with what PyTorch gave on x86-64.

    replay.py parity FOLDER...            each folder: a bundle and golden.safetensors, as tests/arm/cases.py writes them
    replay.py train BUNDLE OUT            STEPS steps of SGD on drawn data; the weights go to OUT (safetensors)

Prints one JSON line a folder. It imports neither torch nor the tests, so it runs as a lone file beside its data.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from edge_client import StockEngine, load_engine

Array = NDArray[Any]
GOLDEN = "golden.safetensors"
STEPS = 20
# As the export's own parity gate allows: a share of the tensor's largest value, and of the largest of its kind, for a value that is zero
# but for rounding; of an update, a share of what it moves.
RELATIVE, OF_KIND, ROUNDING = 1e-4, 1e-5, 4 * float(np.finfo(np.float32).eps)


class Golden:
    """Tensors by name, grouped by their first two words: ``0.out`` are the outputs of step 0."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="np") as file:
            self.tensors: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            self.noise = frozenset(json.loads((file.metadata() or {}).get("noise", "[]")))

    def group(self, prefix: str) -> dict[str, Array]:
        return {name[len(prefix) + 1 :]: value for name, value in self.tensors.items() if name.startswith(prefix + ".")}

    @property
    def steps(self) -> range:
        return range(1 + max(int(name.partition(".")[0]) for name in self.tensors if name[0].isdigit()))


def replay(folder: Path) -> dict[str, Any]:
    """The largest error as a multiple of what is allowed, and where it is."""
    golden, engine = Golden(folder / GOLDEN), load_engine(folder, threads=1)
    errors: dict[str, float] = {}
    for step in golden.steps:
        engine.load_state(golden.group(f"{step}.state"))
        errors |= {f"{step}.{name}": error for name, error in _step(engine, golden, step)}
    names = [spec.name for spec in engine.inputs if spec.name != "target"]
    found, wanted = engine.infer(*(golden.tensors[f"infer.in.{name}"] for name in names)), golden.group("infer.out")
    errors |= {f"infer.{name}": error(value, wanted[name]) for name, value in zip(wanted, found, strict=True)}
    worst = max(errors, key=lambda name: errors[name])
    return {"case": folder.name, "compared": len(errors), "worst": errors[worst], "where": worst}


def _step(engine: StockEngine, golden: Golden, step: int) -> Iterator[tuple[str, float]]:
    inputs, grads = golden.group(f"{step}.in"), golden.group(f"{step}.grad")
    made = engine.forward(step, *(inputs[spec.name] for spec in engine.inputs))
    for spec, value in zip(engine.outputs, made, strict=True):
        # A loss close to 0 is ln(1 + tiny): a float32 has what it has of the 1.
        yield f"out.{spec.name}", error(value, golden.tensors[f"{step}.out.{spec.name}"], float(engine.manifest.loss is not None))
    wanted = golden.group(f"{step}.gin")
    scale = max((float(np.abs(value).max()) for value in wanted.values()), default=0.0)
    given = () if engine.manifest.loss is not None else tuple(grads[spec.name] for spec in engine.outputs)
    for spec, gradient in zip(engine.inputs, engine.backward(step, *given), strict=True):
        if gradient is not None:
            yield f"gin.{spec.name}", error(gradient, wanted[spec.name], scale)
    before, after, state = golden.group(f"{step}.state"), golden.group(f"{step}.after"), engine.state()
    for name, value in after.items():
        if name not in golden.noise:
            yield name, moved(before[name], state[name], value) if name.startswith("p.") else error(state[name], value)


def error(found: Array, wanted: Array, scale: float = 0.0) -> float:
    """The largest difference as a multiple of what is allowed; NaN and wrong shapes are infinitely much."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    allowed = RELATIVE * float(np.abs(wanted).max(initial=0.0)) + OF_KIND * scale + 1e-7
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)) / allowed


def moved(before: Array, found: Array, wanted: Array) -> float:
    """The same for an update: a small learning rate would hide a wrong one in the parameter's own size."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    moves = float(np.abs(wanted.astype(np.float64) - before).max(initial=0.0))
    allowed = RELATIVE * moves + ROUNDING * np.abs(wanted) + 1e-9
    return float((np.abs(found.astype(np.float64) - wanted) / allowed).max(initial=0.0))


# ------------------------------------------------------------ the same training on both machines


def drawn(name: str, step: int, shape: tuple[int, ...]) -> Array:
    """float32 in [-1, 1), of raw words of a counter-based generator: the same bits on every machine and with every numpy."""
    words = np.random.Philox(key=[int.from_bytes(name.encode()[:8].ljust(8), "little"), step]).random_raw(int(np.prod(shape)))
    return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(shape)


def batch_of(specs: Mapping[str, tuple[int | str, ...]], step: int, batch: int = 4) -> dict[str, Array]:
    """A batch of each tensor that ``specs`` names, with a shape whose first dimension is the batch."""
    return {name: drawn(name, step, (batch, *(int(dim) for dim in shape[1:]))) for name, shape in specs.items()}


def train(bundle: Path) -> dict[str, Array]:
    """Parameters and buffers after STEPS steps with the optimizer of the bundle; the upstream gradient is drawn too."""
    engine = load_engine(bundle, threads=1)
    for step in range(STEPS):
        inputs = batch_of({spec.name: spec.shape for spec in engine.inputs}, step)
        grads = batch_of({f"g {spec.name}": spec.shape for spec in engine.outputs}, step)
        engine.forward(step, *inputs.values())
        engine.backward(step, *grads.values())
    return engine.parameters()


def main(argv: list[str]) -> int:
    print(json.dumps({"machine": platform.machine(), "python": platform.python_version(), "onnxruntime": ort.__version__}), flush=True)
    if argv[0] == "train":
        save_file(train(Path(argv[1])), argv[2])
        return 0
    for name in argv[1:]:
        print(json.dumps(replay(Path(name))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
