"""What is measured over an evaluation: torchmetrics' accuracy, AUROC, F1 and MAE, and the loss."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torchmetrics
from torch import Tensor
from torchmetrics import classification

from server.losses import LossKind, labelled, like_target, loss_of
from wire.engine import Array
from wire.metric_names import check_metrics

__all__ = ["MetricSet"]

_CLASSES = {
    "accuracy": (classification.BinaryAccuracy, classification.MulticlassAccuracy, "micro"),
    "auroc": (classification.BinaryAUROC, classification.MulticlassAUROC, "macro"),
    "f1": (classification.BinaryF1Score, classification.MulticlassF1Score, "macro"),
}


class MetricSet:
    """Implements ``wire.runner.Metrics``. ``names``: some of METRICS; the loss is always measured. ``unlabelled``: samples of
    class -1 do not count.

    ``accuracy`` is the share of samples that are right; ``auroc`` and ``f1`` are averaged over classes. Raises RunFileError for a name that
    does not exist, or that means nothing with this loss.
    """

    def __init__(self, names: Sequence[str], *, loss: LossKind, unlabelled: bool = False) -> None:
        check_metrics(names, loss=loss)
        self._names = tuple(names)
        self._loss = loss
        self._unlabelled = unlabelled and loss == "cross_entropy"
        self._metrics: dict[str, torchmetrics.Metric] = {}
        self.reset()

    def reset(self) -> None:
        for metric in self._metrics.values():
            metric.reset()
        self._total, self._samples = 0.0, 0

    def update(self, outputs: Array, target: Array) -> None:
        """Logits or values [N, ...] of a batch, and what they should have been."""
        output, wanted = torch.from_numpy(outputs), torch.from_numpy(target)
        if self._unlabelled:
            output, wanted = labelled(output, wanted)
            if not len(wanted):
                return
        self._total += float(loss_of(self._loss, output, wanted)) * len(wanted)
        self._samples += len(wanted)
        if not self._metrics:
            self._metrics = {name: self._make(name, output) for name in self._names}
        if self._loss == "cross_entropy":
            output = output.softmax(dim=1)
        elif self._loss == "bce":
            output, wanted = like_target(output, wanted).sigmoid(), wanted.to(torch.int64)
        else:
            output = like_target(output, wanted)
        for metric in self._metrics.values():
            metric.update(output, wanted)

    def compute(self) -> dict[str, float]:
        """Loss and metrics over all batches since ``reset``. Empty without a batch."""
        if not self._samples:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class without samples: torchmetrics leaves it out, as it should
            found = {name: float(metric.compute()) for name, metric in self._metrics.items()}
        return {"loss": self._total / self._samples, **found}

    def _make(self, name: str, output: Tensor) -> torchmetrics.Metric:
        if name == "mae":
            return torchmetrics.MeanAbsoluteError()
        binary, multiclass, average = _CLASSES[name]
        if self._loss == "bce":
            found: torchmetrics.Metric = binary()
        else:
            found = multiclass(num_classes=output.shape[1], average=average)
        return found
