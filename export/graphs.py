"""From a trace to ONNX: the joint graph is split in a forward and a backward graph, and only what is read is carried from one to the other.

What the backward graph needs of the forward is found by lowering it: a parameter, buffer or input becomes an input of the backward graph;
a cheap view is made again; anything else is a residual, an extra output ``r.{n}`` of the forward graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from export.lowering.context import IR_VERSION, OPSET, GraphWriter, lower, onnx_dtype
from export.ops import Affine, Op, Ref, Trace, TraceInput, Value
from export.rewrites import rewrite
from wire.errors import ExportError

__all__ = ["BuiltGraph", "TrainingGraphs", "build_inference", "build_training", "finish"]

# Made again in the backward graph rather than kept: they cost nothing, or next to it.
_CHEAP = (
    "view",
    "_unsafe_view",
    "reshape",
    "t",
    "permute",
    "transpose",
    "expand",
    "unsqueeze",
    "squeeze",
    "clone",
    "alias",
    "detach",
    "slice",
    "empty",
    "empty_like",
    "fill",
    "full",
    "ones_like",
    "zeros_like",
    "scalar_tensor",
    "arange",
    "constant",
)
_CHANCE = ("bernoulli", "native_dropout", "rand", "normal", "uniform", "multinomial", "rrelu", "exponential")


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """``made``: which ONNX value holds which result of which ATen operation, for the parity gate."""

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    made: Mapping[tuple[str, int], str]


@dataclass(frozen=True, slots=True)
class TrainingGraphs:
    """``residuals`` by name, in order."""

    forward: BuiltGraph
    backward: BuiltGraph
    residuals: Mapping[str, Value]


def build_training(trace: Trace) -> TrainingGraphs:
    """Split the joint graph. Raises ExportError for an operation that has no ONNX form."""
    _refuse_chance(trace.ops)
    ops = rewrite(trace.ops, trace.outputs.values())
    values = _values(trace, ops)
    first = {name: ref for name, ref in trace.outputs.items() if name.startswith(("out.", "b."))}
    second = {name: ref for name, ref in trace.outputs.items() if name.startswith(("gin.", "gp."))}
    mine = _ancestors(ops, first.values())
    forward = _Part(trace, values)
    forward.lower(op for op in ops if op.name in mine)
    backward = _Part(trace, values, made_before={op.name: op for op in ops if op.name in mine})
    wanted = _ancestors(ops, second.values())
    backward.lower(op for op in ops if op.name in wanted and op.name not in mine)
    finished = backward.finish("backward", second)
    used = {node_input for node in finished.model.graph.node for node_input in node.input} | set(finished.outputs)
    residuals = {name: ref for name, ref in backward.residuals.items() if name in used}
    return TrainingGraphs(forward.finish("forward", first | residuals), finished, {name: values[ref] for name, ref in residuals.items()})


def build_inference(trace: Trace) -> BuiltGraph:
    """The whole trace as one graph. Raises ExportError."""
    part = _Part(trace, _values(trace, trace.ops))
    needed = _ancestors(trace.ops, trace.outputs.values())
    part.lower(op for op in trace.ops if op.name in needed)
    return part.finish("infer", trace.outputs)


def _refuse_chance(ops: Iterable[Op]) -> None:
    for op in ops:
        if op.kind.startswith(_CHANCE):
            raise ExportError(
                f"{op.where} draws random numbers (dropout, noise), which a device's graph cannot; take it out, or move it behind the cut"
            )


def _values(trace: Trace, ops: Iterable[Op]) -> dict[Ref, Value]:
    values = {Ref(key): found.value for key, found in trace.inputs.items()}
    for op in ops:
        values |= {Ref(op.name, at): result for at, result in enumerate(op.results) if result is not None}
    return values


def _ancestors(ops: Sequence[Op], outputs: Iterable[Ref]) -> set[str]:
    """Operations that these results need; a BatchNorm also where only its update of running statistics is needed."""
    wanted = {ref.name for ref in outputs}
    for op in reversed(ops):
        updates = op.target.startswith("native_batch_norm.") and any(isinstance(arg, Ref) and arg.name in wanted for arg in op.args[3:5])
        if op.name in wanted or updates:
            wanted.add(op.name)
            wanted |= {ref.name for ref in op.refs()}
    return wanted


class _Part:
    """One graph in the making; what it lacks becomes an input when it is first asked for."""

    def __init__(self, trace: Trace, values: Mapping[Ref, Value], made_before: Mapping[str, Op] | None = None) -> None:
        self._inputs = trace.inputs
        self._before = made_before or {}
        self.residuals: dict[str, Ref] = {}
        self.writer = _AskingWriter(values, _batch_source(trace.inputs, backward=made_before is not None), self._ask)

    def lower(self, ops: Iterable[Op]) -> None:
        for op in ops:
            lower(self.writer, op)

    def finish(self, name: str, outputs: Mapping[str, Ref]) -> BuiltGraph:
        refs = {output: self.writer.name(ref) for output, ref in outputs.items()}
        known = {found.name: found.value for found in self._inputs.values()}
        known |= {name: self.writer.value(ref) for name, ref in self.residuals.items()}
        shapes = {output: self.writer.value(ref) for output, ref in outputs.items()}
        return finish(self.writer, name, refs, known, shapes)

    def _ask(self, ref: Ref) -> str:
        if ref.name in self._inputs:
            return self._inputs[ref.name].name
        if ref.name not in self._before:
            raise ExportError(
                f"result {ref.index} of aten.{ref.name} is read, which has no ONNX form (the indices of a pooling); leave it unread"
            )
        op = self._before[ref.name]
        if op.target.partition(".")[0] in _CHEAP:
            lower(self.writer, op)
            return self.writer.names[ref]
        name = f"r.{len(self.residuals)}"
        self.residuals[name] = ref
        return name


class _AskingWriter(GraphWriter):
    def __init__(self, values: Mapping[Ref, Value], batch_from: str | None, ask: Callable[[Ref], str]) -> None:
        super().__init__(values, batch_from)
        self._ask = ask

    def name(self, ref: Ref) -> str:
        if ref not in self.names:
            self.names[ref] = self._ask(ref)
        return self.names[ref]


def _batch_source(inputs: Mapping[str, TraceInput], *, backward: bool) -> str | None:
    """An input whose first dimension is the batch: for the backward graph a gradient, which it is given anyway."""
    found = [each.name for each in inputs.values() if each.value.shape and each.value.shape[0] == Affine(1, 0)]
    gradients = [name for name in found if name.startswith("g.")]
    chosen = gradients if backward and gradients else [name for name in found if name.startswith("in.")]
    return chosen[0] if chosen else None


# ------------------------------------------------------------ from nodes to a model


def finish(
    writer: GraphWriter, name: str, outputs: Mapping[str, str], known: Mapping[str, Value], shapes: Mapping[str, Value]
) -> BuiltGraph:
    """The model with these outputs: dead nodes go, outputs get their names, inputs are those that are read."""
    nodes = [*writer.nodes]
    nodes += [helper.make_node("Identity", [value], [output]) for output, value in outputs.items()]
    nodes, names = _renamed(_alive(nodes, set(outputs)), set(outputs))
    read = {each for node in nodes for each in node.input}
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
            wanted |= set(node.input)
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
        for row in (node.input, node.output):
            for at, each in enumerate(row):
                row[at] = names.get(each, each)
    return kept, names


def _info(name: str, value: Value) -> onnx.ValueInfoProto:
    dims = ["batch" if dim == Affine(1, 0) else None if isinstance(dim, Affine) else dim for dim in value.shape]
    return helper.make_tensor_value_info(name, onnx_dtype(value.dtype), dims)
