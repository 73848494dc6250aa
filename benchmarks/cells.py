"""Benchmarks made of cells: each cell is one real run, and its result is kept as soon as it is there."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tomli_w

from export.prepare import export_run
from server.broker import start_broker
from simulation.field.device import Device
from simulation.field.link import Link
from simulation.field.train import TrainMaker
from simulation.field.world import World
from simulation.parties import Parties, client_command, server_command
from wire.runfile import Run, load_run
from wire.spool import SpoolConfig

__all__ = ["Keyed", "cell_arguments", "exported", "missing", "run_cells", "stored", "train", "train_on_line"]

_EXPORTING = threading.Lock()  # tracing patches torch for the whole process


class Keyed(Protocol):
    """``key`` names the cell in the file of results."""

    @property
    def key(self) -> str: ...


CellT = TypeVar("CellT", bound=Keyed)


def train(table: Mapping[str, Any], *, on_event: Callable[[Mapping[str, Any]], None] = lambda event: None) -> dict[str, dict[str, Any]]:
    """Run a run file's table to its end over a broker of its own; what each party left as its result, and ``seconds`` in the server's.

    Every party is a process. Raises CutlayerError.
    """
    begun = time.perf_counter()
    with exported(table) as (path, run), start_broker(engine="mosquitto") as broker:
        with Parties(run) as parties:
            parties.start(run.server.name, server_command(path, broker.url))
            for client in run.clients:
                parties.start(client.name, client_command(path, client.name, broker.url))
            for event in parties.events():
                on_event(event)
        names = [run.server.name, *(client.name for client in run.clients)]
        results = {name: json.loads((run.state_of(name) / "result.json").read_text()) for name in names}
    results[run.server.name]["seconds"] = round(time.perf_counter() - begun, 1)
    return results


def train_on_line(
    table: Mapping[str, Any],
    link: Link,
    device: Device,
    server_device: Device,
    *,
    on_event: Callable[[float, str, Mapping[str, Any]], None],
) -> dict[str, dict[str, Any]]:
    """The same in virtual time, in this process; each party's ``peak_rss_mb`` is this process's. ``on_event`` hears the coordinator:
    seconds of line time, the event's name, its fields. Raises CutlayerError."""
    begun = time.perf_counter()
    with exported(table) as (_, run):
        run = dataclasses.replace(run, spool=SpoolConfig(limit_bytes=0))
        maker = TrainMaker(run)

        def hear(time_s: float, party: str, event: str, fields: Mapping[str, Any]) -> None:
            if party == run.coordinator:
                on_event(time_s, event, fields)

        world = World(run, link, device, server_device, maker, hear)
        try:
            world.build()
            world.start()
            while not world.over and world.clock.step():
                pass
        finally:
            world.close()
        results = {made.name: made.result() for made in maker.made}
    results[run.server.name]["seconds"] = round(time.perf_counter() - begun, 1)
    return results


@contextlib.contextmanager
def exported(table: Mapping[str, Any]) -> Iterator[tuple[Path, Run]]:
    """A run file and its run, in a folder of their own, with bundles."""
    with tempfile.TemporaryDirectory(prefix="cutlayer-cell-") as folder:
        path = Path(folder, "run.toml")
        path.write_text(tomli_w.dumps(table))
        run = load_run(path)
        with _EXPORTING:
            export_run(run, run.bundles)
        yield path, run


def cell_arguments(about: str | None, *, jobs: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=jobs, help="cells at once; each keeps about one core busy")
    parser.add_argument("--only", default="", help="cells whose key contains this text")
    parser.add_argument("--again", action="store_true", help="also those that are there already")
    return parser


def stored(path: Path) -> dict[str, Any]:
    """The results of earlier runs, by key."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def missing(cells: Sequence[CellT], path: Path, arguments: argparse.Namespace) -> list[CellT]:
    """Those that ``arguments`` ask for and ``path`` lacks, in order."""
    results = stored(path)
    return [cell for cell in cells if arguments.only in cell.key and (arguments.again or cell.key not in results)]


def run_cells(
    cells: Sequence[CellT],
    path: Path,
    run: Callable[[CellT], dict[str, Any]],
    *,
    jobs: int,
    kept: Callable[[Mapping[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Run them, begun in order, and keep each result in ``path`` at once: a table with ``accuracy`` and ``seconds``. Returns all results.

    ``kept`` is told all results after each cell.
    """
    results = stored(path)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run, cell): cell for cell in cells}
        for done in as_completed(waiting):
            cell = waiting[done]
            results[cell.key] = done.result()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
            print(f"{cell.key}: {results[cell.key]['accuracy']:.4f} in {results[cell.key]['seconds']:.0f} s", flush=True)
            kept(results)
    return results
