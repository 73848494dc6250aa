"""Labels that the server holds: a CSV file of keyed id and label, joined with the ids that arrive with the activations.

    id,label
    4b1c0f…(32 hex digits),7

Sample ids themselves are not in it: whoever reads the file without the run's key learns how many samples there are and their labels.
Several label columns make a target [N, K].
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from wire.engine import Array
from wire.errors import DataError, StorageError
from wire.ids import ID_BYTES, keyed_id
from wire.limits import LIMITS

__all__ = ["HeldLabels", "load_labels", "write_labels"]

_LINE_CHARS = 1 << 16


class HeldLabels:
    """Targets by keyed id."""

    def __init__(self, ids: Sequence[bytes], targets: Array, *, where: str) -> None:
        """``ids``: 16 bytes each, all different; ``targets``: one row an id; ``where`` is their file, for messages."""
        self._row_of = {key: row for row, key in enumerate(ids)}
        self._targets = targets
        self._where = where

    def __len__(self) -> int:
        return len(self._targets)

    def lookup(self, ids: Array) -> Array:
        """Targets of a batch: uint8 [N, 16] to int64 [N], float32 [N] or float32 [N, K], in the batch's order.

        Raises DataError naming how many ids are unknown, and the first of them.
        """
        if ids.ndim != 2 or ids.shape[1] != ID_BYTES or ids.dtype != np.uint8:
            raise DataError(f"keyed ids are {ids.dtype} of shape {list(ids.shape)}; they must be uint8 [N, {ID_BYTES}]")
        keys = [row.tobytes() for row in np.ascontiguousarray(ids)]
        unknown = [key for key in keys if key not in self._row_of]
        if unknown:
            raise DataError(
                f"{self._where} has no label for {len(unknown)} of {len(keys)} samples, first {unknown[0].hex()}; "
                "check that it was written with this run's `ids_key` and for these files"
            )
        return self._targets[[self._row_of[key] for key in keys]]


def load_labels(path: str | Path, *, target: Literal["class", "number"] = "class") -> HeldLabels:
    """Read a file of labels. Raises DataError naming the line at fault: a bad or repeated id, or a label that is not of ``target``."""
    path = Path(path)
    ids: dict[bytes, None] = {}
    values: list[list[float]] = []
    with _opened(path) as file:
        reader = csv.reader(_bounded_lines(file, path), strict=True)
        width = _check_header(next(reader, []), path, target)
        for cells in reader:
            if not cells:
                continue
            where = f"{path} line {reader.line_num}"
            if len(cells) != width + 1:
                raise DataError(f"{where} has {len(cells)} cells, the header {width + 1}")
            key = _key(cells[0], where)
            if key in ids:
                raise DataError(f"{where} has the id {cells[0]} a second time")
            ids[key] = None
            values.append([_value(cell, target, where) for cell in cells[1:]])
    if not ids:
        raise DataError(f"{path} has no labels")
    array = np.array(values, np.int64 if target == "class" else np.float32)
    return HeldLabels(list(ids), array[:, 0] if width == 1 else array, where=str(path))


def write_labels(path: str | Path, sample_ids: Sequence[str], labels: Array, *, key: bytes) -> None:
    """Write the file that ``load_labels`` reads: ``labels`` [N] or [N, K] of the samples with these (plain) ids.

    The file appears whole or not at all. Raises DataError for repeated ids or a count that differs, StorageError for what the disk refuses.
    """
    path = Path(path)
    if len(sample_ids) != len(labels):
        raise DataError(f"{len(sample_ids)} ids but {len(labels)} labels; give one label an id")
    if len(set(sample_ids)) != len(sample_ids):
        raise DataError(f"two samples have the same id; cannot write {path}")
    rows = labels.reshape(len(labels), -1)
    names = ["label"] if rows.shape[1] == 1 else [f"label_{column}" for column in range(rows.shape[1])]
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", *names])
            # In the order of the keyed ids: the order of the samples would tell who is who.
            writer.writerows(sorted([keyed_id(key, name).hex(), *row.tolist()] for name, row in zip(sample_ids, rows, strict=True)))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file to read, with what goes wrong in it as DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if os.fstat(file.fileno()).st_size > LIMITS.dataset_bytes:
                raise DataError(f"{path} is larger than {LIMITS.dataset_bytes} bytes (LIMITS.dataset_bytes)")
            yield file
    except OSError as exc:
        raise DataError(f"cannot read the labels {path}: {exc.strerror or exc}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise DataError(f"{path} is not a CSV file of ids and labels ({exc})") from exc


def _bounded_lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(_LINE_CHARS):
        if len(line) == _LINE_CHARS:
            raise DataError(f"{path} has a line of more than {_LINE_CHARS} characters; this is not a file of labels")
        yield line


def _check_header(header: list[str], path: Path, target: str) -> int:
    if len(header) < 2 or header[0] != "id":
        raise DataError(f"{path} must begin with the line `id,label`; write it with the sample ids hashed by the run's `ids_key`")
    if target == "class" and len(header) > 2:
        raise DataError(f"{path} has {len(header) - 1} label columns; a class is one number")
    return len(header) - 1


def _key(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != ID_BYTES or len(text) != 2 * ID_BYTES:
        raise DataError(f"{where} has the id {text[:48]!r}; a keyed id is {2 * ID_BYTES} hex digits")
    return key


def _value(text: str, target: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if "_" in text or not abs(value) <= float(np.finfo(np.float32).max):
        raise DataError(f"{where} has the label {text[:40]!r}; it must be a finite number")
    if target == "class" and not (0 <= value < 2**31 and value == int(value)):
        raise DataError(f"{where} has the label {text[:40]!r}; a class is a whole number from 0")
    return value
