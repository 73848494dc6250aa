"""Control messages: a JSON head and, behind it, blobs (segment weights on their way to the next lane).

Layout: u32 length of the head, the head (UTF-8 JSON object), then the blobs one after another. The head's ``blobs`` lists
``[name, length_bytes]`` in order. Little endian. Where the head has ``references``, a list of names, the digest of the blob
stands in the place of each of these.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wire.errors import FrameError
from wire.limits import LIMITS

__all__ = ["Control", "decode_control", "encode_control"]

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """``kind``: cmd, done, lost or refuse; what ``body`` holds by kind is in docs/protocol.md.

    ``references``: names of ``blobs`` that are only the digest of the blob, which the receiver has in its spool; ``wire.recall`` alone
    makes and resolves them.
    """

    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    references: tuple[str, ...] = ()


def encode_control(control: Control) -> bytes:
    """Bytes of a control message; equal messages give equal bytes. Raises ValueError for a number that is not finite."""
    head: dict[str, Any] = {"kind": control.kind, "body": control.body}
    head["blobs"] = [[name, len(blob)] for name, blob in control.blobs.items()]
    if control.references:
        head["references"] = control.references
    text = json.dumps(head, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *control.blobs.values()))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # 1e999 is a number in JSON
        raise ValueError("a number is not finite")
    return number


def decode_control(data: bytes) -> Control:
    """Raises FrameError for anything that is not exactly one control message."""
    if len(data) < _LENGTH.size:
        raise FrameError("control message is cut short")
    (length,) = _LENGTH.unpack_from(data)
    if length > LIMITS.control_json_bytes:
        raise FrameError(f"control head of {length} bytes is over the limit of {LIMITS.control_json_bytes}")
    end = _LENGTH.size + length
    try:
        head = json.loads(data[_LENGTH.size : end].decode(), parse_float=_finite, parse_constant=_finite)
        kind, body, sizes, references = head["kind"], head["body"], head["blobs"], head.get("references", [])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise FrameError(f"control head is not readable ({type(exc).__name__})") from exc
    if not isinstance(kind, str) or not isinstance(body, dict) or not isinstance(sizes, list):
        raise FrameError("control head has the wrong form")
    blobs: dict[str, bytes] = {}
    for entry in sizes:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int and entry[1] >= 0):
            raise FrameError("control head lists a blob in the wrong form")
        if entry[0] in blobs or end + entry[1] > len(data):
            raise FrameError("control blobs do not add up")
        blobs[entry[0]] = data[end : end + entry[1]]
        end += entry[1]
    if end != len(data):
        raise FrameError("control message has bytes left over")
    if not isinstance(references, list) or any(not isinstance(name, str) or name not in blobs for name in references):
        raise FrameError("control head has references to no blob")
    return Control(kind=kind, body=body, blobs=blobs, references=tuple(references))
