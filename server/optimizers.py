"""``torch.optim`` behind the run's optimizer names, with its state under the names that device bundles use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from wire.engine import Array
from wire.optim import SGD, AdamW, Optimizer

__all__ = ["OptimizerState", "torch_optimizer"]

_SLOTS = {"momentum": "momentum_buffer", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


def torch_optimizer(config: Optimizer, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The torch optimizer that ``config`` describes."""
    if isinstance(config, SGD):
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
        )
    kind = torch.optim.AdamW if isinstance(config, AdamW) else torch.optim.Adam
    return kind(parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


class OptimizerState:
    """An optimizer over named parameters whose tensors may be exchanged for others while its state stays with the names."""

    def __init__(self, config: Optimizer, parameters: Mapping[str, Tensor]) -> None:
        self._names = list(parameters)
        self._optimizer = torch_optimizer(config, list(parameters.values())) if parameters else None
        self.slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
        if isinstance(config, SGD):
            self.slots = ("momentum",) if config.momentum else ()
        self.counts_steps = not isinstance(config, SGD)
        self._steps = 0

    def step(self, lr: float) -> None:
        """One update from the parameters' ``grad``."""
        if self._optimizer is None:
            return
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()
        self._steps += 1

    def exchange(self, new: Mapping[str, Tensor]) -> None:
        """Go on with other tensors of the same names."""
        if self._optimizer is None:
            return
        group = self._optimizer.param_groups[0]
        for old, name in zip(group["params"], self._names, strict=True):
            if old in self._optimizer.state:
                self._optimizer.state[new[name]] = self._optimizer.state.pop(old)
        group["params"] = [new[name] for name in self._names]

    def state(self) -> dict[str, Array]:
        """``s.*`` as in ``wire.manifest``."""
        found: dict[str, Array] = {}
        for name, parameter in self._named():
            held = self._optimizer.state.get(parameter, {}) if self._optimizer is not None else {}
            for slot in self.slots:
                value = held.get(_SLOTS[slot])
                found[f"s.{slot}.{name}"] = np.zeros(tuple(parameter.shape), np.float32) if value is None else value.numpy().copy()
        if self.counts_steps:
            found["s.step"] = np.array(self._steps, np.int64)
        return found

    def load(self, state: Mapping[str, Array]) -> None:
        """The inverse of ``state``; names and shapes have been checked."""
        self._steps = int(state["s.step"]) if self.counts_steps else 0
        for name, parameter in self._named():
            if self._optimizer is None or not self.slots:
                continue
            held: dict[str, Tensor] = {_SLOTS[slot]: torch.from_numpy(np.array(state[f"s.{slot}.{name}"])) for slot in self.slots}
            if self.counts_steps:
                held["step"] = torch.tensor(float(self._steps))
            self._optimizer.state[parameter] = held

    def _named(self) -> list[tuple[str, Tensor]]:
        if self._optimizer is None:
            return []
        return list(zip(self._names, self._optimizer.param_groups[0]["params"], strict=True))
