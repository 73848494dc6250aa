"""The arithmetic of rANS (Duda, arXiv:1311.2540): numbers and tables of frequencies to bits and back.

A state x takes up an item of frequency f that begins at c, out of 2**18, as x' = (x // f) * 2**18 + c + x % f; it grows by the item's
information. Two machines share that step and one table:

- ``Lanes``: many states of 23 bits side by side, a numpy call a step for all of them. A lane gives off single bits, not words, so that its
  state always lies between 2**22 and 2**23: then it costs 22 bits to write down, and it begins with 22 bits that mean something.
- ``push_all`` and ``pop_all``: one state in plain Python, for the items at the end of a message. What comes out of it is what the lanes
  begin with. So lanes cost nothing, there can be hundreds, and a short message has none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from wire.entropy.bits import BitWindows, pack_bits
from wire.errors import CodecError

__all__ = ["FREQUENCY_BITS", "STATE_BITS", "FrequencyTable", "LaneReader", "Scalar", "encode_lanes"]

FREQUENCY_BITS = 18  # a table of 256 items, the rarest of which get 1, then loses less than 0.1 % of the rest's share
STATE_BITS = 22  # 16 times finer than the frequencies: a lane then loses less than 0.01 %
_TOTAL = 1 << FREQUENCY_BITS
_LOW = 1 << STATE_BITS
_FINER = STATE_BITS - FREQUENCY_BITS
_WORD_BITS = 32
_WORD_LOW = 1 << _WORD_BITS

Ints = NDArray[np.int64]


class FrequencyTable:
    """Frequencies of ``items`` items in each of several classes; item v of class k is entry k * items + v.

    A class sums to 2**18, and every item has some.
    """

    def __init__(self, frequencies: Ints) -> None:
        """``frequencies``: [classes, items]."""
        self.classes, self.items = frequencies.shape
        self.frequency = frequencies.reshape(-1)
        self.start = np.zeros(self.frequency.size + 1, np.int64)  # the class in the high bits, the item's beginning in the low 18
        np.cumsum(self.frequency, out=self.start[1:])


class Scalar:
    """One state in plain Python. What is pushed last is popped first.

    An item may be a run of ``span`` entries that counts as one.
    """

    def __init__(self, table: FrequencyTable, number: int = 0) -> None:
        """``number``: what ``number()`` returned, to pop from it."""
        self._start: list[int] = table.start.tolist()
        count = max(0, (number.bit_length() - _WORD_BITS - 1) // _WORD_BITS)
        self._state = number >> (_WORD_BITS * count)
        tail = (number & ((1 << (_WORD_BITS * count)) - 1)).to_bytes(4 * count, "big")
        self._words = [int.from_bytes(tail[at : at + 4], "big") for at in range(0, len(tail), 4)]

    @property
    def bits(self) -> int:
        """The length of ``number()``."""
        return _WORD_BITS * len(self._words) + self._state.bit_length()

    def number(self) -> int:
        """The state and everything it gave off."""
        tail = b"".join(word.to_bytes(4, "big") for word in self._words)
        return self._state << (8 * len(tail)) | int.from_bytes(tail, "big")

    def push(self, entries: Iterable[int], span: int = 1) -> None:
        """Take up items, given by the (first) entry of each."""
        state, words, start = self._state, self._words, self._start
        for entry in entries:
            begin = start[entry]
            frequency = start[entry + span] - begin
            if state >= frequency << (2 * _WORD_BITS - FREQUENCY_BITS):
                words.append(state & 0xFFFFFFFF)
                state >>= _WORD_BITS
            state = (state // frequency << FREQUENCY_BITS) + state % frequency + (begin & (_TOTAL - 1))
        self._state = state

    def pop(self, classes: Iterable[int], span: int = 1) -> list[int]:
        """The (first) entries of the items, each from the class given."""
        state, words, start = self._state, self._words, self._start
        entries: list[int] = []
        for kind in classes:
            key = (kind << FREQUENCY_BITS) + (state & (_TOTAL - 1))
            entry = bisect_right(start, key) - 1
            entry -= entry % span
            begin = start[entry]
            state = (state >> FREQUENCY_BITS) * (start[entry + span] - begin) + key - begin
            if state < _WORD_LOW and words:
                state = state << _WORD_BITS | words.pop()
            entries.append(entry)
        self._state = state
        return entries

    def check_empty(self) -> None:
        """Raises CodecError unless everything that was pushed has been popped."""
        if self._state or self._words:
            raise CodecError("entropy-coded symbols do not end where they should")


def encode_lanes(table: FrequencyTable, entries: Ints, steps: Sequence[tuple[int, int]], payload: Ints) -> tuple[Ints, str]:
    """(what the lanes' states have become [lanes], their bits as text of 0 and 1), for ``entries`` [n].

    A step takes the entries from one place up to another, one a lane; the first lanes where there are fewer. ``payload`` [lanes], below
    2**22, is what LaneReader returns at the end.
    """
    frequency = table.frequency
    shortest = FREQUENCY_BITS + 1 - np.frexp(frequency)[1].astype(np.int64)  # bits given off: this many, or one less
    threshold = ((shortest << 32) - (frequency << (shortest + _FINER))).take(entries)
    inverse = ((1 << 44) // frequency + 1).take(entries)  # exact as a division of numbers below 32 f
    gap = (_TOTAL - frequency).take(entries)
    start = (table.start & (_TOTAL - 1)).take(entries)
    widths = np.empty(len(entries), np.int64)
    before = np.empty(len(entries), np.int64)
    states = payload + _LOW
    for first, last in reversed(steps):
        state = states[: last - first]
        before[first:last] = state
        width = widths[first:last]
        np.add(state, threshold[first:last], out=width)
        np.right_shift(width, 32, out=width)
        np.right_shift(state, width, out=state)
        quotient = state * inverse[first:last]
        quotient >>= 44
        quotient *= gap[first:last]
        state += quotient
        state += start[first:last]
    return states - _LOW, pack_bits(before, widths)


class LaneReader:
    """The other way round, a stretch of items at a time, so that what is known already can tell the classes of what follows."""

    def __init__(self, table: FrequencyTable, states: Ints, data: bytes | memoryview, at: int) -> None:
        """``states`` [lanes], below 2**22; the lanes' bits begin in ``data`` at bit ``at``."""
        self._table = table
        self._states = states + _LOW
        self._bits = BitWindows(data, len(states) * FREQUENCY_BITS)
        self._windows, self._origin, self._last_bit = self._bits.at(at)
        self.at = at

    @property
    def payload(self) -> Ints:
        """[lanes]: what encode_lanes was given, once all items are read."""
        return self._states - _LOW

    def take(self, classes: Ints, steps: Sequence[tuple[int, int]]) -> Ints:
        """Entries of the items, given the class of each; ``steps`` as in encode_lanes. Raises CodecError where the bytes end too early."""
        frequency, start = self._table.frequency, self._table.start
        entries = np.empty(len(classes), np.int64)
        offset = classes << FREQUENCY_BITS
        for first, last in steps:
            if self.at > self._last_bit:
                self._windows, self._origin, self._last_bit = self._bits.at(self.at)
            state = self._states[: last - first]
            key = state & (_TOTAL - 1)
            key += offset[first:last]
            entry = start.searchsorted(key, "right")
            entry -= 1
            entries[first:last] = entry
            np.right_shift(state, FREQUENCY_BITS, out=state)
            state *= frequency.take(entry)
            state += key
            state -= start.take(entry)
            width = (1023 + STATE_BITS) - (state.astype(np.float64).view(np.int64) >> 52)  # a float's exponent is the length in bits
            end = width.cumsum()
            np.left_shift(state, width, out=state)
            state |= self._windows.take(end - width + (self.at - self._origin)) >> (32 - width)
            self.at += int(end[-1])
        return entries
