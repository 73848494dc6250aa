"""The bodies of control messages, read strictly and as a whole, before anything is done about them (docs/protocol.md, section 6).

A peer may have written anything there. What is read here is within its bounds, so that whoever uses it need not look again. All readers
raise ValueError, KeyError, TypeError or AttributeError: ``UNREADABLE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wire.codecs import Offer
from wire.limits import LIMITS
from wire.parse import whole
from wire.program import Command
from wire.steps import StepRange

__all__ = ["UNREADABLE", "Done", "Hello", "read_command", "read_done", "read_epoch", "read_hello"]

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)

_U32, _U16 = 1 << 32, 1 << 16  # as the header of a frame has epochs, steps and lanes
_I64 = 1 << 63  # what is stored, and boots
_ARGS = {"id": _I64, "missed": _U16, "lane": _U16, "epoch": _U32, "total_steps": _I64}
_NEEDED = {"train": "steps", "evaluate": "steps", "infer": "steps", "save": "id", "restore": "id", "keep": "lane"}


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
    needed = _NEEDED.get(op)
    if needed is not None and needed not in args:
        raise KeyError(needed)
    for name, below in _ARGS.items():
        if name in args:
            whole(args[name], below=below)
    if "steps" in args:
        StepRange.from_plain(args["steps"])
    for lane in args.get("absent", []):
        whole(lane, below=_U16)
    for lane, id in args.get("own", {}).items():
        whole(int(lane), below=_U16)
        whole(id, below=_I64)
    lanes = tuple(whole(lane, below=_U16) for lane in body["lanes"])
    return whole(body["seq"], below=_U32), Command(op=op, lanes=lanes, args=args, blobs=blobs)


def read_done(body: Mapping[str, Any]) -> Done:
    return Done(seq=whole(body["seq"], below=_U32), boot=whole(body["boot"], below=_I64), result=_result(body["result"]))


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
    for lane, splits in result.get("facts", {}).get("batches", {}).items():
        whole(int(lane), below=_U16)
        for count in splits.values():
            whole(count, below=LIMITS.batches + 1)
    for value in result.get("metrics", {}).values():
        if type(value) not in (int, float):
            raise TypeError("a metric is a number")
    return result
