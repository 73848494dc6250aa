"""Optimizers by name and numbers: what a bundle was exported with and what a run asks for must agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """``torch.optim.SGD``: same meaning, same defaults; ``lr`` is the base that the run's schedule multiplies."""

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    kind: Literal["sgd"] = "sgd"

    def __post_init__(self) -> None:
        _positive(lr=self.lr)
        _not_negative(momentum=self.momentum, weight_decay=self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise ValueError("`nesterov` needs a `momentum` above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """``torch.optim.Adam`` (weight decay added to the gradient), without amsgrad."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    kind: Literal["adam"] = "adam"

    def __post_init__(self) -> None:
        _check_adam(self.lr, self.betas, self.eps, self.weight_decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """``torch.optim.AdamW`` (decoupled weight decay), without amsgrad."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    kind: Literal["adamw"] = "adamw"

    def __post_init__(self) -> None:
        _check_adam(self.lr, self.betas, self.eps, self.weight_decay)


Optimizer = SGD | Adam | AdamW


def _check_adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    _positive(lr=lr, eps=eps)
    _not_negative(weight_decay=weight_decay)
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"`betas` are {list(betas)}; each must lie in [0, 1)")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"`{name}` is {value}; it must be above 0")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` is {value}; it must not be negative")
