"""Rewrites of a traced training step that make its graphs smaller or faster and its results no different.

Each takes all operations and gives all operations, in an order in which they can run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from export.ops import Op, Ref, Value

__all__ = ["rewrite"]

_VIEWS = ("view", "unsqueeze", "squeeze", "alias")
_POOL, _POOL_BACKWARD = "max_pool2d_with_indices.default", "max_pool2d_with_indices_backward.default"


def rewrite(ops: Sequence[Op], outputs: Iterable[Ref]) -> tuple[Op, ...]:
    """``outputs``: what the graphs give, which no rewrite takes away."""
    found = [_without_unread(op) for op in ops]
    return tuple(_mask_before_unpooling(found, set(outputs)))


def _without_unread(op: Op) -> Op:
    """Takes out what an operation's ONNX form does not read, so that it is not kept for it.

    Max-pool backward: the maximum stands in the place of the indices. BatchNorm backward in training: no running statistics.
    """
    args = op.args
    if op.target == _POOL_BACKWARD:
        args = (*args[:-1], Ref(args[-1].name, 0))
    elif op.target == "native_batch_norm_backward.default" and args[7]:
        args = (*args[:3], None, None, *args[5:])
    return replace(op, args=args)


def _mask_before_unpooling(ops: Sequence[Op], outputs: set[Ref]) -> list[Op]:
    """ReLU backward after max-pool backward: mask the pooled gradient, a quarter of the elements, by the maximum.

    Where the gradient goes the element is the maximum, so ``unpool(dz) * (a > 0)`` is ``unpool(dz * (max(a) > 0))``.
    Precondition: ``_without_unread`` has run. Nothing else reads the unmasked gradient.
    """
    by_name = {op.name: op for op in ops}
    readers = Counter(ref.name for op in ops for ref in op.refs())
    readers.update(ref.name for ref in outputs)
    changed: dict[str, list[Op]] = {}
    for op in ops:
        found = _unpooling(op, by_name, readers) if op.target == "threshold_backward.default" else None
        if found is not None:
            changed |= _masked(op, found, by_name)
    return [new for op in ops for new in changed.get(op.name, [op])]


def _unpooling(op: Op, by_name: Mapping[str, Op], readers: Mapping[str, int]) -> Op | None:
    """The max-pool backward whose result only this ReLU backward reads, views aside, and that pooled this very ReLU's result."""
    at: Op | None = by_name.get(op.args[0].name)
    while at is not None and at.kind in _VIEWS and readers[at.name] == 1:
        at = by_name.get(at.args[0].name)
    if at is None or at.target != _POOL_BACKWARD or readers[at.name] != 1:
        return None
    return at if _behind_views(at.args[1], by_name) == _behind_views(op.args[1], by_name) else None


def _behind_views(ref: Ref, by_name: Mapping[str, Op]) -> Ref:
    while ref.name in by_name and by_name[ref.name].kind in _VIEWS:
        ref = by_name[ref.name].args[0]
    return ref


def _masked(relu: Op, pool: Op, by_name: Mapping[str, Op]) -> dict[str, list[Op]]:
    maximum: Ref = pool.args[-1]
    result: Value | None = by_name[maximum.name].results[0]
    mask = replace(relu, name=f"{relu.name}_pooled", args=(pool.args[0], maximum, *relu.args[2:]), results=(result,))
    unpooled = replace(pool, args=(Ref(mask.name), *pool.args[1:]))
    return {pool.name: [mask, unpooled], relu.name: [replace(relu, target="alias.default", args=(relu.args[0],))]}
