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
_BURST = 1.5  # what a message may take at most, in fair shares, of what earlier ones left over


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

    ``factor`` is what steps are multiplied by; it follows the size of the messages, so that their mean is the budget.
    """

    def __init__(self, budget: float | None) -> None:
        """``budget``: bytes a sample."""
        self._budget = budget
        self._factor = 1.0
        self._left = 0.0  # bytes that earlier messages did not take; never less than 0

    def fit(self, attempt: Callable[[float], _Message], samples: int, train: bool) -> _Message:
        """``attempt(factor)`` makes a message, its bytes first. Returns one that the budget allows, or the coarsest there is."""
        found = attempt(self._factor)
        if self._budget is None or not train:
            return found
        share = self._budget * max(1, samples)
        most = min(share + self._left, _BURST * share)
        while len(found[0]) > most and self._factor < _COARSEST:
            self._factor *= _QUICK
            found = attempt(self._factor)
        self._left = min(max(0.0, self._left + share - len(found[0])), 100 * share)
        self._factor = float(np.clip(self._factor * (len(found[0]) / share) ** 0.1, _FINEST, _COARSEST))
        return found

    def state(self) -> dict[str, Array]:
        return {"allowance": np.array([self._factor, self._left], np.float64)}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Raises ValueError."""
        factor, left = (float(value) for value in state["allowance"])
        if not _FINEST <= factor <= _COARSEST or not 0 <= left < math.inf:
            raise ValueError("the account of the budget is out of range")
        self._factor, self._left = factor, left
