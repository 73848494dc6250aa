"""How many samples each client has, reckoned without opening the data of thousands of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from edge_client.data import count_batches, open_source
from wire.data_config import DataConfig, DataSplit, Split
from wire.errors import UsageError
from wire.frames import Mode
from wire.runfile import Run

__all__ = ["Share", "shares_of", "splits_of"]

_OPENED = 100  # clients whose data are read where shares follow labels


@dataclass(frozen=True, slots=True)
class Share:
    """One client's samples and batches, by split; ``evaluated``: the splits in the order in which they are evaluated."""

    samples: Mapping[str, int]
    batches: Mapping[str, int]
    batch_size: int
    evaluated: tuple[str, ...]

    def rows(self, mode: Mode, step: int) -> int:
        """How many samples the batch of a lane's step has."""
        if mode is Mode.TRAIN:
            return self._rows("train", step % self.batches["train"])
        counts = [self.batches[split] for split in self.evaluated]
        at = step % sum(counts)
        begins = (0, *accumulate(counts))
        number = next(number for number, begin in enumerate(begins[1:]) if at < begin)
        return self._rows(self.evaluated[number], at - begins[number])

    def _rows(self, split: str, index: int) -> int:
        return min(self.batch_size, self.samples[split] - index * self.batch_size)


def splits_of(run: Run) -> tuple[Split, ...]:
    """Those that a run makes use of."""
    return ("train", *run.evaluate.splits)


def shares_of(run: Run, *, min_batch: int, samples: int | None = None) -> dict[int, Share]:
    """By lane. ``min_batch``: of the bundles; ``samples``: so many for the training of each client, and for its evaluation in proportion.

    Raises UsageError where a client has none, DataError for data that cannot be read.
    """
    counts = _Counts(run, min_batch)
    found: dict[int, Share] = {}
    for client in run.clients:
        sources = [slot for slot in run.slice_for(client.name).slots if slot.is_source]
        if sources:
            found |= dict.fromkeys(sources[0].lanes, counts.share(client.name, samples))
    return found


class _Counts:
    """Opens each data set once, and counts the rest."""

    def __init__(self, run: Run, min_batch: int) -> None:
        self._run, self._min_batch = run, min_batch
        self._read: dict[DataConfig, dict[str, int]] = {}
        self._shares: dict[tuple[int, ...], Share] = {}  # clients with as many samples have one in common

    def share(self, client: str, samples: int | None) -> Share:
        config = self._run.data_of(client)
        counts = self._counts(client, config) if samples is None else self._given(config, samples)
        key = (*counts.values(), config.drop_last)
        if key not in self._shares:
            self._shares[key] = Share(counts, self._batches(counts, config), self._run.batch_size, self._run.evaluate.splits)
        return self._shares[key]

    def _given(self, config: DataConfig, samples: int) -> dict[str, int]:
        whole = self._whole(config)
        return {split: samples if split == "train" else max(1, round(samples * whole[split] / whole["train"])) for split in whole}

    def _counts(self, client: str, config: DataConfig) -> dict[str, int]:
        whole = self._whole(config)
        found: dict[str, int] = {}
        for split in splits_of(self._run):
            where = config.split("train" if split == "validation" and config.validation_fraction else split)
            part, parts = where.part
            shared = split == "train" and config.partition is not None
            count = self._opened(config, split, parts) if shared else len(range(part, whole[split], parts))
            found[split] = count if where.limit is None else min(count, where.limit)
            if not count:
                raise UsageError(
                    f"client `{client}` has no {split} samples: {whole[split]} are shared out to {parts} clients; name fewer --clients, "
                    "or with --mode cost how many --samples each has"
                )
        return found

    def _batches(self, counts: Mapping[str, int], config: DataConfig) -> dict[str, int]:
        size = self._run.batch_size
        return {
            split: count_batches(count, size, self._min_batch if split == "train" else 1, drop_last=split == "train" and config.drop_last)
            for split, count in counts.items()
        }

    # ------------------------------------------------------------ files

    def _whole(self, config: DataConfig) -> dict[str, int]:
        """Samples of all shares together."""
        whole = dataclasses.replace(
            config, shard="1/1", limit=None, partition=None, validation=_whole(config.validation), test=_whole(config.test)
        )
        if whole not in self._read:
            self._read[whole] = {split: self._open(whole, split) for split in splits_of(self._run)}
        return self._read[whole]

    def _opened(self, config: DataConfig, split: Split, parts: int) -> int:
        if parts > _OPENED:
            raise UsageError(
                f"`partition` shares samples out by label, which cost mode reckons for {_OPENED} clients at most; give --samples"
            )
        return self._open(dataclasses.replace(config, limit=None), split)

    def _open(self, config: DataConfig, split: Split) -> int:
        size = self._run.batch_size
        return open_source(config, split, seed=self._run.seed, segment="", lane=0, batch_size=size, base_dir=self._run.base).samples


def _whole(split: DataSplit) -> DataSplit:
    return split if split == DataSplit() else dataclasses.replace(split, shard=None, limit=None)
