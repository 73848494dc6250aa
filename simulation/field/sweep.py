"""A sweep: the same run over a grid of links, codecs, counts of clients …, cell after cell; each result is kept as soon as it is there."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.metadata
import itertools
import json
import math
import re
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simulation.field.report.facts import labels_of, measure_of
from simulation.field.report.timeline import shortened
from simulation.field.report.words import duration
from simulation.field.report.write import strict_json, write_report
from simulation.field.result import KINDS, FieldResult, Span
from simulation.screen import Screen
from wire.codecs import parse_codec
from wire.errors import CutlayerError, StorageError, UsageError
from wire.parse import parse
from wire.program import Schedule
from wire.store import write_atomically

__all__ = ["KEYS", "LIMIT_CELLS", "Cell", "parse_sweep", "run_sweep"]

KEYS = ("link", "device", "codec", "clients", "schedule", "seed", "in_flight", "batch_size")
LIMIT_CELLS = 1_000
_LIMIT_CELL_BYTES = 256 << 20  # a kept result: 200 clients with 2,000 spans each are some 25 MB
_LEAST = {"clients": 1, "seed": 0, "in_flight": 1, "batch_size": 1}

Check = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One simulation of a sweep. ``codec``: as in `--codec`, "lowbit" or "lowbit/fp16". ``varied``: the keys that the sweep has set."""

    run: str
    mode: Literal["train", "cost", "real"]
    link: str
    device: str
    codec: str
    clients: int
    schedule: str
    seed: int
    in_flight: int
    batch_size: int
    varied: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, str | int]:
        """What the sweep has set."""
        return {key: getattr(self, key) for key in self.varied}

    @property
    def file(self) -> str:
        """Of its kept result; a name that a person can tell, and all settings by their hash."""
        said = "_".join(f"{key}-{value}" for key, value in self.settings.items()) or "cell"
        settings = json.dumps([[key, getattr(self, key)] for key in ("run", "mode", *KEYS)])
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', said)[:80]}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.json"


# ---------------------------------------------------------------- what a person writes


def parse_sweep(texts: Sequence[str], base: Cell, *, known: Mapping[str, Check] | None = None) -> tuple[Cell, ...]:
    """The grid of ``KEY=VALUE,VALUE …``, the last key running fastest; what no key names is as in ``base``.

    A value with options keeps its commas: in ``codec=int8,lowbit:step=0.8,rate_weight=5e-6`` and ``link=gprs,loss=0.05,edge`` what has the
    form of an option belongs to the value before it. A key may be repeated. ``known``: for ``link`` and ``device``, what
    raises UsageError for a value that does not exist; a link that is refused for its nature shall pass, for that is its cell's result.
    Raises UsageError that names the key and the value.
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, rest = (part.strip() for part in text.partition("="))
        if not equals:
            raise UsageError(f"--sweep: {text!r} is not written KEY=VALUE,VALUE, like link=gprs,edge")
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise UsageError(
                f"--sweep: there is no key {key!r}; {f'did you mean {near[0]!r}? It' if near else 'it'} must be one of {', '.join(KEYS)}"
            )
        values = axes.setdefault(key, [])
        for value in _values(rest):
            checked = _checked(key, value, known or {})
            if checked in values:
                raise UsageError(f"--sweep: `{key}` has {value!r} twice; leave out one of them")
            values.append(checked)
    cells = math.prod(len(values) for values in axes.values())
    if cells > LIMIT_CELLS:
        raise UsageError(f"--sweep: these are {cells:,} cells, more than {LIMIT_CELLS:,}; name fewer values")
    return tuple(
        dataclasses.replace(base, **dict(zip(axes, values, strict=True)), varied=tuple(axes))
        for values in itertools.product(*axes.values())
    )


def _values(text: str) -> list[str]:
    values: list[str] = []
    for item in text.split(","):
        name, equals, _ = item.partition("=")
        if equals and ":" not in name and values:
            values[-1] += f",{item.strip()}"
        else:
            values.append(item.strip())
    return values


def _checked(key: str, value: str, known: Mapping[str, Check]) -> str | int:
    where = f"--sweep: `{key}`"
    if not value:
        raise UsageError(f"{where} has an empty value; write it {key}=VALUE,VALUE")
    if key in _LEAST:
        if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < _LEAST[key]:
            raise UsageError(f"{where} is {value!r}; it must be a whole number of {_LEAST[key]} or more")
        return int(value)
    if key == "schedule" and value not in typing.get_args(Schedule):
        raise UsageError(f"{where} is {value!r}; it must be one of {', '.join(typing.get_args(Schedule))}")
    try:
        if key == "codec":
            for each in value.split("/", 1):
                parse_codec(each)
        if key in known:
            known[key](value)
    except (ValueError, UsageError) as exc:
        raise UsageError(f"{where}: {exc}") from exc
    return value


# ---------------------------------------------------------------- cell after cell


def run_sweep(
    cells: Sequence[Cell],
    simulate: Callable[[Cell], FieldResult],
    *,
    folder: Path,
    screen: Screen,
    basis: str,
    again: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> list[FieldResult]:
    """All results in the cells' order, with as much of their timelines as the report shows; ``folder`` holds them whole under cells/, and
    the report.

    ``basis``: what all cells share beside their settings, as the run file's text; a kept result of another basis, or of another version of
    Cutlayer, is simulated again, and ``again`` asks for that of all. An error of one cell is its result, and is tried again next time.
    However the sweep ends, Ctrl-C included, what is done is kept and reported. Raises StorageError, and what ``simulate`` raises beside
    CutlayerError.
    """
    store = _Store(folder=folder / "cells", basis=basis, screen=screen)
    found = ((cell, store.read(cell)) for cell in cells if not again)
    results = {cell: shortened(kept, len(cells)) for cell, kept in found if kept is not None}
    if results:
        screen.say(f"{len(results)} of {len(cells)} cells are in {folder} already")
    try:
        _run_missing(cells, simulate, results, store=store, screen=screen, clock=clock)
    finally:
        done = [results[cell] for cell in cells if cell in results]
        if done:
            write_report(done, folder, missing=len(cells) - len(done))
    return done


def _run_missing(
    cells: Sequence[Cell],
    simulate: Callable[[Cell], FieldResult],
    results: dict[Cell, FieldResult],
    *,
    store: _Store,
    screen: Screen,
    clock: Callable[[], float],
) -> None:
    """Into ``results``."""
    missing = [cell for cell in cells if cell not in results]
    begin = clock()
    with screen.bar("cells") as advance:
        advance(len(results), len(cells))
        for at, cell in enumerate(missing, start=1):
            result, is_error = _simulated(cell, simulate)
            if not is_error:
                store.write(cell, result)
            results[cell] = shortened(result, len(cells))
            advance(len(results), len(cells))
            left = (clock() - begin) / at * (len(missing) - at)
            screen.say(_line(result, len(results), len(cells)) + (f"; about {duration(left)} to go" if at < len(missing) else ""))


def _simulated(cell: Cell, simulate: Callable[[Cell], FieldResult]) -> tuple[FieldResult, bool]:
    """The result, and whether it is an error. A disk that refuses would refuse the next cell too: it ends the sweep."""
    try:
        return dataclasses.replace(simulate(cell), varied=cell.settings), False
    except StorageError:
        raise
    except CutlayerError as exc:
        return _refused(cell, str(exc)), True


def _refused(cell: Cell, why: str) -> FieldResult:
    settings: dict[str, Any] = {name: getattr(cell, name) for name in ("run", "mode", *KEYS[:6])}
    nothing: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(FieldResult) if field.type in ("int", "float")}
    empty: dict[str, Any] = {"metrics": {}, "history": [], "parties": [], "constants": {}}
    return FieldResult(**{**nothing, **settings, **empty}, finished=False, why=why, version=_version(), varied=cell.settings)


def _line(result: FieldResult, done: int, cells: int) -> str:
    """A cell's end, for who watches."""
    measure = measure_of([result])
    found = None if measure is None else measure.last(result)
    score = f", {measure.text(found[0])} {measure.name}" if measure is not None and found is not None else ""
    said = ", ".join(f"{key} {value}" for key, value in result.varied.items()) or labels_of([result])[0]
    return f"{done} of {cells}: {said}: " + (f"{duration(result.time_s)}{score}" if result.finished else f"does not finish: {result.why}")


def _version() -> str:
    try:
        return importlib.metadata.version("cutlayer")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


# ---------------------------------------------------------------- kept results


class _Store:
    def __init__(self, *, folder: Path, basis: str, screen: Screen) -> None:
        self._folder = folder
        self._screen = screen
        self._basis = hashlib.sha256(f"{_version()}\n{basis}".encode()).hexdigest()

    def write(self, cell: Cell, result: FieldResult) -> None:
        kept = {"basis": self._basis, "cell": dataclasses.asdict(cell), "result": result.plain()}
        write_atomically(self._folder / cell.file, strict_json(kept))

    def read(self, cell: Cell) -> FieldResult | None:
        """None where there is none, and where what is there is of another basis or damaged."""
        path = self._folder / cell.file
        try:
            if path.stat().st_size > _LIMIT_CELL_BYTES:
                raise ValueError(f"larger than {_LIMIT_CELL_BYTES} bytes")
            kept = json.loads(path.read_bytes())
            if kept["basis"] != self._basis:
                return None
            return _read(kept["result"])
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StorageError(f"cannot read {path}: {exc.strerror or exc}; check its owner and mode") from exc
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as exc:
            self._screen.say(f"{path} is no kept result ({exc}); its cell is simulated again")
            return None


def _read(result: Any) -> FieldResult:
    """The inverse of ``plain`` and ``strict_json``. Raises ValueError, KeyError, TypeError, AttributeError, UsageError for all else."""
    for metrics in (*result["metrics"].values(), *(moment["metrics"] for moment in result["history"])):
        metrics |= {name: math.nan for name, value in metrics.items() if value is None}  # it was not finite
    timelines = [party.pop("timeline") for party in result["parties"]]  # some 100,000 spans: read by hand, as parse would take seconds
    found = parse(FieldResult, result, where="result", error=UsageError)
    parties = [dataclasses.replace(party, timeline=list(map(_span, spans))) for party, spans in zip(found.parties, timelines, strict=True)]
    return dataclasses.replace(found, parties=parties)


def _span(data: Any) -> Span:
    span = Span(**data)
    if span.kind not in KINDS or not all(isinstance(value, (int, float)) for value in (span.begin_s, span.end_s)):
        raise ValueError("a span has a kind, a begin and an end")
    return span
