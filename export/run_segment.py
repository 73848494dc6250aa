"""A segment of a run, as an engine needs it: its network, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wire.errors import GraphError
from wire.manifest import BATCH, TensorSpec
from wire.segments import LossName

__all__ = ["EXAMPLES", "RunSegment", "segment_of", "spec_of", "target_example"]

EXAMPLES = 2  # samples in an example batch: enough for BatchNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSegment:
    """With a ``loss``, ``target`` is the last of ``inputs`` and ``loss`` the first of ``outputs``.

    ``input_names``, ``output_names`` and ``examples`` are the network's own, without the target.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    examples: tuple[Tensor, ...]
    loss: LossName | None

    @property
    def weights(self) -> tuple[TensorSpec, ...]:
        """Parameters and buffers as in ``Engine.state``."""
        tensors: list[tuple[str, Tensor, bool]] = [
            (f"p.{name}", value, value.requires_grad) for name, value in self.module.named_parameters()
        ]
        tensors += [(f"b.{name}", value, False) for name, value in self.module.named_buffers()]
        return tuple(
            TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=tuple(value.shape), gradient=trained)
            for name, value, trained in tensors
        )


def segment_of(
    name: str,
    module: nn.Module,
    examples: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    results: Sequence[Tensor],
    raw: bool,
    loss: LossName | None,
) -> RunSegment:
    """``results``: what the module makes of ``examples``; ``raw``: it takes raw data, which has no gradient. Raises GraphError."""
    inputs = tuple(spec_of(key, value, gradient=not raw) for key, value in zip(input_names, examples, strict=True))
    outputs = tuple(spec_of(key, value) for key, value in zip(output_names, results, strict=True))
    if loss is not None:
        if len(results) != 1:
            raise GraphError(f"segment `{name}` holds the loss and returns {len(results)} tensors; it must return one")
        if not any(value.requires_grad for value in module.parameters()):
            raise GraphError(f"segment `{name}` behind the last cut has no weights to train; cut earlier")
        inputs = (*inputs, spec_of("target", target_example(loss, results[0])))
        outputs = (TensorSpec(name="loss", dtype="float32", shape=()),)
    return RunSegment(
        name=name,
        module=module,
        inputs=inputs,
        outputs=outputs,
        input_names=tuple(input_names),
        output_names=tuple(output_names),
        examples=tuple(examples),
        loss=loss,
    )


def target_example(loss: str, output: Tensor) -> Tensor:
    """Labels as the data sources give them: int64 [N] of classes, float32 [N] or [N, K] of numbers."""
    if loss == "cross_entropy":
        return torch.zeros(output.shape[0], dtype=torch.int64)
    return torch.zeros(output.shape[0] if output.dim() == 2 and output.shape[1] == 1 else tuple(output.shape))


def spec_of(name: str, value: Tensor, *, gradient: bool = False) -> TensorSpec:
    """Batch first."""
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=(BATCH, *value.shape[1:]), gradient=gradient and value.dtype.is_floating_point)
