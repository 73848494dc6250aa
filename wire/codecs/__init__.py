"""Codecs: one tensor to bytes and back. docs/protocol.md, section 5, states their arithmetic exactly.

``base`` is the seam, ``registry`` lists them all; each of the other modules is one family.
"""

from __future__ import annotations

from wire.codecs.base import DIRECTIONS, PLAIN, Codec, Context, Decoded, Direction, Encoded, Encoder, Support
from wire.codecs.offer import Offer, disagreement, offer_for
from wire.codecs.registry import CODECS, LOSSLESS, decode_array, decode_lossless, encode_array, encode_lossless, parse_codec, versions

__all__ = [
    "CODECS",
    "DIRECTIONS",
    "LOSSLESS",
    "PLAIN",
    "Codec",
    "Context",
    "Decoded",
    "Direction",
    "Encoded",
    "Encoder",
    "Offer",
    "Support",
    "decode_array",
    "decode_lossless",
    "disagreement",
    "encode_array",
    "encode_lossless",
    "offer_for",
    "parse_codec",
    "versions",
]
