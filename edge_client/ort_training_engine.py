"""The engine that trains a bundle on onnxruntime-training 1.19.2, where that is installed in place of stock onnxruntime.

Its training model, which ``export`` had it make, gives the gradients: one call that runs the segment's forward again, on the weights that
the step's own forward has seen, and then its backward. It runs in an ordinary session, so parameters, optimizer and state are the stock
engine's, checkpoints go from one engine to the other, and ``onnxruntime.training``, which would load torch, is never imported.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edge_client.bundle import Bundle
from edge_client.engine import Graph, StockEngine
from edge_client.gradients import Tensors
from wire.engine import Array
from wire.errors import BundleError, UsageError
from wire.manifest import ORT_TRAINING, BundleManifest, ort_training_name

__all__ = ["OrtTrainingEngine"]


class OrtTrainingEngine(StockEngine):
    """Implements ``wire.engine.Engine``. Not thread-safe.

    Raises UsageError where this environment's onnxruntime has no training, BundleError for a bundle without the artifacts.
    """

    _one_graph_a_step = False

    def _open(self, name: str) -> Graph:
        """Nobody reads residuals, so the forward is the one that gives none."""
        if name == "forward":
            return Graph(self._bundle, "forward_low", self._options)
        if name == "backward":
            _check_installed(self._bundle)
            return _Gradients(self._bundle, self._options)
        return super()._open(name)


def _check_installed(bundle: Bundle) -> None:
    if not hasattr(native, "GradientGraphBuilder"):  # what onnxruntime was built with; its version does not say
        raise UsageError(
            f"the engine ort-training needs onnxruntime-training 1.19.2, and here is onnxruntime {ort.__version__}; "
            "install it in an environment of its own (docs/guide-ort-training.md), or use the engine stock"
        )
    if ORT_TRAINING not in bundle.manifest.graphs:
        raise BundleError(
            f"{bundle.folder} holds nothing for the engine ort-training; export it again with --engines stock,ort-training, "
            "or use the engine stock"
        )


class _Gradients(Graph):
    """The training model in the place of the bundle's own backward: the same names, and every gradient is given."""

    def __init__(self, bundle: Bundle, options: ort.SessionOptions) -> None:
        super().__init__(bundle, ORT_TRAINING, options)
        mine = self.reads
        self.reads = frozenset(name for name in _names(bundle.manifest) if ort_training_name(name) in mine)
        parameters = [spec for spec in bundle.manifest.parameters if spec.gradient]
        self._gradients = {f"gp.{spec.name}": tuple(int(dim) for dim in spec.shape) for spec in parameters}
        self._inputs_asked = [f"gin.{spec.name}" for spec in bundle.manifest.inputs if spec.gradient]

    def run(self, feed: Mapping[str, Array]) -> Tensors:
        named = {ort_training_name(name): array for name, array in feed.items()}
        # Its BatchNorm writes running statistics of its own definition (the biased variance) over those that it is given.
        named |= {ort_training_name(name): np.array(array) for name, array in feed.items() if name.startswith("b.")}
        gradients = {name: np.empty(shape, np.float32) for name, shape in self._gradients.items()}  # inputs that it writes to
        named |= {ort_training_name(name): array for name, array in gradients.items()}
        found = super().run({**named, "lazy_reset_grad": np.array([True])})
        return {name: found[ort_training_name(name)] for name in self._inputs_asked} | gradients


def _names(manifest: BundleManifest) -> list[str]:
    """What a forward may see."""
    found = [f"in.{spec.name}" for spec in manifest.inputs] + [f"p.{spec.name}" for spec in manifest.parameters]
    return found + [f"b.{spec.name}" for spec in manifest.buffers]
