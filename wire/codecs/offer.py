"""What two parties must agree on about codecs before the first step: a HELLO carries one party's offer, its parent judges it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wire.codecs.registry import LOSSLESS, parse_codec, versions
from wire.parse import whole

__all__ = ["Offer", "disagreement", "offer_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """``known``: codec → version; ``used``: those that the party's run file asks for."""

    known: Mapping[str, int] = field(default_factory=dict)
    used: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        return {"known": dict(self.known), "used": list(self.used)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Offer:
        """Raises KeyError, TypeError, AttributeError or ValueError for anything else."""
        known = {_name(name): whole(version, below=1 << 16) for name, version in data["known"].items()}
        return cls(known=known, used=tuple(_name(name) for name in data["used"]))


def _name(name: Any) -> str:
    """It will stand in a line that a person reads."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise ValueError("a codec has a name of 1 to 40 letters, digits, `_` or `-`")
    return str(name)


def offer_for(texts: Iterable[str]) -> Offer:
    """Of a run that names these codecs, options and all. Those for labels, ids and the fallback are used by every run."""
    return Offer(known=versions(), used=tuple(sorted({*LOSSLESS, *(parse_codec(text).name for text in texts)})))


def disagreement(ours: Offer, theirs: Offer, *, us: str, them: str) -> str | None:
    """Why the two cannot train together, and what to do; None: they can. ``us`` and ``them`` name the ends in it."""
    for name in sorted({*ours.used, *theirs.used}):
        mine, other = ours.known.get(name), theirs.known.get(name)
        if other is None:
            return f"codec `{name}` is unknown to {them}; update Cutlayer there, or name another codec in `[codec]` at all parties"
        if mine is None:
            return f"codec `{name}`, which {them} asks for, is unknown to {us}; update Cutlayer there, or name another codec"
        if mine != other:
            older = us if mine < other else them
            return f"codec `{name}` has version {other} at {them} and version {mine} at {us}; update Cutlayer at {older}"
    return None
