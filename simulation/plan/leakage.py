"""How much of the raw data activations give away: their distance correlation, an estimate and no proof.

Székely, Rizzo and Bakirov, "Measuring and testing dependence by correlation of distances", Annals of Statistics 35 (2007), define it: the
correlation of the distances between samples, 0 for independent data and 1 where one is the other but for moves, turns and scale. Vepakomma
et al., arXiv 2008.09161 (NoPeek), measure by it what a cut leaks.

Taken with the means of the sample itself (the V-statistic of 2007) it goes to 1 for wide data, whatever they are. So distances are centred
as in Székely and Rizzo, "The distance correlation t-test of independence in high dimension", Journal of Multivariate Analysis 117 (2013),
which makes the squared distance covariance unbiased. What is below 0 then is 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wire.engine import Array

__all__ = ["LEAST_SAMPLES", "distance_correlation"]

LEAST_SAMPLES = 4  # of an unbiased estimate

_BLOCK = 4096  # columns that are float64 at once
_ROUNDING = 1e-12  # a squared distance below this share of the largest is 0 but for rounding


def distance_correlation(x: Array, y: Array) -> float:
    """0 to 1, of two tensors of the same samples, [n, ...] each, n of ``LEAST_SAMPLES`` or more; 0 where one of them is constant.

    The root of the unbiased estimate of its square. Raises ValueError: too few samples, or not as many of both.
    """
    if len(x) != len(y) or len(x) < LEAST_SAMPLES:
        raise ValueError(f"{len(x)} and {len(y)} samples; it must be as many of both, {LEAST_SAMPLES} or more")
    one, other = _centred(_distances(x)), _centred(_distances(y))
    spread = math.sqrt(float((one * one).sum()) * float((other * other).sum()))
    square = float((one * other).sum()) / spread if spread > 0 else 0.0
    return math.sqrt(min(1.0, max(0.0, square)))


def _distances(values: Array) -> NDArray[np.float64]:
    """Euclidean, between all samples: [n, n]."""
    rows = values.reshape(len(values), -1)
    products = np.zeros((len(rows), len(rows)))
    for at in range(0, rows.shape[1], _BLOCK):
        block = rows[:, at : at + _BLOCK].astype(np.float64)
        block -= block.mean(axis=0)  # or large values would drown small distances
        products += block @ block.T
    norms = products.diagonal()
    squares = norms[:, None] + norms[None, :] - 2 * products
    squares[squares < _ROUNDING * norms.max(initial=0.0)] = 0.0
    np.fill_diagonal(squares, 0.0)
    found: NDArray[np.float64] = np.sqrt(squares)
    return found


def _centred(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """U-centred: rows and columns add up to 0, the diagonal is 0."""
    count = len(distances)
    sums = distances.sum(axis=0)
    found: NDArray[np.float64] = distances - (sums[:, None] + sums[None, :]) / (count - 2) + sums.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(found, 0.0)
    return found
