"""A training set shared out unevenly by label, as hospitals' patients are: every party makes the same shares from the same labels.

For each class the parties' parts are drawn from a symmetric Dirichlet distribution (Hsu, Qi & Brown 2019, arXiv 1909.06335, draw a
party's classes instead; by class as here is Yurochkin et al. 2019, arXiv 1905.12022). The lower the concentration, the more uneven.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wire.engine import Array
from wire.errors import DataError
from wire.rng import permutation, uniform

__all__ = ["LEAST_SAMPLES", "dirichlet_share"]

LEAST_SAMPLES = 2  # of a party, if there are so many for all: BatchNorm cannot train on one

_TRIES = 64  # a proposal is refused less than once in twenty times


def dirichlet_share(labels: Array, part: int, parts: int, *, concentration: float, seed: int) -> NDArray[np.int64]:
    """The places in ``labels`` [n] of party ``part`` (from 0) of ``parts``, ascending: int64, a function of the arguments alone.

    All parties' shares together are all places, each once, and none is empty. Raises DataError: fewer samples than parties.
    """
    if len(labels) < parts:
        raise DataError(f"{len(labels)} samples cannot be shared out to {parts} clients; every one needs a sample")
    owner = np.empty(len(labels), np.int64)
    for number, label in enumerate(np.unique(labels)):
        mine = np.flatnonzero(labels == label)
        ends = np.floor(np.cumsum(_proportions(parts, concentration, seed, number)) * len(mine)).astype(np.int64)
        shuffled = mine[permutation(seed, "partition", 0, number, len(mine))]
        owner[shuffled] = np.searchsorted(ends[:-1], np.arange(len(mine)), side="right")
    _fill(owner, parts)
    return np.flatnonzero(owner == part)


def _fill(owner: NDArray[np.int64], parts: int) -> None:
    """Parties with too little get the last samples of those that have most."""
    counts = np.bincount(owner, minlength=parts)
    least = min(LEAST_SAMPLES, len(owner) // parts)
    while counts.min() < least:
        poor, rich = int(counts.argmin()), int(counts.argmax())
        owner[np.flatnonzero(owner == rich)[-1]] = poor
        counts[rich] -= 1
        counts[poor] += 1


def _proportions(parts: int, concentration: float, seed: int, number: int) -> NDArray[np.float64]:
    """float64 [parts], sum 1: gammas over their sum, by their logarithms, since small ones would underflow.

    Machines' logarithms may differ in the last bit; that moves a sample with a probability of about 1e-12.
    """
    logs = np.array([_log_gamma(concentration, seed, number, part) for part in range(parts)])
    weights = np.exp(logs - logs.max())
    found: NDArray[np.float64] = weights / weights.sum()
    return found


def _log_gamma(shape: float, seed: int, number: int, part: int) -> float:
    """The logarithm of a gamma variate, any ``shape`` above 0: Marsaglia & Tsang 2000 for shape + 1, then times U^(1 / shape).

    Made of raw words and not of numpy's distributions, which may change from version to version.
    """
    draws = _open_unit(seed, number, part)
    d = shape + 2 / 3
    for _ in range(_TRIES):
        normal = math.sqrt(-2 * math.log(next(draws))) * math.cos(2 * math.pi * next(draws))
        v = (1 + normal / math.sqrt(9 * d)) ** 3
        accepted = v > 0 and math.log(next(draws)) < 0.5 * normal * normal + d - d * v + d * math.log(v)
        if accepted:
            return math.log(d * v) + math.log(next(draws)) / shape
    raise AssertionError("a gamma variate was refused again and again; this cannot happen")


def _open_unit(seed: int, number: int, part: int) -> Iterator[float]:
    """Numbers in (0, 1)."""
    values = uniform((4 * _TRIES,), seed, "partition", number, part).astype(np.float64) + 2.0**-25
    yield from values.tolist()
