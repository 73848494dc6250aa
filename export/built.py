"""From nodes to a model: dead nodes go, outputs get their names in the bundle, inputs are those that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from export.lowering.context import IR_VERSION, OPSET, GraphWriter, onnx_dtype
from export.ops import Affine, Value
from export.subgraphs import reads, rename

__all__ = ["BuiltGraph", "finish"]


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """``made``: which ONNX value holds which result of which ATen operation, for the parity gate."""

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    made: Mapping[tuple[str, int], str]


def finish(
    writer: GraphWriter, name: str, outputs: Mapping[str, str], known: Mapping[str, Value], shapes: Mapping[str, Value]
) -> BuiltGraph:
    """The model with these ``outputs`` (names in the bundle to values of the writer, which stays as it is).

    ``known``: all that may become an input. ``shapes``: of the outputs.
    """
    nodes = [_copied(node) for node in writer.nodes]
    nodes += [helper.make_node("Identity", [value], [output]) for output, value in outputs.items()]
    nodes, names = _renamed(_alive(nodes, set(outputs)), set(outputs))
    read = {each for node in nodes for each in reads(node)}
    inputs = [each for each in known if each in read]
    graph = helper.make_graph(
        nodes,
        name,
        [_info(each, known[each]) for each in inputs],
        [_info(each, shapes[each]) for each in outputs],
        [tensor for key, tensor in writer.initializers.items() if key in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="cutlayer")
    onnx.checker.check_model(model)
    return BuiltGraph(model, tuple(inputs), tuple(outputs), {key: names.get(each, each) for key, each in writer.made.items()})


def _alive(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    wanted = set(wanted)
    kept = []
    for node in reversed(nodes):
        if any(each in wanted for each in node.output):
            wanted |= reads(node)
            kept.append(node)
    return kept[::-1]


def _renamed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Where an Identity only names a value that a node makes, let the node make it under that name. Also gives the new names by the old."""
    makers = {each for node in nodes for each in node.output if node.op_type != "Identity"}
    names: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        if node.op_type == "Identity" and node.output[0] in outputs and node.input[0] in makers and node.input[0] not in names:
            names[node.input[0]] = node.output[0]
        else:
            kept.append(node)
    for node in kept:
        rename(node, names)
    return kept, names


def _info(name: str, value: Value) -> onnx.ValueInfoProto:
    dims = ["batch" if dim == Affine(1, 0) else None if isinstance(dim, Affine) else dim for dim in value.shape]
    return helper.make_tensor_value_info(name, onnx_dtype(value.dtype), dims)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    found = onnx.NodeProto()
    found.CopyFrom(node)
    return found
