"""What a reader of one file format is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_client.data.rows import Block, Pick, Rows
from wire.data_config import DataConfig, Split
from wire.engine import Array
from wire.errors import DataError

__all__ = [
    "Layout",
    "Request",
    "Samples",
    "check_same_count",
    "named",
    "no_labels",
    "numbered",
    "picked_targets",
    "targets",
]

Layout = Literal["NF", "NCL", "NHW", "NHWC", "NCHW"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One split to open: ``path``, ``images``, ``labels`` and ``id_column`` are its own, ``train_path`` is that of the training samples.

    A share above ``memory_bytes`` stays on disk if it can.
    """

    config: DataConfig
    split: Split
    path: Path
    train_path: Path
    images: str | None
    labels: str | None
    id_column: str | None
    pick: Pick
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """This party's share of a split, in the order of its files.

    ``target``: int64 [n] (classes), float32 [n] or [n, k] (numbers) or None. ``ids`` gives the sample ids at some places.
    ``classes``: how many classes there are, as far as this share tells (a lower bound), None for numbers.
    """

    rows: Rows
    layout: Layout
    target: Array | None
    ids: Callable[[NDArray[np.int64]], tuple[str, ...]]
    classes: int | None


def numbered(name: str, picked: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], tuple[str, ...]]:
    """Ids ``name#row``: the row's number in its file, from 0."""
    return lambda at: tuple(f"{name}#{row}" for row in picked[at].tolist())


def named(names: Sequence[str], path: Path, source: str) -> Callable[[NDArray[np.int64]], tuple[str, ...]]:
    """Ids that the file gives, from ``source`` (for messages). Raises DataError, which tells no id, where one is empty or repeated."""
    empty, twice = sum(not name for name in names), len(names) - len(set(names))
    if empty or twice:
        what = f"has {empty} samples without an id" if empty else f"has {twice} samples with an id that another one has"
        raise DataError(f"{path} {what} ({source}); ids must be there and differ")
    return lambda at: tuple(names[place] for place in at.tolist())


def check_same_count(images: str, samples: int, labels: str, found: int, *, what: str = "labels") -> None:
    if samples != found:
        raise DataError(f"{images} has {samples} samples but {labels} has {found} {what}; they do not belong together")


def picked_targets(request: Request, samples: Block, labels: Block | None) -> tuple[NDArray[np.int64], Array | None, int | None]:
    """What this party has of ``samples``, its target and the number of classes seen; ``labels`` None: another party has them."""
    if labels is None:
        return request.pick(samples.count, no_labels), None, None
    check_same_count(samples.name, samples.count, labels.name, labels.count)
    picked = request.pick(samples.count, lambda: labels.load(np.arange(labels.count)))
    return picked, *targets(labels.load(picked), request.config.target, where=labels.name, unlabelled=request.config.unlabelled)


def no_labels() -> Array:
    """Where ``target`` is "none"; DataConfig refuses shares by label there."""
    raise DataError('`partition` shares samples out by label, but `target` is "none"; leave one out')


def targets(
    values: Array, kind: Literal["class", "number", "none"], *, where: str, unlabelled: bool = False
) -> tuple[Array | None, int | None]:
    """Labels [n] or [n, 1] ([n, k] for numbers) as a batch's target, and the number of classes seen. ``unlabelled``: -1 is a
    class, too. Raises DataError."""
    if kind == "none":
        return None, None
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if kind == "number":
        return _numbers(values, where), None
    if values.ndim != 1:
        raise DataError(f'{where} has labels of shape {list(values.shape[1:])}; a class is one number (`target = "number"` takes several)')
    return _classes(values, where, least=-1 if unlabelled else 0)


def _numbers(values: Array, where: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(f"{where} has labels that are not finite; mend or remove them")
    return numbers


def _classes(values: Array, where: str, least: int) -> tuple[NDArray[np.int64], int]:
    wide = values.astype(np.float64)
    bad = np.flatnonzero(~((wide >= least) & (wide < 2**31) & (wide == np.floor(wide))))
    if len(bad):
        raise DataError(f'{where} has the label {wide[bad[0]]:g}; classes are whole numbers from 0 (`target = "number"` takes others)')
    classes = values.astype(np.int64)
    return classes, int(classes.max()) + 1
