"""The bodies of control messages, read strictly and as a whole, before anything is done about them (docs/protocol.md, section 6).

A peer may have written anything there. What is read here is within its bounds, so that whoever uses it need not look again. All readers
raise ValueError, KeyError, TypeError or AttributeError: ``UNREADABLE``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wire.codecs import Offer
from wire.limits import LIMITS
from wire.parse import read_key, whole
from wire.program import Command
from wire.steps import StepRange

__all__ = [
    "UNREADABLE",
    "Done",
    "Fetch",
    "Hello",
    "Weights",
    "read_command",
    "read_done",
    "read_epoch",
    "read_fetch",
    "read_hello",
    "read_weights",
]

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)

_U32, _U16 = 1 << 32, 1 << 16  # as the header of a frame has epochs, steps and lanes
_I64 = 1 << 63  # what is stored, and boots
_ARGS = {"id": _I64, "missed": _U16, "lane": _U16, "epoch": _U32, "total_steps": _I64, "least": _U32, "round": _U32}
_ARGS["batch"] = LIMITS.batches + 1
_SEGMENT = re.compile("[A-Za-z0-9_-]{1,64}")
_TOKEN = re.compile("[0-9a-f]{32}")
_NEEDED = dict.fromkeys(("train", "evaluate", "infer"), "steps") | {"save": "id", "restore": "id", "keep": "lane", "fetch": "lane"}
_NEEDED |= {"align": "least", "offer": "round", "adopt": "round"}
_NEVER_SENT = ("average", "tell")
_FACTS = {"batches": LIMITS.batches + 1, "samples": _I64, "weights": _I64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a party says of itself when it starts."""

    boot: int
    epoch: int
    digest: str
    codecs: Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """An answer to the command ``seq``."""

    seq: int
    boot: int
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """The taker's wish in the hand-over that the command ``seq`` orders, and its public key."""

    seq: int
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What the giver answers to it."""

    seq: int
    sealed: bytes


def read_hello(body: Mapping[str, Any], *, ours: int) -> Hello:
    """``ours``: the epoch that we are in."""
    return Hello(
        boot=whole(body["boot"], below=_I64),
        epoch=read_epoch(body, ours=ours),
        digest=str(body["digest"]),
        codecs=Offer.from_plain(body["codecs"]),
    )


def read_epoch(body: Mapping[str, Any], *, ours: int) -> int:
    """The epoch that somebody was in. One ahead of ours is followed by ours, so at least half of all epochs must be left after it."""
    epoch = whole(body["epoch"], below=_U32)
    if epoch > max(ours, LIMITS.claimed_epoch):
        raise ValueError(f"epoch {epoch} is ahead of ours and over the limit of {LIMITS.claimed_epoch}")
    return epoch


def read_command(body: Mapping[str, Any], blobs: Mapping[str, bytes]) -> tuple[int, Command]:
    """Its number, and the command."""
    op, args = body["op"], body["args"]
    if not isinstance(op, str) or not isinstance(args, dict):
        raise TypeError("a command has an operation and a table of arguments")
    if op in _NEVER_SENT:
        raise ValueError(f"{op} is for the coordinator alone")
    needed = _NEEDED.get(op)
    if needed is not None and needed not in args:
        raise KeyError(needed)
    for name, below in _ARGS.items():
        if name in args:
            whole(args[name], below=below)
    if "steps" in args:
        StepRange.from_plain(args["steps"])
    if op == "align":
        _read_token(args["token"])
    for lane in args.get("absent", []):
        whole(lane, below=_U16)
    for lane, id in args.get("own", {}).items():
        whole(int(lane), below=_U16)
        whole(id, below=_I64)
    lanes = tuple(whole(lane, below=_U16) for lane in body["lanes"])
    return whole(body["seq"], below=_U32), Command(op=op, lanes=lanes, args=args, blobs=blobs)


def read_done(body: Mapping[str, Any]) -> Done:
    return Done(seq=whole(body["seq"], below=_U32), boot=whole(body["boot"], below=_I64), result=_result(body["result"]))


def read_fetch(body: Mapping[str, Any]) -> Fetch:
    return Fetch(seq=whole(body["seq"], below=_U32), key=read_key(body["key"]))


def read_weights(body: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Weights:
    return Weights(seq=whole(body["seq"], below=_U32), sealed=blobs["sealed"])


def _check_alignment(result: Mapping[str, Any]) -> None:
    """What parties say by lane and segment of their records; names of segments come into messages for a person."""
    tables = (result.get("facts", {}).get("aligned", {}), result.get("least", {}), result.get("labels", {}))
    for at, table in enumerate(tables):
        for segment, value in ((segment, value) for segments in table.values() for segment, value in segments.items()):
            if not _SEGMENT.fullmatch(segment):
                raise ValueError("a name of a segment has 1 to 64 letters, digits, `_` or `-`")
            if at == 0 and value != "":  # not aligned yet
                _read_token(value)
            elif at == 1:
                whole(value, below=_U32)
            elif at == 2 and value is not True:
                raise TypeError("who brings labels says so or nothing")


def _read_token(token: Any) -> None:
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ValueError("an alignment is named by 32 hex digits")


def _result(result: Any) -> Mapping[str, Any]:
    if not isinstance(result, dict):
        raise TypeError("a result is a table")
    for id in result.get("checkpoints", []):
        whole(id, below=_I64)
    for lane, ids in result.get("held", {}).items():
        whole(int(lane), below=_U16)
        for id in ids:
            whole(id, below=_I64)
    for lane in result.get("absent", {}):
        whole(int(lane), below=_U16)
    for fact, below in _FACTS.items():
        for lane, numbers in result.get("facts", {}).get(fact, {}).items():
            whole(int(lane), below=_U16)
            for count in numbers.values():
                whole(count, below=below)
    _check_alignment(result)
    for table in (*result.get("metrics", {}).values(), *result.get("counts", {}).values()):
        for value in table.values():
            if type(value) is int:
                whole(value, below=_I64)  # a larger one is no float
            elif type(value) is not float:
                raise TypeError("a metric is a number")
    return result
