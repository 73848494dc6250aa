"""GRU and LSTM in a trace: each layer and direction is one operation, and so is its gradient.

PyTorch itself takes them apart into the operations of each time step, which a device would run one by one. Kept whole, the forward is
ONNX's own operator, and most of the backward is a few large products (``export.lowering.recurrent``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from export.recurrent_ops import register
from wire.errors import ExportError

__all__ = ["WholeLayers", "check_recurrent"]

_LIBRARY = register()
_KINDS = {torch.gru: "gru", torch.lstm: "lstm"}


def check_recurrent(module: nn.Module) -> None:
    """Raises ExportError for a recurrent layer that has no form on a device."""
    for name, each in module.named_modules():
        if isinstance(each, nn.LSTM) and each.proj_size:
            raise ExportError(f"module `{name}` is an LSTM with proj_size, which does not train on a device; put a Linear behind the LSTM")


class WholeLayers(TorchFunctionMode):
    """While it is entered, GRU and LSTM run as whole layers. Raises ExportError for packed sequences."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _KINDS:
            return func(*args, **(kwargs or {}))
        if isinstance(args[3], (list, tuple)):
            raise ExportError("the segment packs sequences of several lengths, which no device can; pad them to one length")
        return _layers(_KINDS[func], *args)


def _layers(
    kind: str,
    x: Tensor,
    initial: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """As ``torch.gru`` and ``torch.lstm``: the last layer's sequence, and the final states."""
    states = [initial] if isinstance(initial, Tensor) else list(initial)
    each, directions = 4 if biased else 2, 2 if bidirectional else 1
    x = x.transpose(0, 1) if batch_first else x
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        rows = []
        for at in range(layer * directions, (layer + 1) * directions):
            given = (*weights[at * each : (at + 1) * each], *[None] * (4 - each))
            row, final = _layer(kind, x, [state[at] for state in states], given, reverse=at % directions == 1)
            rows.append(row)
            finals.append(final)
        x = torch.cat(rows, dim=2) if bidirectional else rows[0]
        if dropout and training and layer + 1 < layers:
            x = functional.dropout(x, dropout)
    stacked = tuple(torch.stack(list(state)) for state in zip(*finals, strict=True))
    return (x.transpose(0, 1) if batch_first else x, *stacked)


def _layer(
    kind: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor | None], *, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The sequence and the final states."""
    if kind == "gru":
        y: Tensor = torch.ops.cutlayer.gru_layer(x, *states, *weights, reverse)
        return y, (y[0 if reverse else -1],)
    y, cell = torch.ops.cutlayer.lstm_layer(x, *states, *weights, reverse)
    return y, (y[0 if reverse else -1], cell)
