"""What a trace is made of: ATen operations, their arguments and results, and numbers that follow the batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

__all__ = ["Affine", "Op", "Ratio", "Ref", "Trace", "TraceInput", "Value"]


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

    ``module``: the submodule that it came from, of a gradient the one whose gradient it is; empty where that is not known.
    """

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Value | None, ...]
    module: str
    rewritten: bool = False  # its results are no longer those of the traced operation of this name

    @property
    def kind(self) -> str:
        """``target`` without its overload."""
        return self.target.partition(".")[0]

    @property
    def where(self) -> str:
        """The operation and its module, for messages."""
        return f"aten.{self.target} of {f'module `{self.module}`' if self.module else 'the segment itself'}"

    def refs(self) -> list[Ref]:
        return list(_refs((self.args, tuple(self.kwargs.values()))))


@dataclass(frozen=True, slots=True)
class TraceInput:
    """A graph input under its name in the bundle (``in.x``, ``p.0.weight``, ``g.y`` …)."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Trace:
    """``inputs`` by the name of the Ref that stands for them; ``outputs`` by their names in the bundle, in order.

    ``graph`` is the trace as PyTorch runs it, at the batch size ``batch``, and ``keys`` are the names of its positional inputs.
    ``masks``: those inputs that are dropout masks, with the probability of keeping an element.
    """

    inputs: Mapping[str, TraceInput]
    ops: tuple[Op, ...]
    outputs: Mapping[str, Ref]
    graph: fx.GraphModule = field(repr=False)
    keys: tuple[str, ...]
    batch: int
    masks: Mapping[str, float] = field(default_factory=dict)

    def value(self, ref: Ref) -> Value:
        """What is known of an input, or of an operation's result."""
        if ref.name in self.inputs:
            return self.inputs[ref.name].value
        found = next(op for op in self.ops if op.name == ref.name).results[ref.index]
        assert found is not None
        return found


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _refs(item)
