"""``topk`` and ``randtopk``: of each sample only k values cross, the others are 0.

**topk** keeps the k = round(keep * d), at least 1, of a sample's d values with the largest magnitude, the earlier one where two are equal.

**randtopk** (Zheng et al., "Reducing Communication for Split Learning by Randomized Top-k Sparsification", arXiv 2305.18469): in training k
values are drawn one after the other, without putting back; each with probability 1 - alpha evenly from what is left of the top k, with
probability alpha evenly from what is left of the others. Outside training it is topk.

Backward, both send the gradient of the values that crossed forward, and no positions, for both ends know them. Where the forward message
left more than k of a sample (it was another codec's), the k largest gradients among those are sent, with positions.

Payload: u8 flags (bit 0: values are float32, else float16; bits 1 and 2: positions), i8 e, varint k, positions, values in the order of the
tensor. A value is what is written times 2^e; of float16, e takes the largest of them to 2^14 … 2^15, of float32 it is 0.
Positions: 0 as the index within the sample [N, k], increasing, ceil(log2 d) bits each; 1 as one bit an element, k of them set in each
sample; 2 none, it is the support, and k is 0. Of 0 and 1 the smaller is sent, 0 where they are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wire.codecs.base import Context, Decoded, Direction, Encoded, Support, as_array, check_finite, count_of
from wire.codecs.bits import pack_bits, packed_bytes, read_varint, unpack_bits, write_varint
from wire.codecs.plain import Stateless
from wire.errors import CodecError
from wire.manifest import BATCH, TensorSpec

__all__ = ["RandTopK", "TopK"]

_INDICES, _BITMAP, _SUPPORT = 0, 1, 2
_LARGEST = np.float32(32752 * 2.0**113)  # of the highest exponent: above it a half would be rounded to what no float32 is


@dataclass(frozen=True, kw_only=True)
class TopK(Stateless):
    """``keep``: the part of a sample's values that crosses, above 0 and below 1. ``values``: how they are written."""

    name = "topk"
    number = 8
    marks_support = True

    keep: float = 0.05
    values: Literal["fp16", "fp32"] = "fp16"

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"`keep` is {self.keep}; it must be above 0 and below 1")

    def check(self, tensor: TensorSpec, direction: Direction, batch_size: int) -> None:
        if not tensor.shape or tensor.shape[0] != BATCH:
            raise ValueError("it keeps values of each sample, and the tensor has no batch; use int8")
        if tensor.bytes_at(1) < 8:
            raise ValueError("a sample is one number, of which nothing can be left out; use fp16")

    def encode(self, array: NDArray[np.float32], context: Context) -> Encoded:
        rows = array.reshape(array.shape[0], count_of(array.shape[1:]))
        if not rows.size:
            return Encoded(number=self.number, pieces=(), support=np.zeros(array.shape, np.bool_))
        k = max(1, round(self.keep * rows.shape[1]))
        allowed = None if context.support is None else context.support.reshape(rows.shape)
        if allowed is not None and allowed.sum(axis=1).max() <= k:
            mask, positions, k, kind = allowed, b"", 0, _SUPPORT
        else:
            rows = rows if allowed is None else np.where(allowed, rows, np.float32(0))
            mask = self._chosen(rows, k, context)
            kind, positions = _written(mask, k)
        values, exponent = rows[mask], 0
        if self.values == "fp16":
            values = np.clip(values, -_LARGEST, _LARGEST)
            exponent = _exponent(values)
        head = bytes([(self.values == "fp32") | kind << 1, exponent & 0xFF]) + write_varint(k)
        written = _scaled(values, -exponent).astype("<f2" if self.values == "fp16" else "<f4").tobytes()
        return Encoded(number=self.number, pieces=(head, positions, written), support=mask.reshape(array.shape))

    def _chosen(self, rows: NDArray[np.float32], k: int, context: Context) -> Support:
        return _largest(np.abs(rows), k)

    @classmethod
    def decode(cls, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context) -> Decoded:
        if len(data) < 3 or data[0] > 5:
            raise CodecError("flags, exponent or k are missing, or no such flags exist")
        if not shape or not count_of(shape):
            raise CodecError(f"a tensor of shape {list(shape)} has no samples to take values of")
        rows = (shape[0], count_of(shape[1:]))
        kind, values_dtype = data[0] >> 1, np.dtype("<f4" if data[0] & 1 else "<f2")
        exponent = int.from_bytes(data[1:2], "little", signed=True)
        if not -126 <= exponent <= 126:
            raise CodecError(f"no values have the exponent {exponent}")
        k, at = read_varint(data, 2)
        if kind == _SUPPORT:
            mask = _of_support(context.support, shape, k).reshape(rows)
        else:
            size = _positions_bytes(kind, rows, k)
            mask = _read(kind, data[at : at + size], rows, k)
            at += size
        values = as_array(data[at:], values_dtype, (int(mask.sum()),)).astype(np.float32)
        array = np.zeros(rows, np.float32)
        with np.errstate(over="ignore"):
            array[mask] = check_finite(_scaled(values, exponent))
        return Decoded(array=array.reshape(shape), support=mask.reshape(shape))


@dataclass(frozen=True, kw_only=True)
class RandTopK(TopK):
    """``alpha``: how likely each draw is to be from outside the top k, 0 to 1. ``keep`` and ``values`` as of topk."""

    name = "randtopk"
    number = 9

    alpha: float = 0.1

    def __post_init__(self) -> None:
        TopK.__post_init__(self)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"`alpha` is {self.alpha}; it must be 0 to 1")

    def _chosen(self, rows: NDArray[np.float32], k: int, context: Context) -> Support:
        top = TopK._chosen(self, rows, k, context)
        if not context.train or context.support is not None:
            return top
        # Which side each of the k draws takes is decided apart from which value it takes there, so the counts can be drawn first; of
        # each side, any subset of its size is then as likely as any other. The top side cannot run out, the other one may.
        others = (context.uniform((len(rows), k), "side") < self.alpha).sum(axis=1)
        others = np.minimum(others, rows.shape[1] - k)
        order = _distinct(context.uniform(rows.shape, "order"))
        return _smallest(order, top, k - others) | _smallest(order, ~top, others)


# ---------------------------------------------------------------- choosing


def _largest(values: NDArray[np.float32], k: int) -> Support:
    """The k largest of each row; of equal ones, the first."""
    edge = np.partition(values, -k, axis=1)[:, [-k]]
    mask: Support = values > edge
    equal: Support = values == edge
    missing = k - mask.sum(axis=1, keepdims=True)
    if (equal.sum(axis=1, keepdims=True) != missing).any():
        equal &= np.cumsum(equal, axis=1) <= missing
    return mask | equal


def _distinct(uniform: NDArray[np.float32]) -> NDArray[np.uint64]:
    """The same order, without ties: the place in the row decides them. A place takes 26 bits at the most, a uniform number 24."""
    whole = (uniform * np.float32(1 << 24)).astype(np.uint64)
    return (whole << np.uint64(32)) | np.arange(uniform.shape[1], dtype=np.uint64)


def _smallest(order: NDArray[np.uint64], among: Support, counts: NDArray[Any]) -> Support:
    """Of each row the ``counts`` elements of ``among`` with the smallest ``order``; there are as many."""
    kept = np.where(among, order, np.uint64(2**64 - 1))
    ranked = np.sort(kept, axis=1)
    edge = ranked[np.arange(len(order)), np.maximum(counts, 1) - 1]
    found: Support = (kept <= edge[:, None]) & (counts > 0)[:, None]
    return found


# ---------------------------------------------------------------- positions


def _width(samples: int) -> int:
    return (samples - 1).bit_length()


def _positions_bytes(kind: int, rows: tuple[int, int], k: int) -> int:
    if not 1 <= k <= rows[1]:
        raise CodecError(f"{k} values a sample of {rows[1]}")
    return packed_bytes(rows[0] * k, _width(rows[1])) if kind == _INDICES else packed_bytes(rows[0] * rows[1], 1)


def _written(mask: Support, k: int) -> tuple[int, bytes]:
    rows = (mask.shape[0], mask.shape[1])
    if _positions_bytes(_INDICES, rows, k) <= _positions_bytes(_BITMAP, rows, k):
        return _INDICES, pack_bits(np.nonzero(mask)[1].astype(np.uint32), _width(rows[1]))
    return _BITMAP, pack_bits(mask.view(np.uint8), 1)


def _read(kind: int, data: memoryview, rows: tuple[int, int], k: int) -> Support:
    mask = np.zeros(rows, np.bool_)
    if kind == _BITMAP:
        mask = unpack_bits(data, 1, rows[0] * rows[1]).reshape(rows).view(np.bool_)
    else:
        index = unpack_bits(data, _width(rows[1]), rows[0] * k).reshape(rows[0], k).astype(np.int64)
        if index.max() >= rows[1]:
            raise CodecError(f"a position is beyond the {rows[1]} values of a sample")
        np.put_along_axis(mask, index, True, axis=1)
    if (mask.sum(axis=1) != k).any():
        raise CodecError(f"not every sample has {k} positions")
    return mask


def _of_support(support: Support | None, shape: tuple[int, ...], k: int) -> Support:
    if support is None or support.shape != shape or k:
        raise CodecError("the positions are said to be known, and are not")
    return support


# ---------------------------------------------------------------- values


def _exponent(values: NDArray[np.float32]) -> int:
    """Of a power of two that takes ``values`` to the upper part of a half's range, for which gradients of a mean are often too small."""
    _, exponent = np.frexp(np.abs(values).max(initial=0.0))
    return min(max(int(exponent) - 15, -126), 126)


def _scaled(values: NDArray[np.float32], exponent: int) -> NDArray[np.float32]:
    return values * np.float32(2.0**exponent)
