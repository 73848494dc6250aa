"""Entropy coding of few-level symbols: bytes close to the entropy of each group's symbols, or, for feature maps, well below it.

A message is self-contained, and what its length and its groups are is known to both ends. Symbols of one class are taken several at a time
as an item (``wire.entropy.items``); the items' frequencies come from a few numbers a class (``wire.entropy.model``), and rANS turns items
into bits (``wire.entropy.rans``). The classes are the groups (``wire.entropy.groups``) or come from a symbol's neighbours
(``wire.entropy.maps``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wire.entropy.bits import BitReader, BitWriter
from wire.entropy.groups import read_groups, write_groups
from wire.entropy.maps import read_maps, write_maps
from wire.errors import CodecError
from wire.limits import LIMITS

__all__ = ["decode", "decode_maps", "encode", "encode_maps"]

Ints = NDArray[np.int64]
_MOST_BY_NEIGHBOURS = 1 << 20  # symbols; it takes about 100 bytes of memory for each


def encode(symbols: NDArray[np.uint8], counts: Sequence[int], alphabet: int) -> bytes:
    """``symbols`` [n], below ``alphabet`` (2 to 16), as bytes; ``counts`` are the lengths of the groups that follow one another in it.

    Each group is coded with a distribution of its own, as far as that pays. Raises CodecError for what does not fit together.
    """
    lengths = _checked(counts, alphabet)
    highest = _highest(symbols, (int(lengths.sum()),), alphabet)
    writer = BitWriter()
    if not symbols.size:
        return b""
    writer.write(highest, (alphabet - 1).bit_length())
    last = write_groups(writer, symbols, lengths[lengths > 0], highest=highest) if highest else 0
    return writer.to_bytes(last)


def decode(data: bytes | memoryview, counts: Sequence[int], alphabet: int) -> NDArray[np.uint8]:
    """The symbols that encode was given with the same ``counts`` and ``alphabet``.

    Raises CodecError for other bytes; time and memory go with the sum of ``counts`` and the length of ``data``, whatever the bytes.
    """
    lengths = _checked(counts, alphabet)
    total = int(lengths.sum())
    reader = BitReader(data)
    highest = _read_highest(reader, alphabet) if total else 0
    if not highest:
        return _nothing_else(reader, (total,))
    return read_groups(reader, lengths[lengths > 0], highest=highest)


def encode_maps(symbols: NDArray[np.uint8], alphabet: int) -> bytes:
    """Feature maps of ``symbols`` [batch, channels, any others], below ``alphabet`` (2 to 16), as bytes.

    A channel is a group, as in encode; or, where that takes less, a symbol's distribution follows from its neighbours in its own channel
    and the channels before. Raises CodecError for what does not fit together.
    """
    shape = _checked_maps(symbols.shape, alphabet)
    highest = _highest(symbols, symbols.shape, alphabet)
    if not symbols.size:
        return b""
    maps = np.ascontiguousarray(symbols.reshape(shape).transpose(1, 2, 3, 0))
    head = BitWriter()
    head.write(highest, (alphabet - 1).bit_length())
    if not highest:
        return head.to_bytes()
    last = None
    if maps.size <= _MOST_BY_NEIGHBOURS:
        writer = head.fork()
        writer.write(1, 1)
        last = write_maps(writer, maps, highest=highest, most_bits=_order_0_bits(maps))
    if last is None:
        writer = head.fork()
        writer.write(0, 1)
        last = write_groups(writer, maps.reshape(-1), np.full(shape[1], maps[0].size), highest=highest)
    return writer.to_bytes(last)


def decode_maps(data: bytes | memoryview, shape: Sequence[int], alphabet: int) -> NDArray[np.uint8]:
    """The symbols [shape] that encode_maps was given with the same ``alphabet``.

    Raises CodecError for other bytes; time and memory go with the size of the maps and the length of ``data``, whatever the bytes.
    """
    batch, channels, height, width = _checked_maps(shape, alphabet)
    reader = BitReader(data)
    total = batch * channels * height * width
    highest = _read_highest(reader, alphabet) if total else 0
    if not highest:
        return _nothing_else(reader, shape)
    if reader.read(1):
        if total > _MOST_BY_NEIGHBOURS:
            raise CodecError(f"{total} symbols are too many to be coded by their neighbours")
        maps = read_maps(reader, (channels, height, width, batch), highest=highest)
    else:
        maps = read_groups(reader, np.full(channels, total // channels), highest=highest).reshape(channels, height, width, batch)
    return np.ascontiguousarray(maps.transpose(3, 0, 1, 2)).reshape(shape)


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


def _checked_maps(shape: Sequence[int], alphabet: int) -> tuple[int, int, int, int]:
    """[batch, channels, height, width]; what has fewer dimensions has a height of 1, what has more a height of several."""
    sizes = _checked([], alphabet) if len(shape) < 2 else None
    if sizes is not None or min(shape) < 0:
        raise CodecError(f"maps of shape {list(shape)}; they need a batch and channels")
    batch, channels, *others = (int(size) for size in shape)
    width = others[-1] if others else 1
    height = 1
    for size in others[:-1]:
        height *= size
    if batch * channels * height * width > LIMITS.tensor_elements:
        raise CodecError(f"maps of shape {list(shape)}; they have at most {LIMITS.tensor_elements:,} symbols")
    return batch, channels, height, width


def _highest(symbols: NDArray[np.uint8], shape: tuple[int, ...], alphabet: int) -> int:
    if symbols.dtype != np.uint8 or symbols.shape != shape:
        raise CodecError(f"{symbols.dtype} symbols of shape {list(symbols.shape)} are not uint8 {list(shape)}")
    highest = int(symbols.max(initial=0))
    if highest >= alphabet:
        raise CodecError(f"a symbol is {highest}; the alphabet ends at {alphabet - 1}")
    return highest


def _read_highest(reader: BitReader, alphabet: int) -> int:
    highest = reader.read((alphabet - 1).bit_length())
    if highest >= alphabet:
        raise CodecError(f"a symbol is {highest}; the alphabet ends at {alphabet - 1}")
    return highest


def _nothing_else(reader: BitReader, shape: Sequence[int]) -> NDArray[np.uint8]:
    if reader.last():
        raise CodecError("entropy-coded symbols do not end where they should")
    return np.zeros(shape, np.uint8)


def _order_0_bits(maps: NDArray[np.uint8]) -> float:
    """What write_groups would take, at least."""
    flat = maps.reshape(len(maps), -1)
    found = np.stack([np.count_nonzero(flat == symbol, axis=1) for symbol in range(int(maps.max()) + 1)])
    return float(-(found * np.log2(np.maximum(found, 1) / flat.shape[1])).sum())
