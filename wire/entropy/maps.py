"""Symbols of feature maps, each with the distribution that its neighbours suggest.

A batch goes in two parts, so that the second one knows how often each place of each channel is taken. In a part, channels go in blocks, and
a block's places in two phases, as on a chessboard: the white squares, then the black ones, of which all four neighbours are known. A
symbol's score is a linear prediction from what is known: the same place in the channels before, the neighbourhood there, the four
neighbours in its own channel, means over the batch. Its weights are fitted by least squares, rounded and sent. A stage (one phase of one
block of one part) is sorted by score and cut into items; the score gives an item's class, and the classes have the distributions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wire.entropy.bits import BitReader, BitWriter
from wire.entropy.fit import fit
from wire.entropy.items import ItemCode, ItemReader, write_items
from wire.entropy.model import choose_model, item_frequencies, read_model
from wire.entropy.neighbours import BESIDE_MOST, BIAS_MOST, CAP, COEFFICIENT_BITS, CROSS_MOST, Geometry, Part, Predictor, grades_of
from wire.entropy.rans import FrequencyTable, Scalar
from wire.errors import CodecError

__all__ = ["read_maps", "write_maps"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Symbols = NDArray[np.uint8]

_CLASS_BITS = 5


class _Sorter:
    """A stage's symbols in the order of their grades, and the grades of their items."""

    def __init__(self, grades: Symbols, length: int) -> None:
        self.order = np.argsort(grades, kind="stable")
        self.padding = -len(grades) % length  # zeros, where a zero costs least
        middles = np.arange(length // 2, len(grades) + self.padding, length) - self.padding
        self.item_grades = grades[self.order[np.maximum(middles, 0)]]

    def sort(self, symbols: Symbols) -> Symbols:
        """[n] to [padding + n]"""
        found = symbols[self.order]
        return np.concatenate([np.zeros(self.padding, np.uint8), found]) if self.padding else found

    def unsort(self, symbols: Symbols) -> Symbols:
        """The other way round."""
        found = np.empty(len(self.order), np.uint8)
        found[self.order] = symbols[self.padding :]
        return found


@dataclass(frozen=True, kw_only=True)
class _Classes:
    """So many classes, evenly over the grades between two."""

    number: int
    lowest: int
    highest: int

    def of_grades(self) -> Ints:
        """[256]"""
        return np.clip((np.arange(256, dtype=np.int64) - self.lowest) * self.number // (self.highest - self.lowest + 1), 0, self.number - 1)


def write_maps(writer: BitWriter, maps: Symbols, *, highest: int, most_bits: float) -> int | None:
    """Write symbols [channels, height, width, batch] up to ``highest`` (at least 1), but for the number at the end, which is returned.

    None, and then ``writer`` is of no use any more, if that would take more than about ``most_bits``.
    """
    channels, height, width, batch = maps.shape
    geometry = Geometry((channels, height, width, batch))
    number = int(np.clip(most_bits**0.5 / 11, 4, (1 << _CLASS_BITS) - 1))
    code = ItemCode(symbols=highest + 1, total=maps.size, classes=number)
    predictor, features = fit(geometry, np.minimum(maps, CAP).astype(np.float32))
    parts = [np.ascontiguousarray(maps[..., part]).reshape(channels, -1, part.stop - part.start) for part in geometry.parts]
    sorters, values = [], []
    for stage, (part, block, phase) in zip(features, geometry.stages(), strict=True):
        coefficients = predictor.coefficients[geometry.kinds.index((part, phase))]
        sorters.append(_Sorter(grades_of(stage, coefficients), code.length))
        values.append(code.pack(sorters[-1].sort(parts[part][geometry.blocks[block], geometry.phases[phase]].reshape(-1))))
    grades = np.concatenate([one.item_grades for one in sorters])
    classes = _Classes(number=number, lowest=int(grades.min()), highest=int(grades.max()))
    entries = classes.of_grades()[grades] * code.values + np.concatenate(values)
    _write_predictor(writer, predictor)
    for value, bits in [(classes.number, _CLASS_BITS), (classes.lowest, 8), (classes.highest, 8)]:
        writer.write(value, bits)
    t, data_bits = choose_model(code.histogram(entries, number), writer)
    if data_bits + writer.bits > most_bits:
        return None
    table = FrequencyTable(item_frequencies(t, code.length))
    return write_items(writer, table, np.split(entries, np.cumsum([len(one) for one in values])[:-1]), data_bits, Scalar(table))


def read_maps(reader: BitReader, shape: tuple[int, int, int, int], *, highest: int) -> Symbols:
    """What write_maps was given, [channels, height, width, batch]. Raises CodecError."""
    geometry = Geometry(shape)
    total = int(np.prod(shape))
    predictor = _read_predictor(reader, geometry)
    classes = _Classes(number=reader.read(_CLASS_BITS), lowest=reader.read(8), highest=reader.read(8))
    if not classes.number or classes.lowest > classes.highest:
        raise CodecError("a number in the head of entropy-coded symbols is out of range")
    code = ItemCode(symbols=highest + 1, total=total, classes=classes.number)
    table = FrequencyTable(item_frequencies(read_model(reader, classes.number, code.symbols, total), code.length))
    items = ItemReader(reader, table, sum(-(-geometry.length(*stage) // code.length) for stage in geometry.stages()))
    of_grades = classes.of_grades()
    parts: list[Part] = []
    found = []
    for part, block, phase in geometry.stages():
        if part == len(parts):
            size = geometry.parts[part].stop - geometry.parts[part].start
            parts.append(Part(geometry, np.zeros((shape[0], shape[1] * shape[2], size), np.float32), parts[-1] if parts else None))
            found.append(np.empty(parts[-1].known.shape, np.uint8))
        channels, places = geometry.blocks[block], geometry.phases[phase]
        if not phase:
            parts[part].predict(block, predictor.cross[block], predictor.bias[channels])
        features = parts[part].features(block, phase, predictor.beside[channels])
        sorter = _Sorter(grades_of(features, predictor.coefficients[geometry.kinds.index((part, phase))]), code.length)
        symbols = sorter.unsort(code.unpack(items.take(of_grades[sorter.item_grades]) % code.values)).reshape(-1, len(places), size)
        found[part][channels, places] = symbols
        parts[part].known[channels, places] = np.minimum(symbols, CAP)
    items.scalar().check_empty()
    return np.concatenate(found, axis=2).reshape(shape)


def _write_predictor(writer: BitWriter, predictor: Predictor) -> None:
    for cross in predictor.cross:
        writer.write_signed(cross.reshape(-1).tolist())
    _write_range(writer, predictor.bias, BIAS_MOST)
    _write_range(writer, predictor.beside.reshape(-1), BESIDE_MOST)
    half = 1 << COEFFICIENT_BITS >> 1
    for constant, *others in predictor.coefficients:
        writer.write(constant + 4 * half, COEFFICIENT_BITS + 2)
        for other in others:
            writer.write(other + half, COEFFICIENT_BITS)


def _read_predictor(reader: BitReader, geometry: Geometry) -> Predictor:
    crosses = []
    for block, references in zip(geometry.blocks, geometry.references, strict=True):
        shape = (block.stop - block.start, references.stop - references.start)
        crosses.append(np.array(reader.read_signed(shape[0] * shape[1], CROSS_MOST), np.int64).reshape(shape))
    bias = _read_range(reader, geometry.shape[0], BIAS_MOST)
    beside = _read_range(reader, 2 * geometry.shape[0], BESIDE_MOST).reshape(-1, 2)
    half = 1 << COEFFICIENT_BITS >> 1
    coefficients = []
    for part, phase in geometry.kinds:
        constant = reader.read(COEFFICIENT_BITS + 2) - 4 * half
        coefficients.append([constant, *(reader.read(COEFFICIENT_BITS) - half for _ in range(2 + 2 * phase + 2 * part))])
    return Predictor(cross=crosses, bias=bias, beside=beside, coefficients=coefficients)


def _write_range(writer: BitWriter, numbers: Ints, most: int) -> None:
    """Numbers from -most to most, and before them the least and the largest."""
    bits = (2 * most).bit_length()
    lowest, highest = int(numbers.min()), int(numbers.max())
    writer.write(lowest + most, bits)
    writer.write(highest + most, bits)
    writer.write_digits((numbers - lowest).tolist(), highest - lowest + 1)


def _read_range(reader: BitReader, count: int, most: int) -> Ints:
    bits = (2 * most).bit_length()
    lowest, highest = reader.read(bits) - most, reader.read(bits) - most
    if not lowest <= highest <= most:
        raise CodecError("a number in the head of entropy-coded symbols is out of range")
    return np.array(reader.read_digits(count, highest - lowest + 1), np.int64) + lowest
