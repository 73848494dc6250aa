"""A budget of bytes a sample, and an account that holds a message to it by making it coarser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from wire.engine import Array

__all__ = ["Allowance", "bytes_per_sample"]

_Message = TypeVar("_Message", bound=tuple[Any, ...])

_FINEST, _COARSEST = 2.0**-2, 2.0**12
_QUICK = 2.0**0.25  # a message that does not fit is tried again so much coarser
_SLOW = 0.1  # of the error, in the logarithm, that a full batch corrects
_BURST = 1.5  # what a message may take at most, in fair shares, of what earlier ones left over
_SMALL = 0.25  # a batch of less than that part of the largest may take what that part of it may, on credit


def bytes_per_sample(given: float | None, rate_bps: float | None, deadline_s: float | None, samples: int | None) -> float | None:
    """The budget that these options make; None: none. Raises ValueError for options that make none together."""
    line = {"rate_bps": rate_bps, "deadline_s": deadline_s, "samples": samples}
    for name, value in {"bytes_per_sample": given, **line}.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` is {value}; it must be above 0")
    if rate_bps is not None and deadline_s is not None and samples is not None:
        if given is not None:
            raise ValueError("give `bytes_per_sample`, or `rate_bps`, `deadline_s` and `samples`, not both")
        return rate_bps * deadline_s / 8 / samples
    if any(value is not None for value in line.values()):
        missing = ", ".join(f"`{name}`" for name, value in line.items() if value is None)
        raise ValueError(f"`rate_bps`, `deadline_s` and `samples` make a budget together; {missing} is missing")
    return given


class Allowance:
    """What one encoder may still send. Without a budget everything fits.

    ``factor`` is what steps are multiplied by; it follows the size of the messages, so that their mean is the budget. A message that does
    not fit is made coarser by itself. One of a small batch, whose head alone may be over its share, takes credit, which the next ones pay
    back.
    """

    def __init__(self, budget: float | None) -> None:
        """``budget``: bytes a sample."""
        self._budget = budget
        self._factor = 1.0
        self._left = 0.0  # bytes that earlier messages did not take; below 0: owed
        self._largest = 1  # samples of a message

    def fit(self, attempt: Callable[[float], _Message], samples: int, train: bool) -> _Message:
        """``attempt(factor)`` makes a message, its bytes first. Returns one that the budget allows, or the smallest there is."""
        found = attempt(self._factor)
        if self._budget is None or not train or not samples:
            return found
        self._largest = max(self._largest, samples)
        weight = samples / self._largest
        share = self._budget * samples
        most = min(share + self._left, _BURST * share)
        if weight < _SMALL:
            most = max(most, _SMALL * self._budget * self._largest)
        found, factor = self._coarser(attempt, found, most)
        self._left = min(self._left + share - len(found[0]), 100 * share)
        # A full batch that had to be made coarser says more than its size does.
        change = 0.5 * math.log(factor / self._factor) if factor > self._factor else _SLOW * math.log(len(found[0]) / share)
        self._factor = min(max(self._factor * math.exp(weight * change), _FINEST), _COARSEST)
        return found

    def _coarser(self, attempt: Callable[[float], _Message], found: _Message, most: float) -> tuple[_Message, float]:
        """The first of ``found`` and ever coarser ones that fits, or that is no smaller than two before it; and its factor."""
        best, factor, stuck = self._factor, self._factor, 0
        while len(found[0]) > most and factor < _COARSEST and stuck < 2:
            factor *= _QUICK
            other = attempt(factor)
            stuck = 0 if len(other[0]) < len(found[0]) else stuck + 1
            if not stuck:
                found, best = other, factor
        return found, best

    def state(self) -> dict[str, Array]:
        return {"allowance": np.array([self._factor, self._left, self._largest], np.float64)}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Raises ValueError."""
        factor, left, largest = (float(value) for value in state["allowance"])
        if not _FINEST <= factor <= _COARSEST or not math.isfinite(left) or not 1 <= largest < math.inf:
            raise ValueError("the account of the budget is out of range")
        self._factor, self._left, self._largest = factor, left, int(largest)
