"""Symbols in groups, each with a distribution of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wire.entropy.bits import BitReader, BitWriter
from wire.entropy.items import ItemCode, ItemReader, write_items
from wire.entropy.model import choose_model, item_frequencies, read_model
from wire.entropy.rans import FrequencyTable, Scalar

__all__ = ["read_groups", "write_groups"]

Ints = NDArray[np.int64]


class _Layout:
    """How the symbols of a message lie in items; both ends know it before the first bit of the model."""

    def __init__(self, counts: Ints, symbols: int) -> None:
        """``counts`` of the groups, none of them 0; ``symbols`` that occur."""
        self.groups = len(counts)
        self.total = int(counts.sum())
        self.code = ItemCode(symbols=symbols, total=self.total, classes=self.groups)
        length = self.code.length
        self.classes = np.repeat(np.arange(self.groups, dtype=np.int64), counts // length)
        rest = counts % length
        self.rest_classes = np.flatnonzero(rest)
        self.rest_lengths = rest[self.rest_classes]
        ends = np.cumsum(counts)[self.rest_classes]
        first = np.cumsum(self.rest_lengths) - self.rest_lengths
        # Where in the message the symbols lie that are too few for an item, group after group.
        self.rest = np.arange(self.rest_lengths.sum()) + np.repeat(ends - self.rest_lengths - first, self.rest_lengths)

    def rests(self) -> Iterator[tuple[int, int]]:
        """(group, number of symbols left over)"""
        return zip(self.rest_classes.tolist(), self.rest_lengths.tolist(), strict=True)

    def push_rests(self, scalar: Scalar, loose: list[int]) -> None:
        """What is too short for an item, as the run of all items that begin with it."""
        end = len(loose)
        for group, length in reversed(list(self.rests())):
            value = 0
            for symbol in loose[end - length : end]:
                value = value * self.code.symbols + symbol
            span: int = self.code.symbols ** (self.code.length - length)
            scalar.push([group * self.code.values + value * span], span)
            end -= length

    def pop_rests(self, scalar: Scalar) -> list[int]:
        """What push_rests was given."""
        loose: list[int] = []
        for group, length in self.rests():
            span: int = self.code.symbols ** (self.code.length - length)
            value = scalar.pop([group], span)[0] % self.code.values // span
            loose += [value // self.code.symbols**place % self.code.symbols for place in range(length - 1, -1, -1)]
        return loose


def write_groups(writer: BitWriter, symbols: NDArray[np.uint8], counts: Ints, *, highest: int) -> int:
    """Write ``symbols`` [n] up to ``highest`` >= 1, in groups of ``counts`` >= 1, but for the number at the end, which is returned."""
    layout = _Layout(counts, highest + 1)
    code = layout.code
    entries = layout.classes * code.values + code.pack(np.delete(symbols, layout.rest) if layout.rest.size else symbols)
    histogram = code.histogram(entries, layout.groups)
    loose = symbols[layout.rest]
    np.add.at(histogram.reshape(-1), np.repeat(layout.rest_classes, layout.rest_lengths) * code.symbols + loose, 1)
    t, bits = choose_model(histogram, writer)
    table = FrequencyTable(item_frequencies(t, code.length))
    scalar = Scalar(table)
    layout.push_rests(scalar, loose.tolist())
    return write_items(writer, table, [entries], bits, scalar)


def read_groups(reader: BitReader, counts: Ints, *, highest: int) -> NDArray[np.uint8]:
    """What write_groups was given. Raises CodecError."""
    layout = _Layout(counts, highest + 1)
    code = layout.code
    table = FrequencyTable(item_frequencies(read_model(reader, layout.groups, code.symbols, layout.total), code.length))
    items = ItemReader(reader, table, len(layout.classes))
    symbols = code.unpack(items.take(layout.classes) % code.values)
    scalar = items.scalar()
    loose = layout.pop_rests(scalar)
    scalar.check_empty()
    if not loose:
        return symbols
    found = np.empty(layout.total, np.uint8)
    inside = np.ones(layout.total, bool)
    inside[layout.rest] = False
    found[inside] = symbols
    found[layout.rest] = loose
    return found
