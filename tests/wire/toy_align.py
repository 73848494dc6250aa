"""Records of a toy run that several parties hold: real sources, real aligners, and the common order worked out once more with sets."""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_client.data.rows import MemoryRows
from edge_client.data.samples import Samples
from edge_client.data.source import DataSource
from wire.aligning import AlignedProgram, Aligner
from wire.alignment import STREAM
from wire.data_config import DataConfig
from wire.feed import Feed
from wire.graph import Graph, PartySlice
from wire.program import Program
from wire.rng import permutation

KEY, SECRET = b"shared by the institutions", b"the coordinator's own"


def hashed(name: str) -> bytes:
    return hmac.new(KEY, name.encode(), "sha256").digest()[:16]


def holders(graph: Graph, lane: int) -> dict[str, str]:
    """Party to the segment by whose name its records go: the first that takes raw data."""
    fed = {edge.target for edge in graph.edges}
    found: dict[str, str] = {}
    for segment in graph.order():
        if segment.name not in fed:
            found.setdefault(graph.party_of(segment.name, lane), segment.name)
    return found


def label_holders(graph: Graph, lane: int) -> set[str]:
    """Parties without which a record has no label: of each loss the one that is named, has them at home, or comes first."""
    parties = list(holders(graph, lane))
    sinks = [segment for segment in graph.segments if segment.loss]
    homes = {graph.party_of(sink.name, lane) for sink in sinks if sink.labels == "local"}
    named = {graph.party_of(sink.labels_from, lane) for sink in sinks if sink.labels_from is not None}
    first = {parties[0] for sink in sinks if sink.labels != "local" and sink.labels_from is None}
    return homes | named | first


def source(names: list[str], *, train: bool, batch_size: int, segment: str = "bottom", drop_last: bool = False, **keys: Any) -> DataSource:
    """A table in memory: the row of ``names[i]`` is [i + 1, 10 i], its label i."""
    rows = np.arange(len(names), dtype=np.float32)
    config = DataConfig(kind="csv", path="p.csv", labels="y", drop_last=drop_last, **keys)
    samples = Samples(
        rows=MemoryRows(np.stack([rows + 1, 10 * rows], axis=1)),
        layout="NF",
        target=np.arange(len(names)),
        ids=lambda at: tuple(names[place] for place in at.tolist()),
        classes=len(names),
    )
    return DataSource(config, samples, train=train, seed=3, segment=segment, lane=0, batch_size=batch_size, min_batch=1, stream=STREAM)


def value_of(names: tuple[str, ...]) -> int:
    """What a batch stands for in the toy's arithmetic."""
    return int.from_bytes(hashlib.sha256("|".join(names).encode()).digest()[:7], "little")


@dataclass
class ToyAlign:
    """``records``: party → split → ids in the order of its file."""

    records: dict[str, dict[str, list[str]]]
    missing: Any = "drop"
    batch_size: int = 2

    def feed(self, party: str) -> Feed | None:
        splits = self.records.get(party)
        if splits is None:
            return None
        return Feed({split: source(names, train=split == "train", batch_size=self.batch_size) for split, names in splits.items()})  # type: ignore[misc]

    def aligner(self, party: PartySlice, feed: Feed | None, disk: Any) -> Aligner | None:
        def keep(kept: bytes) -> None:
            disk.alignment = kept

        return None if feed is None else Aligner(party, feed, key=KEY, load=lambda: disk.alignment, keep=keep)

    def program(self, inner: Program, graph: Graph) -> AlignedProgram:
        return AlignedProgram(
            inner, missing=self.missing, batch_size=self.batch_size, splits=("train", "test"), lanes=graph.lanes, secret=SECRET
        )

    # ------------------------------------------------------------ what must come of it

    def order(self, graph: Graph, lane: int, split: str) -> list[str]:
        """The common order, from sets of plain ids."""
        held = {party: set(self.records[party][split]) for party in holders(graph, lane)}
        if self.missing == "drop":
            return sorted(set.intersection(*held.values()), key=hashed)
        needed = [held[party] for party in label_holders(graph, lane)]
        return sorted(set.union(*held.values()).intersection(*needed), key=lambda name: hmac.new(SECRET, hashed(name), "sha256").digest())

    def batches(self, graph: Graph, lane: int) -> dict[str, int]:
        return {split: math.ceil(len(self.order(graph, lane, split)) / self.batch_size) for split in ("train", "test")}

    def batch(self, graph: Graph, lane: int, party: str, step: int) -> int:
        """What ``value_of`` says of a party's batch of a training step."""
        order, held = self.order(graph, lane, "train"), set(self.records[party]["train"])
        epoch, index = divmod(step, math.ceil(len(order) / self.batch_size))
        shuffled = permutation(3, STREAM, 0, epoch, len(order))[index * self.batch_size : (index + 1) * self.batch_size]
        return value_of(tuple(order[at] if order[at] in held else "" for at in shuffled.tolist()))
