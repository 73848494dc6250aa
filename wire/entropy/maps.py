"""Symbols of feature maps, each with the distribution that its neighbours suggest.

Channels go in blocks, and a block's positions in two phases, as on a chessboard: the white squares, then the black ones, of which all four
neighbours are known. A symbol's score is a linear prediction from the same place in the channels before, from the neighbourhood there, and
from the four neighbours in its own channel. Its weights are fitted by least squares, rounded and sent. A stage (one phase of one block) is
sorted by score and cut into items; the score gives an item's class, and the classes have the distributions.

Both ends compute scores in float32 with whole numbers below 2**24, so that the order of a sum does not matter and every machine agrees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire.entropy.bits import BitReader, BitWriter
from wire.entropy.items import ItemCode, ItemReader, write_items
from wire.entropy.model import choose_model, item_frequencies, read_model
from wire.entropy.rans import FrequencyTable, Scalar
from wire.errors import CodecError

__all__ = ["read_maps", "write_maps"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_CAP = 2  # larger symbols count as 2 in a score
_BLOCKS = 8
_REFERENCES = 32  # channels before a block that it looks at; more might make a score too large
_CLASSES = 16
_CROSS_ONE = 8  # a weight of 1 between channels
_CROSS_MOST = 15
_S_ONE = 64  # a prediction from other channels of 1
_BIAS_BITS = 8
_COEFFICIENT_ONE = 32
_COEFFICIENT_BITS = 8
_SCORE_ONE = _S_ONE * _COEFFICIENT_ONE
_CONSTANT_ONE = 256
_CONSTANT_BITS = 10
_FINE = np.floor(np.sqrt(8 * np.arange(4 * _SCORE_ONE))).astype(np.uint8)  # a score in 256 grades, finer near 0


@dataclass(frozen=True, kw_only=True)
class _Predictor:
    """Whole numbers, as they are sent."""

    cross: list[Ints]  # of each block: [channels, references]
    bias: Ints  # [channels]
    coefficients: list[list[int]]  # of each phase: constant, prediction, its neighbours, own neighbours


class _Geometry:
    """Blocks, references and phases of maps [channels, height, width, batch]."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        channels = shape[0]
        size = max(1, min(channels, 2), -(-channels // _BLOCKS))
        self.blocks = [slice(first, min(first + size, channels)) for first in range(0, channels, size)]
        self.references = [slice(max(0, block.start - _REFERENCES), block.start) for block in self.blocks]
        row, column = np.indices(shape[1:3])
        phases = [np.flatnonzero(((row + column) % 2 == phase).reshape(-1)) for phase in (0, 1)]
        self.phases = [places for places in phases if places.size]

    def stage(self, maps: NDArray[np.uint8], block: slice, places: Ints) -> NDArray[np.uint8]:
        """The symbols of a stage, flat."""
        return maps.reshape(self.shape[0], -1, self.shape[3])[block, places].reshape(-1)

    def stages(self) -> Iterator[tuple[int, int]]:
        """(block, phase)"""
        return ((block, phase) for block in range(len(self.blocks)) for phase in range(len(self.phases)))

    def length(self, block: int, phase: int) -> int:
        return (self.blocks[block].stop - self.blocks[block].start) * len(self.phases[phase]) * self.shape[3]


def _around(maps: Floats) -> Floats:
    """The sum of the four neighbours, of maps [channels, height, width, batch]."""
    total = np.zeros_like(maps)
    total[:, 1:] += maps[:, :-1]
    total[:, :-1] += maps[:, 1:]
    total[:, :, 1:] += maps[:, :, :-1]
    total[:, :, :-1] += maps[:, :, 1:]
    return total


def _predict(known: Floats, cross: Ints, bias: Ints, references: slice) -> Floats:
    """[channels of the block, height, width, batch], in 1/64."""
    weights = (cross * (_S_ONE // _CROSS_ONE)).astype(np.float32)
    flat = known[references].reshape(cross.shape[1], known[0].size)
    return (weights @ flat + bias[:, None].astype(np.float32)).reshape(len(cross), *known.shape[1:])


def _grades(features: list[Floats], coefficients: list[int], places: Ints) -> NDArray[np.uint8]:
    """Scores of a stage, in 256 grades. ``features``: the prediction, its neighbours, the own neighbours (in 1/64 as well)."""
    score = np.full((1, 1, 1), coefficients[0] * (_SCORE_ONE // _CONSTANT_ONE), np.float32)
    for feature, weight in zip(features, coefficients[1:], strict=True):
        score = score + feature.reshape(len(feature), -1, feature.shape[3])[:, places] * np.float32(weight)
    return _FINE.take(score.astype(np.int32).reshape(-1), mode="clip")


def _fit(geometry: _Geometry, known: Floats) -> tuple[_Predictor, list[list[Floats]]]:
    """(predictor, the features of each block) of maps that are known altogether."""
    count = known[0].size
    flat = known.reshape(len(known), -1)
    mean = flat.sum(axis=1, dtype=np.float64) / count
    crosses, biases, features = [], [], []
    for block, references in zip(geometry.blocks, geometry.references, strict=True):
        cross = _fit_cross(flat, mean, block, references)
        bias = np.rint(_S_ONE * (mean[block] - cross @ mean[references] / _CROSS_ONE)).astype(np.int64)
        crosses.append(cross)
        biases.append(np.clip(bias, -(1 << _BIAS_BITS >> 1), (1 << _BIAS_BITS >> 1) - 1))
        prediction = _predict(known, cross, biases[-1], references)
        features.append([prediction, _around(prediction), _S_ONE * _around(known[block])])
    coefficients = [_fit_phase(geometry, known, features, phase) for phase in range(len(geometry.phases))]
    return _Predictor(cross=crosses, bias=np.concatenate(biases), coefficients=coefficients), features


def _fit_cross(flat: Floats, mean: NDArray[np.float64], block: slice, references: slice) -> Ints:
    """[channels, references]; a weight that might as well be 0 is."""
    count = flat.shape[1]
    if references.start == references.stop:
        return np.zeros((block.stop - block.start, 0), np.int64)
    left = flat[references]
    own = (left @ left.T).astype(np.float64) / count - np.outer(mean[references], mean[references])
    inverse = np.linalg.inv(own + 1e-3 * np.eye(len(own)))
    right = (left @ flat[block].T).astype(np.float64) / count - np.outer(mean[references], mean[block])
    weights = inverse @ right
    power = np.einsum("ij,ij->j", flat[block].T, flat[block].T, dtype=np.float64) / count - mean[block] ** 2
    error = np.maximum(power - np.einsum("ij,ij->j", weights, right), 1e-9)
    weights[weights**2 * count < 9 * np.diag(inverse)[:, None] * error] = 0
    rounded: Ints = np.clip(np.rint(_CROSS_ONE * weights.T), -_CROSS_MOST, _CROSS_MOST).astype(np.int64)
    return rounded


def _fit_phase(geometry: _Geometry, known: Floats, features: list[list[Floats]], phase: int) -> list[int]:
    places = geometry.phases[phase]
    used = 2 + phase
    columns = [
        np.concatenate([block[column].reshape(len(block[column]), -1, geometry.shape[3])[:, places].reshape(-1) for block in features])
        for column in range(used)
    ]
    target = known.reshape(len(known), -1, geometry.shape[3])[:, places].reshape(-1)
    matrix = np.stack([np.full_like(target, _S_ONE), *columns])
    gram = (matrix @ matrix.T).astype(np.float64)
    gram += 1e-6 * np.trace(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, (matrix @ target).astype(np.float64)) * _S_ONE
    half = 1 << _COEFFICIENT_BITS >> 1
    rounded = np.clip(np.rint(_COEFFICIENT_ONE * weights[1:]), -half, half - 1).astype(int).tolist()
    half = 1 << _CONSTANT_BITS >> 1
    return [int(np.clip(np.rint(_CONSTANT_ONE * weights[0]), -half, half - 1)), *rounded]


def _write_predictor(writer: BitWriter, predictor: _Predictor) -> None:
    for cross in predictor.cross:
        writer.write_signed(cross.reshape(-1).tolist())
    for bias in predictor.bias.tolist():
        writer.write(bias + (1 << _BIAS_BITS >> 1), _BIAS_BITS)
    for constant, *others in predictor.coefficients:
        writer.write(constant + (1 << _CONSTANT_BITS >> 1), _CONSTANT_BITS)
        for other in others:
            writer.write(other + (1 << _COEFFICIENT_BITS >> 1), _COEFFICIENT_BITS)


def _read_predictor(reader: BitReader, geometry: _Geometry) -> _Predictor:
    crosses = []
    for block, references in zip(geometry.blocks, geometry.references, strict=True):
        shape = (block.stop - block.start, references.stop - references.start)
        crosses.append(np.array(reader.read_signed(shape[0] * shape[1], _CROSS_MOST), np.int64).reshape(shape))
    bias = np.array([reader.read(_BIAS_BITS) for _ in range(geometry.shape[0])]) - (1 << _BIAS_BITS >> 1)
    coefficients = []
    for phase in range(len(geometry.phases)):
        constant = reader.read(_CONSTANT_BITS) - (1 << _CONSTANT_BITS >> 1)
        coefficients.append([constant, *(reader.read(_COEFFICIENT_BITS) - (1 << _COEFFICIENT_BITS >> 1) for _ in range(2 + phase))])
    return _Predictor(cross=crosses, bias=bias, coefficients=coefficients)


class _Sorter:
    """A stage's symbols in the order of their grades, and the classes of their items."""

    def __init__(self, grades: NDArray[np.uint8], length: int) -> None:
        self.order = np.argsort(grades, kind="stable")
        self.padding = -len(grades) % length  # zeros, where a zero costs least
        middles = np.arange(length // 2, len(grades) + self.padding, length) - self.padding
        self.item_grades = grades[self.order[np.maximum(middles, 0)]]

    def sort(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[n] to [padding + n]"""
        found = symbols[self.order]
        return np.concatenate([np.zeros(self.padding, np.uint8), found]) if self.padding else found

    def unsort(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The other way round."""
        found = np.empty(len(self.order), np.uint8)
        found[self.order] = symbols[self.padding :]
        return found


def _classes_of_grades(lowest: int, highest: int) -> Ints:
    return np.clip((np.arange(256) - lowest) * _CLASSES // (highest - lowest + 1), 0, _CLASSES - 1)


def write_maps(writer: BitWriter, maps: NDArray[np.uint8], *, highest: int, most_bits: float) -> int | None:
    """Write symbols [channels, height, width, batch] up to ``highest`` (at least 1), but for the number at the end, which is returned.

    None, and then ``writer`` is of no use any more, if that would take more than about ``most_bits``.
    """
    channels, height, width, batch = maps.shape
    geometry = _Geometry((channels, height, width, batch))
    known = np.minimum(maps, _CAP).astype(np.float32)
    predictor, features = _fit(geometry, known)
    code = ItemCode(symbols=highest + 1, total=maps.size, classes=_CLASSES)
    sorters, values = [], []
    for block, phase in geometry.stages():
        places = geometry.phases[phase]
        sorters.append(_Sorter(_grades(features[block][: 2 + phase], predictor.coefficients[phase], places), code.length))
        values.append(code.pack(sorters[-1].sort(geometry.stage(maps, geometry.blocks[block], places))))
    lowest, highest_grade = min(int(one.item_grades[0]) for one in sorters), max(int(one.item_grades[-1]) for one in sorters)
    classes = _classes_of_grades(lowest, highest_grade)
    stretches = [classes[one.item_grades] * code.values + value for one, value in zip(sorters, values, strict=True)]
    _write_predictor(writer, predictor)
    writer.write(lowest, 8)
    writer.write(highest_grade, 8)
    t, bits = choose_model(code.histogram(np.concatenate(stretches), _CLASSES), writer)
    if bits + writer.bits > most_bits:
        return None
    table = FrequencyTable(item_frequencies(t, code.length))
    return write_items(writer, table, stretches, bits, Scalar(table))


def read_maps(reader: BitReader, shape: tuple[int, int, int, int], *, highest: int) -> NDArray[np.uint8]:
    """What write_maps was given, [channels, height, width, batch]. Raises CodecError."""
    geometry = _Geometry(shape)
    predictor = _read_predictor(reader, geometry)
    lowest, highest_grade = reader.read(8), reader.read(8)
    if lowest > highest_grade:
        raise CodecError("a number in the head of entropy-coded symbols is out of range")
    classes = _classes_of_grades(lowest, highest_grade)
    code = ItemCode(symbols=highest + 1, total=int(np.prod(shape)), classes=_CLASSES)
    table = FrequencyTable(item_frequencies(read_model(reader, _CLASSES, code.symbols, int(np.prod(shape))), code.length))
    items = ItemReader(reader, table, sum(-(-geometry.length(block, phase) // code.length) for block, phase in geometry.stages()))
    maps = np.zeros(shape, np.uint8)
    flat = maps.reshape(shape[0], -1, shape[3])
    known = np.zeros(shape, np.float32)
    known_flat = known.reshape(flat.shape)
    for number, phase in geometry.stages():
        block, places = geometry.blocks[number], geometry.phases[phase]
        if phase == 0:
            prediction = _predict(known, predictor.cross[number], predictor.bias[block], geometry.references[number])
            features = [prediction, _around(prediction)]
        else:
            features.append(_S_ONE * _around(known[block]))
        sorter = _Sorter(_grades(features, predictor.coefficients[phase], places), code.length)
        symbols = sorter.unsort(code.unpack(items.take(classes[sorter.item_grades]) % code.values)).reshape(-1, len(places), shape[3])
        flat[block, places] = symbols
        known_flat[block, places] = np.minimum(symbols, _CAP)
    items.scalar().check_empty()
    return maps
