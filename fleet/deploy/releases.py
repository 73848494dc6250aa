"""The releases that devices were given, and how each ended, in the fleet's registry; and when each device was last heard from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fleet.registry import Registry
from wire.errors import UsageError
from wire.fleet.talk import State
from wire.parse import parse, plain

__all__ = ["Outcome", "ReleaseRow", "Releases", "SeenRow"]

Outcome = Literal["open", "healthy", "returned", "refused", "void"]

_KEPT = 10  # of one device


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """``digest``: of what is in it, whatever its number and date. ``manifest`` and ``signature`` as ``dump_release`` gives them.
    ``outcome``: void where the device was added anew since: it may have been set up again, and takes no number twice."""

    device: str
    version: int
    digest: str
    manifest: bytes
    signature: bytes
    made_s: float
    expires_s: float
    outcome: Outcome = "open"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRow:
    """What ``device`` said of itself at ``at_s``, and how long it took to answer."""

    device: str
    at_s: float
    round_trip_s: float | None
    state: State


class Releases:
    """``registry`` is open. What writes is done within ``registry.changing``."""

    def __init__(self, registry: Registry) -> None:
        self._db = registry.db

    def next_version(self) -> int:
        """One counter serves the whole fleet, and no number comes twice."""
        (highest,) = self._db.execute("SELECT max(version) FROM releases").fetchone()
        return int(highest or 0) + 1

    def newest(self, device: str) -> ReleaseRow | None:
        return next(iter(self._rows("WHERE device = ? ORDER BY version DESC LIMIT 1", device)), None)

    def add(self, row: ReleaseRow) -> None:
        """The oldest of the same device are forgotten."""
        values = (row.device, row.version, row.digest, row.manifest, row.signature, row.made_s, row.expires_s, row.outcome, row.reason)
        self._db.execute("INSERT INTO releases VALUES (?,?,?,?,?,?,?,?,?)", values)
        self._db.execute(
            "DELETE FROM releases WHERE device = ?1 AND version NOT IN "
            "(SELECT version FROM releases WHERE device = ?1 ORDER BY version DESC LIMIT ?2)",
            (row.device, _KEPT),
        )

    def settle(self, device: str, version: int, outcome: Outcome, reason: str) -> None:
        """``reason`` as a device has said it: JSON may hold half a character, which no file takes, and that must cost nobody else."""
        text = reason.encode(errors="backslashreplace").decode()
        self._db.execute("UPDATE releases SET outcome = ?, reason = ? WHERE device = ? AND version = ?", (outcome, text, device, version))

    def standing(self, device: str) -> ReleaseRow | None:
        """The newest that has not failed: what it runs as far as is known. None where it was set up anew since."""
        return next(iter(self._rows("WHERE device = ? AND outcome IN ('healthy', 'open') ORDER BY version DESC LIMIT 1", device)), None)

    def manifests(self) -> list[bytes]:
        """Of each device's newest release, and of that which stands."""
        newest = "SELECT max(version) FROM releases WHERE device = r.device"
        rows = self._db.execute(
            f"SELECT manifest FROM releases AS r WHERE version IN (({newest}), ({newest} AND outcome IN ('healthy', 'open')))"
        )
        return [bytes(manifest) for (manifest,) in rows]

    def note(self, rows: Iterable[SeenRow]) -> None:
        values = [(row.device, row.at_s, row.round_trip_s, json.dumps(plain(row.state))) for row in rows]
        self._db.executemany("INSERT OR REPLACE INTO seen VALUES (?,?,?,?)", values)

    def seen(self) -> dict[str, SeenRow]:
        """By device."""
        found: dict[str, SeenRow] = {}
        for device, at_s, round_trip_s, text in self._db.execute("SELECT device, at_s, round_trip_s, state FROM seen"):
            try:
                state = parse(State, json.loads(text), where="", error=UsageError)
            except UsageError:  # an earlier version's
                continue
            found[device] = SeenRow(device=device, at_s=at_s, round_trip_s=round_trip_s, state=state)
        return found

    def _rows(self, where: str, *values: str) -> Iterable[ReleaseRow]:
        names = ("device", "version", "digest", "manifest", "signature", "made_s", "expires_s", "outcome", "reason")
        for row in self._db.execute(f"SELECT {', '.join(names)} FROM releases {where}", values).fetchall():
            yield ReleaseRow(**dict(zip(names, row, strict=True)))
