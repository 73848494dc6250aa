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

_POOLS_BACKWARD = [f"{pool}_backward" for count in (2, 3) for pool in (f"max_pool{count}d_with_indices", f"adaptive_max_pool{count}d")]


def rewrite(ops: Sequence[Op], outputs: Iterable[Ref]) -> tuple[Op, ...]:
    """``outputs``: what the graphs give, which no rewrite takes away."""
    found = [_without_unread(op) for op in ops]
    return tuple(_mask_before_unpooling(found, set(outputs)))


def _without_unread(op: Op) -> Op:
    """Takes out what an operation's ONNX form does not read, so that it is not kept for it.

    Max-pool backward: the maximum stands in the place of the indices. BatchNorm backward in training: no running statistics.
    """
    args = op.args
    if op.kind in _POOLS_BACKWARD:
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
        chain = _unpooling(op, by_name, readers) if op.target == "threshold_backward.default" else None
        if chain is not None:
            changed |= _masked(op, chain, by_name)
    return [new for op in ops for new in changed.get(op.name, [op])]


def _unpooling(op: Op, by_name: Mapping[str, Op], readers: Mapping[str, int]) -> list[Op] | None:
    """The views and, at their end, the max-pool backward whose result only this ReLU backward reads and that pooled this ReLU's result."""
    chain: list[Op] = []
    at = by_name.get(op.args[0].name)
    while at is not None and readers[at.name] == 1 and (at.kind in _VIEWS or at.target == _POOL_BACKWARD):
        chain.append(at)
        if at.target == _POOL_BACKWARD:
            return chain if _behind_views(at.args[1], by_name) == _behind_views(op.args[1], by_name) else None
        at = by_name.get(at.args[0].name)
    return None


def _behind_views(ref: Ref, by_name: Mapping[str, Op]) -> Ref:
    while ref.name in by_name and by_name[ref.name].kind in _VIEWS:
        ref = by_name[ref.name].args[0]
    return ref


def _masked(relu: Op, chain: Sequence[Op], by_name: Mapping[str, Op]) -> dict[str, list[Op]]:
    *views, pool = chain
    maximum: Ref = pool.args[-1]
    result: Value | None = by_name[maximum.name].results[0]
    mask = replace(relu, name=f"{relu.name}_pooled", args=(pool.args[0], maximum, *relu.args[2:]), results=(result,), rewritten=True)
    unpooled = replace(pool, args=(Ref(mask.name), *pool.args[1:]), rewritten=True)
    found = {pool.name: [mask, unpooled], relu.name: [replace(relu, target="alias.default", args=(relu.args[0],))]}
    return found | {view.name: [replace(view, rewritten=True)] for view in views}
