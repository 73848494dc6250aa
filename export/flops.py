"""Floating-point operations of a network, as ``torch.utils.flop_counter`` counts them while it runs a training step.

Two for each multiply-add of convolutions, linear layers and attention, forward and backward; normalisation, activations and pooling count
nothing. Raw input needs no gradient, so a first layer's backward counts once and not twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Flops", "flops_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Of one sample: the forward pass, and a training step (forward and backward)."""

    forward: float
    step: float


def flops_of(module: nn.Module, inputs: Sequence[Tensor], *, whole: bool = False) -> Flops:
    """Of a training step on ``inputs``, batch first, raw data. ``whole``: the module gives logits [N, C], and its loss counts too.

    The module's buffers and mode are left as they were.
    """
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    modes = {each: each.training for each in module.modules()}
    samples = inputs[0].shape[0]
    try:
        with FlopCounterMode(display=False) as counter, torch.random.fork_rng(devices=[]):
            outputs = module.train()(*inputs)
            forward = counter.get_total_flops()
            loss = nn.functional.cross_entropy(outputs, torch.zeros(samples, dtype=torch.int64)) if whole else _sum(outputs)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            step = counter.get_total_flops()
    finally:
        module.zero_grad()
        for each, mode in modes.items():
            each.training = mode
        for name, value in module.named_buffers():
            value.copy_(buffers[name])
    return Flops(forward=forward / samples, step=step / samples)


def _sum(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    values = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    return sum((each.sum() for each in values if each.is_floating_point()), torch.zeros(()))
