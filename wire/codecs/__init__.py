"""Codecs: one tensor to bytes and back. docs/protocol.md, section 5, states their arithmetic exactly.

``base`` is the seam, ``registry`` lists them all; each of the other modules is one family.
"""

from __future__ import annotations

from wire.codecs.base import PLAIN, Codec, Context, Decoded, Direction, Encoded, Encoder, Support
from wire.codecs.registry import CODECS, decode_array, encode_array, encode_lossless, parse_codec, versions

__all__ = [
    "CODECS",
    "PLAIN",
    "Codec",
    "Context",
    "Decoded",
    "Direction",
    "Encoded",
    "Encoder",
    "Support",
    "decode_array",
    "encode_array",
    "encode_lossless",
    "parse_codec",
    "versions",
]
