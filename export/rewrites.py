"""Rewrites of a traced training step that make its graphs smaller or faster and its results no different.

Each takes all operations and gives all operations, in an order in which they can run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from export.ops import Op, Ref, Value

__all__ = ["CENTERED", "CENTERED_BACKWARD", "rewrite"]

_PARTS = ("select", "slice", "expand", "view", "squeeze", "unsqueeze")
_VIEWS = ("view", "unsqueeze", "squeeze", "alias")
_POOL, _POOL_BACKWARD = "max_pool2d_with_indices.default", "max_pool2d_with_indices_backward.default"
_NORM, _NORM_BACKWARD = "native_batch_norm.default", "native_batch_norm_backward.default"
CENTERED = 3  # the result of a rewritten BatchNorm that holds what it has centred
CENTERED_BACKWARD = "batch_norm_backward.centered"

_POOLS_BACKWARD = [f"{pool}_backward" for count in (2, 3) for pool in (f"max_pool{count}d_with_indices", f"adaptive_max_pool{count}d")]


def rewrite(ops: Sequence[Op], outputs: Iterable[Ref]) -> tuple[Op, ...]:
    """``outputs``: what the graphs give, which no rewrite takes away."""
    kept = set(outputs)
    found = _zeros_of_zeros(_masked_by_results([_without_unread(op) for op in ops]))
    return tuple(_mask_before_unpooling(_centered_once(found, kept), kept))


def _without_unread(op: Op) -> Op:
    """Takes out what an operation's ONNX form does not read, so that it is not kept for it.

    Max-pool backward: the maximum stands in the place of the indices. BatchNorm backward in training: no running statistics.
    """
    args = op.args
    if op.kind in _POOLS_BACKWARD:
        args = (*args[:-1], Ref(args[-1].name, 0))
    elif op.target == _NORM_BACKWARD and args[7]:
        args = (*args[:3], None, None, *args[5:])
    return replace(op, args=args)


def _masked_by_results(ops: Sequence[Op]) -> list[Op]:
    """Hardtanh backward (ReLU6) reads the result in the place of the input: the next layer keeps it anyway, and it says the same."""
    results = {op.args[0]: op.name for op in ops if op.target == "hardtanh.default"}
    return [
        replace(op, args=(op.args[0], Ref(results[op.args[1]]), *op.args[2:]))
        if op.target == "hardtanh_backward.default" and op.args[1] in results
        else op
        for op in ops
    ]


def _centered_once(ops: Sequence[Op], outputs: set[Ref]) -> list[Op]:
    """BatchNorm backward reads the input less its mean, as the forward has made it, where nothing else reads the input."""
    readers = _readers(ops, outputs)
    forwards = {op.args[0]: op for op in ops if op.target == _NORM and op.args[5]}
    chosen = {
        op.name: forwards[op.args[1]].name
        for op in ops
        if op.target == _NORM_BACKWARD and op.args[7] and op.args[1] in forwards and readers[op.args[1].name] == 2
    }
    found = []
    for op in ops:
        if op.name in chosen:
            centered = Ref(chosen[op.name], CENTERED)
            op = replace(op, target=CENTERED_BACKWARD, args=(op.args[0], centered, *op.args[2:]))
        elif op.name in chosen.values():
            op = replace(op, results=(*op.results, op.results[0]))
        found.append(op)
    return found


def _zeros_of_zeros(ops: Sequence[Op]) -> list[Op]:
    """A part of zeros (the first state of one of several recurrent layers) is zeros: it is made, and not kept."""
    zeros: set[str] = set()
    found = []
    for op in ops:
        source = op.args[0] if op.args else None
        if op.kind in _PARTS and isinstance(source, Ref) and source.name in zeros and op.results[0] is not None:
            op = replace(op, target="zeros.default", args=(op.results[0].shape,))
        if op.target == "zeros.default":
            zeros.add(op.name)
        found.append(op)
    return found


def _readers(ops: Sequence[Op], outputs: Iterable[Ref]) -> Counter[str]:
    """How often each result, by its operation's name, is read or given."""
    readers = Counter(ref.name for op in ops for ref in op.refs())
    readers.update(ref.name for ref in outputs)
    return readers


def _mask_before_unpooling(ops: Sequence[Op], outputs: set[Ref]) -> list[Op]:
    """ReLU backward after max-pool backward: mask the pooled gradient, a quarter of the elements, by the maximum.

    Where the gradient goes the element is the maximum, so ``unpool(dz) * (a > 0)`` is ``unpool(dz * (max(a) > 0))``.
    Precondition: ``_without_unread`` has run. Nothing else reads the unmasked gradient.
    """
    by_name = {op.name: op for op in ops}
    readers = _readers(ops, outputs)
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
