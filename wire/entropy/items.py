"""Items: several symbols of one class taken as one, so that a numpy call does more; and a message's items as bits.

Most items go through lanes, the last ones through one state, whose number is what the lanes begin with. Items lie in stretches; the classes
of a stretch may depend on the items before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wire.entropy.bits import BitReader, BitWriter
from wire.entropy.rans import STATE_BITS, FrequencyTable, LaneReader, Scalar, encode_lanes

__all__ = ["ItemCode", "ItemReader", "write_items"]

Ints = NDArray[np.int64]
_MOST_VALUES = 640
_LANES = (0, 32, 64, 128, 256, 512, 1024, 2048)
_CHUNK = 32  # the number of items at the end is a multiple of it, and what is left over


class ItemCode:
    """``length`` symbols below ``symbols`` as a value below ``values``; the first symbol is the most significant."""

    def __init__(self, *, symbols: int, total: int, classes: int) -> None:
        """For ``total`` symbols in ``classes`` classes: as long as 640 values allow, shorter where the tables would be the larger work."""
        longest = max(length for length in range(1, 9) if symbols**length <= _MOST_VALUES)
        self.symbols = symbols
        self.length = min(range(1, longest + 1), key=lambda length: 8 * total // length + classes * symbols**length)
        self.values: int = symbols**self.length
        powers = symbols ** np.arange(self.length - 1, -1, -1)
        self._digits = (np.arange(self.values)[:, None] // powers % symbols).astype(np.uint8)  # [values, length]

    def pack(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Values [n / length] of symbols [n]."""
        rows = symbols.reshape(-1, self.length)
        values = rows[:, 0].astype(np.uint16)
        for column in range(1, self.length):
            values *= np.uint16(self.symbols)
            values += rows[:, column]
        return values

    def unpack(self, values: Ints) -> NDArray[np.uint8]:
        """The other way round."""
        padded = np.zeros((self.values, 8), np.uint8)  # 8 bytes move as one number
        padded[:, : self.length] = self._digits
        return padded.view(np.uint64)[:, 0].take(values).view(np.uint8).reshape(-1, 8)[:, : self.length].reshape(-1)

    def histogram(self, entries: Ints, classes: int) -> Ints:
        """How often each symbol occurs in each class [classes, symbols], of items given as class * values + value."""
        found = np.bincount(entries, minlength=classes * self.values).reshape(classes, self.values)
        return np.stack([found @ (self._digits == symbol).sum(axis=1) for symbol in range(self.symbols)], axis=1)


def write_items(writer: BitWriter, table: FrequencyTable, stretches: Sequence[Ints], bits: float, scalar: Scalar) -> int:
    """Write the items, given as entries of the table, that take about ``bits`` bits, but for the number at the end, which is returned.

    ``scalar`` may hold items already: those that follow.
    """
    entries = np.concatenate(stretches)
    lanes = _choose_lanes(len(entries), bits)
    end = len(entries) // _CHUNK * _CHUNK if lanes else 0
    scalar.push(entries[end:].tolist()[::-1])
    while scalar.bits < STATE_BITS * lanes and end:
        end -= _CHUNK
        scalar.push(entries[end : end + _CHUNK].tolist()[::-1])
    number = scalar.number()
    writer.write_gamma(_LANES.index(lanes))
    if not lanes:
        return number
    writer.write_gamma((len(entries) - end) // _CHUNK)
    steps: list[tuple[int, int]] = []
    at = 0
    for stretch in stretches:
        steps += _steps(at, min(at + len(stretch), end), lanes)
        at += len(stretch)
    payload = _to_states(number & ((1 << (STATE_BITS * lanes)) - 1), lanes)
    states, text = encode_lanes(table, entries[:end], steps, payload)
    writer.write(_from_states(states), STATE_BITS * lanes)
    writer.write_text(text)
    return number >> (STATE_BITS * lanes)


class ItemReader:
    """What write_items wrote, stretch by stretch. Raises CodecError where the bytes do not hold it."""

    def __init__(self, reader: BitReader, table: FrequencyTable, count: int) -> None:
        """``count``: of all items."""
        self._reader = reader
        self._table = table
        self._left = 0  # items still to come from the lanes
        self._lanes = _LANES[reader.read_gamma(len(_LANES) - 1)]
        if self._lanes:
            self._left = count // _CHUNK * _CHUNK - _CHUNK * reader.read_gamma(count // _CHUNK)
            states = _to_states(reader.read(STATE_BITS * self._lanes), self._lanes)
            self._lane_reader = LaneReader(table, states, reader.data, reader.at)
        self._scalar: Scalar | None = None

    def take(self, classes: Ints) -> Ints:
        """Entries of the stretch of items with these classes."""
        count = min(self._left, len(classes))
        self._left -= count
        entries = np.empty(len(classes), np.int64)
        if count:
            entries[:count] = self._lane_reader.take(classes[:count], _steps(0, count, self._lanes))
        if count < len(classes):
            entries[count:] = self.scalar().pop(classes[count:].tolist())
        return entries

    def scalar(self) -> Scalar:
        """What is left when the lanes have no more items."""
        if self._scalar is None:
            number = 0
            if self._lanes:
                self._reader.at = self._lane_reader.at
                number = _from_states(self._lane_reader.payload)
            self._scalar = Scalar(self._table, self._reader.last() << (STATE_BITS * self._lanes) | number)
        return self._scalar


def _steps(first: int, last: int, lanes: int) -> list[tuple[int, int]]:
    return [(at, min(at + lanes, last)) for at in range(first, last, lanes)]


def _choose_lanes(items: int, bits: float) -> int:
    """What takes the least time, by the microseconds of one machine: the bits of the lanes' states are the scalar's work."""
    each = bits / max(items, 1)
    fitting = [lanes for lanes in _LANES if STATE_BITS * lanes < bits / 2]
    return min(fitting, key=lambda lanes: (items / lanes * (20 + lanes / 8) + 0.6 * STATE_BITS * lanes / each) if lanes else 0.5 * items)


def _to_states(number: int, lanes: int) -> Ints:
    bits = np.unpackbits(np.frombuffer(number.to_bytes(STATE_BITS * lanes // 8, "big"), np.uint8)).reshape(lanes, STATE_BITS)
    states: Ints = bits @ (1 << np.arange(STATE_BITS - 1, -1, -1))
    return states


def _from_states(states: Ints) -> int:
    bits = (states[:, None] >> np.arange(STATE_BITS - 1, -1, -1)) & 1
    return int.from_bytes(np.packbits(bits.astype(np.uint8)).tobytes(), "big")
