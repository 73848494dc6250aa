"""The distributions of a message's groups, in few bits: chosen, written and read with whole numbers only, so that both ends agree.

A symbol is asked for by yes-or-no questions: is it 0? if not, is it 1? ... The probability of yes is (3 t² - 2 t³) with t in 1/1024, which
spaces the probabilities about as finely as their own uncertainty goes: a step of t weighs the same everywhere. Each question has one t for
all groups, the base, and, where it pays, an offset for each group in steps of a power of two, as coarse as pays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wire.entropy.bits import BitReader, BitWriter
from wire.entropy.rans import FREQUENCY_BITS
from wire.errors import CodecError

__all__ = ["choose_model", "item_frequencies", "read_model"]

Ints = NDArray[np.int64]

_T_BITS = 10
_T = 1 << _T_BITS
_ONE = 1 << (3 * _T_BITS)
_t = np.arange(_T + 1, dtype=np.int64)
_YES: Ints = 3 * _t * _t * _T - 2 * _t**3  # probability of yes, out of 2**30; exact
_SPLIT = (_YES[1:-2] + _YES[2:-1]) / (2 * _ONE)  # between t = 1, 2, ... 1023
_BITS_YES = -np.log2(_YES[1:-1] / _ONE)  # of t = 1 ... 1023; the encoder's estimates
_BITS_NO = -np.log2(1 - _YES[1:-1] / _ONE)
_SHARED = _T_BITS  # the step that stands for: no offsets
_STEPS = np.arange(_SHARED + 1)


def _base_step(total: int) -> int:
    """Log2 of the step of a base that ``total`` answers determine: half of them are off by less than their own uncertainty."""
    return min(_T_BITS, max(0, ((2_550_000 // max(total, 1)).bit_length() - 1) // 2))


def _base(index: int, step: int) -> int:
    return max(1, (index << step) + (1 << step >> 1))


def choose_model(histogram: Ints, writer: BitWriter) -> tuple[Ints, float]:
    """(t [questions, groups], bits that the symbols will take), and writes the former; ``histogram`` [groups, symbols], no group empty."""
    groups = len(histogram)
    asked = np.cumsum(histogram[:, ::-1], axis=1)[:, :0:-1].T  # [questions, groups]
    yes = histogram[:, :-1].T
    total = int(asked[0].sum())
    bases = []
    for yes_sum, asked_sum in zip(yes.sum(axis=1).tolist(), asked.sum(axis=1).tolist(), strict=True):
        step = _base_step(total)
        index = min(int(_nearest(yes_sum, asked_sum)) >> step, (_T >> step) - 1)
        writer.write(index, _T_BITS - step)
        bases.append(_base(index, step))
        total = _rest(total, bases[-1])
    base = np.array(bases)[:, None]
    if groups == 1:
        return base, float(_cost(yes, asked, base).sum())
    own = np.where(asked > 0, _nearest(yes, np.maximum(asked, 1)), base)
    offsets = (own[:, None] - base[:, None] + (1 << _STEPS >> 1)[:, None]) >> _STEPS[:, None]  # [questions, steps, groups]
    offsets[:, _SHARED] = 0
    t = np.clip(base[:, None] + (offsets << _STEPS[:, None]), 1, _T - 1)
    low, high = offsets.min(axis=2), offsets.max(axis=2)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    costs = _cost(yes[:, None], asked[:, None], t).sum(axis=2)
    best = (costs + groups * np.log2(high - low + 1) + 2 * np.log2((high + 1) * (1 - low))).argmin(axis=1)
    for question, step in enumerate(best.tolist()):
        writer.write(step, 4)
        if step != _SHARED:
            below = int(-low[question, step])
            writer.write_gamma(below)
            writer.write_gamma(int(high[question, step]))
            writer.write_digits((offsets[question, step] + below).tolist(), int(high[question, step]) + below + 1)
    questions = np.arange(len(best))
    return t[questions, best], float(costs[questions, best].sum())


def read_model(reader: BitReader, groups: int, symbols: int, total: int) -> Ints:
    """What choose_model returned first, for ``total`` symbols. Raises CodecError."""
    bases = []
    for _ in range(symbols - 1):
        step = _base_step(total)
        bases.append(_base(reader.read(_T_BITS - step), step))
        total = _rest(total, bases[-1])
    t = np.repeat(np.array(bases)[:, None], groups, axis=1)
    if groups > 1:
        for question in range(symbols - 1):
            step = reader.read(4)
            if step > _SHARED:
                raise CodecError("a number in the head of entropy-coded symbols is out of range")
            if step != _SHARED:
                below = reader.read_gamma(_T)
                above = reader.read_gamma(_T)
                digits = reader.read_digits(groups, below + above + 1)
                t[question] += (np.array(digits) - below) << step
    clipped: Ints = np.clip(t, 1, _T - 1)
    return clipped


def item_frequencies(t: Ints, length: int) -> Ints:
    """[groups, symbols**length] out of 2**18: the frequencies of ``length`` symbols in a row, the first one the most significant."""
    yes = _YES[t]
    left = np.full(t.shape[1], _ONE)
    single = np.empty((t.shape[1], len(t) + 1), np.int64)
    for question, one in enumerate(yes):
        single[:, question] = left * one >> 30
        left = left - single[:, question]
    single[:, -1] = left
    items = single
    for _ in range(length - 1):
        items = (items[:, :, None] * single[:, None, :] >> 30).reshape(len(items), -1)
    frequencies = 1 + (items * ((1 << FREQUENCY_BITS) - items.shape[1]) >> 30)
    frequencies[np.arange(len(items)), items.argmax(axis=1)] += (1 << FREQUENCY_BITS) - frequencies.sum(axis=1)
    return frequencies


def _nearest(yes: int | Ints, asked: int | Ints) -> Ints:
    """The t whose probability is nearest to ``yes`` of ``asked``."""
    return np.asarray(np.searchsorted(_SPLIT, np.divide(yes, asked)) + 1, np.int64)


def _rest(total: int, base: int) -> int:
    """How many of ``total`` answers are no, about."""
    return total * (_ONE - int(_YES[base])) >> 30


def _cost(yes: Ints, asked: Ints, t: Ints) -> NDArray[np.float64]:
    bits: NDArray[np.float64] = yes * _BITS_YES[t - 1] + (asked - yes) * _BITS_NO[t - 1]
    return bits
