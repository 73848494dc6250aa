"""Which metrics a run file may name, and with which loss they mean something: servers, clients and tallies measure by the same rule."""

from __future__ import annotations

from collections.abc import Sequence

from wire.errors import RunFileError

__all__ = ["METRICS", "check_metrics", "goes_with"]

METRICS = ("accuracy", "auroc", "f1", "mae")


def goes_with(name: str, loss: str) -> bool:
    """A mean absolute error is of numbers, all others are of classes."""
    return (name == "mae") == (loss == "mse")


def check_metrics(names: Sequence[str], *, loss: str) -> None:
    """Raises RunFileError for a metric that does not exist, or that means nothing with this loss."""
    for name in names:
        if name not in METRICS:
            raise RunFileError(f"evaluate.metrics: there is no metric {name!r}; known: {', '.join(METRICS)}")
        if not goes_with(name, loss):
            raise RunFileError(f"evaluate.metrics: {name!r} means nothing with loss {loss!r}")
