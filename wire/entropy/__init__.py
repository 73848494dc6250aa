"""Entropy coding of few-level symbols: bytes close to the entropy of each group's symbols, in a few numpy calls.

A message is self-contained. Symbols of a group are taken several at a time as one item, so that an item has 256 values at most; the items'
frequencies come from the symbols' (``wire.entropy.model``), and rANS turns them into bits (``wire.entropy.rans``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wire.entropy.bits import BitReader, BitWriter
from wire.entropy.model import choose_model, item_frequencies, read_model
from wire.entropy.rans import STATE_BITS, FrequencyTable, Scalar, decode_lanes, encode_lanes
from wire.errors import CodecError
from wire.limits import LIMITS

__all__ = ["decode", "encode"]

Ints = NDArray[np.int64]
_LANES = (0, 32, 64, 128, 256, 512, 1024, 2048)


class _Layout:
    """How the symbols of a message lie in items; both ends know it before the first bit of the model."""

    def __init__(self, counts: Ints, symbols: int) -> None:
        """``counts`` of the groups, none of them 0; ``symbols`` that occur."""
        self.symbols = symbols
        self.groups = len(counts)
        self.total = int(counts.sum())
        self.length = _item_length(self.total, len(counts), symbols)
        self.items = symbols**self.length
        whole = counts // self.length
        self.classes = np.repeat(np.arange(len(counts)), whole)
        rest = counts - whole * self.length
        self.rest_classes = np.flatnonzero(rest)
        self.rest_lengths = rest[self.rest_classes]
        ends = np.cumsum(counts)[self.rest_classes]
        first = np.cumsum(self.rest_lengths) - self.rest_lengths
        # Where in the message the symbols lie that are too few for an item, group after group.
        self.rest = np.arange(self.rest_lengths.sum()) + np.repeat(ends - self.rest_lengths - first, self.rest_lengths)

    def split(self, symbols: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[list[int]]]:
        """(values of the items, the symbols left over, by group)."""
        if not self.rest.size:
            return self._values(symbols), []
        loose = symbols[self.rest].tolist()
        ends = np.cumsum(self.rest_lengths).tolist()
        return self._values(np.delete(symbols, self.rest)), [
            loose[end - length : end] for end, length in zip(ends, self.rest_lengths.tolist(), strict=True)
        ]

    def _values(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows = symbols.reshape(-1, self.length)
        values = rows[:, 0].copy()
        for column in range(1, self.length):
            values *= np.uint8(self.symbols & 255)
            values += rows[:, column]
        return values

    def histogram(self, entries: Ints, loose: list[list[int]]) -> Ints:
        """[groups, symbols]"""
        items = np.bincount(entries, minlength=self.groups * self.items).reshape(self.groups, self.items)
        found = np.zeros((self.groups, self.symbols), np.int64)
        digits = self.digits()
        for symbol in range(self.symbols):
            found[:, symbol] = items @ (digits == symbol).sum(axis=1)
        if loose:
            flat = np.array([symbol for rest in loose for symbol in rest])
            np.add.at(found.reshape(-1), np.repeat(self.rest_classes, self.rest_lengths) * self.symbols + flat, 1)
        return found

    def rest_item(self, group: int, rest: list[int]) -> tuple[list[int], int]:
        """What is too short for an item, as the run of all items that begin with it: (first entry, number of entries)."""
        value = 0
        for symbol in rest:
            value = value * self.symbols + symbol
        span: int = self.symbols ** (self.length - len(rest))
        return [group * self.items + value * span], span

    def rests(self) -> Iterator[tuple[int, int]]:
        """(group, symbols left over)"""
        return zip(self.rest_classes.tolist(), self.rest_lengths.tolist(), strict=True)

    def rest_symbols(self, scalar: Scalar, group: int, length: int) -> list[int]:
        span: int = self.symbols ** (self.length - length)
        value = scalar.pop([group], span)[0] % self.items // span
        return [value // self.symbols**place % self.symbols for place in range(length - 1, -1, -1)]

    def digits(self) -> NDArray[np.uint8]:
        """[items, length]: the symbols in an item."""
        powers = self.symbols ** np.arange(self.length - 1, -1, -1)
        return (np.arange(self.items)[:, None] // powers % self.symbols).astype(np.uint8)

    def join(self, values: Ints, loose: list[int]) -> NDArray[np.uint8]:
        padded = np.zeros((self.items, 8), np.uint8)
        padded[:, : self.length] = self.digits()
        rows = padded.view(np.uint64)[:, 0].take(values).view(np.uint8).reshape(-1, 8)[:, : self.length]
        if not self.rest.size:
            return rows.reshape(-1)
        found = np.empty(self.total, np.uint8)
        inside = np.ones(self.total, bool)
        inside[self.rest] = False
        found[inside] = rows.reshape(-1)
        found[self.rest] = loose
        return found


def encode(symbols: NDArray[np.uint8], counts: Sequence[int], alphabet: int) -> bytes:
    """``symbols`` [n], below ``alphabet`` (2 to 16), as bytes; ``counts`` are the lengths of the groups that follow one another in it.

    Each group is coded with a distribution of its own, as far as that pays. Raises CodecError for what does not fit together.
    """
    lengths = _checked(counts, alphabet)
    if symbols.dtype != np.uint8 or symbols.shape != (int(lengths.sum()),):
        raise CodecError(f"{symbols.dtype} symbols of shape {list(symbols.shape)} are not the uint8 [{int(lengths.sum())}] of their groups")
    if not symbols.size:
        return b""
    highest = int(symbols.max())
    if highest >= alphabet:
        raise CodecError(f"a symbol is {highest}; the alphabet ends at {alphabet - 1}")
    writer = BitWriter()
    writer.write(highest, (alphabet - 1).bit_length())
    last = _write_items(symbols, _Layout(lengths[lengths > 0], highest + 1), writer) if highest else 0
    return writer.to_bytes(last)


def decode(data: bytes, counts: Sequence[int], alphabet: int) -> NDArray[np.uint8]:
    """The symbols that encode was given with the same ``counts`` and ``alphabet``.

    Raises CodecError for other bytes; time and memory go with the sum of ``counts`` and the length of ``data``, whatever the bytes.
    """
    lengths = _checked(counts, alphabet)
    total = int(lengths.sum())
    if len(data) > 64 + 2 * total + 4 * len(lengths) * alphabet:
        raise CodecError(f"{len(data)} bytes are too many for {total} entropy-coded symbols")
    if not total:
        if data:
            raise CodecError(f"{len(data)} bytes are too many for no symbols")
        return np.zeros(0, np.uint8)
    reader = BitReader(data)
    highest = reader.read((alphabet - 1).bit_length())
    if highest >= alphabet:
        raise CodecError(f"a symbol is {highest}; the alphabet ends at {alphabet - 1}")
    if highest:
        return _read_items(reader, data, _Layout(lengths[lengths > 0], highest + 1))
    if reader.last():
        raise CodecError("entropy-coded symbols do not end where they should")
    return np.zeros(total, np.uint8)


def _write_items(symbols: NDArray[np.uint8], layout: _Layout, writer: BitWriter) -> int:
    """Everything but the number at the end, which it returns."""
    values, loose = layout.split(symbols)
    entries = layout.classes * layout.items + values
    t, bits = choose_model(layout.histogram(entries, loose), writer)
    table = FrequencyTable(item_frequencies(t, layout.length))
    lanes = _choose_lanes(len(entries), bits)
    scalar = Scalar(table)
    for group, rest in zip(layout.rest_classes.tolist()[::-1], loose[::-1], strict=True):
        scalar.push(*layout.rest_item(group, rest))
    end = len(entries) - len(entries) % lanes if lanes else 0
    scalar.push(entries[end:].tolist()[::-1])
    while scalar.bits < STATE_BITS * lanes and end:
        end -= lanes
        scalar.push(entries[end : end + lanes].tolist()[::-1])
    number = scalar.number()
    writer.write_gamma(_LANES.index(lanes))
    if not lanes:
        return number
    writer.write_gamma(len(entries) // lanes - end // lanes)
    payload = _to_states(number & ((1 << (STATE_BITS * lanes)) - 1), lanes)
    states, text = encode_lanes(table, entries[:end].reshape(-1, lanes), payload)
    writer.write(_from_states(states), STATE_BITS * lanes)
    writer.write_text(text)
    return number >> (STATE_BITS * lanes)


def _read_items(reader: BitReader, data: bytes, layout: _Layout) -> NDArray[np.uint8]:
    table = FrequencyTable(item_frequencies(read_model(reader, layout.groups, layout.symbols, layout.total), layout.length))
    lanes = _LANES[reader.read_gamma(len(_LANES) - 1)]
    end, number = 0, 0
    entries = np.empty(len(layout.classes), np.int64)
    if lanes:
        steps = len(entries) // lanes
        steps -= reader.read_gamma(steps)
        end = steps * lanes
        states = _to_states(reader.read(STATE_BITS * lanes), lanes)
        classes = layout.classes[:end].reshape(steps, lanes)
        payload, reader.at = decode_lanes(table, classes, states, data, reader.at, out=entries[:end].reshape(steps, lanes))
        number = _from_states(payload)
    scalar = Scalar(table, reader.last() << (STATE_BITS * lanes) | number)
    entries[end:] = scalar.pop(layout.classes[end:].tolist())
    loose = [symbol for group, length in layout.rests() for symbol in layout.rest_symbols(scalar, group, length)]
    scalar.check_empty()
    return layout.join(entries % layout.items, loose)


def _checked(counts: Sequence[int], alphabet: int) -> Ints:
    if not 2 <= alphabet <= 16:
        raise CodecError(f"an alphabet of {alphabet} symbols; entropy coding takes 2 to 16")
    try:
        lengths = np.array(counts, np.int64).reshape(-1)
    except (OverflowError, TypeError, ValueError) as error:
        raise CodecError("the lengths of groups of symbols are not whole numbers") from error
    if len(lengths) and (lengths.min() < 0 or float(lengths.sum(dtype=np.float64)) > LIMITS.tensor_elements):
        raise CodecError(f"groups of symbols have lengths of 0 to {LIMITS.tensor_elements:,} in all")
    return lengths


def _item_length(total: int, groups: int, symbols: int) -> int:
    """Symbols in an item: as many as 256 values hold, fewer where the tables would be the larger work."""
    longest = max(length for length in range(1, 9) if symbols**length <= 256)
    return min(range(1, longest + 1), key=lambda length: 8 * total // length + groups * symbols**length)


def _choose_lanes(items: int, bits: float) -> int:
    """What takes the least time, by the microseconds of one machine: the bits of the lanes' states are the scalar's work."""
    each = bits / max(items, 1)
    fitting = [lanes for lanes in _LANES if STATE_BITS * lanes < bits / 2]
    return min(
        fitting, key=lambda lanes: (items / lanes * (22 + lanes / 20) + 0.7 * (22 * lanes / each + lanes / 2)) if lanes else 0.7 * items
    )


def _to_states(number: int, lanes: int) -> Ints:
    bits = np.unpackbits(np.frombuffer(number.to_bytes(STATE_BITS * lanes // 8, "big"), np.uint8)).reshape(lanes, STATE_BITS)
    return bits @ (1 << np.arange(STATE_BITS - 1, -1, -1))


def _from_states(states: Ints) -> int:
    bits = (states[:, None] >> np.arange(STATE_BITS - 1, -1, -1)) & 1
    return int.from_bytes(np.packbits(bits.astype(np.uint8)).tobytes(), "big")
