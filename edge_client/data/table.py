"""CSV and TSV tables: a header, then one sample a row, numbers only. Missing values are refused, never guessed."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from edge_client.data.rows import MemoryRows, reading
from edge_client.data.samples import Request, Samples, named, no_labels, numbered, targets
from wire.data_config import DataConfig
from wire.engine import Array
from wire.errors import DataError
from wire.limits import LIMITS

__all__ = ["read_table"]

_LINE_CHARS = 1 << 20


def read_table(request: Request) -> Samples:
    """One split in a CSV or TSV file. Raises DataError naming line and column."""
    table = _Table(request.path)
    config = request.config
    columns = _columns(request, table)
    picked = request.pick(table.count, lambda: _all_labels(table, config, columns))
    values = np.empty((len(picked), len(columns.features)), np.float32)
    labels: list[float] = []
    ids: list[str] = []
    for place, (line, cells) in enumerate(table.rows(picked)):
        for at, column in enumerate(columns.features):
            values[place, at] = table.number(line, column, cells[column])
        if columns.label is not None:
            labels.append(_label(table, config, line, columns.label, cells[columns.label]))
        if columns.id is not None:
            ids.append(cells[columns.id])
    target, classes = _targets(labels, config, request.path)
    return Samples(
        rows=MemoryRows(values),
        layout=config.layout or "NF",
        target=target,
        ids=named(ids, request.path, f"column {request.id_column!r}") if ids else numbered(request.path.name, picked),
        classes=classes,
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    features: tuple[int, ...]
    label: int | None
    id: int | None


class _Table:
    """The file, read twice: once to count its rows, once to take this party's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._delimiter = "\t" if path.suffix in (".tsv", ".tab") else ","
        with reading(path):
            if path.is_dir():
                raise DataError(f"{path} is a folder; `path` of kind 'csv' is the file")
            if path.stat().st_size > LIMITS.dataset_bytes:
                raise DataError(f"{path} is larger than {LIMITS.dataset_bytes} bytes (LIMITS.dataset_bytes)")
        with self._records() as records:
            _, self.header = next(records, (0, []))
            self.count = sum(1 for _ in records)
        if not self.header:
            raise DataError(f"{path} is empty; its first line must name the columns")
        twice = [name for name in self.header if self.header.count(name) > 1]
        if twice:
            raise DataError(f"{path} has two columns {twice[0]!r}; give each a name of its own")
        if not self.count:
            raise DataError(f"{path} has a header but no rows")

    def column(self, name: str, key: str) -> int:
        if name not in self.header:
            known = ", ".join(self.header[:12]) + (", …" if len(self.header) > 12 else "")
            raise DataError(f"{self.path} has no column {name!r} (`{key}`); its columns are {known}")
        return self.header.index(name)

    def rows(self, picked: NDArray[np.int64]) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of the rows with these numbers, counted from 0."""
        wanted = iter(picked.tolist())
        want = next(wanted, None)
        with self._records() as records:
            next(records, None)
            for number, (line, cells) in enumerate(records):
                if want is None:
                    return
                if number != want:
                    continue
                if len(cells) != len(self.header):
                    raise DataError(f"{self.path} line {line} has {len(cells)} cells, the header {len(self.header)}; mend the row")
                yield line, cells
                want = next(wanted, None)
        if want is not None:
            raise DataError(f"{self.path} became shorter while it was read; start again")

    def number(self, line: int, column: int, text: str) -> float:
        where = f"{self.path} line {line}, column {self.header[column]!r}"
        if not text.strip():
            raise DataError(f"{where} is empty; fill the value in or remove the row")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if "_" in text or not abs(value) <= float(np.finfo(np.float32).max):  # float() takes 1_000; NaN fails the comparison
            raise DataError(f"{where} is {text[:40]!r}; it must be a finite number")
        return value

    @contextmanager
    def _records(self) -> Iterator[Iterator[tuple[int, list[str]]]]:
        with reading(self.path), self.path.open(encoding="utf-8-sig", newline="") as file:
            yield self._parse(csv.reader(_bounded_lines(file, self.path), delimiter=self._delimiter, strict=True))

    def _parse(self, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as exc:
                raise DataError(f"{self.path} line {_line(reader)}: {exc}") from exc
            except UnicodeDecodeError as exc:
                raise DataError(f"{self.path} is not UTF-8 text after line {_line(reader)}; save it as UTF-8") from exc
            if cells:  # a blank line is no row
                yield _line(reader), cells


def _line(reader: Iterator[list[str]]) -> int:
    return int(getattr(reader, "line_num", 0))


def _bounded_lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(_LINE_CHARS):
        if len(line) == _LINE_CHARS:
            raise DataError(f"{path} has a line of more than {_LINE_CHARS} characters; this is not a table")
        yield line


def _columns(request: Request, table: _Table) -> _Columns:
    config = request.config
    label = table.column(request.labels, "labels") if request.labels else None
    identity = table.column(request.id_column, "id_column") if request.id_column else None
    if config.features:
        features = tuple(table.column(name, "features") for name in config.features)
    else:
        features = tuple(at for at in range(len(table.header)) if at not in (label, identity))
    if not features:
        raise DataError(f"{table.path} has no column left to read; list them with `features`")
    return _Columns(features, label if config.target != "none" else None, identity)


def _all_labels(table: _Table, config: DataConfig, columns: _Columns) -> Array:
    if columns.label is None:
        return no_labels()
    rows = table.rows(np.arange(table.count))
    return np.array([_label(table, config, line, columns.label, cells[columns.label]) for line, cells in rows], np.float64)


def _label(table: _Table, config: DataConfig, line: int, column: int, text: str) -> float:
    if not config.classes:
        if config.target == "class" and text.strip() and not _is_number(text):
            name = table.header[column]
            raise DataError(f"{table.path} line {line}, column {name!r} is {text[:40]!r}; list the names of all classes with `classes`")
        return table.number(line, column, text)
    if text not in config.classes:
        name = table.header[column]
        raise DataError(f"{table.path} line {line}, column {name!r} is {text[:40]!r}, which `classes` does not list")
    return float(config.classes.index(text))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _targets(labels: list[float], config: DataConfig, path: Path) -> tuple[Array | None, int | None]:
    if config.target == "none":
        return None, None
    target, classes = targets(
        np.array(labels, np.float64), config.target, where=f"{path}, column {config.labels!r},", unlabelled=config.unlabelled
    )
    return target, len(config.classes) or classes
