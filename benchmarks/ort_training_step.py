"""Times full training steps of onnxruntime-training 1.19.2 on a bundle that holds its artifacts. Runs in the environment that has it:

    ort/bin/python -m benchmarks.ort_training_step BUNDLE --batch 32 --threads 1 --steps 50

A step is one call of its own ``Module`` (forward and backward), then its own ``Optimizer``: the shortest way that it has, and one forward
less than split training with it takes. Prints JSON: seconds of each step, and resident bytes of the process after the imports and at most.
Threads are those of the ``SessionOptions`` that Module is given; Optimizer takes Module's. ``open_module`` is for other scripts.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# onnxruntime loads onnx where it finds it; a device has none, and this process is to be as large as there.
sys.modules.setdefault("onnx", None)  # type: ignore[arg-type]

import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402

from wire.manifest import BundleManifest, TensorSpec, load_manifest  # noqa: E402

__all__ = ["main", "open_module"]


def open_module(bundle: Path, *, threads: int) -> tuple[Any, Any, Any]:
    """Its Module, Optimizer and CheckpointState of a bundle, by its own programming interface."""
    package = types.ModuleType("onnxruntime.training")  # the package itself would import torch
    package.__path__ = [str(Path(ort.__file__).parent / "training")]
    sys.modules["onnxruntime.training"] = package
    try:
        from onnxruntime.training import api
    except ImportError as exc:
        raise SystemExit(f"onnxruntime {ort.__version__} has no training; run this in an environment with onnxruntime-training") from exc
    if not (bundle / "optimizer_model.onnx").is_file():
        raise SystemExit(f"{bundle} has no optimizer_model.onnx: onnxruntime-training has no optimizer like this bundle's")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    state = api.CheckpointState.load_checkpoint(str(bundle / "checkpoint"))
    module = api.Module(str(bundle / "training_model.onnx"), state, session_options=options)
    module.train()
    return module, api.Optimizer(str(bundle / "optimizer_model.onnx"), module), state


def main(argv: Sequence[str] | None = None) -> None:
    """Time, and print the JSON."""
    parser = argparse.ArgumentParser(description="Time full training steps of onnxruntime-training on a bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    args = parser.parse_args(argv)
    imported = _resident_bytes()
    manifest = load_manifest((args.bundle / "manifest.json").read_text(), where=str(args.bundle))
    module, optimizer, _ = open_module(args.bundle, threads=args.threads)
    optimizer.set_learning_rate(1e-4)
    feed = _feed(manifest, args.batch)
    inputs = [ort.OrtValue.ortvalue_from_numpy(feed[name]) for name in module.input_names()]
    seconds = []
    for _ in range(args.warmup + args.steps):
        start_s = time.perf_counter()
        module(*inputs)
        optimizer.step()
        module.lazy_reset_grad()
        seconds.append(time.perf_counter() - start_s)
    found = {"step_s": seconds[args.warmup :], "import_rss_bytes": imported, "peak_rss_bytes": _resident_bytes()}
    print(json.dumps({"onnxruntime": ort.__version__, "batch": args.batch, "threads": args.threads} | found))


def _feed(manifest: BundleManifest, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)

    def drawn(spec: TensorSpec) -> np.ndarray[Any, Any]:
        shape = [batch if isinstance(dim, str) else dim for dim in spec.shape]
        if spec.dtype.startswith("float"):
            return random.standard_normal(shape).astype(spec.dtype)
        return np.zeros(shape, spec.dtype)

    return {f"in.{spec.name}": drawn(spec) for spec in manifest.inputs} | {f"g.{spec.name}": drawn(spec) for spec in manifest.outputs}


def _resident_bytes() -> int:
    """The most that this process has held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main()
