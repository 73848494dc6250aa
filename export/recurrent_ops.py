"""A GRU or LSTM layer of one direction as one operation of PyTorch, with its gradient as another: ``torch.ops.cutlayer.*``.

Sequences are [time, batch, width]; gates stand in PyTorch's order, reset, update, new and input, forget, cell, output. With ``reverse``
a layer goes from the last time step to the first. The formulas follow from those of ``torch.nn.GRU`` and ``torch.nn.LSTM``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction
from torch.nn import functional

__all__ = ["register"]

_WEIGHTS = "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, bool reverse"
_GRU = f"Tensor x, Tensor h0, {_WEIGHTS}"
_LSTM = f"Tensor x, Tensor h0, Tensor c0, {_WEIGHTS}"
_SCHEMAS = {
    "gru_layer": f"({_GRU}) -> Tensor",
    "lstm_layer": f"({_LSTM}) -> (Tensor, Tensor)",
    "gru_layer_backward": f"(Tensor dy, Tensor x, Tensor h0, Tensor y, {_WEIGHTS}) -> ({', '.join(['Tensor'] * 6)})",
    "lstm_layer_backward": f"(Tensor dy, Tensor dc, Tensor x, Tensor h0, Tensor c0, Tensor y, {_WEIGHTS}) -> ({', '.join(['Tensor'] * 7)})",
}


# ------------------------------------------------------------ what they compute


def _gru_layer_cpu(x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, reverse: bool) -> Tensor:
    y: Tensor = _run(torch.gru, x, h0.unsqueeze(0), [w_ih, w_hh, b_ih, b_hh], reverse)[0]
    return y


def _lstm_layer_cpu(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    y, _, cell = _run(torch.lstm, x, (h0.unsqueeze(0), c0.unsqueeze(0)), [w_ih, w_hh, b_ih, b_hh], reverse)
    return y, cell[0].clone()


def _run(function: Any, x: Tensor, states: Any, weights: Sequence[Tensor | None], reverse: bool) -> Any:
    held = [each for each in weights if each is not None]
    y, *finals = function(x.flip(0) if reverse else x, states, held, len(held) == 4, 1, 0.0, False, False, False)
    return (y.flip(0) if reverse else y, *finals)


def _gru_layer_backward_cpu(
    dy: Tensor,
    x: Tensor,
    h0: Tensor,
    y: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, h0 and the four weights (of biases that are not there, too)."""
    before = _before(y, h0, reverse)
    i_r, i_z, i_n = functional.linear(x, w_ih, b_ih).chunk(3, 2)
    h_r, h_z, h_n = functional.linear(before, w_hh, b_hh).chunk(3, 2)
    r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
    n = torch.tanh(i_n + r * h_n)
    of_new = (1 - z) * (1 - n * n)
    factors = torch.cat([of_new * h_n * r * (1 - r), (before - n) * z * (1 - z), of_new * r], 2)
    carry, grads = torch.zeros_like(h0), []
    for at in _backwards(len(x), reverse):
        grads.append(carry + dy[at])
        carry = grads[-1] * z[at] + (grads[-1].repeat(1, 3) * factors[at]) @ w_hh
    dh = torch.stack(grads if reverse else grads[::-1])
    d_hh = dh.repeat(1, 1, 3) * factors
    d_ih = torch.cat([d_hh[..., : 2 * h0.shape[1]], dh * of_new], 2)
    return d_ih @ w_ih, carry, *_of_weights(d_ih, d_hh, x, before)


def _lstm_layer_backward_cpu(
    dy: Tensor,
    dc: Tensor,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    y: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, h0, c0 and the four weights (of biases that are not there, too)."""
    before = _before(y, h0, reverse)
    i, f, g, o = (functional.linear(x, w_ih, b_ih) + functional.linear(before, w_hh, b_hh)).chunk(4, 2)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    cells = [c0]
    for at in reversed(_backwards(len(x), reverse)):
        cells.append(f[at] * cells[-1] + i[at] * g[at])
    cell_before = torch.stack(cells[:-1][::-1] if reverse else cells[:-1])
    t = torch.tanh(torch.stack(cells[1:][::-1] if reverse else cells[1:]))
    factors = torch.cat([g * i * (1 - i), cell_before * f * (1 - f), i * (1 - g * g), t * o * (1 - o)], 2)
    into_cell = o * (1 - t * t)
    carry, grads = torch.zeros_like(h0), []
    for at in _backwards(len(x), reverse):
        dh = carry + dy[at]
        dc = dc + dh * into_cell[at]
        grads.append(torch.cat([dc, dc, dc, dh], 1) * factors[at])
        carry, dc = grads[-1] @ w_hh, dc * f[at]
    found = torch.stack(grads if reverse else grads[::-1])
    return found @ w_ih, carry, dc, *_of_weights(found, found, x, before)


def _before(y: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """The state that each time step began with."""
    return torch.cat([y[1:], h0.unsqueeze(0)] if reverse else [h0.unsqueeze(0), y[:-1]])


def _backwards(steps: int, reverse: bool) -> range:
    return range(steps) if reverse else range(steps - 1, -1, -1)


def _of_weights(d_ih: Tensor, d_hh: Tensor, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of both weights and both biases, from those of what the gates are made of."""
    d_ih, d_hh = d_ih.flatten(0, 1), d_hh.flatten(0, 1)
    return d_ih.T @ x.flatten(0, 1), d_hh.T @ before.flatten(0, 1), d_ih.sum(0), d_hh.sum(0)


# ------------------------------------------------------------ their shapes


def _gru_layer_shapes(x: Tensor, h0: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], *h0.shape)


def _lstm_layer_shapes(x: Tensor, h0: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], *h0.shape), torch.empty_like(h0)


def _gru_layer_backward_shapes(dy: Tensor, x: Tensor, h0: Tensor, y: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _alike(x, h0, w_ih, w_hh)


def _lstm_layer_backward_shapes(
    dy: Tensor, dc: Tensor, x: Tensor, h0: Tensor, c0: Tensor, y: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return _alike(x, h0, c0, w_ih, w_hh)


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Gradients like these tensors, and of two biases."""
    return (*(each.new_empty(each.shape) for each in tensors), *(tensors[-1].new_empty(tensors[-1].shape[:1]) for _ in range(2)))


# ------------------------------------------------------------ how they are differentiated


class _Gru(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, ctx.reverse = args
        with torch._C._AutoDispatchBelowAutograd():
            y: Tensor = torch.ops.cutlayer.gru_layer(*args)
        ctx.save_for_backward(*tensors, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, *weights, y = ctx.saved_tensors
        found = torch.ops.cutlayer.gru_layer_backward(*grads, x, h0, y, *weights, ctx.reverse)
        return _asked(found, weights)


class _Lstm(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.reverse = args
        with torch._C._AutoDispatchBelowAutograd():
            y, cell = torch.ops.cutlayer.lstm_layer(*args)
        ctx.save_for_backward(*tensors, y)
        return y, cell

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, c0, *weights, y = ctx.saved_tensors
        found = torch.ops.cutlayer.lstm_layer_backward(*grads, x, h0, c0, y, *weights, ctx.reverse)
        return _asked(found, weights)


def _asked(found: Sequence[Tensor], weights: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients of all inputs: none of a bias that is not there, nor of ``reverse``."""
    kept = [None if weight is None else grad for weight, grad in zip(weights, found[-4:], strict=True)]
    return (*found[:-4], *kept, None)


# ------------------------------------------------------------ making them known


def register() -> object:
    """Make the operations known to PyTorch, as long as what is returned lives."""
    library: Any = torch.library.Library("cutlayer", "DEF")  # type: ignore[no-untyped-call]
    kernels = (_gru_layer_cpu, _lstm_layer_cpu, _gru_layer_backward_cpu, _lstm_layer_backward_cpu)
    shapes: Sequence[Any] = (_gru_layer_shapes, _lstm_layer_shapes, _gru_layer_backward_shapes, _lstm_layer_backward_shapes)
    for (name, schema), kernel, shape in zip(_SCHEMAS.items(), kernels, shapes, strict=True):
        library.define(name + schema)
        library.impl(name, kernel, "CPU")
        torch.library.register_fake(f"cutlayer::{name}", shape, lib=library)
    library.impl("gru_layer", _differentiable(_Gru), "Autograd")
    library.impl("lstm_layer", _differentiable(_Lstm), "Autograd")
    return library


def _differentiable(function: Any) -> Callable[..., Any]:
    """Tracing differentiates by ``torch.func.vjp`` within ``functionalize``. The first refuses what ``register_autograd`` makes, the second
    an ``autograd.Function``; so this does what they do for PyTorch's own operations: it makes a node for the level that is running."""

    def kernel(*args: Any) -> Any:
        with enable_single_level_autograd_function():
            return function.apply(*args)

    return kernel
