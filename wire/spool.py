"""The spool: what has arrived since the checkpoint before the newest, on disk, so that a restart does not bring it over the line again.

One SQLite file in the party's state folder, apart from the ledger: it is a cache, and may be lost, damaged, full or deleted at any
time for no more than the bytes that then cross again. So nothing is synced (a killed process loses nothing, a power cut the last
seconds), an error of the file makes it anew and, the next time, does without it, and each payload stands beside its digest and is
given out only where the two agree.

Writing is bounded twice: ``limit_bytes`` by what is kept, ``bytes_per_s`` by what a flash card has to bear. The second also says which
lines a spool is for: one that brings more than that is quicker asked again than a card worn out.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

__all__ = ["BLOB", "DIGEST_BYTES", "Spool", "SpoolConfig", "SpoolKey", "Storage", "digest_of"]

BLOB = 255
DIGEST_BYTES = 16
BURST_S = 16.0  # of ``bytes_per_s`` may be written at once after a rest

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolConfig:
    """What a party keeps on disk of the step messages that reach it, so that after a restart of either end they need not cross again.

    ``limit_bytes``: how much at most; 0 keeps nothing. ``bytes_per_s``: how much is written a second at most, on average, which spares
    flash cards: a line of up to 250 kbit/s is kept whole; of what comes faster a part is not kept, and crosses again after a restart.

    So activations, gradients, labels and weights that arrived lie in ``spool.sqlite`` in the receiver's state folder, in the clear, for up
    to two checkpoints, and of a run that was stopped for as long as the folder is there. ``limit_bytes = 0`` prevents it; after a restart
    the line then carries again what it has carried since the checkpoint.
    """

    limit_bytes: int = 64 << 20
    bytes_per_s: int = 32 << 10

    def __post_init__(self) -> None:
        for key in ("limit_bytes", "bytes_per_s"):
            if getattr(self, key) < 0:
                raise ValueError(f"`{key}` is {getattr(self, key)}; it must be 0 or more")


class SpoolKey(NamedTuple):
    """Names what a party receives on a line: the message of a step, of which a line carries one kind to each of its ends, or a blob.

    ``mode`` is the step's, or ``BLOB``; ``step`` of a blob is made from its digest.
    """

    edge: str
    lane: int
    mode: int
    step: int


class Storage(Protocol):
    """What keeps payloads, and may lose any of them at any time, but never gives out a wrong one."""

    def put(self, key: SpoolKey, payload: bytes, *, after: int) -> None:
        """Keep ``payload``, which came after checkpoint ``after``; nothing is done where it is kept already or there is no room."""

    def get(self, key: SpoolKey) -> tuple[bytes, bytes] | None:
        """Digest and payload, or None where it is not there or not sound."""

    def held(self, after: int) -> list[SpoolKey]:
        """What came after checkpoint ``after`` or a later one, in order of the keys."""

    def clear_before(self, after: int) -> None:
        """Forget what came before checkpoint ``after``."""


def digest_of(payload: bytes) -> bytes:
    """BLAKE2b (RFC 7693) with 16 bytes of output."""
    return hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest()


class Spool:
    """``Storage`` in the SQLite file ``path``. Never raises for what the disk does: ``say`` is told, in a line."""

    def __init__(
        self,
        path: Path,
        config: SpoolConfig,
        *,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._config = config
        self._say = say
        self._clock = clock
        self._most_bytes = 2 * config.limit_bytes + (64 << 20)  # of a file that may be ours, also where the limit was higher once
        self._held_bytes = 0
        self._allowance_bytes = config.bytes_per_s * BURST_S
        self._counted_s = clock()
        self._full = False
        self._failures = 0
        self._db: sqlite3.Connection | None = None
        if config.limit_bytes > 0:
            self._open()

    @property
    def held_bytes(self) -> int:
        """Bytes of payload on disk."""
        return self._held_bytes

    def close(self, *, remove: bool = False) -> None:
        """``remove``: the run is over, nobody will ask for this again."""
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._db = None
        if remove:
            self.forget(self._path)

    # ------------------------------------------------------------ Storage

    def put(self, key: SpoolKey, payload: bytes, *, after: int) -> None:
        db = self._db
        if db is not None and self._may_write():
            self._guarded(lambda: self._put(db, key, payload, after))

    def get(self, key: SpoolKey) -> tuple[bytes, bytes] | None:
        db = self._db
        return None if db is None else self._guarded(lambda: self._get(db, key))

    def held(self, after: int) -> list[SpoolKey]:
        db = self._db
        return [] if db is None else self._guarded(lambda: self._held(db, after)) or []

    def clear_before(self, after: int) -> None:
        db = self._db
        if db is not None:
            self._guarded(lambda: self._clear(db, after))

    def _put(self, db: sqlite3.Connection, key: SpoolKey, payload: bytes, after: int) -> None:
        digest = digest_of(payload)
        found = db.execute(f"SELECT digest, size FROM messages WHERE {_IS_KEY}", key).fetchone()
        if found is not None and found[0] == digest:
            return
        size = self._held_bytes + len(payload) - (found[1] if found else 0)
        if size > self._config.limit_bytes:
            self._say_full()
            return
        row = (*key, after, digest, len(payload), payload)
        db.execute("INSERT OR REPLACE INTO messages VALUES (?,?,?,?,?,?,?,?)", row)
        self._held_bytes = size
        self._allowance_bytes -= len(payload)

    def _get(self, db: sqlite3.Connection, key: SpoolKey) -> tuple[bytes, bytes] | None:
        found = db.execute(f"SELECT digest, payload FROM messages WHERE {_IS_KEY}", key).fetchone()
        if found is None:
            return None
        digest, payload = found
        if not isinstance(payload, bytes) or digest_of(payload) != digest:
            db.execute(f"DELETE FROM messages WHERE {_IS_KEY}", key)
            self._count(db)
            return None
        return digest, payload

    @staticmethod
    def _held(db: sqlite3.Connection, after: int) -> list[SpoolKey]:
        found = db.execute("SELECT edge, lane, mode, step FROM messages WHERE after >= ? ORDER BY edge, lane, mode, step", (after,))
        return [_sound(SpoolKey(str(edge), int(lane), int(mode), int(step))) for edge, lane, mode, step in found]

    def _clear(self, db: sqlite3.Connection, after: int) -> None:
        db.execute("DELETE FROM messages WHERE after < ?", (after,))
        self._count(db)

    # ------------------------------------------------------------ bounds

    def _may_write(self) -> bool:
        """Whether the allowance is not used up; one message may overdraw it, or the long ones would never get in."""
        now_s, rate = self._clock(), self._config.bytes_per_s
        self._allowance_bytes = min(self._allowance_bytes + (now_s - self._counted_s) * rate, rate * BURST_S)
        self._counted_s = now_s
        return self._allowance_bytes > 0

    def _count(self, db: sqlite3.Connection) -> None:
        held_bytes = int(db.execute("SELECT COALESCE(SUM(size), 0) FROM messages").fetchone()[0])
        if not 0 <= held_bytes <= self._most_bytes:
            raise ValueError(f"its rows claim to hold {held_bytes} bytes")
        self._held_bytes = held_bytes
        self._full = self._full and self._held_bytes > self._config.limit_bytes // 2

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            limit = self._config.limit_bytes
            self._say(f"the spool is full ({limit} bytes); what comes now crosses again after a restart: raise `spool.limit_bytes`")

    # ------------------------------------------------------------ the file

    def _open(self) -> None:
        try:
            self._connect()
        except _DAMAGE as exc:
            self._fail(exc)

    def _connect(self) -> None:
        # Checked before SQLite sees it: a file that cannot be ours may be of any size.
        if self._path.exists() and self._path.stat().st_size > self._most_bytes:
            raise ValueError("it is larger than its limit allows")
        db = sqlite3.connect(self._path, isolation_level=None)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise ValueError(f"it has version {version}")
            db.executescript(_SCHEMA)
            self._count(db)
        except BaseException:
            db.close()
            raise
        self._db = db

    def _guarded(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except _DAMAGE as exc:
            self._fail(exc)
            return None

    def _fail(self, why: Exception) -> None:
        """Once the file is made anew; then this process does without, and the disk is left to those who need it more."""
        self._failures += 1
        anew = self._failures == 1
        outcome = "it is made anew" if anew else "this party goes on without it"
        self._say(f"the spool {self._path} cannot be used ({why}); {outcome}, and what it held crosses the line again")
        self.close()
        self.forget(self._path)
        self._held_bytes = 0
        if anew:
            self._open()

    @staticmethod
    def forget(path: Path) -> None:
        """Remove a spool that is not open."""
        for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            with contextlib.suppress(OSError):
                each.unlink()


def _sound(key: SpoolKey) -> SpoolKey:
    """Raises ValueError where a row that can be read is none of ours: what is not a frame's number cannot be told to the other end."""
    if not (0 <= key.lane < 1 << 16 and 0 <= key.mode <= BLOB and 0 <= key.step < 1 << 32):
        raise ValueError(f"a row names lane {key.lane}, mode {key.mode} and step {key.step}, which do not exist")
    return key


# OverflowError: of a number where SQLite holds an infinity.
_DAMAGE = (sqlite3.Error, OSError, ValueError, TypeError, OverflowError)
_VERSION = 1
_IS_KEY = "edge = ? AND lane = ? AND mode = ? AND step = ?"
_SCHEMA = f"""
PRAGMA journal_mode=WAL;
PRAGMA synchronous=NORMAL;
PRAGMA secure_delete=OFF;
PRAGMA user_version={_VERSION};
CREATE TABLE IF NOT EXISTS messages (
    edge TEXT, lane INTEGER, mode INTEGER, step INTEGER, after INTEGER, digest BLOB, size INTEGER, payload BLOB,
    PRIMARY KEY (edge, lane, mode, step)
);
"""
