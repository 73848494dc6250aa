"""The gate refuses graphs that are not what PyTorch computes, and names the operation and the module at fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export import SGD, Adam
from export.built import BuiltGraph
from export.models import BUNDLED
from export.parity import Candidate, check_parity
from export.segment import build_candidate
from wire.errors import ExportError
from wire.optim import Optimizer

Spoil = Callable[[onnx.GraphProto], None]


def _candidate(optimizer: Optimizer, module: nn.Module | None = None) -> Candidate:
    torch.manual_seed(0)
    net = module or nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    )
    return build_candidate(net, {"x": torch.randn(2, 1, 4, 4)}, None, optimizer=optimizer, loss=None, input_gradients=["x"])


def _spoiled(graph: BuiltGraph, spoil: Spoil) -> BuiltGraph:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    spoil(model.graph)
    assert model != graph.model, "nothing was spoiled"
    return replace(graph, model=model)


def _first(kind: str, change: Callable[[onnx.NodeProto], None]) -> Spoil:
    def spoil(graph: onnx.GraphProto) -> None:
        change(next(node for node in graph.node if node.op_type == kind))

    return spoil


def _as(kind: str) -> Callable[[onnx.NodeProto], None]:
    def change(node: onnx.NodeProto) -> None:
        node.op_type = kind

    return change


def _set(name: str, *numbers: int) -> Callable[[onnx.NodeProto], None]:
    def change(node: onnx.NodeProto) -> None:
        (attribute,) = [each for each in node.attribute if each.name == name]
        del attribute.ints[:]
        attribute.ints.extend(numbers)

    return change


def _constant(old: float, new: float) -> Spoil:
    def spoil(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.size == 1 and abs(float(array.reshape(())) / old - 1) < 1e-6:
                tensor.CopyFrom(numpy_helper.from_array(array * 0 + array.dtype.type(new), tensor.name))

    return spoil


FORWARD: dict[str, tuple[Spoil, str]] = {
    "another activation": (_first("Relu", _as("Abs")), "aten.relu.default of module `2`"),
    "a momentum": (_constant(0.1, 0.11), "differs"),
    "an epsilon": (_constant(1e-5, 1e-3), "aten.native_batch_norm.default of module `1`"),
}
BACKWARD: dict[str, tuple[Spoil, str]] = {
    "a mask that lets zero pass": (_first("Greater", _as("GreaterOrEqual")), "threshold_backward.default of module"),
    "padding of the input gradient": (_first("ConvTranspose", _set("pads", 0, 0, 2, 2)), "convolution_backward.default of module `0`"),
    "a share that is not taken away": (_first("Neg", _as("Identity")), "native_batch_norm_backward.default of module `1`"),
}


def test_a_sound_candidate_passes() -> None:
    assert check_parity(_candidate(SGD(lr=0.1, momentum=0.9))) < 1e-5


@pytest.mark.parametrize("name", FORWARD)
def test_a_wrong_forward_is_refused(name: str) -> None:
    candidate = _candidate(SGD(lr=0.1))
    spoil, named = FORWARD[name]
    forward = _spoiled(candidate.training.forward, spoil)
    with pytest.raises(ExportError, match=named) as caught:
        check_parity(replace(candidate, training=replace(candidate.training, forward=forward)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BACKWARD)
def test_a_wrong_backward_is_refused(name: str) -> None:
    candidate = _candidate(SGD(lr=0.1))
    spoil, named = BACKWARD[name]
    backward = _spoiled(candidate.training.backward, spoil)
    with pytest.raises(ExportError, match=named):
        check_parity(replace(candidate, training=replace(candidate.training, backward=backward)))


def test_a_variance_without_its_correction_is_refused() -> None:
    """n / (n - 1) moves a running variance by less than a tenth of a thousandth here."""

    def spoil(graph: onnx.GraphProto) -> None:
        """In ``n / (n - 1)``, take 0 for 1."""
        (minus,) = [node for node in graph.node if node.op_type == "Sub" and node.output[0] in _counts(graph)]
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(_initializer(graph, minus.input[1])) * 0, "nought"))
        minus.input[1] = "nought"

    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
    candidate = build_candidate(module, {"x": torch.randn(2, 1, 24, 24)}, None, optimizer=SGD(lr=0.1), loss=None, input_gradients=[])
    forward = _spoiled(candidate.training.forward, spoil)
    with pytest.raises(ExportError, match="running_var"):
        check_parity(replace(candidate, training=replace(candidate.training, forward=forward)))


def _counts(graph: onnx.GraphProto) -> set[str]:
    """What some Div divides by."""
    return {node.input[1] for node in graph.node if node.op_type == "Div"}


def _initializer(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


@pytest.mark.parametrize(
    ("optimizer", "spoil"),
    [
        (SGD(lr=0.1, momentum=0.9), _constant(0.9, 0.91)),
        (SGD(lr=1e-6, momentum=0.9), _constant(0.9, 0.8)),
        (SGD(lr=0.1, weight_decay=0.01), _constant(0.01, 0.02)),
        (Adam(lr=0.01), _constant(0.999, 0.99)),
        (Adam(lr=0.01, eps=1e-4), _constant(1e-4, 1e-3)),
    ],
)
def test_a_wrong_optimizer_is_refused(optimizer: Optimizer, spoil: Spoil) -> None:
    candidate = _candidate(optimizer)
    assert candidate.optimizer_graph is not None
    with pytest.raises(ExportError, match=f"the {optimizer.kind} optimizer"):
        check_parity(replace(candidate, optimizer_graph=_spoiled(candidate.optimizer_graph, spoil)))


def test_a_wrong_inference_graph_is_refused() -> None:
    candidate = _candidate(SGD(lr=0.1))
    with pytest.raises(ExportError, match=r"inference graph differs from PyTorch: aten.relu.default of module `2`"):
        check_parity(replace(candidate, inference=_spoiled(candidate.inference, _first("Relu", _as("Abs")))))


def test_a_graph_that_does_not_load_is_refused() -> None:
    candidate = _candidate(SGD(lr=0.1))
    with pytest.raises(ExportError, match="refuses the graph"):
        check_parity(replace(candidate, inference=_spoiled(candidate.inference, _first("Relu", _as("NoSuchOperation")))))


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_in_full_width_passes(name: str) -> None:
    """Millions of activations: some lie so near to zero that rounding decides which side of a ReLU they are on."""
    model = BUNDLED[name]
    examples = {"x": torch.randn(2, *model.input_shape())}
    candidate = build_candidate(model.build(), examples, None, optimizer=SGD(lr=0.01), loss=None, input_gradients=[])
    assert check_parity(candidate) < 1e-4
