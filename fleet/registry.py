"""Who belongs to the fleet: devices and their groups, their enrolment tokens (as hashes) and their certificates, in one SQLite file.

What is known of their releases is in the same file (fleet/deploy/releases.py). A file from before something was kept in it gets what it
lacks when it is opened.

The authority's server and the operator's commands open it at the same time; whoever reads in order to write does so within ``changing``.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wire.errors import StorageError, UsageError
from wire.fleet.talk import agent_identity
from wire.store import storage_errors

__all__ = ["ALL", "OPERATOR", "CertificateRow", "DeviceRow", "Registry", "TokenRow"]

ALL = "all"  # in the place of a device or a group
OPERATOR = "operator"  # by default, the name of who commands devices

_BUSY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """``key``: fingerprint of the public key that has presented it; nobody else may from then on. ``approved``: by a person."""

    name: str
    expires_s: float
    key: str | None
    approved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRow:
    serial: int
    name: str
    key: str
    begins_s: float
    ends_s: float
    pem: str
    revoked_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """``token`` and ``certificate`` are the newest."""

    name: str
    group: str | None
    added_s: float
    revoked_s: float | None
    token: TokenRow | None
    certificate: CertificateRow | None


class Registry:
    """A context manager that closes it. Raises StorageError where the disk refuses or the file is none of ours."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path, self._clock = path, clock
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S)
            try:
                self._db.executescript(_SCHEMA)
                self._add_columns()
            except sqlite3.DatabaseError as exc:
                self._db.close()
                raise StorageError(f"{path} is no registry of a fleet ({exc}); bring it back from a copy") from exc

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """All of it or nothing, and nobody else in between."""
        with storage_errors(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @property
    def db(self) -> sqlite3.Connection:
        """For what else of this room is kept in the same file; written within ``changing``."""
        return self._db

    def _add_columns(self) -> None:
        with self.changing():
            if "grp" not in {row[1] for row in self._db.execute("PRAGMA table_info(devices)")}:
                self._db.execute("ALTER TABLE devices ADD COLUMN grp TEXT")

    def setting(self, key: str) -> str | None:
        """Something that one command has written down for others."""
        row = self._db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_setting(self, key: str, value: str) -> None:
        with self.changing():
            self._db.execute("INSERT OR REPLACE INTO settings VALUES (?,?)", (key, value))

    @property
    def operator(self) -> str:
        """The name in the operator's certificate, as the broker's access list has it."""
        return self.setting("operator") or OPERATOR

    # ------------------------------------------------------------ devices and tokens

    def add(self, name: str, *, token_digest: bytes, expires_s: float) -> None:
        """A device, new or known, with a token that takes the place of earlier ones."""
        with self.changing():
            self.ensure(name)
            self._db.execute("DELETE FROM tokens WHERE name = ?", (name,))
            self._db.execute("UPDATE releases SET outcome = 'void' WHERE device = ?", (name,))
            self._db.execute("INSERT INTO tokens (digest, name, expires_s) VALUES (?,?,?)", (token_digest, name, expires_s))

    def ensure(self, name: str) -> None:
        """Known, and not revoked any more. Within ``changing``. Raises UsageError as ``check_free`` does."""
        self.check_free(name)
        self._db.execute("INSERT OR IGNORE INTO devices (name, added_s) VALUES (?,?)", (name, self._clock()))
        self._db.execute("UPDATE devices SET revoked_s = NULL WHERE name = ?", (name,))

    def check_free(self, name: str) -> None:
        """Raises UsageError: a name that means somebody else than a device."""
        if name in (ALL, self.operator):
            what = "stands for every device" if name == ALL else "is the operator's name, who may command every device"
            raise UsageError(f"`{name}` {what}; choose another name for the device")
        if self._db.execute("SELECT 1 FROM devices WHERE grp = ?", (name,)).fetchone() is not None:
            raise UsageError(f"a group is called `{name}`; choose another name for the device")

    def token(self, digest: bytes) -> TokenRow | None:
        row = self._db.execute("SELECT name, expires_s, key, approved FROM tokens WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else _token(row)

    def claim(self, digest: bytes, key: str) -> None:
        """From now on the token is that key's. Within ``changing``."""
        self._db.execute("UPDATE tokens SET key = ? WHERE digest = ?", (key, digest))

    def approve(self, name: str) -> str:
        """Say yes to the device that waits; returns its key's fingerprint. Raises UsageError where none waits."""
        with self.changing():
            self.device(name)
            row = self._db.execute("SELECT key FROM tokens WHERE name = ? AND key IS NOT NULL AND NOT approved", (name,)).fetchone()
            if row is None:
                raise UsageError(f"device `{name}` does not wait for approval; `cutlayer device list` shows who does")
            self._db.execute("UPDATE tokens SET approved = 1 WHERE name = ?", (name,))
        return str(row[0])

    def put_into(self, group: str | None, names: Sequence[str]) -> None:
        """``group``: None takes them out of theirs. Raises UsageError: no such device, or a group's name that is taken."""
        with self.changing():
            if group is not None:
                self.check_group(group)
            for name in names:
                self.device(name)
                self._db.execute("UPDATE devices SET grp = ? WHERE name = ?", (group, name))

    def check_group(self, group: str) -> None:
        """Raises UsageError: a name that means something else."""
        if group == ALL or group in {row.name for row in self.devices()}:
            raise UsageError(f"`{group}` {'stands for every device' if group == ALL else 'is a device'}; choose another name for the group")

    def device(self, name: str) -> DeviceRow:
        """Raises UsageError for a name that is not known."""
        for found in self.devices():
            if found.name == name:
                return found
        raise UsageError(f"no device is called `{name}`; `cutlayer device list` shows all, `cutlayer device add {name}` adds it")

    def devices(self) -> list[DeviceRow]:
        """By name."""
        tokens = {row[0]: _token(row) for row in self._db.execute("SELECT name, expires_s, key, approved FROM tokens")}
        newest = {row.name: row for row in self._certificates("ORDER BY seq")}
        rows = self._db.execute("SELECT name, grp, added_s, revoked_s FROM devices ORDER BY name").fetchall()
        return [
            DeviceRow(name=name, group=grp, added_s=added_s, revoked_s=revoked_s, token=tokens.get(name), certificate=newest.get(name))
            for name, grp, added_s, revoked_s in rows
        ]

    # ------------------------------------------------------------ certificates

    def record(self, row: CertificateRow) -> None:
        """A device has one key at a time: certificates of its earlier keys are revoked. Within ``changing``."""
        values = (str(row.serial), row.name, row.key, row.begins_s, row.ends_s, row.pem)
        self._db.execute("INSERT INTO certificates (serial, name, key, begins_s, ends_s, pem) VALUES (?,?,?,?,?,?)", values)
        self._db.execute(
            "UPDATE certificates SET revoked_s = ? WHERE name = ? AND key != ? AND revoked_s IS NULL", (self._clock(), row.name, row.key)
        )

    def certificate(self, serial: int) -> CertificateRow | None:
        return next(self._certificates("WHERE serial = ?", str(serial)), None)

    def newest(self, name: str, key: str) -> CertificateRow | None:
        """The last certificate of this device for this key."""
        return next(self._certificates("WHERE name = ? AND key = ? ORDER BY seq DESC LIMIT 1", name, key), None)

    def revoke(self, name: str) -> int:
        """Take a device out, with its tokens, its certificates and its agent's; returns how many of those were good. Raises UsageError."""
        with self.changing():
            self.device(name)
            self._db.execute("UPDATE devices SET revoked_s = ? WHERE name = ? AND revoked_s IS NULL", (self._clock(), name))
            self._db.execute("DELETE FROM tokens WHERE name = ?", (name,))
            values = (self._clock(), name, agent_identity(name))
            found = self._db.execute("UPDATE certificates SET revoked_s = ? WHERE name IN (?,?) AND revoked_s IS NULL", values)
            return found.rowcount

    def revoked_serials(self) -> list[tuple[int, float]]:
        """(serial, when) of all revoked certificates that have not run out anyway."""
        rows = self._db.execute(
            "SELECT serial, revoked_s FROM certificates WHERE revoked_s IS NOT NULL AND ends_s > ? ORDER BY seq", (self._clock(),)
        )
        return [(int(serial), float(when_s)) for serial, when_s in rows]

    def _certificates(self, where: str, *values: str) -> Iterator[CertificateRow]:
        names = ("serial", "name", "key", "begins_s", "ends_s", "pem", "revoked_s")
        for row in self._db.execute(f"SELECT {', '.join(names)} FROM certificates {where}", values).fetchall():
            yield CertificateRow(**{**dict(zip(names, row, strict=True)), "serial": int(row[0])})


def _token(row: tuple[str, float, str | None, int]) -> TokenRow:
    name, expires_s, key, approved = row
    return TokenRow(name=name, expires_s=expires_s, key=key, approved=bool(approved))


_SCHEMA = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS devices (name TEXT PRIMARY KEY, added_s REAL, revoked_s REAL, grp TEXT);
CREATE TABLE IF NOT EXISTS tokens (digest BLOB PRIMARY KEY, name TEXT, expires_s REAL, key TEXT, approved INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS releases (
    device TEXT, version INTEGER, digest TEXT, manifest BLOB, signature BLOB, made_s REAL, expires_s REAL, outcome TEXT, reason TEXT,
    PRIMARY KEY (device, version)
);
CREATE TABLE IF NOT EXISTS seen (device TEXT PRIMARY KEY, at_s REAL, round_trip_s REAL, state TEXT);
CREATE TABLE IF NOT EXISTS certificates (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, serial TEXT UNIQUE, name TEXT, key TEXT, begins_s REAL, ends_s REAL, pem TEXT, revoked_s REAL
);
"""
