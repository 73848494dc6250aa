"""Bits to bytes and back, most significant bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wire.errors import CodecError

__all__ = ["BitReader", "BitWindows", "BitWriter", "pack_bits"]

_SEGMENT_BYTES = 8192
_SHIFTS = np.arange(8, dtype=np.uint32)


class BitWriter:
    """Whole numbers of a given width each, one after the other."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def fork(self) -> BitWriter:
        """Another one that begins with the same bits."""
        other = BitWriter()
        other._pieces = list(self._pieces)
        return other

    def write(self, value: int, bits: int) -> None:
        """``value`` in ``bits`` bits; 0 <= value < 2**bits."""
        if bits:
            self._pieces.append(format(value, f"0{bits}b"))

    def write_gamma(self, value: int) -> None:
        """A whole number from 0 in 2 * floor(log2(value + 1)) + 1 bits (Elias gamma code)."""
        self.write(value + 1, 2 * (value + 1).bit_length() - 1)

    def write_signed(self, numbers: list[int]) -> None:
        """Small whole numbers: 0 in a bit, others in two more than their size: 1, the sign, as many 1 less one, 0."""
        self._pieces += ["1" + "01"[number > 0] + "1" * (abs(number) - 1) + "0" if number else "0" for number in numbers]

    def write_digits(self, digits: list[int], base: int) -> None:
        """Numbers below ``base``; 64 of them share the rounding up to a whole bit."""
        for start in range(0, len(digits), 64):
            number = 0
            chunk = digits[start : start + 64]
            for digit in chunk:
                number = number * base + digit
            self.write(number, (base ** len(chunk) - 1).bit_length())

    @property
    def bits(self) -> int:
        """Written so far."""
        return sum(map(len, self._pieces))

    def write_text(self, text: str) -> None:
        """Bits as text of 0 and 1."""
        self._pieces.append(text)

    def to_bytes(self, last: int = 0) -> bytes:
        """All bits, then ``last`` in as many as it takes and zeros before it up to a whole byte."""
        head = "".join(self._pieces)
        tail = format(last, "b") if last else ""
        text = head + "0" * (-(len(head) + len(tail)) % 8) + tail
        return int(text, 2).to_bytes(len(text) // 8, "big") if text else b""


class BitReader:
    """Raises CodecError where the bytes end too early."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data
        self.at = 0

    def read(self, bits: int) -> int:
        end = self.at + bits
        if end > 8 * len(self.data):
            raise CodecError(f"{len(self.data)} bytes of entropy-coded symbols end too early")
        number = int.from_bytes(self.data[self.at >> 3 : (end + 7) >> 3], "big") >> (-end & 7)
        self.at = end
        return number & ((1 << bits) - 1)

    def read_gamma(self, most: int) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > most.bit_length():
                raise CodecError("a number in the head of entropy-coded symbols is out of range")
        value = ((1 << zeros) | self.read(zeros)) - 1
        if value > most:
            raise CodecError("a number in the head of entropy-coded symbols is out of range")
        return value

    def read_signed(self, count: int, most: int) -> list[int]:
        """Whole numbers from -most to most."""
        left = 8 * len(self.data) - self.at
        size = min(left, count * (most + 2))
        window = self.read(size)
        text = format(window, f"0{size}b") + "000"
        numbers: list[int] = []
        at = 0
        while len(numbers) < count and at < size:
            if text[at] == "0":
                numbers.append(0)
                at += 1
            else:
                end = text.index("0", at + 2)
                numbers.append(end - at - 1 if text[at + 1] == "1" else at + 1 - end)
                at = end + 1
        if len(numbers) < count or at > size or max(map(abs, numbers), default=0) > most:
            raise CodecError("a number in the head of entropy-coded symbols is out of range")
        self.at += at - size
        return numbers

    def read_digits(self, count: int, base: int) -> list[int]:
        digits: list[int] = []
        for start in range(0, count, 64):
            size = min(64, count - start)
            number = self.read((base**size - 1).bit_length())
            if number >= base**size:
                raise CodecError("a number in the head of entropy-coded symbols is out of range")
            chunk = []
            for _ in range(size):
                number, digit = divmod(number, base)
                chunk.append(digit)
            digits += reversed(chunk)
        return digits

    def last(self) -> int:
        """The number behind everything else. Raises CodecError where the bytes are more than it takes, or too few."""
        bits = 8 * len(self.data) - self.at
        number = self.read(bits) if bits >= 0 else 0
        if bits < 0 or bits - number.bit_length() >= 8:
            raise CodecError("entropy-coded symbols do not end where they should")
        return number


def pack_bits(values: NDArray[np.int64], widths: NDArray[np.int64]) -> str:
    """As text of 0 and 1: the low ``widths`` bits (at most 24 each) of every value."""
    ends = np.cumsum(widths)
    total = int(ends[-1]) if ends.size else 0
    if not total:
        return ""
    starts = ends - widths
    shifted = (values & ((1 << widths) - 1)) << (64 - 1 - (starts & 31) - widths)  # 63 bits, so that the sign stays out of it
    words = starts >> 5
    count = (total + 31) // 32 + 1
    # A sum of float64 is exact here: the pieces do not overlap, and no word has more than 32 bits.
    high = np.bincount(words, weights=shifted >> 31, minlength=count).astype(np.int64)
    low = np.bincount(words + 1, weights=(shifted & 0x7FFFFFFF) << 1, minlength=count).astype(np.int64)
    packed = (high[:count] | low[:count]).astype(">u4").tobytes()
    return format(int.from_bytes(packed, "big"), f"0{8 * len(packed)}b")[:total]


class BitWindows:
    """The bits from any bit on, for many places at once; zeros follow the end. Holds a segment of the bytes at a time."""

    def __init__(self, data: bytes | memoryview, reach_bits: int) -> None:
        """``reach_bits``: how far from the asked bit on a caller reads before it asks again."""
        self._data = data
        self._spare_bytes = (reach_bits + 7) // 8 + 4

    def at(self, bit: int) -> tuple[NDArray[np.uint32], int, int]:
        """(windows, the bit that windows[0] begins with, last bit at which they need not be asked for again).

        The highest 25 bits of a window are those that follow. Raises CodecError behind the end.
        """
        first = bit >> 3
        left = len(self._data) - first
        if left < 0:
            raise CodecError(f"{len(self._data)} bytes of entropy-coded symbols end too early")
        inner = min(left, _SEGMENT_BYTES)
        size = inner + self._spare_bytes
        segment = np.zeros(size + 3, np.uint32)
        piece = np.frombuffer(self._data, np.uint8, count=min(left, size + 3), offset=first)
        segment[: piece.size] = piece
        word = (segment[:size] << 24) | (segment[1 : size + 1] << 16) | (segment[2 : size + 2] << 8) | segment[3 : size + 3]
        windows: NDArray[np.uint32] = np.left_shift(word[:, None], _SHIFTS, dtype=np.uint32).reshape(-1)
        return windows, 8 * first, 8 * (first + inner)
