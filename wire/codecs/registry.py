"""All codecs, by name and by number, and what holds for each of them alike: the fallback to fp32, and the check of what was decoded.

A new codec is a module of its own and one entry of ``_ALL``.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from wire.codecs.affine import Int2, Int4, Int8
from wire.codecs.base import PLAIN, Codec, Context, Decoded, Encoded, Encoder, check_finite
from wire.codecs.integers import Packed
from wire.codecs.lowbit import LowBit
from wire.codecs.mxfp4 import MXFP4
from wire.codecs.plain import BFloat16, Float16, Float32, Raw
from wire.codecs.sparse import RandTopK, TopK
from wire.engine import Array
from wire.errors import CodecError, RunFileError
from wire.parse import parse

__all__ = ["CODECS", "LOSSLESS", "decode_array", "decode_lossless", "encode_array", "encode_lossless", "parse_codec", "versions"]

_ALL: tuple[type[Codec], ...] = (Raw, Float32, Float16, BFloat16, Int8, Int4, Int2, MXFP4, TopK, RandTopK, LowBit, Packed)

CODECS: Mapping[str, type[Codec]] = {codec.name: codec for codec in _ALL}
_BY_NUMBER: Mapping[int, type[Codec]] = {codec.number: codec for codec in _ALL}
LOSSLESS: Mapping[str, int] = {codec.name: codec.number for codec in (Raw, Float32, Packed)}  # name → number
_FLOAT32 = Float32()


def versions() -> dict[str, int]:
    """Every codec that this version of Cutlayer knows, with its version."""
    return {codec.name: codec.version for codec in _ALL}


# ---------------------------------------------------------------- text


@functools.cache
def parse_codec(text: str) -> Codec:
    """A codec from ``NAME`` or ``NAME:key=value,key=value``. Raises ValueError naming what is wrong and what exists."""
    name, colon, rest = text.partition(":")
    codec = CODECS.get(name)
    if codec is None or not codec.for_runs:
        raise ValueError(f"there is no codec {name!r}; it must be one of {', '.join(each.name for each in _ALL if each.for_runs)}")
    hints = {field.name: typing.get_type_hints(codec)[field.name] for field in dataclasses.fields(typing.cast(Any, codec))}
    if colon and not hints:
        raise ValueError(f"codec `{name}` has no options; write {name!r}")
    options: dict[str, Any] = {}
    for item in rest.split(",") if colon else ():
        key, equals, value = item.partition("=")
        if not equals or key in options:
            raise ValueError(f"option {item!r} of codec `{name}` must be key=value, once; its options: {', '.join(hints)}")
        options[key] = _value(hints.get(key), value)
    try:
        return parse(codec, options, where=name, error=RunFileError)
    except RunFileError as exc:
        raise ValueError(str(exc)) from exc


def _value(hint: Any, text: str) -> Any:
    """A number where a number is wanted; what does not fit stays text, and is refused by name."""
    wanted = typing.get_args(hint) or (hint,)
    for kind in (int, float):
        if kind in wanted:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


# ---------------------------------------------------------------- tensors


def encode_array(codec: Codec, encoder: Encoder, array: Array, context: Context) -> Encoded:
    """A float32 tensor by its encoder, or as fp32 where that takes no more bytes. Raises CodecError."""
    values = check_finite(array if array.flags.c_contiguous else np.ascontiguousarray(array))
    encoded = encoder.encode(values, context)
    if encoded.number == Float32.number or encoded.size_bytes < values.nbytes:
        return encoded
    support = values != 0 if codec.marks_support else None
    return dataclasses.replace(_FLOAT32.encode(values, PLAIN), support=support)


def encode_lossless(array: Array) -> Encoded:
    """Any tensor, exactly: whole numbers in few bits where that is smaller, everything else as it is."""
    array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    if array.dtype.kind in "iub":
        packed = Packed().encode(array, PLAIN)
        if packed.size_bytes < array.nbytes:
            return packed
    return Raw().encode(array, PLAIN)


def decode_lossless(number: int, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Decoded:
    """A tensor of which no codec of a run knows: of the others a few bytes may stand for many elements. Raises CodecError."""
    if number not in LOSSLESS.values():
        raise CodecError(f"codec number {number} is not for it; it must be {', '.join(LOSSLESS)}")
    return decode_array(number, data, dtype, shape, PLAIN)


def decode_array(
    number: int, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...], context: Context, *, marks_support: bool = False
) -> Decoded:
    """A payload of the codec with this number. ``marks_support``: of the codec that the run names there. Raises CodecError."""
    codec = _BY_NUMBER.get(number)
    if codec is None:
        raise CodecError(f"codec number {number} does not exist here")
    decoded = codec.decode(data, dtype, shape, context)
    if decoded.array.dtype != dtype:
        raise CodecError(f"its codec makes {decoded.array.dtype}, its header says {dtype}")
    if number == Float32.number and marks_support:
        return Decoded(array=decoded.array, support=decoded.array != 0)
    return decoded
