"""How many bytes a run's messages take, from a short training of a few of its clients: what cost mode sends in their place."""

from __future__ import annotations

import dataclasses
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_client.bundle import bundle_path, read_manifest
from export.prepare import export_run
from simulation.field.device import Device
from simulation.field.link import Link
from simulation.field.shares import Share, shares_of
from simulation.field.train import TrainMaker
from simulation.field.world import Hear, World
from wire.control import decode_control
from wire.engine import Array
from wire.errors import CutlayerError, UsageError
from wire.frames import Frame, Kind, Mode, Reassembler
from wire.runfile import Run
from wire.straggler import StragglerConfig

__all__ = ["SAMPLED_STEPS", "Messages", "Sizes", "sampled_sizes", "whole_sizes"]

SAMPLED_STEPS = 30  # of training, by client
_EVALUATED = 5  # batches of each split, by client
_LINE = Link(name="none", up_bps=1e9, down_bps=1e9)
_BOARD = Device(name="none", flops=1e12, step_s=0.0, idle_w=0.0, flop_j=0.0, memory_bytes=0)


class Messages:
    """The bytes of one kind of message, by the samples of the batch that it is of, in the order of lanes and steps."""

    def __init__(self, found: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """``found``: lane and step of each to rows and bytes. Raises ValueError where it is empty."""
        by_rows: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        for at, (rows, size) in sorted(found.items()):
            by_rows[rows][at] = size
        self._sizes = {rows: tuple(sizes.values()) for rows, sizes in by_rows.items()}
        first = min(lane for lane, _ in found)
        self._stride = {rows: max(1, sum(lane == first for lane, _ in sizes)) for rows, sizes in by_rows.items()}
        most, least = max(self._sizes), min(self._sizes)
        self._most = most
        gap = _mean(self._sizes[most]) - _mean(self._sizes[least])
        self._row_bytes = gap / (most - least) if most > least else _mean(self._sizes[most]) / max(1, most)

    def bytes_of(self, rows: int, lane: int, step: int) -> int:
        """One of those that were taken of such a batch, in turn; of a size that none had, what a row more or less makes of the largest."""
        sizes = self._sizes.get(rows)
        if sizes is not None:
            return sizes[(lane * self._stride[rows] + step) % len(sizes)]
        size = self.bytes_of(self._most, lane, step)
        return max(1, round(size + (rows - self._most) * self._row_bytes))


def _mean(sizes: tuple[int, ...]) -> float:
    return sum(sizes) / len(sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """``steps``: by edge, kind and mode; ``offers`` and ``means``: of what clients give for averages, and get, by segment; ``states``:
    engines' states, by segment, and ``encoders``: those of the encoders, by the segments that a lane hands on: they cross as they are.
    """

    steps: Mapping[tuple[str, Kind, Mode], Messages]
    offers: Mapping[str, tuple[int, ...]]
    means: Mapping[str, tuple[int, ...]]
    states: Mapping[str, Mapping[str, Array]]
    encoders: Mapping[frozenset[str], Mapping[str, Array]]
    min_batch: int


def sampled_sizes(run: Run, folder: Path, *, samples: int | None = None) -> Sizes:
    """Train the first and the last client of ``run``, or all of one that needs them all, for some steps, in ``folder``, which
    is theirs alone: what was in it goes.

    ``samples``: see ``shares_of``. Raises CutlayerError.
    """
    if run.align is not None:
        raise UsageError("cost mode does not reckon how records are aligned; simulate this run with `--mode train`")
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was interrupted: its parties would go on instead of beginning
    chosen = _fewer_clients(dataclasses.replace(run, state_dir=str(folder.resolve())))
    export_run(chosen, chosen.bundles)
    manifests = [read_manifest(bundle_path(chosen.bundles, name)) for name in chosen.client_segments]
    min_batch = max((manifest.min_batch for manifest in manifests), default=1)
    sample = _short(chosen, min_batch, samples)
    return _Taken(sample, shares_of(sample, min_batch=min_batch)).sizes(min_batch)


def whole_sizes(run: Run, *, hear: Hear = lambda time_s, party, event, fields: None) -> Sizes:
    """Train all of ``run``, whose bundles are exported, and take every message. ``hear``: see ``simulation.field.world.World``."""
    min_batch = max(read_manifest(bundle_path(run.bundles, name)).min_batch for name in run.client_segments)
    return _Taken(run, shares_of(run, min_batch=min_batch), hear).sizes(min_batch)


def _fewer_clients(run: Run) -> Run:
    """The first and the last, which together have what others have: shares differ by a sample."""
    named = set(run.model.placement.values()) if run.model is not None else set()
    if run.segments or len(run.clients) < 3 or named & {client.name for client in run.clients}:
        return run
    return dataclasses.replace(run, clients=(run.clients[0], run.clients[-1]))


def _short(run: Run, min_batch: int, samples: int | None) -> Run:
    """One epoch of ``SAMPLED_STEPS`` batches at most, the last of them as large as the client's last."""
    if samples is not None:
        clients = tuple(dataclasses.replace(client, data=client.data | {"shard": "1/1"}) for client in run.clients)
        data = {key: value for key, value in run.data.items() if key != "partition"}
        run = dataclasses.replace(run, clients=clients, data=data)
    shares = shares_of(run, min_batch=min_batch, samples=samples)
    clients = tuple(dataclasses.replace(client, data=_limited(run, client.name, client.data, shares)) for client in run.clients)
    return dataclasses.replace(
        run,
        clients=clients,
        epochs=1,
        checkpoint_every=1 << 30,
        evaluate=dataclasses.replace(run.evaluate, every_epochs=1, patience=None),
        straggler=StragglerConfig(),
    )


def _limited(run: Run, client: str, data: dict[str, Any], shares: Mapping[int, Share]) -> dict[str, Any]:
    slot = next((slot for slot in run.slice_for(client).slots if slot.is_source), None)
    if slot is None:
        return data
    share, config = shares[slot.lanes[0]], run.data_of(client)
    found = data | {"limit": _limit(share.samples["train"], SAMPLED_STEPS, run.batch_size)}
    for split in run.evaluate.splits:
        if split != "validation" or not config.validation_fraction:
            found[split] = data.get(split, {}) | {"limit": _limit(share.samples[split], _EVALUATED, run.batch_size)}
    return found


def _limit(samples: int, batches: int, size: int) -> int:
    return min(samples, (batches - 1) * size + (samples % size or size))


class _Taken:
    """What crossed in a training of ``run``."""

    def __init__(self, run: Run, shares: Mapping[int, Share], hear: Hear = lambda time_s, party, event, fields: None) -> None:
        self._run, self._shares, self._hear = run, shares, hear
        lines = [line for party in run.graph().parties for line in run.slice_for(party).lines]
        self._edges = {run.topics(line)[0]: line.edge for line in lines}
        self._reassembler = Reassembler(lines=len(lines))
        self._steps: dict[tuple[str, Kind, Mode], dict[tuple[int, int], tuple[int, int]]] = defaultdict(dict)
        self._offers: dict[str, list[int]] = defaultdict(list)
        self._means: dict[str, list[int]] = defaultdict(list)

    def sizes(self, min_batch: int) -> Sizes:
        maker = TrainMaker(self._run)
        world = World(self._run, _LINE, _BOARD, _BOARD, maker, self._hear, self._tap)
        try:
            world.build()
            world.start()
            while not world.over:
                if not world.clock.step():
                    raise CutlayerError("the training from which cost mode takes the sizes of messages did not end")
            states = {name: engine.state() for party in maker.made for name, engine in party.setup.engines.items()}
            encoders = {shared: party.cuts.state(shared) for party in maker.made if (shared := self._handed_on(party.name))}
        finally:
            world.close()
        return Sizes(
            steps={key: Messages(found) for key, found in self._steps.items()},
            offers={name: tuple(found) for name, found in self._offers.items()},
            means={name: tuple(found) for name, found in self._means.items()},
            states=states,
            encoders=encoders,
            min_batch=min_batch,
        )

    def _handed_on(self, party: str) -> frozenset[str]:
        return frozenset(slot.segment for slot in self._run.slice_for(party).slots if slot.replicated)

    def _tap(self, topic: str, payload: bytes) -> None:
        frame = self._reassembler.feed(topic, payload, self._run.tag)
        if frame is None or frame.void:
            return
        if frame.kind in (Kind.FORWARD, Kind.BACKWARD):
            rows = self._shares[frame.lane].rows(frame.mode, frame.step)
            key = (self._edges[topic], frame.kind, frame.mode)
            self._steps[key][frame.lane, frame.step] = (rows, len(frame.payload))
        elif frame.kind is Kind.CONTROL:
            self._weights(frame)

    def _weights(self, frame: Frame) -> None:
        control = decode_control(frame.payload)
        op = control.body.get("op")
        for name, blob in control.blobs.items():
            lane, dot, segment = name.partition(".")
            if control.kind == "done" and dot and lane.isdigit():
                self._offers[segment].append(len(blob))
            elif control.kind == "cmd" and op == "adopt":
                self._means[name].append(len(blob))
