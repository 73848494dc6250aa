"""A decoder of entropy-coded symbols in plain Python, written from docs/entropy.md and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = ["read_groups", "read_maps"]

LANES = (0, 32, 64, 128, 256, 512, 1024, 2048)


class Bits:
    def __init__(self, data: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def read(self, bits: int) -> int:
        self.at += bits
        return int("0" + self.text[self.at - bits : self.at], 2)

    def gamma(self) -> int:
        zeros = self.text.index("1", self.at) - self.at
        self.at += zeros
        return self.read(zeros + 1) - 1

    def digits(self, count: int, base: int) -> list[int]:
        found: list[int] = []
        while count > len(found):
            size = min(64, count - len(found))
            number = self.read((base**size - 1).bit_length())
            found += [number // base**place % base for place in range(size - 1, -1, -1)]
        return found

    def signed(self) -> int:
        if not self.read(1):
            return 0
        sign = 1 if self.read(1) else -1
        size = 1
        while self.read(1):
            size += 1
        return sign * size

    def listed(self, count: int, bits: int, offset: int) -> list[int]:
        low, high = self.read(bits) - offset, self.read(bits) - offset
        return [low + digit for digit in self.digits(count, high - low + 1)]


class Items:
    """Sections 2 to 4: ``one(kind, last)`` reads items; ``last`` gives how many symbols it stands for."""

    def __init__(self, bits: Bits, *, symbols: int, total: int, classes: int, count: Callable[[int], int]) -> None:
        self.bits, self.symbols = bits, symbols
        lengths = [length for length in range(1, 9) if symbols**length <= 640]
        self.length = min(lengths, key=lambda length: (8 * total // length + classes * symbols**length, length))
        self.begins = [self.table(t) for t in self.model(total, classes)]
        self.lanes = LANES[bits.gamma()]
        self.left = 0
        if self.lanes:
            items = count(self.length)
            self.left = 32 * (items // 32) - 32 * bits.gamma()
            self.states = [(1 << 22) + bits.read(22) for _ in range(self.lanes)]
        self.number: int | None = None

    def model(self, total: int, classes: int) -> list[list[int]]:
        bases = []
        for _ in range(self.symbols - 1):
            step = min(10, max(0, ((2_550_000 // max(total, 1)).bit_length() - 1) // 2))
            bases.append(max(1, self.bits.read(10 - step) * 2**step + 2**step // 2))
            total = total * (2**30 - yes(bases[-1])) // 2**30
        rows = [[base] * classes for base in bases]
        for row in rows if classes > 1 else []:
            step = self.bits.read(4)
            if step != 10:
                below, above = self.bits.gamma(), self.bits.gamma()
                for kind, digit in enumerate(self.bits.digits(classes, below + above + 1)):
                    row[kind] += (digit - below) * 2**step
        return [[min(max(row[kind], 1), 1023) for row in rows] for kind in range(classes)]

    def table(self, ts: list[int]) -> list[int]:
        left, single = 2**30, []
        for t in ts:
            single.append(left * yes(t) // 2**30)
            left -= single[-1]
        single.append(left)
        products = single
        for _ in range(self.length - 1):
            products = [product * one // 2**30 for product in products for one in single]
        frequencies = [1 + product * (2**18 - len(products)) // 2**30 for product in products]
        frequencies[products.index(max(products))] += 2**18 - sum(frequencies)
        begins = [0]
        for frequency in frequencies:
            begins.append(begins[-1] + frequency)
        return begins

    def found(self, kind: int, low: int, span: int) -> tuple[int, int, int]:
        """(item, where it begins, frequency)"""
        begins = self.begins[kind]
        item = next(value for value in range(0, len(begins) - 1, span) if begins[value + span] > low)
        return item, begins[item], begins[item + span] - begins[item]

    def stretch(self, kinds: Sequence[int]) -> list[int]:
        """Items of a stage, or of all groups."""
        values: list[int] = []
        in_lanes = min(self.left, len(kinds))
        self.left -= in_lanes
        for first in range(0, in_lanes, self.lanes or 1):
            step = kinds[first : min(first + self.lanes, in_lanes)]
            for lane, kind in enumerate(step):
                x = self.states[lane]
                value, begin, frequency = self.found(kind, x % 2**18, 1)
                self.states[lane] = x // 2**18 * frequency + x % 2**18 - begin
                values.append(value)
            for lane in range(len(step)):
                width = max(0, 23 - self.states[lane].bit_length())
                self.states[lane] = (self.states[lane] << width) + self.bits.read(width)
        return values + [self.last(kind, 1) for kind in kinds[in_lanes:]]

    def last(self, kind: int, span: int) -> int:
        if self.number is None:
            self.number = self.bits.read(len(self.bits.text) - self.bits.at)
            for state in self.states if self.lanes else []:
                self.number = (self.number << 22) + state % 2**22
            self.words = []
            for _ in range(max(0, (self.number.bit_length() - 33) // 32)):
                self.words.append(self.number % 2**32)
                self.number //= 2**32
        x = self.number
        item, begin, frequency = self.found(kind, x % 2**18, span)
        x = x // 2**18 * frequency + x % 2**18 - begin
        if x < 2**32 and self.words:
            x = x * 2**32 + self.words.pop(0)
        self.number = x
        return item

    def split(self, item: int, length: int) -> list[int]:
        return [item // self.symbols**place % self.symbols for place in range(length - 1, -1, -1)]


def yes(t: int) -> int:
    return 3 * t * t * 2**10 - 2 * t**3


def read_groups(data: bytes, counts: Sequence[int], alphabet: int) -> list[int]:
    if not sum(counts):
        return []
    bits = Bits(data)
    highest = bits.read((alphabet - 1).bit_length())
    return _groups(bits, counts, highest + 1) if highest else [0] * sum(counts)


def _groups(bits: Bits, counts: Sequence[int], symbols: int) -> list[int]:
    sizes = [count for count in counts if count]
    items = Items(bits, symbols=symbols, total=sum(sizes), classes=len(sizes), count=lambda length: sum(size // length for size in sizes))
    length = items.length
    kinds = [kind for kind, size in enumerate(sizes) for _ in range(size // length)]
    values = iter(items.stretch(kinds))
    groups = [[symbol for _ in range(size // length) for symbol in items.split(next(values), length)] for size in sizes]
    for kind, size in enumerate(sizes):
        rest = size % length
        if rest:
            span = symbols ** (length - rest)
            groups[kind] += items.split(items.last(kind, span) // span, rest)
    return [symbol for group in groups for symbol in group]


Place = tuple[int, int, int, int]  # channel, row, column, sample


def read_maps(data: bytes, shape: tuple[int, int, int, int], alphabet: int) -> dict[Place, int]:
    """``shape``: batch, channels, height, width."""
    batch, channels, height, width = shape
    bits = Bits(data)
    highest = bits.read((alphabet - 1).bit_length())
    order = [(c, y, x, n) for c in range(channels) for y in range(height) for x in range(width) for n in range(batch)]
    if not highest:
        return dict.fromkeys(order, 0)
    if not bits.read(1):
        return dict(zip(order, _groups(bits, [height * width * batch] * channels, highest + 1), strict=True))
    return _Maps(bits, shape, highest + 1).read()


class _Maps:
    """Section 5."""

    def __init__(self, bits: Bits, shape: tuple[int, int, int, int], symbols: int) -> None:
        batch, self.channels, self.height, self.width = shape
        self.bits, self.symbols, self.total = bits, symbols, math.prod(shape)
        self.parts = [range(batch // 4), range(batch // 4, batch)] if batch >= 8 else [range(batch)]
        size = max(4, math.ceil(self.channels / 8))
        self.blocks = [range(first, min(first + size, self.channels)) for first in range(0, self.channels, size)]
        self.squares = [(y, x) for y in range(self.height) for x in range(self.width)]
        phases = [[(y, x) for y, x in self.squares if (y + x) % 2 == phase] for phase in (0, 1)]
        self.phases = [phase for phase in phases if phase]
        self.known: dict[Place, int] = {}

    def read(self) -> dict[Place, int]:
        bits = self.bits
        self.cross = {(c, r): bits.signed() for block in self.blocks for c in block for r in range(max(0, block.start - 32), block.start)}
        self.bias = bits.listed(self.channels, 8, 127)
        self.beside = bits.listed(2 * self.channels, 5, 15)
        coefficients = {
            (part, phase): [bits.read(10) - 512] + [bits.read(8) - 128 for _ in range(2 + 2 * phase + 2 * part)]
            for part in range(len(self.parts))
            for phase in range(len(self.phases))
        }
        classes, lowest, highest = bits.read(5), bits.read(8), bits.read(8)
        stages = [(part, block, phase) for part in range(len(self.parts)) for block in self.blocks for phase in range(len(self.phases))]

        def count(length: int) -> int:
            return sum(-(-len(block) * len(self.phases[phase]) * len(self.parts[part]) // length) for part, block, phase in stages)

        items = Items(bits, symbols=self.symbols, total=self.total, classes=classes, count=count)
        length = items.length
        for part, block, phase in stages:
            places = [(c, y, x, n) for c in block for y, x in self.phases[phase] for n in self.parts[part]]
            grades = {place: self.grade(place, part, phase, coefficients[part, phase]) for place in places}
            ordered = sorted(places, key=grades.__getitem__)
            padding = -len(ordered) % length
            padded = [ordered[0]] * padding + ordered
            kinds = [
                (grades[padded[at + length // 2]] - lowest) * classes // (highest - lowest + 1) for at in range(0, len(padded), length)
            ]
            values = items.stretch([min(max(kind, 0), classes - 1) for kind in kinds])
            symbols = [symbol for value in values for symbol in items.split(value, length)]
            self.known |= zip(ordered, symbols[padding:], strict=True)
        return self.known

    def grade(self, place: Place, part: int, phase: int, coefficients: list[int]) -> int:
        c, y, x, _ = place
        features = [8, self.prediction(place), sum(self.prediction(other) for other in self.around(place))]
        if phase:
            features += [self.own(place), self.mean(self.own, (c, y, x), part)]
        if part:
            features += [self.mean(lambda other: 64 * self.symbol(other), (c, y, x), 0), self.mean(self.prediction, (c, y, x), 0)]
        score = sum(weight * feature for weight, feature in zip(coefficients, features, strict=True))
        return math.isqrt(8 * min(max(score, 0), 8191))

    def symbol(self, place: Place) -> int:
        return min(self.known.get(place, 0), 2)

    def prediction(self, place: Place) -> int:
        c, y, x, n = place
        return sum(8 * weight * self.symbol((r, y, x, n)) for (to, r), weight in self.cross.items() if to == c) + self.bias[c]

    def around(self, place: Place) -> list[Place]:
        c, y, x, n = place
        near = [(c, y - 1, x, n), (c, y + 1, x, n), (c, y, x - 1, n), (c, y, x + 1, n)]
        return [other for other in near if 0 <= other[1] < self.height and 0 <= other[2] < self.width]

    def own(self, place: Place) -> int:
        c, y, x, n = place
        vertical = self.symbol((c, y - 1, x, n)) + self.symbol((c, y + 1, x, n))
        horizontal = self.symbol((c, y, x - 1, n)) + self.symbol((c, y, x + 1, n))
        return 4 * (self.beside[2 * c] * vertical + self.beside[2 * c + 1] * horizontal)

    def mean(self, what: Callable[[Place], int], place: tuple[int, int, int], part: int) -> int:
        samples = self.parts[part]
        return sum(what((*place, n)) for n in samples) // len(samples)
