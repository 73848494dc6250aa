"""``cutlayer run``: every party of a run file as a process of this computer, then the unsplit twin, then the two side by side."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_client.data import open_source
from export.prepare import build_segments, export_run
from server.broker import start_broker
from simulation.align import align_feeds
from simulation.parties import Parties
from simulation.report import Report, print_drained, print_report
from simulation.screen import Screen
from simulation.twin import train_unsplit
from simulation.watch import Watch, own_command, result_of
from wire.alignment import STREAM
from wire.data_config import Split
from wire.feed import Feed
from wire.manifest import load_manifest
from wire.runfile import Run, load_run
from wire.transport.broker_config import BrokerConfig

__all__ = ["BROKERS", "feeds_of", "run_and_compare", "run_file"]

BROKERS = ("embedded", "mosquitto")


def run_file(path: str | Path, *, json: bool = False) -> None:
    """Train the run, compare it with its unsplit twin and print what it cost; started again, an unfinished run goes on.

    Where the run file says nothing of a broker, one is started for the run. ``json``: one JSON object as the last line.
    Raises CutlayerError.
    """
    run = load_run(path)
    report = run_and_compare(run, broker="embedded" if run.broker == BrokerConfig() else run.broker.url)
    if report is None:
        print_drained(run.name, as_json=json)
    else:
        print_report(report, as_json=json)


def run_and_compare(run: Run, *, broker: str, dataset: str | None = None) -> Report | None:
    """``broker``: one of BROKERS, started for the run, or an address. ``dataset``: what the report calls the data.

    None: the run was drained, and is not over.
    """
    _check_bundles(run)
    with Screen() as screen, _broker(broker) as url:
        screen.say(f"broker at {url}")
        metrics = _train(run, url, screen)
        if metrics is None:
            return None
        results = {name: result_of(run, name) for name in run.graph().parties}
        feeds = feeds_of(run)
        with screen.bar("unsplit twin") as advance:
            twin = train_unsplit(run, feeds, progress=advance)
    return Report.compare(
        run,
        dataset=dataset or run.name,
        broker=broker,
        results=results,
        metrics=results[run.graph().root()].get("metrics") or metrics,
        losses={sink: _losses(run, sink) for sink in run.sinks},
        twin=twin,
        samples=sum(feed.samples("train") for feed in feeds.values()),
    )


@contextlib.contextmanager
def _broker(choice: str) -> Iterator[str]:
    if choice not in BROKERS:
        yield choice
        return
    with start_broker(engine=choice) as broker:  # type: ignore[arg-type]
        yield broker.url


def _check_bundles(run: Run) -> None:
    """Export what clients need, unless a run that is under way has it already."""
    for name in run.client_segments:
        path = run.bundles / name / "manifest.json"
        if not path.is_file() or load_manifest(path.read_text(), where=str(path)).optimizer != run.optimizer or not _is_under_way(run):
            export_run(run, run.bundles)
            return


def _is_under_way(run: Run) -> bool:
    return any((run.state_of(client.name) / "party.json").is_file() for client in run.clients)


def _train(run: Run, url: str, screen: Screen) -> dict[str, Any] | None:
    """Run all parties to the end, each with its slice; the metrics that the coordinator has told, or None where the run was drained."""
    segments = build_segments(run)
    with Parties(run) as parties, screen.bar("split") as advance:
        watch = Watch(run, screen, advance)
        for name in (*(server.name for server in run.all_servers), *(client.name for client in run.clients)):
            parties.start(name, own_command(run, name, segments, url))
        for event in parties.events():
            watch.hear(event)
        watch.over()
    return None if watch.drained else watch.metrics


def feeds_of(run: Run) -> dict[str, Feed]:
    """Each client's raw data, as it reads them."""
    splits: tuple[Split, ...] = ("train", *run.evaluate.splits)
    feeds = {client.name: _feed(run, client.name, splits) for client in run.clients if run.reads_data(client.name)}
    align_feeds(run, feeds)
    return feeds


def _feed(run: Run, client: str, splits: Sequence[Split]) -> Feed:
    mine = run.slice_for(client)
    segment, lane = next((slot.segment, slot.lanes[0]) for slot in mine.slots if slot.is_source)
    paths = [run.bundles / slot.segment / "manifest.json" for slot in mine.slots]
    min_batch = max(load_manifest(path.read_text(), where=str(path)).min_batch for path in paths)
    return Feed(
        {
            split: open_source(
                run.data_of(client),
                split,
                seed=run.seed,
                segment=segment,
                lane=lane,
                batch_size=run.batch_size,
                base_dir=run.base,
                min_batch=min_batch,
                stream=None if run.align is None else STREAM,
            )
            for split in splits
        }
    )


def _losses(run: Run, sink: str) -> list[float]:
    """The loss of every step, from the ledgers of the parties that compute it: they have told nobody else."""
    found: dict[int, float] = {}
    for party in run.graph().segment(sink).parties:
        with contextlib.closing(sqlite3.connect(run.state_of(party) / "ledger.sqlite")) as ledger:
            found |= {int(step): float(loss) for step, loss in ledger.execute("SELECT global_step, loss FROM losses")}
    return [loss for _, loss in sorted(found.items())]
