"""Floating-point operations of a segment, as PyTorch counts them: two for each multiply-add of convolutions and matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from export.run_segment import RunSegment

__all__ = ["Flops", "flops_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Of one sample. A backward computes the gradients of weights and of inputs: twice a forward."""

    forward: float

    @property
    def backward(self) -> float:
        return 2 * self.forward


def flops_of(segment: RunSegment) -> Flops:
    """Of the segment's own module, its loss left out."""
    samples = len(segment.examples[0])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        segment.module.eval()(*segment.examples)
    return Flops(forward=counter.get_total_flops() / samples)
