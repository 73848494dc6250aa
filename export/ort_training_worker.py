"""Makes onnxruntime-training's artifacts, and runs them, in an interpreter that has onnxruntime-training and onnx but not Cutlayer.

By path: ``PYTHON -I ort_training_worker.py VERB FOLDER``. It imports nothing of Cutlayer and no torch. 1.19.2 may kill the process that
it runs in; otherwise a failure is the last line of stderr.

    versions   prints the versions of Python, onnxruntime-training and onnx as JSON
    build      reads forward.onnx and request.json; writes training_model.onnx, checkpoint and, where asked for, optimizer_model.onnx
    run        reads training_model.onnx and feed.npz; writes result.npz: every gradient, under the graph's names
"""

from __future__ import annotations

import copy
import json
import platform
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

__all__ = ["main"]

_BUFFER, _FLAG = ".accumulation.buffer", ".accumulation.out"


def main(verb: str, folder: Path) -> None:
    """``versions``, ``build`` or ``run``; see above."""
    {"versions": _versions, "build": _build, "run": _run}[verb](folder)


def _versions(_: Path) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    found = {"python": platform.python_version(), "onnxruntime": ort.__version__, "onnx": onnx.__version__}
    print(json.dumps(found | {"trains": hasattr(native, "GradientGraphBuilder")}))


def _build(folder: Path) -> None:
    artifacts, onnxblock = _training_package()
    request = json.loads((folder / "request.json").read_text())
    model = onnx.load(folder / "forward.onnx")
    artifacts.generate_artifacts(
        model,
        requires_grad=[*request["trained"], *request["input_gradients"]],
        frozen_params=request["fixed"],
        loss=_surrogate(onnxblock, request["outputs"]) if request["outputs"] else None,
        optimizer=_optimizer(onnxblock, request["optimizer"]),
        artifact_directory=str(folder),
    )
    _free_inputs(folder / "training_model.onnx", request["input_gradients"])
    if request["optimizer"] and request["optimizer"]["kind"] != "sgd":
        _as_torch(folder / "optimizer_model.onnx")


def _training_package() -> tuple[Any, Any]:
    """``onnxruntime.training`` imports torch for parts that are not used here; its modules load under a bare package of that name."""
    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(ort.__file__).parent / "training")]
    sys.modules["onnxruntime.training"] = package
    from onnxruntime.training import artifacts, onnxblock

    return artifacts, onnxblock


def _surrogate(onnxblock: Any, gradients: dict[str, str]) -> Any:
    """The loss whose gradient is the one that arrives: Σ z · dz over all outputs. ``gradients``: name of dz by name of z."""

    class Surrogate(onnxblock.Block):  # type: ignore[misc]
        def build(self, *outputs: str) -> str:
            graph = self.base.graph
            terms = []
            for name in outputs:
                arriving = copy.deepcopy(next(each for each in graph.output if each.name == name))
                arriving.name = gradients[name]
                graph.input.append(arriving)
                terms.append(onnxblock.blocks.ReduceSum(keepdims=False)(onnxblock.blocks.Mul()(name, arriving.name)))
            while len(terms) > 1:
                terms.append(onnxblock.blocks.Add()(terms.pop(), terms.pop()))
            return str(terms[0])

    return Surrogate()


def _optimizer(onnxblock: Any, wanted: dict[str, Any] | None) -> Any:
    if wanted is None:
        return None
    if wanted["kind"] == "sgd":
        return onnxblock.optim.SGD()
    return onnxblock.optim.AdamW(betas=tuple(wanted["betas"]), eps=wanted["eps"], weight_decay=wanted["weight_decay"])


def _as_torch(path: Path) -> None:
    """Mode 0 of its AdamW is PyTorch's: weight decay first, eps beside the corrected root. The artifacts come with mode 1, which is not."""
    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "adam_mode":
                attribute.i = 0
    onnx.save(model, path)


def _free_inputs(path: Path, names: list[str]) -> None:
    """Gradients of inputs become plain outputs: an accumulation buffer has a fixed shape, and theirs follows the batch."""
    model = onnx.load(path)
    graph = model.graph
    for name in names:
        gradient = f"{name}_grad"
        for rows in (graph.node, graph.input, graph.output):
            for row in list(rows):
                mine = row.output if isinstance(row, onnx.NodeProto) else [row.name]
                if set(mine) & {gradient + _BUFFER, gradient + _FLAG}:
                    rows.remove(row)
        shape = next(each for each in graph.input if each.name == name)
        graph.output.append(onnx.ValueInfoProto(name=gradient, type=shape.type))
    onnx.save(model, path)


def _run(folder: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(folder / "training_model.onnx"), options, providers=["CPUExecutionProvider"])
    with np.load(folder / "feed.npz") as archive:
        feed = dict(archive)
    # A buffer is written through, so it is an input that holds a result; what it holds before must not matter.
    buffers = {each.name: np.full(each.shape, np.nan, np.float32) for each in session.get_inputs() if each.name.endswith(_BUFFER)}
    feed |= buffers | {"lazy_reset_grad": np.array([True])}
    binding = session.io_binding()
    values = {each.name: ort.OrtValue.ortvalue_from_numpy(feed[each.name]) for each in session.get_inputs()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    session.run_with_iobinding(binding)
    found = dict(zip([each.name for each in session.get_outputs()], binding.copy_outputs_to_cpu(), strict=True))
    np.savez(
        folder / "result.npz", allow_pickle=False, **buffers, **{name: value for name, value in found.items() if not name.endswith(_FLAG)}
    )


def _last_words(kind: type[BaseException], fault: BaseException, _: types.TracebackType | None) -> None:
    print(f"{kind.__name__}: {' '.join(str(fault).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.excepthook = _last_words
    main(sys.argv[1], Path(sys.argv[2]))
