"""From a trace to ONNX: the joint graph is split in a forward and a backward graph, and only what is read is carried from one to the other.

What the backward graph needs of the forward is found by lowering it: a parameter, buffer or input becomes an input of the backward graph;
a cheap view is made again; anything else is a residual, an extra output ``r.{n}`` of the forward graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from export.built import BuiltGraph, finish
from export.lowering.context import GraphWriter, lower
from export.masks import with_scaled_masks
from export.ops import Affine, Op, Ref, Trace, TraceInput, Value
from export.optimizers import Update, write_update
from export.rewrites import rewrite
from export.subgraphs import reads
from wire.errors import ExportError
from wire.optim import Optimizer

__all__ = ["TrainingGraphs", "build_inference", "build_training"]

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
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
    "scalar_tensor",
    "arange",
    "constant",
    "mask",
    "scaled_mask",
)
_CHANCE = ("bernoulli", "native_dropout", "rand", "normal", "uniform", "multinomial", "rrelu", "exponential")


@dataclass(frozen=True, slots=True)
class TrainingGraphs:
    """What a device trains with. ``residuals`` by name, in order.

    ``step`` is ``backward`` and the optimizer's update in one. The graphs whose names end in ``_low`` are for boards with little memory:
    nothing is kept between forward and backward, which computes the forward again.
    """

    forward: BuiltGraph
    backward: BuiltGraph
    step: BuiltGraph
    forward_low: BuiltGraph
    backward_low: BuiltGraph
    step_low: BuiltGraph
    residuals: Mapping[str, Value]


def build_training(trace: Trace, optimizer: Optimizer, parameters: Mapping[str, Value]) -> TrainingGraphs:
    """Split the joint graph. ``parameters``: the trained ones. Raises ExportError for an operation that has no ONNX form."""
    _refuse_chance(trace.ops, "draws random numbers, which a device's graph cannot, but for dropout")
    ops = rewrite(with_scaled_masks(trace), trace.outputs.values())
    values = _values(trace, ops)
    first = {name: ref for name, ref in trace.outputs.items() if name.startswith(("out.", "b."))}
    second = {name: ref for name, ref in trace.outputs.items() if name.startswith(("gin.", "gp."))}
    mine, wanted = _ancestors(ops, first.values()), _ancestors(ops, second.values())
    forward = _Part(trace, values)
    forward.lower(op for op in ops if op.name in mine)
    backward = _Part(trace, values, backward=True, made_before={op.name: op for op in ops if op.name in mine})
    backward.lower(op for op in ops if op.name in wanted and op.name not in mine)
    again = _Part(trace, values, backward=True)
    again.lower(op for op in ops if op.name in wanted)
    finished = backward.finish("backward", second)
    residuals = backward.residuals_read(finished)
    return TrainingGraphs(
        forward=forward.finish("forward", first | residuals),
        backward=finished,
        step=backward.finish_step("step", second, optimizer, parameters),
        forward_low=forward.finish("forward_low", first),
        backward_low=again.finish("backward_low", second),
        step_low=again.finish_step("step_low", second, optimizer, parameters),
        residuals={name: values[ref] for name, ref in residuals.items()},
    )


def build_inference(trace: Trace) -> BuiltGraph:
    """The whole trace as one graph. Raises ExportError."""
    part = _Part(trace, _values(trace, trace.ops))
    needed = _ancestors(trace.ops, trace.outputs.values())
    _refuse_chance((op for op in trace.ops if op.name in needed), "draws random numbers in evaluation, where a device draws none")
    part.lower(op for op in trace.ops if op.name in needed)
    return part.finish("infer", trace.outputs)


def _refuse_chance(ops: Iterable[Op], fault: str) -> None:
    for op in ops:
        if op.kind.startswith(_CHANCE):
            raise ExportError(f"{op.where} {fault}; take it out, or move it behind the cut")


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

    def __init__(
        self, trace: Trace, values: Mapping[Ref, Value], *, backward: bool = False, made_before: Mapping[str, Op] | None = None
    ) -> None:
        self._inputs = trace.inputs
        self._before = made_before or {}
        self.residuals: dict[str, Ref] = {}
        self.writer = _AskingWriter(values, _batch_source(trace.inputs, backward=backward), self._ask)

    def lower(self, ops: Iterable[Op]) -> None:
        for op in ops:
            lower(self.writer, op)

    def finish(self, name: str, outputs: Mapping[str, Ref], update: Update | None = None) -> BuiltGraph:
        names = {output: self.writer.name(ref) for output, ref in outputs.items()}
        known = {found.name: found.value for found in self._inputs.values()}
        known |= {name: self.writer.value(ref) for name, ref in self.residuals.items()}
        shapes = {output: self.writer.value(ref) for output, ref in outputs.items()}
        if update is not None:
            names, known, shapes = names | dict(update.outputs), known | dict(update.known), shapes | dict(update.shapes)
        return finish(self.writer, name, names, known, shapes)

    def finish_step(self, name: str, outputs: Mapping[str, Ref], optimizer: Optimizer, parameters: Mapping[str, Value]) -> BuiltGraph:
        """With the update in the place of the parameters' gradients, each of which is gone as soon as it has been used."""
        gradients = {each: self.writer.name(outputs[f"gp.{each}"]) for each in parameters}
        update = write_update(self.writer, optimizer, parameters, gradients) if parameters else None
        return self.finish(name, {each: ref for each, ref in outputs.items() if each.startswith("gin.")}, update)

    def residuals_read(self, finished: BuiltGraph) -> dict[str, Ref]:
        """Those that a finished graph reads, or gives on."""
        used = {each for node in finished.model.graph.node for each in reads(node)} | set(finished.outputs)
        return {name: ref for name, ref in self.residuals.items() if name in used}

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
