"""``cutlayer simulate``: one cell or a grid of them, in virtual time or over a shaped line, and the report."""

from __future__ import annotations

import dataclasses
import json as json_module
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from simulation.field.configure import configured
from simulation.field.presets import load_device, load_link, refusal
from simulation.field.report.words import duration, size
from simulation.field.result import FieldResult
from simulation.field.simulate import Setting, codec_of, simulate
from simulation.field.sweep import Cell, parse_sweep, run_sweep
from simulation.screen import Screen
from wire.errors import UsageError
from wire.runfile import Run, load_run

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
    if epochs is not None:
        run = dataclasses.replace(run, epochs=epochs)
    base = _base(run, "real" if real else mode, link=link, device=device, clients=clients, codec=codec)
    cells = parse_sweep(sweep or (), base, known={"link": _known_link, "device": load_device})
    out = out or Path(run.base) / f"field-{run.name}"
    with Screen() as screen:
        one = partial(_simulated, run, server=server_device, out=out, screen=screen)
        if not sweep:
            _check(one, run, cells[0])
        basis = f"{Path(run_file).read_text()}\n{epochs}\n{server_device}"
        results = run_sweep(cells, one, folder=out, screen=screen, basis=basis, again=again)
    if json:
        print(json_module.dumps({"report": str(out / "report.html"), "cells": [_summary(result) for result in results]}))
    else:
        _print(results, out)


def _base(run: Run, mode: Literal["train", "cost", "real"], *, link: str, device: str, clients: int | None, codec: str | None) -> Cell:
    return Cell(
        run=run.name,
        mode=mode,
        link=link,
        device=device,
        codec=codec or codec_of(run),
        clients=clients or len(run.clients),
        schedule=run.schedule,
        seed=run.seed,
        in_flight=run.in_flight,
        batch_size=run.batch_size,
    )


def _known_link(text: str) -> object:
    """A link that is refused for its nature is a cell that cannot finish, not a mistake."""
    return None if refusal(text.partition(",")[0]) is not None else load_link(text)
