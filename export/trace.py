"""Traces a segment's training step, or its inference, into a flat list of ATen operations whose batch size is a symbol.

PyTorch differentiates: forward and backward are traced as one joint graph (``torch.func.vjp`` under ``make_fx``), at several batch sizes,
which ``export.fit`` puts together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import get_decompositions
from torch.func import functional_call, functionalize, vjp
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from export.fit import BATCHES, fit
from export.losses import Loss, loss_formula
from export.masks import masks_as_inputs
from export.ops import Trace
from export.plainer import Plainer
from export.recurrent import WholeLayers, check_recurrent
from export.refusals import untraceable
from wire.errors import ExportError

__all__ = ["parameters_reached", "trace_inference", "trace_training"]

_aten = torch.ops.aten
# What PyTorch can take apart itself, into operations that are lowered here.
_DECOMPOSED = (
    _aten.gelu_backward,
    _aten.silu,
    _aten.silu_backward,
    _aten.mish,
    _aten.mish_backward,
    _aten.sigmoid_backward,
    _aten.tanh_backward,
    _aten._softmax_backward_data,
    _aten._log_softmax_backward_data,
    _aten.linalg_vector_norm,
    _aten.norm,
    _aten.addcmul,
    _aten.addcdiv,
    _aten.rsub,
    _aten.std,
    _aten.logsumexp,
    _aten.glu,
    _aten.glu_backward,
    _aten.celu,
    _aten.logit,
    _aten.pixel_shuffle,
    _aten.pixel_unshuffle,
    _aten.smooth_l1_loss,
    _aten.smooth_l1_loss_backward,
    _aten.huber_loss,
    _aten.huber_loss_backward,
    _aten.log_sigmoid_forward,
    _aten.log_sigmoid_backward,
    _aten.hardshrink,
    _aten.softshrink,
    _aten.threshold,
    _aten.channel_shuffle,
    _aten.std_mean,
    _aten.lerp,
    _aten.linalg_cross,
    _aten.vdot,
    _aten.frac,
    _aten.addmv,
    _aten._fused_rms_norm,
    _aten._fused_rms_norm_backward,
    _aten._weight_norm_interface,
)


# ------------------------------------------------------------ what is traced


def trace_training(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    loss: Loss | None,
    trained: Sequence[str],
    input_gradients: Sequence[str],
) -> Trace:
    """The joint graph of one training step.

    ``examples``: one tensor an input, batch first, by name (``target`` last, where there is a ``loss``). ``trained``, ``input_gradients``:
    names of parameters and inputs. Outputs of the trace: ``out.*``, ``b.*.new``, ``gin.*``, ``gp.*``. Dropout masks are inputs ``m.*``.
    Raises ExportError.
    """
    module.train()

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
        differentiated: Any = vjp(forward, wanted, has_aux=True)
        found, backward, buffers = differentiated
        tangents = tuple(
            torch.ones_like(out) if loss is not None else values[f"g.{name}"] for name, out in zip(outputs, found, strict=True)
        )
        (gradients,) = backward(tangents)
        named = {f"out.{name}": value for name, value in zip(outputs, found, strict=True)}
        named |= {f"b.{name}.new": value for name, value in buffers.items()}
        named |= {f"gin.{name}": gradients[f"in.{name}"] for name in input_gradients}
        return named | {f"gp.{name}": gradients[f"p.{name}"] for name in trained}

    def values_at(batch: int) -> dict[str, Tensor]:
        given = {f"in.{name}": _resized(value, batch) for name, value in examples.items()}
        if loss is not None:
            return given | _state(module)
        found = _outputs_at(module, tuple(given.values()), batch, outputs)
        return given | _state(module) | {f"g.{name}": torch.zeros_like(value) for name, value in zip(outputs, found, strict=True)}

    return _trace(module, joint, values_at, training=True)


def trace_inference(module: nn.Module, examples: Mapping[str, Tensor], outputs: Sequence[str]) -> Trace:
    """The evaluation forward: outputs ``out.*``. Raises ExportError."""
    module.eval()

    def run(values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        state = {name: values[f"p.{name}"] for name, _ in module.named_parameters()}
        state |= {name: values[f"b.{name}"] for name, _ in module.named_buffers()}
        found = functional_call(module, state, tuple(values[f"in.{name}"] for name in examples))
        return (found,) if isinstance(found, Tensor) else tuple(found)

    def forward(values: dict[str, Tensor]) -> dict[str, Tensor]:
        # As if it were differentiated: only then does PyTorch take everything apart without writing in place.
        floating = {name: value for name, value in values.items() if value.dtype.is_floating_point and not name.startswith("b.")}
        found: Any = vjp(lambda wanted: run(values | wanted), floating)[0] if floating else run(values)
        return {f"out.{name}": value for name, value in zip(outputs, found, strict=True)}

    def values_at(batch: int) -> dict[str, Tensor]:
        return {f"in.{name}": _resized(value, batch) for name, value in examples.items()} | _state(module)

    return _trace(module, forward, values_at, training=False)


def parameters_reached(module: nn.Module, examples: Mapping[str, Tensor], *, loss: Loss | None) -> list[str]:
    """Parameters that a gradient reaches, by name. PyTorch's optimizers leave the others alone, weight decay included."""
    wanted = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters() if value.requires_grad}
    inputs = tuple(_resized(value, BATCHES[0]) for name, value in examples.items() if loss is None or name != "target")
    with torch.enable_grad():
        found = _run(module.train(), inputs, wanted)
    led = [out for out in (found if loss is None else found[:1]) if out.requires_grad]
    if not led or not wanted:
        return []
    try:
        grads: Sequence[Tensor | None] = torch.autograd.grad([out.sum() for out in led], list(wanted.values()), allow_unused=True)
    except RuntimeError as exc:
        raise ExportError(f"PyTorch cannot differentiate the segment: {str(exc).splitlines()[0][:300]}; move it behind the cut") from exc
    return [name for name, grad in zip(wanted, grads, strict=True) if grad is not None]


def _run(module: nn.Module, inputs: tuple[Tensor, ...], parameters: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The module's outputs, with these parameters for its own, its buffers left alone. Raises ExportError."""
    state = {name: value.detach().clone() for name, value in (*module.named_parameters(), *module.named_buffers())}
    try:
        found = functional_call(module, state | dict(parameters), inputs)
    except (RuntimeError, ValueError, IndexError) as exc:
        batch = inputs[0].shape[0]
        raise ExportError(f"the segment does not train on a batch of {batch}, as on any: {str(exc).splitlines()[0][:300]}") from exc
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _state(module: nn.Module) -> dict[str, Tensor]:
    state = {f"p.{name}": value.detach() for name, value in module.named_parameters()}
    return state | {f"b.{name}": value for name, value in module.named_buffers()}


def _outputs_at(module: nn.Module, inputs: tuple[Tensor, ...], batch: int, names: Sequence[str]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = _run(module, inputs, {})
    for name, value in zip(names, found, strict=True):
        if value.shape[:1] != (batch,):
            raise ExportError(
                f"output `{name}` has the shape {list(value.shape)} for a batch of {batch}; its first dimension must be the batch"
            )
        if not value.dtype.is_floating_point:
            raise ExportError(f"output `{name}` holds {value.dtype}, through which no gradient flows; compute it behind the cut")
    return found


def _resized(value: Tensor, batch: int) -> Tensor:
    return torch.zeros((batch, *value.shape[1:]), dtype=value.dtype)


# ------------------------------------------------------------ tracing and fitting


def _trace(module: nn.Module, joint: Callable[..., Any], values_at: Callable[[int], dict[str, Tensor]], *, training: bool) -> Trace:
    check_recurrent(module)
    graphs: list[fx.GraphModule] = []
    modules: dict[str, str] = {}
    for batch in BATCHES:
        values = values_at(batch)
        with _naming(module, modules):
            graph, names = _make(joint, values)
        graphs.append(graph)
    masks = masks_as_inputs(graphs, modules) if training else {}
    return replace(fit(graphs, (*values, *masks), names, modules), masks=masks)


def _make(joint: Callable[..., Any], values: dict[str, Tensor]) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The graph, and the names of what it returns."""
    names: tuple[str, ...] = ()

    def flat(*args: Tensor) -> tuple[Tensor, ...]:
        nonlocal names
        found = joint(dict(zip(values, args, strict=True)))
        names = tuple(found)
        return tuple(found.values())

    table: Any = get_decompositions(_DECOMPOSED)
    try:
        # Attention in its plain form: the fused ones have no ONNX form for their gradients.
        with sdpa_kernel(SDPBackend.MATH), Plainer(), WholeLayers():
            graph = make_fx(functionalize(flat), decomposition_table=table, tracing_mode="fake", _allow_non_fake_inputs=True)(
                *values.values()
            )
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as exc:
        reason = str(exc).strip().splitlines()[0][:300] if str(exc).strip() else type(exc).__name__
        raise ExportError(f"the segment cannot be traced: {untraceable(reason)}, or move it behind the cut") from exc
    return graph, names


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
