"""Metrics as sums that can be added up: what a client measures of its own data, and the coordinator joins. No torch, as devices have none.

A tally is a table of numbers: ``samples``, and for the loss and each metric the sum over the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from wire.engine import Array
from wire.errors import DataError, RunFileError
from wire.metric_names import check_metrics

__all__ = ["COUNTED", "Tally", "check_counted", "finished", "summed"]

COUNTED = ("accuracy", "mae")  # other metrics are no sums over samples


def check_counted(names: Sequence[str], *, loss: str) -> None:
    """Raises RunFileError for a metric that clients cannot count, or that means nothing with this loss."""
    for name in names:
        if name not in COUNTED:
            raise RunFileError(f"evaluate.metrics: {name!r} cannot be added up from what clients count; known here: {', '.join(COUNTED)}")
    check_metrics(names, loss=loss)


def summed(tallies: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """One tally of several."""
    found: dict[str, float] = {}
    for tally in tallies:
        for name, value in tally.items():
            found[name] = found.get(name, 0) + value
    return found


def finished(tally: Mapping[str, float]) -> dict[str, float]:
    """Loss and metrics as means over the samples. Empty where there are none."""
    samples = tally.get("samples", 0)
    return {name: value / samples for name, value in tally.items() if name != "samples"} if samples else {}


class Tally:
    """Counts over the batches of one command. ``names``: some of COUNTED; the loss is always there. Raises as ``check_counted`` does."""

    def __init__(self, names: Sequence[str], *, loss: str) -> None:
        check_counted(names, loss=loss)
        self._names, self._loss = tuple(names), loss
        self.sums: dict[str, float] = {}

    def reset(self) -> None:
        self.sums = {}

    def update(self, outputs: Array, target: Array) -> None:
        """Logits or values [N, ...] of a batch, and what they should have been. Raises DataError for a label without an output."""
        values = outputs.astype(np.float64)
        losses, accuracy = _classes(values, target) if self._loss == "cross_entropy" else _numbers(self._loss, values, target)
        found = {"samples": len(target), "loss": float(losses.sum())}
        if "accuracy" in self._names:
            found["accuracy"] = float(accuracy.sum())
        if "mae" in self._names:
            found["mae"] = float(_by_sample(np.abs(_like(values, target) - target.astype(np.float64))).sum())
        self.sums = summed((self.sums, found))


def _classes(values: NDArray[np.float64], target: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each sample its cross entropy, and whether the largest output is that of its label."""
    if target.size and not 0 <= target.min() <= target.max() < values.shape[1]:
        low, high, last = target.min(), target.max(), values.shape[1] - 1
        raise DataError(f"a label is {low if low < 0 else high}, but the network has {last + 1} outputs, for labels 0 to {last}")
    top = values.max(axis=1, keepdims=True)
    logs = values - top - np.log(np.exp(values - top).sum(axis=1, keepdims=True))
    chosen = np.take_along_axis(logs, target.astype(np.int64).reshape(-1, 1), axis=1)[:, 0]
    return -chosen, (values.argmax(axis=1) == target).astype(np.float64)


def _numbers(loss: str, values: NDArray[np.float64], target: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each sample its loss, and the share of its numbers that are right; both are means over its numbers."""
    values, wanted = _like(values, target), target.astype(np.float64)
    if loss == "mse":
        return _by_sample((values - wanted) ** 2), np.zeros(len(target))
    losses = np.maximum(values, 0) - values * wanted + np.log1p(np.exp(-np.abs(values)))
    return _by_sample(losses), _by_sample(((values > 0) == (wanted > 0.5)).astype(np.float64))


def _like(values: NDArray[np.float64], target: Array) -> NDArray[np.float64]:
    """[N, 1] as [N] where the target is [N]. Raises DataError where the two do not go together."""
    try:
        return values.reshape(target.shape) if values.size == target.size else np.broadcast_to(values, target.shape)
    except ValueError as exc:
        raise DataError(f"a sample's outputs are {list(values.shape[1:])}, its target {list(target.shape[1:])}; make them alike") from exc


def _by_sample(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.reshape(len(values), -1).mean(axis=1)
    return found
