"""Indices that are known when a segment is exported are put into the operations that read them, as tensors in place of their Refs.

An index that the segment computes from constants alone (a list in brackets, a buffer-less table, ``arange``) becomes part of its operation,
which then has a form without any index in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from export.ops import Affine, Op, Ratio, Ref

__all__ = ["with_known_indices"]

_READERS = ("index", "index_put", "_unsafe_index", "_unsafe_index_put", "index_select", "index_add", "gather", "scatter_add")
_MOST_ELEMENTS = 1 << 22


def with_known_indices(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The same operations, in order."""
    by_name = {op.name: op for op in ops}
    values: dict[str, Tensor | None] = {}
    return tuple(replace(op, args=(op.args[0], *_resolved(op.args[1:], by_name, values))) if op.kind in _READERS else op for op in ops)


def _resolved(args: Sequence[Any], by_name: Mapping[str, Op], values: dict[str, Tensor | None]) -> tuple[Any, ...]:
    return tuple(_replaced(each, by_name, values) for each in args)


def _replaced(value: Any, by_name: Mapping[str, Op], values: dict[str, Tensor | None]) -> Any:
    if isinstance(value, list):
        return [_replaced(each, by_name, values) for each in value]
    if not isinstance(value, Ref):
        return value
    found = _known(value, by_name, values)
    return value if found is None or found.dtype.is_floating_point else found


def _known(ref: Ref, by_name: Mapping[str, Op], values: dict[str, Tensor | None]) -> Tensor | None:
    """The result's value where it follows from constants alone."""
    if ref.name not in values:
        values[ref.name] = _computed(by_name[ref.name], by_name, values) if ref.name in by_name and ref.index == 0 else None
    return values[ref.name]


def _computed(op: Op, by_name: Mapping[str, Op], values: dict[str, Tensor | None]) -> Tensor | None:
    if op.kind == "constant":
        return _plain(op.args[0])
    result = op.results[0]
    if result is None or len(op.results) != 1 or any(isinstance(dim, Affine) for dim in result.shape):
        return None
    if torch.Size(result.shape).numel() > _MOST_ELEMENTS or _has_symbols((op.args, tuple(op.kwargs.values()))):  # type: ignore[arg-type]
        return None
    found = {ref: _known(ref, by_name, values) for ref in op.refs()}
    if any(value is None for value in found.values()):
        return None
    name, _, overload = op.target.partition(".")
    call = getattr(getattr(torch.ops.aten, name), overload)
    made = call(*_filled(op.args, found), **{key: _filled(value, found) for key, value in op.kwargs.items()})
    return made.clone() if isinstance(made, Tensor) else None


def _plain(value: Tensor) -> Tensor:
    return value.detach().clone()


def _filled(value: Any, found: Mapping[Ref, Tensor | None]) -> Any:
    if isinstance(value, Ref):
        return found[value]
    return type(value)(_filled(each, found) for each in value) if isinstance(value, (list, tuple)) else value


def _has_symbols(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_symbols(each) for each in value)
    return isinstance(value, (Affine, Ratio))
