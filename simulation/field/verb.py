"""``cutlayer simulate``: one cell or a grid of them, in virtual time or over a shaped line, and the report."""

from __future__ import annotations

import dataclasses
import json as json_module
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from simulation.field.configure import KEYS, configured
from simulation.field.device import Device
from simulation.field.presets import MEASURED, load_device, load_link, refusal
from simulation.field.real import run_over_line
from simulation.field.report import write_report
from simulation.field.report.words import duration, energy, size
from simulation.field.report.write import strict_json
from simulation.field.result import FieldResult
from simulation.field.simulate import Interrupted, Setting, codec_of, simulate
from simulation.field.sweep import Cell, parse_sweep, run_sweep
from simulation.screen import Screen
from wire.errors import CutlayerError, UsageError
from wire.limits import LIMITS
from wire.parse import parse
from wire.runfile import Run, load_run
from wire.store import write_atomically

__all__ = ["run_simulate"]


def run_simulate(
    run_file: str | Path,
    *,
    link: str,
    device: str,
    server_device: str,
    clients: int | None = None,
    codec: str | None = None,
    epochs: int | None = None,
    mode: Literal["train", "cost"] = "train",
    samples: int | None = None,
    real: bool = False,
    sweep: Sequence[str] | None = None,
    out: Path | None = None,
    again: bool = False,
    json: bool = False,
) -> None:
    """Simulate the run of ``run_file`` and print what came of it; ``out`` gets report.html, results.json and the plots.

    Raises CutlayerError. A cell of a sweep that cannot be simulated is a result with its reason; a single one raises.
    """
    run = load_run(run_file)
    if samples is not None and (real or mode != "cost"):
        raise UsageError("--samples is for --mode cost, where clients need no data of their own; leave it out, or set `limit` in [data]")
    if epochs is not None:
        run = dataclasses.replace(run, epochs=epochs)
    out = out or Path(run.base) / f"field-{run.name}"
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    boards = _Boards(out)
    base = _base(run, "real" if real else mode, link=link, device=device, clients=clients, codec=codec)
    cells = parse_sweep(sweep or (), base, known={"link": _known_link, "device": boards.load})
    one = _Simulator(run, boards, server_device, out, samples, alone=not sweep, again=again)
    lines = {cell.link: load_link(cell.link) for cell in cells if not _is_refused(cell.link)}
    known = [boards.load(name) for name in dict.fromkeys((server_device, *(cell.device for cell in cells)))]
    basis = f"{Path(run_file).read_text()}\n{epochs}\n{samples}\n{lines}\n{known}"
    with Screen() as screen:
        try:
            results = run_sweep(cells, partial(one.simulate, screen=screen), folder=out, screen=screen, basis=basis, again=again)
        except _Failed as failed:
            raise failed.error from None
        except Interrupted as interrupted:
            if not sweep:
                write_report([interrupted.result], out)
            screen.say(f"what is done is in {out}")
            raise
    if json:
        print(strict_json({"report": str(out / "report.html"), "cells": [_summary(result) for result in results]}).decode())
    else:
        _print(results, out)


class _Failed(Exception):
    """The only cell cannot be simulated: no result, but an error of the command."""

    def __init__(self, error: CutlayerError) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, slots=True)
class _Boards:
    """Devices by name. What this computer is measured to be is kept in ``folder``, or nothing could go on from where it was."""

    folder: Path
    loaded: dict[str, Device] = field(default_factory=dict)

    def load(self, text: str) -> Device:
        if text not in self.loaded:
            base = text.partition(",")[0]
            self.loaded[text] = load_device(text, this=self._measured(base) if base in MEASURED else None)
        return self.loaded[text]

    def _measured(self, base: str) -> Device:
        path = self.folder / f"{base}.json"
        if path.is_file() and path.stat().st_size <= LIMITS.request_bytes:
            try:
                return parse(Device, json_module.loads(path.read_text()), where=str(path), error=UsageError)
            except ValueError as exc:
                raise UsageError(f"{path} is not what was measured of this computer ({exc}); remove it") from exc
        found = load_device(base)
        write_atomically(path, json_module.dumps(dataclasses.asdict(found)).encode())
        return found


@dataclass(frozen=True, slots=True)
class _Simulator:
    run: Run
    boards: _Boards
    server_device: str
    out: Path
    samples: int | None
    alone: bool
    again: bool

    def simulate(self, cell: Cell, *, screen: Screen) -> FieldResult:
        try:
            return self._simulate(cell, screen)
        except CutlayerError as exc:
            if self.alone:
                raise _Failed(exc) from exc
            raise

    def _simulate(self, cell: Cell, screen: Screen) -> FieldResult:
        link, device = load_link(cell.link), self.boards.load(cell.device)
        state = self.out / "cells" / Path(cell.file).stem
        if self.again and state.is_dir():
            shutil.rmtree(state)
        run = configured(self.run, {key: getattr(cell, key) for key in KEYS if getattr(cell, key) != _own(self.run, key)}, state=state)
        if cell.mode == "real":
            result = run_over_line(run, link, screen=screen)
        else:
            setting = Setting(link=link, device=device, server_device=self.boards.load(self.server_device))
            with screen.bar(cell.link) as advance:
                result = simulate(run, setting, mode=cell.mode, samples=self.samples, say=screen.say, progress=advance)
        shutil.rmtree(state)  # checkpoints of all clients, which nobody needs once the result is there
        return result


def _base(run: Run, mode: Literal["train", "cost", "real"], *, link: str, device: str, clients: int | None, codec: str | None) -> Cell:
    own = {key: _own(run, key) for key in KEYS}
    given = {key: value for key, value in (("clients", clients), ("codec", codec)) if value is not None}
    return Cell(run=run.name, mode=mode, link=link, device=device, **own | given)


def _own(run: Run, key: str) -> Any:
    """What the run file says."""
    if key == "codec":
        return codec_of(run)
    return len(run.clients) if key == "clients" else getattr(run, key)


def _known_link(text: str) -> object:
    """A link that is refused for its nature is a cell that cannot finish, not a mistake."""
    return None if _is_refused(text) else load_link(text)


def _is_refused(link: str) -> bool:
    return refusal(link.partition(",")[0]) is not None


# ------------------------------------------------------------ what is printed

_WIDTH = 160  # of what is not a terminal

_TOLD = ("link", "device", "codec", "schedule", "clients", "seed", "mode", "finished", "why", "time_s", "metrics", "applied", "voided")
_TOLD_SUMS = ("bytes_up", "bytes_down", "line_bytes_up", "line_bytes_down", "joules", "busy_joules", "wall_s")


def _summary(result: FieldResult) -> dict[str, Any]:
    return {key: getattr(result, key) for key in (*_TOLD, *_TOLD_SUMS)}


def _print(results: Sequence[FieldResult], out: Path) -> None:
    table = Table(title=f"{results[0].run}, {results[0].mode}", title_justify="left")
    for name in ("link", "device", "codec", "clients", "line time", "up", "down", "energy", "at the end"):
        table.add_column(name, justify="right" if name in ("clients", "line time", "up", "down", "energy") else "left", no_wrap=True)
    reasons = list(dict.fromkeys(result.why for result in results if not result.finished))
    for result in results:
        ending = _ending(result) if result.finished else f"not ({reasons.index(result.why) + 1})"
        row = [result.link, result.device, result.codec, f"{result.clients:,}", duration(result.time_s)]
        table.add_row(*row, size(result.bytes_up), size(result.bytes_down), energy(result.joules), ending)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table)
    for at, why in enumerate(reasons, 1):
        console.print(f"({at}) does not finish: {why}", markup=False, soft_wrap=True)
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)


def _ending(result: FieldResult) -> str:
    metrics = next(iter(result.metrics.values()), {})
    return ", ".join(f"{key} {value:.4f}" for key, value in metrics.items() if key != "loss") or "done"
