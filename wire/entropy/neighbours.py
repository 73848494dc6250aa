"""What the neighbours of a symbol in feature maps say about it: the order that both ends go in, features and scores.

All in float32 with whole numbers below 2**24, so that the order of a sum does not matter and every machine agrees to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BESIDE_MOST",
    "BESIDE_ONE",
    "BIAS_MOST",
    "CAP",
    "COEFFICIENT_BITS",
    "COEFFICIENT_ONE",
    "CROSS_MOST",
    "CROSS_ONE",
    "ONE",
    "Geometry",
    "Part",
    "Predictor",
    "grades_of",
]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Symbols = NDArray[np.uint8]

CAP = 2  # larger symbols count as 2 in a score
_BLOCK = 4  # channels, but not more than 8 blocks
_BLOCKS = 8
_REFERENCES = 32  # channels before a block that it looks at; more might make a score too large
_LEAST_BATCH = 8  # that goes in two parts
CROSS_ONE = 8  # a weight of 1 between channels
CROSS_MOST = 15
BESIDE_ONE = 16  # a weight of 1 between neighbours
BESIDE_MOST = 15
ONE = 64  # a prediction of 1, or a symbol 1 that is known
BIAS_MOST = 127
COEFFICIENT_ONE = 32
COEFFICIENT_BITS = 8
_CONSTANT = 8  # what the first coefficient, which has 2 bits more, is multiplied with
_GRADES = np.floor(np.sqrt(8 * np.arange(4 * ONE * COEFFICIENT_ONE))).astype(np.uint8)  # of a score from 0 to 4, finer near 0


class Geometry:
    """Parts, blocks, references and phases of maps [channels, height, width, batch]."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        channels, height, width, batch = shape
        self.shape = shape
        self.parts = [slice(0, batch // 4), slice(batch // 4, batch)] if batch >= _LEAST_BATCH else [slice(0, batch)]
        size = max(_BLOCK, -(-channels // _BLOCKS))
        self.blocks = [slice(first, min(first + size, channels)) for first in range(0, channels, size)]
        self.references = [slice(max(0, block.start - _REFERENCES), block.start) for block in self.blocks]
        row, column = np.indices((height, width))
        phases = [np.flatnonzero(((row + column) % 2 == phase).reshape(-1)) for phase in (0, 1)]
        self.phases = [places for places in phases if places.size]
        self.kinds = [(part, phase) for part in range(len(self.parts)) for phase in range(len(self.phases))]

    def stages(self) -> Iterator[tuple[int, int, int]]:
        """(part, block, phase)"""
        return itertools.product(range(len(self.parts)), range(len(self.blocks)), range(len(self.phases)))

    def length(self, part: int, block: int, phase: int) -> int:
        """Symbols of a stage."""
        batch, channels = self.parts[part], self.blocks[block]
        return (channels.stop - channels.start) * len(self.phases[phase]) * (batch.stop - batch.start)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Whole numbers, as they are sent."""

    cross: list[Ints]  # of each block: [channels, references]
    bias: Ints  # [channels]
    beside: Ints  # [channels, 2]: weights of the neighbours above and below, and of those to the left and right
    coefficients: list[list[int]]  # of each kind of stage (part, phase), one for each feature


class Part:
    """A part's symbols, as far as they are known, and the features that follow from them. Stages come in their order."""

    def __init__(self, geometry: Geometry, known: Floats, before: Part | None) -> None:
        """``known`` [channels, places, batch of the part] is filled in from outside."""
        self._geometry = geometry
        self.known = known
        self.scores = np.empty_like(known)  # predictions from the channels before
        self._means = before.means() if before is not None else []
        self._fields: Floats = np.empty((0, 0, 0, 0), np.float32)  # of the block: its predictions, their neighbours, the own neighbours

    def means(self) -> list[Floats]:
        """Of the symbols and of their predictions, over the batch [channels, places, 1]."""
        return [_mean(self.known * np.float32(ONE)), _mean(self.scores)]

    def predict(self, block: int, cross: Ints, bias: Ints) -> None:
        """A block from the channels before; comes before the features of its stages."""
        channels, references = self._geometry.blocks[block], self._geometry.references[block]
        weights = (cross * (ONE // CROSS_ONE)).astype(np.float32)
        left = self.known[references].reshape(cross.shape[1], self.known[0].size)
        prediction = self.scores[channels]
        np.matmul(weights, left, out=prediction.reshape(len(cross), -1))
        prediction += bias[:, None, None].astype(np.float32)

    def features(self, block: int, phase: int, beside: Ints) -> Floats:
        """[features, symbols of the stage]; ``beside`` [channels of the block, 2] as in Predictor."""
        places, channels = self._geometry.phases[phase], self._geometry.blocks[block]
        means = [mean[channels] for mean in self._means]
        if phase:
            self._fields[2] = self._beside(channels, beside)
            means.insert(0, _mean(self._fields[2]))
        else:
            self._fields = np.zeros((3, *self.scores[channels].shape), np.float32)
            self._fields[0] = self.scores[channels]
            self.add_vertical(self._fields[0], self._fields[1])
            self.add_horizontal(self._fields[0], self._fields[1])
        fields = self._fields[: 2 + phase]
        stage = np.empty((1 + len(fields) + len(means), len(fields[0]), len(places), self.known.shape[2]), np.float32)
        stage[0] = _CONSTANT
        fields.take(places, axis=2, out=stage[1 : 1 + len(fields)], mode="clip")
        for row, mean in zip(stage[1 + len(fields) :], means, strict=True):
            row[:] = mean[:, places]
        return stage.reshape(len(stage), -1)

    def _beside(self, channels: slice, weights: Ints) -> Floats:
        scaled = (weights * (ONE // BESIDE_ONE)).astype(np.float32)[:, :, None, None]
        vertical, horizontal = np.zeros((2, *self.known[channels].shape), np.float32)
        self.add_vertical(self.known[channels], vertical)
        self.add_horizontal(self.known[channels], horizontal)
        vertical *= scaled[:, 0]
        horizontal *= scaled[:, 1]
        total: Floats = vertical + horizontal
        return total

    def add_vertical(self, values: Floats, total: Floats) -> None:
        """Add the neighbours above and below, of ``values`` [channels, places, batch]."""
        maps, out = self._maps(values), self._maps(total)
        out[:, 1:] += maps[:, :-1]
        out[:, :-1] += maps[:, 1:]

    def add_horizontal(self, values: Floats, total: Floats) -> None:
        maps, out = self._maps(values), self._maps(total)
        out[:, :, 1:] += maps[:, :, :-1]
        out[:, :, :-1] += maps[:, :, 1:]

    def _maps(self, values: Floats) -> Floats:
        maps: Floats = values.reshape(len(values), *self._geometry.shape[1:3], values.shape[2])
        return maps


def _mean(values: Floats) -> Floats:
    """Of the batch, rounded down, so that it is the same everywhere: the sum is of whole numbers, and float64 holds it exactly."""
    total = values.sum(axis=2, dtype=np.float64, keepdims=True)
    mean: Floats = np.floor(total / values.shape[2]).astype(np.float32)
    return mean


def grades_of(features: Floats, coefficients: list[int]) -> Symbols:
    """The scores of a stage's symbols in 256 grades."""
    score = np.array(coefficients, np.float32) @ features
    grades: Symbols = _GRADES.take(score.astype(np.int32), mode="clip")
    return grades
