"""The data seam: batches with stable sample ids, as a segment that sees raw data takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wire.data_config import Split
from wire.engine import Array
from wire.errors import DataError

__all__ = ["Batch", "DataSource", "Feed", "LabelStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``inputs``: one array a segment input, batch first; ``target`` as the loss wants it, None where another party holds the labels."""

    inputs: tuple[Array, ...]
    target: Array | None
    ids: tuple[str, ...]


class DataSource(Protocol):
    """One split of one party. ``batch`` is a pure function of its arguments, so a resumed run sees identical bytes."""

    @property
    def samples(self) -> int: ...

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        ...

    @property
    def least(self) -> int:
        """How many samples the last batch of an epoch must have, or it is left out."""
        ...

    def batch(self, epoch: int, index: int) -> Batch: ...

    def ids(self, at: NDArray[np.int64]) -> tuple[str, ...]:
        """The sample ids at some places of the share."""
        ...

    def aligned(self, places: NDArray[np.int64], *, least: int) -> DataSource:
        """The same records in another order, int64 [n] places in the share; -1 is a sample that is not here: zeros, with the id ""."""
        ...


class LabelStore(Protocol):
    """Labels held away from the data, joined by keyed id."""

    def lookup(self, ids: Array) -> Array:
        """uint8 [N, 16] keyed ids to targets [N]. Raises DataError for an id that is not there."""
        ...


class Feed:
    """All splits of one party; finds the batch that a step means."""

    def __init__(self, sources: Mapping[Split, DataSource]) -> None:
        self._own = dict(sources)
        self._sources = sources
        self._prepared: tuple[int, Batch] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Batches an epoch, by split."""
        return {split: source.batches for split, source in self._sources.items()}

    def samples(self, split: Split) -> int:
        return self._sources[split].samples

    @property
    def own(self) -> Mapping[Split, DataSource]:
        """The party's splits as they lie in its files, whatever ``align`` made of them."""
        return self._own

    def align(self, places: Mapping[Split, NDArray[np.int64]], *, least: int) -> None:
        """From now on serve these records in this order (see ``DataSource.aligned``); ``least`` is of training."""
        own = self._own.items()
        self._sources = {split: source.aligned(places[split], least=least if split == "train" else 1) for split, source in own}
        self._prepared = None

    def source(self, split: Split) -> DataSource:
        return self._sources[split]

    def train(self, step: int) -> Batch:
        """The batch of a lane's training step."""
        if self._prepared is not None and self._prepared[0] == step:
            return self._prepared[1]
        source = self._sources["train"]
        batch = source.batch(step // source.batches, step % source.batches)
        self._prepared = (step, batch)  # where the loss is here as well, it asks for the labels of the same step
        return batch

    def prepare(self, step: int) -> None:
        """Make the batch of ``train(step)`` now, in time that nobody needs. What is wrong with it, ``train`` will say."""
        if self._prepared is None or self._prepared[0] != step:
            self._prepared = None
            with contextlib.suppress(DataError):
                self.train(step)

    def evaluation(self, split: Split, index: int) -> Batch:
        return self._sources[split].batch(0, index)
