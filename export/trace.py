"""Traces a segment's training step, or its inference, into a flat list of ATen operations whose batch size is a symbol.

PyTorch differentiates: forward and backward are traced as one joint graph (``torch.func.vjp`` under ``make_fx``). The trace is made at
three batch sizes, and every number in it that differs between them is fitted as ``a * batch + b`` (or ``c / (a * batch + b)``). A number that
fits neither is refused: a bundle must work at any batch size.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._decomp import get_decompositions
from torch.func import functional_call, functionalize, vjp
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from wire.errors import ExportError

__all__ = ["Affine", "Loss", "Op", "Ratio", "Ref", "Trace", "TraceInput", "Value", "trace_inference", "trace_training"]

Loss = Literal["cross_entropy", "bce", "mse"]

# BatchNorm needs two samples; coprime sizes that no layer is likely to have keep coincidences out of the fit.
BATCHES = (3, 7, 11)

_aten = torch.ops.aten
# What PyTorch can take apart itself, into operations that are lowered here.
_DECOMPOSED = (
    _aten.gelu,
    _aten.gelu_backward,
    _aten.silu,
    _aten.silu_backward,
    _aten.mish,
    _aten.mish_backward,
    _aten.sigmoid_backward,
    _aten.tanh_backward,
    _aten.hardswish,
    _aten.hardswish_backward,
    _aten.hardsigmoid,
    _aten.hardsigmoid_backward,
    _aten.hardtanh,
    _aten.hardtanh_backward,
    _aten.leaky_relu,
    _aten.leaky_relu_backward,
    _aten.elu,
    _aten.elu_backward,
    _aten.softplus,
    _aten.softplus_backward,
    _aten.native_layer_norm,
    _aten.native_layer_norm_backward,
    _aten.native_group_norm,
    _aten.native_group_norm_backward,
    _aten._softmax,
    _aten._softmax_backward_data,
    _aten._log_softmax,
    _aten._log_softmax_backward_data,
    _aten.slice_backward,
    _aten.select_backward,
    _aten.linalg_vector_norm,
    _aten.addcmul,
    _aten.addcdiv,
    _aten.rsub,
)


@dataclass(frozen=True, slots=True)
class Affine:
    """``slope * batch + offset``, a whole number."""

    slope: int
    offset: int

    def at(self, batch: int) -> int:
        return self.slope * batch + self.offset


@dataclass(frozen=True, slots=True)
class Ratio:
    """``numerator / denominator``, a real number."""

    numerator: float
    denominator: Affine


@dataclass(frozen=True, slots=True)
class Ref:
    """A result of an operation (or of an input): the operation's name and which result."""

    name: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a result."""

    shape: tuple[int | Affine, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Op:
    """``target`` is ATen's name with overload (``relu.default``). ``args`` hold Refs, numbers (also Affine, Ratio), lists and None.

    ``module``: the submodule that it came from, where that is known.
    """

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Value | None, ...]
    module: str

    def refs(self) -> list[Ref]:
        return list(_refs((self.args, tuple(self.kwargs.values()))))


@dataclass(frozen=True, slots=True)
class TraceInput:
    """A graph input under its name in the bundle (``in.x``, ``p.0.weight``, ``g.y`` …)."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Trace:
    """``inputs`` by the name of the Ref that stands for them; ``outputs`` by their names in the bundle, in order."""

    inputs: Mapping[str, TraceInput]
    ops: tuple[Op, ...]
    outputs: Mapping[str, Ref]
    graph: fx.GraphModule = field(repr=False)  # at BATCHES[0], for the parity gate
    keys: tuple[str, ...] = ()  # names of the graph's positional inputs, in order


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _refs(item)


# ------------------------------------------------------------ what is traced


def trace_training(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    loss: Loss | None,
    input_gradients: Sequence[str],
) -> Trace:
    """The joint graph of one training step.

    ``examples``: one tensor an input, batch first, by name (``target`` last, where there is a ``loss``). Outputs of the trace: ``out.*``,
    ``b.*.new``, ``gin.*``, ``gp.*``. Raises ExportError.
    """
    module.train()
    trained = [name for name, value in module.named_parameters() if value.requires_grad]

    def joint(values: dict[str, Tensor]) -> dict[str, Tensor]:
        held = {name: values[f"p.{name}"] for name, _ in module.named_parameters()}
        given = {name: values[f"in.{name}"] for name in examples}

        def forward(wanted: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
            buffers = {name: values[f"b.{name}"].clone() for name, _ in module.named_buffers()}
            parameters = held | {name: wanted[f"p.{name}"] for name in trained}
            inputs = given | {name: wanted[f"in.{name}"] for name in input_gradients}
            args = tuple(value for name, value in inputs.items() if loss is None or name != "target")
            found = functional_call(module, parameters | buffers, args)
            found = (found,) if isinstance(found, Tensor) else tuple(found)
            if loss is not None:
                found = (loss_formula(loss, found[0], inputs["target"]),)
            return found, buffers

        wanted = {f"p.{name}": held[name] for name in trained} | {f"in.{name}": given[name] for name in input_gradients}
        found, backward, buffers = vjp(forward, wanted, has_aux=True)
        tangents = tuple(
            torch.ones_like(out) if loss is not None else values[f"g.{name}"] for name, out in zip(outputs, found, strict=True)
        )
        (gradients,) = backward(tangents)
        named = {f"out.{name}": value for name, value in zip(outputs, found, strict=True)}
        named |= {f"b.{name}.new": value for name, value in buffers.items()}
        named |= {f"gin.{name}": gradients[f"in.{name}"] for name in input_gradients}
        return named | {f"gp.{name}": gradients[f"p.{name}"] for name in trained}

    def values_at(batch: int) -> dict[str, Tensor]:
        values = {f"in.{name}": _resized(value, batch) for name, value in examples.items()} | _state(module)
        if loss is None:
            for name, example in zip(outputs, _outputs_of(module, tuple(examples.values())), strict=True):
                values[f"g.{name}"] = _resized(example, batch)
        return values

    return _trace(module, joint, values_at)


def trace_inference(module: nn.Module, examples: Mapping[str, Tensor], outputs: Sequence[str]) -> Trace:
    """The evaluation forward: outputs ``out.*``. Raises ExportError."""
    module.eval()

    def forward(values: dict[str, Tensor]) -> dict[str, Tensor]:
        state = {name: values[f"p.{name}"] for name, _ in module.named_parameters()}
        state |= {name: values[f"b.{name}"] for name, _ in module.named_buffers()}
        found = functional_call(module, state, tuple(values[f"in.{name}"] for name in examples))
        found = (found,) if isinstance(found, Tensor) else tuple(found)
        return {f"out.{name}": value for name, value in zip(outputs, found, strict=True)}

    def values_at(batch: int) -> dict[str, Tensor]:
        return {f"in.{name}": _resized(value, batch) for name, value in examples.items()} | _state(module)

    return _trace(module, forward, values_at)


def loss_formula(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The mean loss over the batch, written in operations that are lowered. float32 []."""
    if loss == "cross_entropy":
        classes = torch.arange(output.shape[1])
        chosen = (target.unsqueeze(1) == classes.unsqueeze(0)).to(output.dtype)
        return -(torch.log_softmax(output, 1) * chosen).sum() / target.shape[0]
    output = output.reshape(target.shape) if output.dim() != target.dim() else output
    target = target.to(output.dtype)
    if loss == "mse":
        error = output - target
        return (error * error).sum() / target.numel()
    # log(1 + exp(-|x|)) does not overflow (as in torch.nn.functional.binary_cross_entropy_with_logits).
    return (torch.relu(output) - output * target + torch.log1p(torch.exp(-output.abs()))).sum() / target.numel()


def _state(module: nn.Module) -> dict[str, Tensor]:
    state = {f"p.{name}": value.detach() for name, value in module.named_parameters()}
    return state | {f"b.{name}": value for name, value in module.named_buffers()}


def _outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = {name: value.detach().clone() for name, value in (*module.named_parameters(), *module.named_buffers())}
        found = functional_call(module, state, inputs)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _resized(value: Tensor, batch: int) -> Tensor:
    return torch.zeros((batch, *value.shape[1:]), dtype=value.dtype)


# ------------------------------------------------------------ tracing and fitting


def _trace(module: nn.Module, joint: Callable[..., Any], values_at: Callable[[int], dict[str, Tensor]]) -> Trace:
    graphs: list[fx.GraphModule] = []
    modules: dict[str, str] = {}
    for batch in BATCHES:
        values = values_at(batch)
        with _naming(module, modules):
            graphs.append(_make(joint, values))
    keys = tuple(values)
    names = [f"{key}" for key in _output_names(joint, values)]
    return _fit(graphs, keys, values, names, modules)


def _make(joint: Callable[..., Any], values: dict[str, Tensor]) -> fx.GraphModule:
    flat = lambda *args: tuple(joint(dict(zip(values, args, strict=True))).values())  # noqa: E731
    try:
        return make_fx(functionalize(flat), decomposition_table=get_decompositions(_DECOMPOSED), tracing_mode="fake")(*values.values())
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as exc:
        reason = str(exc).strip().splitlines()[0][:300] if str(exc).strip() else type(exc).__name__
        raise ExportError(f"the segment cannot be traced: {reason}; control flow that depends on data has no place on a device") from exc


def _output_names(joint: Callable[..., Any], values: dict[str, Tensor]) -> list[str]:
    """The keys of what ``joint`` returns, in order."""
    names: list[str] = []

    def note(*args: Tensor) -> Tensor:
        names.extend(joint(dict(zip(values, args, strict=True))))
        return args[0]

    make_fx(functionalize(note), tracing_mode="fake")(*values.values())
    return names


@contextlib.contextmanager
def _naming(module: nn.Module, modules: dict[str, str]) -> Iterator[None]:
    """While tracing, note which submodule is running whenever a node is made."""
    stack: list[str] = []
    last: list[fx.Node | None] = [None]

    def mark() -> None:
        mode = get_proxy_mode()
        if mode is None:
            return
        nodes = mode.tracer.graph.nodes
        for node in reversed(nodes):
            if node is last[0]:
                break
            modules.setdefault(node.name, stack[-1] if stack else "")
        last[0] = next(iter(reversed(nodes)), None)

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            mark()
            stack.append(name)

        return hook

    def leave(*_: Any) -> None:
        mark()
        stack.pop()

    hooks = []
    for name, submodule in module.named_modules():
        hooks += [submodule.register_forward_pre_hook(enter(name)), submodule.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _fit(
    graphs: list[fx.GraphModule], keys: tuple[str, ...], values: dict[str, Tensor], names: list[str], modules: dict[str, str]
) -> Trace:
    rows = [list(graph.graph.nodes) for graph in graphs]
    if len({len(row) for row in rows}) != 1:
        raise ExportError("the segment computes something else at another batch size; it must not depend on the batch size")
    inputs: dict[str, TraceInput] = {}
    ops: list[Op] = []
    outputs: dict[str, Ref] = {}
    waiting = iter(keys)
    for nodes in zip(*rows, strict=True):
        node = nodes[0]
        module = modules.get(node.name, "")
        if node.op == "placeholder":
            inputs[node.name] = TraceInput(next(waiting), _value(nodes))
        elif node.op == "output":
            outputs = {name: _ref(found) for name, found in zip(names, node.args[0], strict=True)}
        elif node.op == "get_attr":
            value = _value(nodes)
            constant = getattr(graphs[0], str(node.target))
            ops.append(Op(node.name, "constant", (constant,), {}, (value,), module))
        elif node.target is not operator.getitem:
            if len({other.target for other in nodes}) != 1:
                raise ExportError(f"the segment computes something else at another batch size ({node.target}, module `{module}`)")
            args = _fitted([other.args for other in nodes], module, node)
            kwargs = {key: _fitted([other.kwargs[key] for other in nodes], module, node) for key in node.kwargs}
            ops.append(Op(node.name, str(node.target).removeprefix("aten."), args, kwargs, _results(nodes), module))
    return Trace(inputs=inputs, ops=tuple(ops), outputs=outputs, graph=graphs[0], keys=keys)


def _ref(node: fx.Node) -> Ref:
    if node.target is operator.getitem:
        source, index = node.args
        return Ref(source.name, int(index))  # type: ignore[union-attr,arg-type]
    return Ref(node.name)


def _value(nodes: Sequence[fx.Node]) -> Value:
    found = _results(nodes)[0]
    assert found is not None
    return found


def _results(nodes: Sequence[fx.Node]) -> tuple[Value | None, ...]:
    metas = [node.meta.get("val") for node in nodes]
    if isinstance(metas[0], Tensor):
        return (_meta_value(metas),)
    if isinstance(metas[0], (tuple, list)):
        return tuple(_meta_value(list(each)) if isinstance(each[0], Tensor) else None for each in zip(*metas, strict=True))
    return (None,)


def _meta_value(metas: Sequence[Any]) -> Value:
    dims = [_number([meta.shape[at] for meta in metas], "a shape") for at in range(metas[0].dim())]
    return Value(tuple(dims), metas[0].dtype)


def _fitted(values: Sequence[Any], module: str, node: fx.Node) -> Any:
    first = values[0]
    if isinstance(first, fx.Node):
        return _ref(first)
    if isinstance(first, (list, tuple)):
        return type(first)(_fitted(each, module, node) for each in zip(*values, strict=True)) if first else first
    if isinstance(first, bool) or not isinstance(first, (int, float)):
        return first
    return _number(values, f"`{node.target}` of module `{module}`")


def _number(values: Sequence[Any], where: str) -> Any:
    """The number as a function of the batch size."""
    if len(set(values)) == 1:
        return values[0]
    (x, y, z), (at_x, at_y, at_z) = values, BATCHES
    if all(isinstance(value, int) for value in values):
        slope, rest = divmod(y - x, at_y - at_x)
        fitted = Affine(slope, x - slope * at_x)
        if not rest and fitted.at(at_z) == z:
            return fitted
    else:
        # c / (batch + b), from two sizes; the third must agree.
        offset = round((y * at_y - x * at_x) / (x - y)) if x != y else 0
        ratio = Ratio(x * (at_x + offset), Affine(1, offset))
        if abs(ratio.numerator / ratio.denominator.at(at_z) - z) <= 1e-9 * abs(z):
            return ratio
    raise ExportError(
        f"{where}: a number depends on the batch size in a way that a device cannot follow ({list(values)} at {list(BATCHES)})"
    )
