"""What is measured over an evaluation by a client that holds the loss: accuracy, AUROC, F1, MAE and the loss, in numpy alone.

The names and what they mean are those of the server's metrics, which the tests compare with; with labels at home nobody else measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from wire.engine import Array
from wire.errors import DataError
from wire.metric_names import check_metrics

__all__ = ["MetricSet"]

LossKind = Literal["cross_entropy", "bce", "mse"]
Floats = NDArray[np.floating[Any]]
Whole = NDArray[np.int64]


class MetricSet:
    """Implements ``wire.runner.Metrics``. ``names``: some of METRICS; the loss is always measured.

    ``accuracy`` is the share of samples that are right; ``auroc`` and ``f1`` are averaged over classes. Raises RunFileError for a name that
    does not exist, or that means nothing with this loss.
    """

    def __init__(self, names: Sequence[str], *, loss: LossKind) -> None:
        check_metrics(names, loss=loss)
        self._names = tuple(names)
        self._loss = loss
        self.reset()

    def reset(self) -> None:
        self._measures: dict[str, _Measure] = {name: _MEASURES[name]() for name in self._names}
        self._total, self._samples = 0.0, 0

    def update(self, outputs: Array, target: Array) -> None:
        """Logits or values [N, ...] of a batch, and what they should have been. Raises DataError for a target that outputs cannot mean."""
        with np.errstate(all="ignore"):  # a network that has diverged gives a loss that is not finite, and no warning
            loss, seen = _judged(self._loss, np.asarray(outputs, np.float32), target, checked=bool(self._names))
        self._total += loss * len(target)
        self._samples += len(target)
        for measure in self._measures.values():
            measure.add(seen)

    def compute(self) -> dict[str, float]:
        """Loss and metrics over all batches since ``reset``. Empty without a batch."""
        if not self._samples:
            return {}
        return {"loss": self._total / self._samples, **{name: measure.value() for name, measure in self._measures.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A batch as metrics take it. ``chances``: float32 [M, K], of the K classes that are averaged over, which ``classes`` numbers; for a
    loss of numbers the values, [M, 1]. ``chosen``, ``wanted``: [M]."""

    chances: Floats
    classes: range
    chosen: Whole
    wanted: NDArray[Any]


def _judged(kind: LossKind, outputs: Floats, target: Array, *, checked: bool) -> tuple[float, _Seen]:
    """(the mean loss, the batch for metrics); ``checked``: whether there are any, so that a target must be a class."""
    if kind == "cross_entropy":
        return _of_classes(outputs, target)
    values, wanted = _like(outputs, target).reshape(-1), np.asarray(target, np.float64).reshape(-1)
    if kind == "mse":
        loss = float(np.mean((values.astype(np.float64) - wanted) ** 2))
        return loss, _Seen(chances=values[:, None], classes=range(0), chosen=np.zeros(0, np.int64), wanted=wanted)
    return _of_yes_and_no(values, wanted, checked=checked)


def _of_classes(outputs: Floats, target: Array) -> tuple[float, _Seen]:
    """Logits [N, C, ...] and classes [N, ...]."""
    count = outputs.shape[1]
    logits, wanted = np.moveaxis(outputs, 1, -1).reshape(-1, count), np.asarray(target).astype(np.int64).reshape(-1)
    _check_labels(wanted, count)
    if len(wanted) != len(logits):
        raise DataError(f"there are {len(wanted)} labels for {len(logits)} outputs; each sample needs one")
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    wide = shifted.astype(np.float64)
    losses = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(wanted)), wanted]
    chances = powers / powers.sum(axis=1, keepdims=True)
    return float(np.mean(losses)), _Seen(chances=chances, classes=range(count), chosen=chances.argmax(axis=1), wanted=wanted)


def _of_yes_and_no(values: Floats, wanted: Floats, *, checked: bool) -> tuple[float, _Seen]:
    wide = values.astype(np.float64)
    loss = float(np.mean(np.logaddexp(0, wide) - wide * wanted))
    whole = wanted.astype(np.int64)
    strange = whole[(whole != 0) & (whole != 1)]
    if checked and len(strange):
        raise DataError(f"a label is {strange[0]}, but with loss 'bce' labels are 0 and 1")
    chances = np.exp(-np.logaddexp(np.float32(0), -values))
    return loss, _Seen(chances=chances[:, None], classes=range(1, 2), chosen=(chances > 0.5).astype(np.int64), wanted=whole)


def _like(outputs: Floats, target: Array) -> Floats:
    """[N, 1] as [N] where the target is [N]."""
    try:
        return outputs.reshape(target.shape) if outputs.size == target.size else np.broadcast_to(outputs, target.shape)
    except ValueError:
        raise DataError(f"the outputs are {list(outputs.shape)}, but the target is {list(target.shape)}") from None


def _check_labels(wanted: Whole, classes: int) -> None:
    low, high = (int(wanted.min()), int(wanted.max())) if wanted.size else (0, 0)
    if low < 0 or high >= classes:
        raise DataError(f"a label is {low if low < 0 else high}, but the network has {classes} outputs, for labels 0 to {classes - 1}")


# ------------------------------------------------------------ metrics, each from batches to a number


class _Measure(Protocol):
    def add(self, seen: _Seen) -> None: ...

    def value(self) -> float: ...


class _Accuracy:
    def __init__(self) -> None:
        self._right = self._all = 0

    def add(self, seen: _Seen) -> None:
        self._right += int((seen.chosen == seen.wanted).sum())
        self._all += len(seen.wanted)

    def value(self) -> float:
        return self._right / self._all


class _F1:
    """A class that nobody has and nobody names is left out."""

    def __init__(self) -> None:
        self._hits: Whole | int = 0
        self._named: Whole | int = 0  # how often a class was chosen, and how often it was right to

    def add(self, seen: _Seen) -> None:
        size = seen.classes.stop
        hits = np.bincount(seen.wanted[seen.chosen == seen.wanted], minlength=size)
        named = np.bincount(seen.chosen, minlength=size) + np.bincount(seen.wanted, minlength=size)
        self._hits = self._hits + hits[seen.classes.start :]
        self._named = self._named + named[seen.classes.start :]

    def value(self) -> float:
        hits, named = np.asarray(self._hits), np.asarray(self._named)
        there = named > 0
        return float(np.mean(2 * hits[there] / named[there])) if there.any() else 0.0


class _Auroc:
    """The chance that a sample of the class gets a higher one than a sample of the rest; a tie counts half (Hanley and McNeil, 1982). A
    class with no samples, or with all of them, counts as 0."""

    def __init__(self) -> None:
        self._chances: list[Floats] = []
        self._wanted: list[Whole] = []
        self._classes = range(0)

    def add(self, seen: _Seen) -> None:
        self._classes = seen.classes
        self._chances.append(seen.chances)
        self._wanted.append(seen.wanted)

    def value(self) -> float:
        chances, wanted = np.concatenate(self._chances), np.concatenate(self._wanted)
        areas = [_area(chances[:, column], wanted == each) for column, each in enumerate(self._classes)]
        return float(np.mean(areas))


def _area(chances: Floats, positive: NDArray[np.bool_]) -> float:
    values, places = np.unique(chances, return_inverse=True)
    ups = np.bincount(places[positive], minlength=len(values)).astype(np.float64)
    downs = np.bincount(places[~positive], minlength=len(values)).astype(np.float64)
    pairs = ups.sum() * downs.sum()
    below = np.cumsum(downs) - downs
    return float((ups * (below + downs / 2)).sum() / pairs) if pairs else 0.0


class _Mae:
    def __init__(self) -> None:
        self._total, self._all = 0.0, 0

    def add(self, seen: _Seen) -> None:
        self._total += float(np.abs(seen.chances[:, 0] - seen.wanted).sum())
        self._all += len(seen.wanted)

    def value(self) -> float:
        return self._total / self._all


_MEASURES: dict[str, type[_Measure]] = {"accuracy": _Accuracy, "auroc": _Auroc, "f1": _F1, "mae": _Mae}
