"""Segments whose training is shown on ARM: exported here, trained here by PyTorch, and written down for ``replay.py`` to compare with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export import SGD, Adam, AdamW, export_segment
from export.cut import cut
from export.losses import Loss, loss_of
from export.models import BUNDLED
from server.masks import masks_of
from server.optimizers import torch_optimizer
from tests.arm.replay import GOLDEN
from wire.optim import Optimizer

__all__ = ["CASES", "SMOKE", "Case", "write_case"]

BATCHES = (5, 2, 6)
_MOMENTUM, _ADAM, _ADAMW = SGD(lr=0.05, momentum=0.9), Adam(lr=0.01, weight_decay=0.1), AdamW(lr=0.01, betas=(0.8, 0.99))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``build``: the segment, the shape of a sample, the name of its input."""

    build: Callable[[], tuple[nn.Module, tuple[int, ...]]]
    optimizer: Optimizer = _MOMENTUM
    loss: Loss | None = None
    first: bool = False  # a first segment passes no gradient on


def _of(module: Callable[[], nn.Module], *shape: int) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    return lambda: (module(), shape)


def _after(layer: Callable[[], nn.Module], width: int = 5) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    """A layer without weights behind one that has some."""
    return _of(lambda: nn.Sequential(nn.Conv2d(3, width, 3, padding=1), layer()), 3, 8, 6)


def _bottom(name: str, at: str | None = None, **args: Any) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    def build() -> tuple[nn.Module, tuple[int, ...]]:
        shape = BUNDLED[name].input_shape(**args)
        return cut(BUNDLED[name].build(**args), at or BUNDLED[name].cut, (torch.zeros(2, *shape),))[0].module, shape

    return build


class _First(nn.Module):
    """The sequence of a recurrent layer, behind a linear one."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(6, 6), layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(torch.tanh(self.before(x)))[0]
        return found


class _Attention(nn.Module):
    """A transformer's attention with its residual, written out."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        found: Tensor = x + self.out(torch.softmax(query @ key.transpose(1, 2) / 8**0.5, dim=-1) @ value)
        return found


def _dense(classes: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, classes))


def _block(width: int = 6) -> nn.Module:
    """The inverted bottleneck of mobile networks."""
    return nn.Sequential(
        nn.Conv2d(3, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
        nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.Hardswish(),
        nn.Conv2d(width, 4, 1, bias=False), nn.BatchNorm2d(4),
    )  # fmt: skip


CASES: Mapping[str, Case] = {
    # every bundled model's bottom
    "digits-cnn": Case(build=_bottom("digits-cnn"), first=True),
    "digits-cnn-conv3": Case(build=_bottom("digits-cnn", "relu3"), first=True, optimizer=_ADAM),
    "lenet": Case(build=_bottom("lenet"), first=True, optimizer=_ADAMW),
    "vgg11": Case(build=_bottom("vgg11", width=0.25), first=True),
    "vgg11-block3": Case(build=_bottom("vgg11", "block3", width=0.125), first=True, optimizer=SGD(lr=0.02)),
    "resnet18": Case(build=_bottom("resnet18", width=8), first=True),
    "resnet18-layer2": Case(build=_bottom("resnet18", "layer2", width=6), first=True, optimizer=SGD(lr=0.02)),
    "mlp": Case(build=_bottom("mlp"), first=True, optimizer=_ADAM),
    "ecg-cnn": Case(build=_bottom("ecg-cnn"), first=True, optimizer=_ADAMW),
    # layers
    "conv-3x3": Case(build=_of(lambda: nn.Conv2d(3, 8, 3, padding=1), 3, 8, 8)),
    "conv-wide": Case(build=_of(lambda: nn.Conv2d(40, 48, 3, padding=1), 40, 6, 6)),
    "conv-strided": Case(build=_of(lambda: nn.Conv2d(4, 6, 3, stride=2), 4, 8, 10)),
    "conv-dilated": Case(build=_of(lambda: nn.Conv2d(3, 4, 3, padding=2, dilation=2), 3, 9, 9)),
    "conv-grouped": Case(build=_of(lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3), 6, 7, 7)),
    "conv-depthwise": Case(build=_of(lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), 6, 7, 7)),
    "conv-1d": Case(build=_of(lambda: nn.Conv1d(3, 5, 5, padding=2), 3, 17)),
    "mobile-block": Case(build=_of(_block, 3, 12, 12), optimizer=SGD(lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01)),
    "linear": Case(build=_of(lambda: nn.Linear(33, 17), 33)),
    "batch-norm": Case(build=_of(lambda: nn.BatchNorm2d(6), 6, 4, 5)),
    "group-norm": Case(build=_of(lambda: nn.GroupNorm(3, 6), 6, 4, 5)),
    "layer-norm": Case(build=_of(lambda: nn.LayerNorm(7), 3, 7)),
    "max-pool": Case(build=_after(lambda: nn.MaxPool2d(2))),
    "max-pool-overlapping": Case(build=_after(lambda: nn.MaxPool2d(3, stride=2, padding=1))),
    "avg-pool": Case(build=_after(lambda: nn.AvgPool2d(2))),
    "adaptive-pool": Case(build=_after(lambda: nn.AdaptiveAvgPool2d(1))),
    "gelu": Case(build=_after(nn.GELU)),
    "silu": Case(build=_after(nn.SiLU)),
    "elu": Case(build=_after(nn.ELU)),
    "softplus": Case(build=_after(nn.Softplus)),
    "softmax": Case(build=_after(lambda: nn.Softmax(dim=1))),
    "attention": Case(build=_of(_Attention, 5, 8), optimizer=_ADAM),
    "gru": Case(build=_of(lambda: _First(nn.GRU(6, 5, 2, batch_first=True, dropout=0.3)), 7, 6)),
    "lstm": Case(build=_of(lambda: _First(nn.LSTM(6, 5, batch_first=True, bidirectional=True)), 7, 6), optimizer=SGD(lr=0.05)),
    "encoder": Case(build=_of(lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True), 5, 8)),
    "upsample": Case(build=_after(lambda: nn.Upsample(scale_factor=2, mode="bilinear"))),
    # losses on the device
    "cross-entropy": Case(build=_of(_dense(3), 6), loss="cross_entropy", optimizer=_ADAMW),
    "bce": Case(build=_of(_dense(1), 6), loss="bce", optimizer=_ADAM),
    "mse": Case(build=_of(_dense(1), 6), loss="mse", optimizer=SGD(lr=0.05)),
}
SMOKE = ("digits-cnn", "resnet18", "mobile-block", "attention", "gru", "cross-entropy")


def write_case(name: str, folder: Path) -> Path:
    """Export the case ``name`` as ``folder/name`` and train it with PyTorch beside it; both are deterministic."""
    case, out = CASES[name], folder / name
    torch.manual_seed(11)
    module, shape = case.build()
    inputs = [torch.randn(sum(BATCHES) + 3, *shape)]
    if case.loss is not None:
        inputs.append(_target(case.loss, len(inputs[0])))
    export_segment(module, [value[:3] for value in inputs], out, optimizer=case.optimizer, loss=case.loss,
                   input_names=["x"], output_names=None if case.loss else ["y"], input_gradients=[not case.first])  # fmt: skip
    tensors, noise = _Trainer(case, module).train(inputs)
    plain = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    save_file(plain, out / GOLDEN, metadata={"noise": json.dumps(sorted(noise))})
    return out


def _target(loss: Loss, count: int) -> Tensor:
    if loss == "cross_entropy":
        return torch.randint(0, 3, (count,))
    return torch.randint(0, 2, (count,)).float() if loss == "bce" else torch.randn(count)


class _Trainer:
    """PyTorch's side: each step's state before it, all that the step gives, and the state after it."""

    def __init__(self, case: Case, module: nn.Module) -> None:
        self.case, self.module = case, copy.deepcopy(module).train()
        self.optimizer = torch_optimizer(case.optimizer, list(self.module.parameters()))

    def train(self, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], set[str]]:
        found: dict[str, Tensor] = {}
        noise: set[str] = set()
        start = 0
        for step, batch in enumerate(BATCHES):
            made, tiny = self._step(step, [value[start : start + batch].clone() for value in inputs])
            found |= {f"{step}.{name}": value for name, value in made.items()}
            noise |= tiny
            start += batch
        with torch.no_grad():
            found |= {"infer.in.x": inputs[0][start:], "infer.out.y": self.module.eval()(inputs[0][start:])}
        return found, noise

    def _step(self, step: int, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], set[str]]:
        found = {f"state.{key}": value.detach().clone() for key, value in self._state().items()}
        data = inputs[0].requires_grad_(not self.case.first)
        with masks_of(0, "segment", step):  # as the replaying engine draws them
            out = self.module(data)
        if self.case.loss is not None:
            out = loss_of(self.case.loss, out, inputs[1])
        grad = torch.ones(()) if self.case.loss else torch.randn(out.shape)
        self.optimizer.zero_grad()
        out.backward(grad)
        found |= {"in.x": data} | ({"in.target": inputs[1], "out.loss": out} if self.case.loss else {"out.y": out, "grad.y": grad})
        if data.grad is not None:
            found["gin.x"] = data.grad
        noise = self._noise()
        self.optimizer.step()
        found |= {f"after.{key}": value.detach().clone() for key, value in self._state().items() if not key.startswith("s.")}
        return found, noise

    def _noise(self) -> set[str]:
        """Adam makes a sign of a gradient that is zero but for rounding (a bias before BatchNorm), and two machines make two of it."""
        if isinstance(self.case.optimizer, SGD):
            return set()
        sizes = {f"p.{name}": float(value.grad.abs().max()) for name, value in self.module.named_parameters() if value.grad is not None}
        return {name for name, size in sizes.items() if size < 1e-5 * max(sizes.values())}

    def _state(self) -> dict[str, Tensor]:
        """As ``Engine.state`` gives it."""
        found = {f"p.{name}": value for name, value in self.module.named_parameters()}
        found |= {f"b.{name}": value for name, value in self.module.named_buffers()}
        slots = {"momentum": "momentum_buffer", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
        wanted = [slot for slot in slots if slot in self._slots()]
        for name, value in self.module.named_parameters():
            kept = self.optimizer.state[value]
            found |= {f"s.{slot}.{name}": kept.get(slots[slot], torch.zeros_like(value)) for slot in wanted}
        if not isinstance(self.case.optimizer, SGD):
            first = self.optimizer.state[next(self.module.parameters())]
            found["s.step"] = torch.tensor(int(first.get("step", 0)))
        return found

    def _slots(self) -> tuple[str, ...]:
        if isinstance(self.case.optimizer, SGD):
            return ("momentum",) if self.case.optimizer.momentum else ()
        return ("exp_avg", "exp_avg_sq")
