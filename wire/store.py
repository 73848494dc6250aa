"""What a party keeps on disk: checkpoints, the ledger, and the epoch of the run.

    party.json              run digest, epoch, boot count, whether the run is finished
    ledger.sqlite           how each step ended, on each line; losses, where this party computes them
    checkpoints/{id}/       one file a segment, one of the codecs, one of the common weights of averages, and meta.json; two are kept
    result/                 what is left at the end

A checkpoint exists once its folder has its name: it is written beside, synced, then renamed. The ledger's mark for it is committed
before that, and restoring cuts the ledger back to the mark, so rows and weights never disagree.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as dump_tensors

from wire.engine import Array, Stateful
from wire.errors import CheckpointError, StorageError
from wire.files import storage_errors, sync_folder, write_atomically
from wire.limits import LIMITS

__all__ = [
    "Checkpoint",
    "LedgerRow",
    "Store",
    "collected_path",
    "dump_state",
    "load_state",
    "newest_checkpoint",
    "storage_errors",
    "weights_of",
    "write_atomically",
]

KEPT_CHECKPOINTS = 2
_CODECS, _COMMON = "codecs.state", "common.state"  # safetensors too; unlike *.safetensors they cannot be a segment's


def dump_state(state: Mapping[str, Array]) -> bytes:
    """An engine's state as safetensors."""
    return dump_tensors({name: np.asarray(value, order="C") for name, value in state.items()})


def load_state(data: bytes, *, where: str) -> dict[str, Array]:
    """The inverse of ``dump_state``. Raises CheckpointError; ``where`` names the source, for the message."""
    if len(data) > LIMITS.message_bytes and not where.endswith(".safetensors"):
        raise CheckpointError(f"{where} has {len(data)} bytes, more than the limit of {LIMITS.message_bytes}")
    try:
        return dict(load_tensors(data))
    except (SafetensorError, ValueError, KeyError) as exc:
        raise CheckpointError(f"{where} is not readable as safetensors ({exc})") from exc


def weights_of(engine: Stateful) -> dict[str, Array]:
    """An engine's parameters and buffers, without the optimizer's state, named as in ``state()``."""
    return {name: value for name, value in engine.state().items() if name.startswith(("p.", "b."))}


def collected_path(folder: Path, lane: int, segment: str) -> Path:
    """Where the coordinator keeps what a lane's client gave away at the end."""
    return folder / "result" / f"{lane}.{segment}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A saved state: segment → engine state; the encoders' state; weights that averages begin with; ``program`` on the coordinator only."""

    id: int
    segments: Mapping[str, Mapping[str, Array]]
    codecs: Mapping[str, Array] = field(default_factory=dict)
    common: Mapping[str, Array] = field(default_factory=dict)
    program: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """How a step ended on a line. The rows of both ends of a line are equal but for ``note``."""

    edge: str
    lane: int
    step: int
    global_step: int
    applied: bool
    epoch: int
    note: str = ""


class Store:
    """One party's folder. Raises CheckpointError where it belongs to another run, StorageError where the disk refuses."""

    def __init__(self, folder: Path, *, digest: str) -> None:
        self.folder = folder
        self._identity = folder / "party.json"
        with storage_errors(folder):
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / "lock", "wb")  # noqa: SIM115 - held as long as the process lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._lock.close()
            raise StorageError(f"another process uses {folder}; a party runs once: stop that process first") from exc
        self._party = self._load_identity(digest)
        self._party["boot"] += 1
        self._write_identity()
        with storage_errors(folder / "ledger.sqlite"):
            self._ledger = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
            self._ledger.executescript(_SCHEMA)
            self._ledger.execute("BEGIN")
        for leftover in (folder / "checkpoints").glob("*.new"):
            shutil.rmtree(leftover, ignore_errors=True)

    def close(self) -> None:
        with storage_errors(self.folder / "ledger.sqlite"):
            if self._ledger.in_transaction:
                self._ledger.execute("COMMIT")
            self._ledger.close()
        self._lock.close()

    # ------------------------------------------------------------ identity

    @property
    def boot(self) -> int:
        """Unlike any earlier start's, even after the folder was lost."""
        return int(self._party["boot"]) << 32 | int(self._party["salt"])

    @property
    def epoch(self) -> int:
        return int(self._party["epoch"])

    @property
    def finished(self) -> bool:
        return bool(self._party["finished"])

    def store_epoch(self, epoch: int) -> None:
        self._party["epoch"] = epoch
        self._write_identity()

    def store_finished(self) -> None:
        self._party["finished"] = True
        self._write_identity()

    def _load_identity(self, digest: str) -> dict[str, Any]:
        fresh = {"digest": digest, "epoch": 0, "boot": 0, "salt": int.from_bytes(os.urandom(3), "little"), "finished": False}
        try:
            found = json.loads(self._identity.read_text())
        except FileNotFoundError:
            return fresh
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"{self._identity} is not readable ({exc}); remove {self.folder} to start this run anew") from exc
        if not isinstance(found, dict) or set(found) != set(fresh):
            raise CheckpointError(f"{self._identity} has the wrong form; remove {self.folder} to start this run anew")
        if found["digest"] != digest:
            raise CheckpointError(
                f"{self.folder} holds the state of a run with other settings; give the run another `name`, or remove that folder"
            )
        return found

    def _write_identity(self) -> None:
        write_atomically(self._identity, json.dumps(self._party).encode())

    # ------------------------------------------------------------ ledger

    def record(self, row: LedgerRow) -> None:
        """Raises CheckpointError where the step has already ended on that line: it must never be applied twice."""
        try:
            with storage_errors(self.folder / "ledger.sqlite"):
                self._ledger.execute(
                    "INSERT INTO steps (edge, lane, step, global_step, applied, epoch, note) VALUES (?,?,?,?,?,?,?)",
                    (row.edge, row.lane, row.step, row.global_step, row.applied, row.epoch, row.note),
                )
        except sqlite3.IntegrityError as exc:
            what = f"step {row.step} of lane {row.lane} ended twice on edge {row.edge}"
            raise CheckpointError(f"{what}; this is a fault of Cutlayer, please report it") from exc

    def record_loss(self, global_step: int, lane: int, loss: float) -> None:
        with storage_errors(self.folder / "ledger.sqlite"):
            self._ledger.execute("INSERT OR REPLACE INTO losses (global_step, lane, loss) VALUES (?,?,?)", (global_step, lane, loss))

    def rows(self) -> list[LedgerRow]:
        """The whole ledger, by edge, lane and step."""
        found = self._ledger.execute("SELECT edge, lane, step, global_step, applied, epoch, note FROM steps ORDER BY edge, lane, step")
        names = ("edge", "lane", "step", "global_step", "applied", "epoch", "note")
        return [LedgerRow(**{**dict(zip(names, row, strict=True)), "applied": bool(row[4])}) for row in found]

    def losses(self) -> list[tuple[int, float]]:
        """(global step, loss) in order, where this party holds the loss."""
        found = self._ledger.execute("SELECT global_step, loss FROM losses ORDER BY global_step")
        return [(int(step), float(loss)) for step, loss in found]

    # ------------------------------------------------------------ checkpoints

    def checkpoints(self) -> tuple[int, ...]:
        """Ids of the checkpoints that are whole, oldest first."""
        marked = {row[0] for row in self._ledger.execute("SELECT id FROM marks")}
        found = (entry.name for entry in (self.folder / "checkpoints").iterdir() if (entry / "meta.json").is_file())
        return tuple(sorted(int(name) for name in found if name.isdigit() and int(name) in marked))

    def programs(self) -> dict[int, dict[str, Any]]:
        """What stands of the program in each checkpoint, by id; {} where it is none, or not readable."""
        found: dict[int, dict[str, Any]] = {}
        for id in self.checkpoints():
            try:
                meta = json.loads((self.folder / "checkpoints" / str(id) / "meta.json").read_text())
                found[id] = meta["program"] or {}
            except (OSError, ValueError, KeyError, TypeError):
                found[id] = {}  # whoever loads it is told
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """Durable when this returns. Older checkpoints but one are removed; a half-written one is never seen."""
        folder = self.folder / "checkpoints" / str(checkpoint.id)
        beside = folder.with_name(folder.name + ".new")
        self._mark(checkpoint.id)
        with storage_errors(folder):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            for segment, state in checkpoint.segments.items():
                _write_synced(beside / f"{segment}.safetensors", dump_state(state))
            _write_synced(beside / _CODECS, dump_state(checkpoint.codecs))
            if checkpoint.common:
                _write_synced(beside / _COMMON, dump_state(checkpoint.common))
            meta = {"id": checkpoint.id, "program": checkpoint.program, "segments": sorted(checkpoint.segments)}
            meta["common"] = bool(checkpoint.common)
            _write_synced(beside / "meta.json", json.dumps(meta).encode())
            sync_folder(beside)
            shutil.rmtree(folder, ignore_errors=True)  # of a future that was rolled back
            os.replace(beside, folder)
            sync_folder(folder.parent)
        older = [id for id in self.checkpoints() if id < checkpoint.id]
        for id in older[: -(KEPT_CHECKPOINTS - 1)]:
            shutil.rmtree(self.folder / "checkpoints" / str(id), ignore_errors=True)

    def keep_weights(self, lane: int, segment: str, weights: bytes) -> None:
        """What a lane's client gave away at the end."""
        write_atomically(collected_path(self.folder, lane, segment), weights)

    def load(self, id: int) -> Checkpoint:
        """Read a checkpoint and cut the ledger back to it; newer checkpoints are of a future that is given up, and go."""
        folder = self.folder / "checkpoints" / str(id)
        try:
            meta = json.loads((folder / "meta.json").read_text())
            files = {segment: folder / f"{segment}.safetensors" for segment in meta["segments"]}
            segments = {segment: load_state(path.read_bytes(), where=str(path)) for segment, path in files.items()}
            codecs = load_state((folder / _CODECS).read_bytes(), where=str(folder / _CODECS))
            common = load_state((folder / _COMMON).read_bytes(), where=str(folder / _COMMON)) if meta["common"] else {}
            program = meta["program"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise CheckpointError(f"checkpoint {id} in {folder} is damaged ({exc}); remove it to fall back to the one before") from exc
        for newer in self.checkpoints():
            if newer > id:
                shutil.rmtree(self.folder / "checkpoints" / str(newer), ignore_errors=True)
        self._cut_back(id)
        return Checkpoint(id=id, segments=segments, codecs=codecs, common=common, program=program)

    def _mark(self, id: int) -> None:
        with storage_errors(self.folder / "ledger.sqlite"):
            seq = self._ledger.execute("SELECT COALESCE(MAX(seq), 0) FROM steps").fetchone()[0]
            loss = self._ledger.execute("SELECT COALESCE(MAX(global_step), -1) FROM losses").fetchone()[0]
            self._ledger.execute("INSERT OR REPLACE INTO marks (id, seq, loss) VALUES (?,?,?)", (id, seq, loss))
            newest = "SELECT id FROM marks ORDER BY id DESC LIMIT ?"
            self._ledger.execute(f"DELETE FROM marks WHERE id NOT IN ({newest})", (KEPT_CHECKPOINTS + 1,))
            self._commit()

    def _cut_back(self, id: int) -> None:
        with storage_errors(self.folder / "ledger.sqlite"):
            seq, loss = self._ledger.execute("SELECT seq, loss FROM marks WHERE id = ?", (id,)).fetchone()
            self._ledger.execute("DELETE FROM steps WHERE seq > ?", (seq,))
            self._ledger.execute("DELETE FROM losses WHERE global_step > ?", (loss,))
            self._ledger.execute("DELETE FROM marks WHERE id > ?", (id,))
            self._commit()

    def _commit(self) -> None:
        self._ledger.execute("COMMIT")
        self._ledger.execute("BEGIN")


_SCHEMA = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
CREATE TABLE IF NOT EXISTS steps (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, edge TEXT, lane INTEGER, step INTEGER, global_step INTEGER, applied INTEGER, epoch INTEGER,
    note TEXT, UNIQUE (edge, lane, step)
);
CREATE TABLE IF NOT EXISTS losses (global_step INTEGER PRIMARY KEY, lane INTEGER, loss REAL);
CREATE TABLE IF NOT EXISTS marks (id INTEGER PRIMARY KEY, seq INTEGER, loss INTEGER);
"""


def newest_checkpoint(folder: Path) -> dict[str, dict[str, Array]]:
    """Segment states of a party's newest checkpoint, read without taking the folder. Raises CheckpointError."""
    try:
        party = json.loads((folder / "party.json").read_text())
        found = [int(each.name) for each in (folder / "checkpoints").iterdir() if each.name.isdigit() and (each / "meta.json").is_file()]
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{folder} holds no state of this party ({exc}); run `assemble` where the party ran") from exc
    if not party.get("finished"):
        raise CheckpointError(f"the run in {folder} is not finished; start its parties again and let it end first")
    newest = folder / "checkpoints" / str(max(found))
    return {path.stem: load_state(path.read_bytes(), where=str(path)) for path in sorted(newest.glob("*.safetensors"))}


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
