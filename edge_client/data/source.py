"""Batches: any batch of any epoch at any time, as a pure function of the run, so that a resumed run sees the very same bytes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.data.cifar import read_cifar
from edge_client.data.folder import read_folder
from edge_client.data.idx import read_idx
from edge_client.data.npz import read_npz
from edge_client.data.partition import dirichlet_share
from edge_client.data.rows import Pick
from edge_client.data.samples import Request, Samples
from edge_client.data.table import read_table
from edge_client.data.transform import Transform
from wire.data_config import DataConfig, DataSplit, Split
from wire.engine import Array
from wire.errors import DataError
from wire.feed import Batch
from wire.rng import generator, permutation

__all__ = ["DataSource", "count_batches", "open_source"]

_READERS: dict[str, Callable[[Request], Samples]] = {
    "idx": read_idx,
    "npz": read_npz,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "folder": read_folder,
    "csv": read_table,
}
_MEMORY_BYTES = 4 << 20  # a larger share is read from disk batch by batch


class DataSource:
    """One party's share of one split; implements ``wire.feed.DataSource``. Not thread-safe.

    ``inputs`` of a batch: float32 [N, F], [N, C, L] or [N, C, H, W]. ``target``: int64 [N], float32 [N] or [N, K], or None.

    Training batches are shuffled anew each epoch and augmented; those of validation and test come in the order of the file, as they are.
    Where records are aligned with those of other parties, ``aligned`` gives the source that serves them in the common order. Shuffles are
    the same for all parties with the same ``stream``.

    A last partial batch is a batch like any other, except for training with ``drop_last``, or where it would have fewer than ``min_batch``
    samples (BatchNorm cannot train on one): then it is left out of that epoch. Which samples that concerns changes with the shuffle.
    """

    def __init__(
        self,
        config: DataConfig,
        samples: Samples,
        *,
        train: bool,
        seed: int,
        segment: str,
        lane: int,
        batch_size: int,
        min_batch: int,
        stream: str | None = None,
    ) -> None:
        self._rows, self._target, self._ids = samples.rows, samples.target, samples.ids
        self._transform = Transform(config, samples.layout, samples.rows.take(np.zeros(1, np.int64)))
        self._prefix = config.id_prefix
        self._train = train
        self._seed, self._segment, self._lane = seed, segment, lane
        self._stream = stream or segment
        self._batch_size = batch_size
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._places: NDArray[np.int64] | None = None  # of an aligned source: where its samples are in ours
        self.samples = len(samples.rows)
        self.classes = samples.classes
        self._batches = count_batches(self.samples, batch_size, min_batch if train else 1, drop_last=train and config.drop_last)
        self.least = 1 if not train else batch_size if config.drop_last else min_batch

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of one sample of each input, without the batch."""
        return (self._transform.shape,)

    @property
    def batches(self) -> int:
        """How many batches an epoch has; the same for all epochs."""
        return self._batches

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch ``index`` of ``epoch``: a function of (seed, segment, lane, epoch, index) and the files alone.

        Raises IndexError beyond ``batches``, DataError where a file can no longer be read.
        """
        if not 0 <= index < self._batches:
            raise IndexError(f"batch {index} of {self._batches}")
        at = self._epoch_order(epoch)[index * self._batch_size : (index + 1) * self._batch_size]
        rng = generator(self._seed, "augment", self._segment, self._lane, epoch, index) if self._train else None
        if self._places is None:
            return self._batch(at, rng)
        places = self._places[at]
        return _blanked(self._batch(np.maximum(places, 0), rng), places < 0)

    def _batch(self, at: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        target = None if self._target is None else self._target[at]
        return Batch(inputs=(self._transform(self._rows.take(at), rng),), target=target, ids=self.ids(at))

    def ids(self, at: NDArray[np.int64]) -> tuple[str, ...]:
        """The sample ids at some places of this share, in the order of its files."""
        return tuple(self._prefix + name for name in self._ids(at))

    def aligned(self, places: NDArray[np.int64], *, least: int) -> DataSource:
        """See ``wire.feed.DataSource``. Batches are as many as ``batch_size`` gives of ``places``, the last of ``least`` or more."""
        other = copy.copy(self)
        other._places, other._order = places, None
        other.samples, other.least = len(places), least
        other._batches = count_batches(len(places), self._batch_size, least, drop_last=False)
        return other

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if not self._train:
            epoch = 0
        if self._order is None or self._order[0] != epoch:
            shuffled = permutation(self._seed, self._stream, self._lane, epoch, self.samples) if self._train else np.arange(self.samples)
            self._order = (epoch, shuffled)
        return self._order[1]


def open_source(
    config: DataConfig,
    split: Split,
    *,
    seed: int,
    segment: str,
    lane: int,
    batch_size: int,
    stream: str | None = None,
    base_dir: str | Path = ".",
    min_batch: int = 1,
    memory_bytes: int = _MEMORY_BYTES,
) -> DataSource:
    """Open one split of a party's data. ``base_dir`` is where relative paths begin; ``min_batch`` is the bundle's.

    Parties whose records are aligned pass the same ``stream`` (left out: ``segment``) and ``lane``, so that these come in the same order.
    Raises DataError: a path that is not there, a file that is damaged or of another kind, labels that do not fit, an empty share.
    """
    if batch_size < 1 or min_batch < 1:
        raise ValueError(f"`batch_size` is {batch_size} and `min_batch` {min_batch}; both must be 1 or more")
    held_out = split == "validation" and config.validation_fraction > 0
    if stream is not None and config.validation_fraction:
        raise DataError(
            "`validation_fraction` draws rows of one file, so that parties would hold out other records; with `[align]` give each party a "
            "`[data.validation]` of its own"
        )
    _check_split(config, split, held_out)
    where = config.split("train" if held_out else split)
    request = Request(
        config=config,
        split="train" if held_out else split,
        path=_resolve(base_dir, str(where.path)),
        train_path=_resolve(base_dir, config.path),
        images=where.images,
        labels=where.labels,
        id_column=where.id_column,
        pick=_picker(config, where, split, seed),
        memory_bytes=memory_bytes,
    )
    samples = _READERS[config.kind](request)
    train = split == "train"
    return DataSource(
        config,
        samples,
        train=train,
        seed=seed,
        segment=segment,
        lane=lane,
        batch_size=batch_size,
        min_batch=min_batch,
        stream=stream,
    )


def _blanked(batch: Batch, blank: NDArray[np.bool_]) -> Batch:
    """The batch with zeros, after normalisation and augmentation, in place of samples that are not here."""
    for array in (*batch.inputs, *(() if batch.target is None else (batch.target,))):
        array[blank] = 0
    ids = tuple("" if gone else name for name, gone in zip(batch.ids, blank.tolist(), strict=True))
    return Batch(inputs=batch.inputs, target=batch.target, ids=ids)


def _resolve(base_dir: str | Path, path: str) -> Path:
    return Path(base_dir, Path(path).expanduser())


def _check_split(config: DataConfig, split: Split, held_out: bool) -> None:
    """Whether the run says where the split is, or the files' own names do."""
    by_name = config.kind in ("cifar10", "cifar100") or (config.kind in ("idx", "npz") and config.images is None)
    if not (held_out or by_name or config.has_own(split)):
        other = " or set `validation_fraction`" if split == "validation" else ""
        raise DataError(f"[data] says nothing of {split} samples; add a [data.{split}] table{other}")


def _picker(config: DataConfig, where: DataSplit, split: Split, seed: int) -> Pick:
    """Hold-out, then shard, then limit, as DataConfig says."""
    concentration = config.concentration if split == "train" else None

    def pick(count: int, labels: Callable[[], Array]) -> NDArray[np.int64]:
        rows = _hold_out(np.arange(count), config.validation_fraction, split, seed)
        part, parts = where.part
        if concentration is None:
            rows = rows[part::parts]
        else:
            rows = rows[dirichlet_share(labels()[rows].ravel(), part, parts, concentration=concentration, seed=seed)]
        if where.limit is not None and where.limit < len(rows):
            rows = rows[np.arange(where.limit) * len(rows) // where.limit]
        if not len(rows):
            raise DataError(f"the {split} share is empty: `shard` is {where.shard!r}, and there are {count} samples")
        return rows

    return pick


def _hold_out(rows: NDArray[np.int64], fraction: float, split: Split, seed: int) -> NDArray[np.int64]:
    """The training or the validation part of training rows. Other splits are as they are."""
    if not fraction or split == "test":
        return rows
    held = round(len(rows) * fraction)
    if not 0 < held < len(rows):
        raise DataError(f"`validation_fraction` {fraction} of {len(rows)} samples holds out {held}; it must leave some on both sides")
    chosen = np.zeros(len(rows), bool)
    chosen[permutation(seed, "validation", 0, 0, len(rows))[:held]] = True
    return rows[chosen if split == "validation" else ~chosen]


def count_batches(samples: int, batch_size: int, min_batch: int, *, drop_last: bool) -> int:
    """Of an epoch, where a last one of fewer than ``min_batch`` samples is left out. Raises DataError where there is none."""
    full, rest = divmod(samples, batch_size)
    if batch_size < min_batch:
        raise DataError(f"`batch_size` is {batch_size}, but this network trains on {min_batch} samples or more at a time")
    batches = full if drop_last or rest < min_batch else math.ceil(samples / batch_size)
    if not batches:
        raise DataError(f"{samples} samples make no batch of {batch_size}; lower `batch_size`, or set `drop_last = false`")
    return batches
