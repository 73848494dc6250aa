"""What two parties must agree on about codecs before the first step: a HELLO carries one party's offer, its parent judges it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wire.codecs.registry import parse_codec, versions

__all__ = ["Offer", "disagreement", "offer_for"]

_ALWAYS = ("raw", "fp32", "packed")  # labels and ids, and the fallback


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
        known = {str(name): int(version) for name, version in data["known"].items()}
        return cls(known=known, used=tuple(str(name) for name in data["used"]))


def offer_for(texts: Iterable[str]) -> Offer:
    """Of a run that names these codecs, options and all."""
    return Offer(known=versions(), used=tuple(sorted({*_ALWAYS, *(parse_codec(text).name for text in texts)})))


def disagreement(ours: Offer, theirs: Offer, *, us: str, them: str) -> str | None:
    """Why the two cannot train together, and what to do; None: they can. ``us`` and ``them`` name the ends in it."""
    for name in sorted({*ours.used, *theirs.used}):
        mine, other = ours.known.get(name), theirs.known.get(name)
        shown = name[:40]
        if other is None:
            return f"codec `{shown}` is unknown to {them}; update Cutlayer there, or name another codec in `[codec]` at all parties"
        if mine is None:
            return f"codec `{shown}`, which {them} asks for, is unknown to {us}; update Cutlayer there, or name another codec"
        if mine != other:
            older = us if mine < other else them
            return f"codec `{shown}` has version {other} at {them} and version {mine} at {us}; update Cutlayer at {older}"
    return None
