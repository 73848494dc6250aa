"""The client process: a run file, a bundle and this party's data, trained over the broker until the run is over."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from edge_client.bundle import bundle_path, read_bundle, read_manifest
from edge_client.data import DataSource, open_source
from edge_client.engine import StockEngine, load_engine
from edge_client.heartbeat import Heartbeat
from edge_client.memory import choose_memory
from edge_client.metrics import MetricSet
from wire.alignment import STREAM
from wire.bundle_fit import check_bundle
from wire.data_config import Split
from wire.driver import Observer
from wire.engine import Array, Engine
from wire.errors import DataError, StorageError
from wire.feed import Batch, Feed
from wire.graph import PartySlice
from wire.observer import observer_for
from wire.process import PartySetup, for_prediction, run_party
from wire.program import FEDERATED
from wire.runfile import ClientConfig, Run, load_run
from wire.tally import Tally

__all__ = ["check_client", "client_setup", "run_client", "run_predict"]


def run_client(
    run_file: str | Path,
    *,
    party: str,
    bundle: str | Path | None = None,
    broker: str | None = None,
    engine: str | None = None,
    log: Literal["text", "json"] = "text",
    heartbeat: Path | None = None,
) -> None:
    """Train ``party``'s segments until the run is over; a second start goes on where the first one stopped.

    ``bundle``: the folder that ``cutlayer export`` wrote; default: where ``cutlayer run`` puts it. ``broker`` overrides the run file's url,
    ``engine`` its client's engine. ``heartbeat``: the file in which to say how it is. Raises CutlayerError.
    """
    run = load_run(run_file).with_broker(broker)
    setup = client_setup(run, party, bundle=bundle, engine=engine)
    observer: Observer = observer_for(party, log)
    if heartbeat is None:
        run_party(run, party, setup, observer=observer)
    else:
        beating = Heartbeat(heartbeat, observer, run=run.name)
        run_party(run, party, setup, observer=beating, pulse=beating.pulse)


def check_client(run_file: str | Path, *, party: str, bundle: str | Path | None = None) -> None:
    """Whether ``run_client`` could begin: the run file is this party's, and the bundles are whole and fit it. Nothing is trained, no data
    are read and nobody is spoken to, so that it can be done beside a client that trains. Raises CutlayerError."""
    run = load_run(run_file)
    mine = run.slice_for(party)
    run.client(party)
    for slot in mine.slots:
        path = bundle_path(Path(bundle or run.bundles), slot.segment)
        check_bundle(run, slot.segment, read_bundle(path).manifest, path, has_loss=slot.is_sink)


def client_setup(
    run: Run, party: str, *, bundle: str | Path | None = None, engine: str | None = None, beside: Mapping[str, Engine] | None = None
) -> PartySetup:
    """Engines and data of a client that is to train; see ``run_client``. ``beside``: another client's engines in this process, with the
    same options. Raises CutlayerError."""
    mine = run.slice_for(party)
    engines = _load_engines(run, mine, run.client(party), Path(bundle or run.bundles), engine=engine, beside=beside or {})
    splits: tuple[Split, ...] = ("train", *run.evaluate.splits)
    feed = _open_feed(run, mine, engines, party, splits) if run.reads_data(party) else None
    return PartySetup(
        engines=engines,
        feed=feed,
        metrics=_metrics(run, mine),
        tally=Tally(run.evaluate.metrics, loss=run.loss) if run.schedule in FEDERATED else None,
        result={"samples": feed.samples("train"), "evaluated": {split: feed.samples(split) for split in splits[1:]}} if feed else {},
        on_over=lambda: {"modules_forbidden": _forbidden()},
    )


def run_predict(
    run_file: str | Path,
    *,
    party: str,
    bundle: str | Path | None = None,
    split: Literal["validation", "test"] = "test",
    out: str | Path | None = None,
    broker: str | None = None,
) -> None:
    """Split inference on ``party``'s own data with the run's newest common checkpoint; needs ``cutlayer serve --predict PARTY`` running.

    Writes CSV: the sample's id (it never leaves this device), the prediction, and the network's outputs. Raises CutlayerError.
    """
    whole = load_run(run_file).with_broker(broker)
    run = for_prediction(whole, party)
    mine = run.slice_for(party)
    engines = _load_engines(run, mine, whole.client(party), Path(bundle or whole.bundles), engine="stock")
    source = _open_feed(whole, whole.slice_for(party), engines, party, (split,)).source(split)
    with _opened(out) as file:
        setup = PartySetup(
            engines=engines,
            feed=Feed({"test": source}),
            training=False,
            digest=whole.digest,
            on_answer=_csv_writer(run, file),
        )
        run_party(run, party, setup, observer=observer_for(party, "text", stream=sys.stderr))


def _forbidden() -> list[str]:
    """Modules of torch and onnx that this process has loaded: none, or a device could not run it."""
    return sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "onnx"))


def _metrics(run: Run, mine: PartySlice) -> MetricSet | None:
    """Where the loss is here, and what it says stays here: with a whole network, it counts for all instead."""
    sinks = [slot.segment for slot in mine.slots if slot.is_sink and run.schedule not in FEDERATED]
    return MetricSet(run.metrics_of(sinks[0]), loss=run.loss_of(sinks[0])) if sinks else None


# ------------------------------------------------------------ bundles


def _load_engines(
    run: Run, mine: PartySlice, client: ClientConfig, folder: Path, *, engine: str | None = None, beside: Mapping[str, Engine] = {}
) -> dict[str, StockEngine]:
    paths = {slot.segment: bundle_path(folder, slot.segment) for slot in mine.slots}
    memory = client.memory
    if memory == "auto":
        memory = choose_memory([read_manifest(path) for path in paths.values()], batch=run.batch_size, in_flight=run.in_flight)
    engines: dict[str, StockEngine] = {}
    for slot in mine.slots:
        path = paths[slot.segment]
        twin = beside.get(slot.segment)
        found = load_engine(
            path,
            engine=engine or client.engine,
            threads=client.threads,
            clip_norm=run.clip_norm,
            memory=memory,
            accumulate=run.accumulate,
            seed=run.seed,
            beside=twin if isinstance(twin, StockEngine) else None,
        )
        check_bundle(run, slot.segment, found.manifest, path, has_loss=slot.is_sink)
        engines[slot.segment] = found
    return engines


# ------------------------------------------------------------ data


def _open_feed(run: Run, mine: PartySlice, engines: Mapping[str, StockEngine], party: str, splits: tuple[Split, ...]) -> Feed:
    config = run.data_of(party)
    first, lane = next((slot.segment, slot.lanes[0]) for slot in mine.slots if slot.is_source)
    sources: dict[Split, DataSource] = {}
    for split in splits:
        sources[split] = open_source(
            config,
            split,
            seed=run.seed,
            segment=first,
            stream=None if run.align is None else STREAM,
            lane=lane,
            batch_size=run.batch_size,
            base_dir=run.base,
            min_batch=max(engine.manifest.min_batch for engine in engines.values()),
        )
        _check_shapes(engines[first], sources[split], config.path)
    return Feed(sources)


def _check_shapes(engine: StockEngine, source: DataSource, path: str) -> None:
    wanted = [spec for spec in engine.inputs if spec.name != "target"]
    if len(wanted) != len(source.input_shapes):
        raise DataError(
            f"segment `{engine.manifest.segment}` takes {len(wanted)} inputs, samples in {path} have {len(source.input_shapes)}"
        )
    for spec, shape in zip(wanted, source.input_shapes, strict=True):
        if not spec.fits((1, *shape)):
            raise DataError(
                f"samples in {path} have the shape {list(shape)}, but segment `{engine.manifest.segment}` was exported for "
                f"{list(spec.shape[1:])}; check `input_shape` of [model] and the layout of [data]"
            )


# ------------------------------------------------------------ predictions


def _csv_writer(run: Run, file: TextIO) -> Callable[[Batch, Mapping[str, Array]], None]:
    writer = csv.writer(file, lineterminator="\n")
    begun = False

    def write(batch: Batch, outputs: Mapping[str, Array]) -> None:
        nonlocal begun
        scores = next(iter(outputs.values()))
        rows = scores.reshape(len(scores), -1)
        if not begun:
            writer.writerow(["id", "prediction", *(f"output_{at}" for at in range(rows.shape[1]))])
            begun = True
        for name, row in zip(batch.ids, rows, strict=True):
            writer.writerow([name, _prediction(run.loss, row), *(f"{float(value):.6g}" for value in row)])

    return write


def _prediction(loss: str, row: Array) -> str:
    if loss == "cross_entropy":
        return str(int(np.argmax(row)))
    if loss == "bce":
        return " ".join(str(int(value > 0)) for value in row.tolist())
    return " ".join(f"{value:.6g}" for value in row.tolist())


class _opened:
    """``out`` for writing, or the screen. Raises StorageError."""

    def __init__(self, out: str | Path | None) -> None:
        self._out = out
        self._file: TextIO | None = None

    def __enter__(self) -> TextIO:
        if self._out is None:
            return sys.stdout
        try:
            self._file = open(self._out, "w", newline="", encoding="utf-8")
        except OSError as exc:
            raise StorageError(f"cannot write {self._out}: {exc.strerror or exc}") from exc
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
