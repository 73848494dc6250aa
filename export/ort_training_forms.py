"""Forward graphs of a segment in training for onnxruntime-training 1.19.2, which differentiates them itself."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.losses import Loss, loss_formula
from export.parity import Candidate
from wire.errors import ExportError

__all__ = ["MEND", "beginning", "lowered", "written_by_torch"]

MEND = "replace it, move it behind the cut, or export with `--engines stock`"  # how a refusal ends
_OPSET = 14  # the oldest with BatchNormalization in training, and from 17 on LayerNorm is one operation, for which 1.19.2 has no gradient
_RANDOM = ("Dropout", "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


class _WithLoss(nn.Module):
    """The segment and its loss: the target is the last input."""

    def __init__(self, segment: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.segment, self._loss = segment, loss

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.segment(*inputs[:-1])
        return loss_formula(self._loss, found if isinstance(found, Tensor) else found[0], inputs[-1])


def written_by_torch(candidate: Candidate) -> onnx.ModelProto:
    """The training forward from torch's exporter, in whole operations such as BatchNormalization: 1.19.2 has kernels for their gradients.

    Parameters and buffers are initializers under PyTorch's names. Raises ExportError.
    """
    module: nn.Module = copy.deepcopy(candidate.module).train()
    if candidate.loss is not None:
        module = _WithLoss(module, candidate.loss)
    inputs, outputs = [f"in.{name}" for name in candidate.inputs], [f"out.{name}" for name in candidate.outputs]
    with tempfile.TemporaryDirectory(prefix="cutlayer-") as folder:
        _export(module, tuple(candidate.inputs.values()), Path(folder, "forward.onnx"), inputs, outputs, fixed=candidate.loss is not None)
        model = onnx.load(Path(folder, "forward.onnx"))
    if candidate.loss is not None:
        _rename(model, {each.name: each.name.removeprefix("segment.") for each in model.graph.initializer})
    _refuse_chance(model)
    return model


def _export(module: nn.Module, examples: tuple[Tensor, ...], path: Path, inputs: list[str], outputs: list[str], *, fixed: bool) -> None:
    """``fixed``: the outputs have no batch dimension."""
    try:
        # This exporter is deprecated and says so, on the screen as well; the new one writes training BatchNorm as inference.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                examples,
                path,
                input_names=inputs,
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in (inputs if fixed else [*inputs, *outputs])},
                opset_version=_OPSET,
                training=torch.onnx.TrainingMode.TRAINING,
                do_constant_folding=False,
                dynamo=False,
            )
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as exc:
        reason = str(exc).strip().splitlines()[0][:300] if str(exc).strip() else type(exc).__name__
        raise ExportError(f"torch cannot write the segment as ONNX for onnxruntime-training: {reason}; {MEND}") from exc


def lowered(candidate: Candidate) -> onnx.ModelProto:
    """The same from our own training forward, in simpler operations. Raises ExportError."""
    model = onnx.ModelProto()
    model.CopyFrom(candidate.training.forward.model)
    graph = model.graph
    for row in [each for each in graph.output if not each.name.startswith("out.")]:
        graph.output.remove(row)
    state = dict(candidate.module.named_parameters()) | dict(candidate.module.named_buffers())
    for row in [each for each in graph.input if not each.name.startswith("in.")]:
        if row.name[2:] not in state:
            raise ExportError(f"onnxruntime-training knows no input `{row.name}`; {MEND}")
        graph.input.remove(row)
        graph.initializer.append(numpy_helper.from_array(state[row.name[2:]].detach().contiguous().numpy(), row.name))
    _rename(model, {name: name[2:] for name in (each.name for each in graph.initializer) if name[2:] in state})
    return model


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    for row in model.graph.initializer:
        row.name = names.get(row.name, row.name)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)


def beginning(model: onnx.ModelProto, last: int) -> onnx.ModelProto:
    """The graph up to and with a node, and the sum of that node's first result as its one output."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    total = onnx.helper.make_node("ReduceSum", [part.graph.node[last].output[0]], ["total"], keepdims=0)
    del part.graph.node[last + 1 :], part.graph.output[:]
    part.graph.node.append(total)
    part.graph.output.append(onnx.helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, []))
    read = {name for node in part.graph.node for name in node.input}
    for rows in (part.graph.initializer, part.graph.input):
        for row in [each for each in rows if each.name not in read]:
            rows.remove(row)
    return part


def _refuse_chance(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in _RANDOM:
            raise ExportError(
                f"{node.op_type} ({node.name or 'unnamed'}) draws random numbers, and with onnxruntime-training the forward of a step runs "
                f"twice, with others each time; {MEND}"
            )
