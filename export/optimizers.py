"""The optimizer as an ONNX graph of primitive operations: one update of every trained parameter, exactly as ``torch.optim`` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from export.built import BuiltGraph, finish
from export.lowering.context import GraphWriter
from export.ops import Value
from wire.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["Update", "build_optimizer", "counts_steps", "slots_of", "write_update"]


def slots_of(optimizer: Optimizer) -> tuple[str, ...]:
    """Names of the tensors that an optimizer keeps for each parameter."""
    if isinstance(optimizer, SGD):
        return ("momentum",) if optimizer.momentum else ()
    return ("exp_avg", "exp_avg_sq")


def counts_steps(optimizer: Optimizer) -> bool:
    return not isinstance(optimizer, SGD)


def build_optimizer(optimizer: Optimizer, parameters: Mapping[str, Value]) -> BuiltGraph | None:
    """One update from given gradients. ``parameters``: the trained ones. None where there are none."""
    if not parameters:
        return None
    writer = GraphWriter({}, None)
    update = write_update(writer, optimizer, parameters, {name: f"gp.{name}" for name in parameters})
    known = {**update.known} | {f"gp.{name}": value for name, value in parameters.items()}
    return finish(writer, "optimizer", update.outputs, known, update.shapes)


@dataclass(frozen=True, slots=True)
class Update:
    """What an update reads (``known``: graph inputs) and gives (``outputs``: names in the writer, ``shapes``), by names in the bundle."""

    known: Mapping[str, Value]
    outputs: Mapping[str, str]
    shapes: Mapping[str, Value]


def write_update(writer: GraphWriter, optimizer: Optimizer, parameters: Mapping[str, Value], gradients: Mapping[str, str]) -> Update:
    """Write one update of ``parameters`` into a graph. ``gradients``: the value that holds each one's gradient."""
    known: dict[str, Value] = {"lr": Value((), torch.float32)}
    outputs: dict[str, str] = {}
    rates = _adam_rates(writer, optimizer) if not isinstance(optimizer, SGD) else None
    if rates is not None:
        known["s.step"] = Value((), torch.int64)
        outputs["s.step.new"] = rates[0]
    for name, value in parameters.items():
        slots = {slot: f"s.{slot}.{name}" for slot in slots_of(optimizer)}
        known.update(dict.fromkeys((f"p.{name}", *slots.values()), value))
        if isinstance(optimizer, SGD):
            new = _sgd(writer, optimizer, f"p.{name}", gradients[name], slots)
        else:
            assert rates is not None
            new = _adam(writer, optimizer, f"p.{name}", gradients[name], slots, rates)
        outputs |= {f"p.{name}.new": new.pop("p"), **{f"{slots[slot]}.new": made for slot, made in new.items()}}
    return Update(known, outputs, {output: known[output.removesuffix(".new")] for output in outputs})


def _sgd(writer: GraphWriter, optimizer: SGD, parameter: str, gradient: str, slots: Mapping[str, str]) -> dict[str, str]:
    if optimizer.weight_decay:
        gradient = writer.emit("Add", gradient, writer.emit("Mul", parameter, writer.scalar(optimizer.weight_decay)))
    new: dict[str, str] = {}
    if optimizer.momentum:
        momentum = writer.scalar(optimizer.momentum)
        new["momentum"] = writer.emit("Add", writer.emit("Mul", slots["momentum"], momentum), gradient)
        ahead = writer.emit("Add", gradient, writer.emit("Mul", new["momentum"], momentum)) if optimizer.nesterov else None
        gradient = ahead or new["momentum"]
    new["p"] = writer.emit("Sub", parameter, writer.emit("Mul", gradient, "lr"))
    return new


def _adam_rates(writer: GraphWriter, optimizer: Adam | AdamW) -> tuple[str, str, str]:
    """(step + 1, lr over the first bias correction, root of the second); the powers in double precision, as torch takes them."""
    step = writer.emit("Add", "s.step", writer.scalar(1, torch.int64))
    exponent = writer.cast(step, torch.int64, torch.float64)
    one = writer.scalar(1.0, torch.float64)
    first, second = (writer.emit("Sub", one, writer.emit("Pow", writer.scalar(beta, torch.float64), exponent)) for beta in optimizer.betas)
    rate = writer.emit("Div", writer.cast("lr", torch.float32, torch.float64), first)
    root = writer.emit("Sqrt", second)
    return step, writer.cast(rate, torch.float64, torch.float32), writer.cast(root, torch.float64, torch.float32)


def _adam(
    writer: GraphWriter, optimizer: Adam | AdamW, parameter: str, gradient: str, slots: Mapping[str, str], rates: tuple[str, str, str]
) -> dict[str, str]:
    _, rate, root = rates
    if optimizer.weight_decay and isinstance(optimizer, Adam):
        gradient = writer.emit("Add", gradient, writer.emit("Mul", parameter, writer.scalar(optimizer.weight_decay)))
    elif optimizer.weight_decay:
        decay = writer.emit("Mul", "lr", writer.scalar(optimizer.weight_decay))
        parameter = writer.emit("Sub", parameter, writer.emit("Mul", parameter, decay))
    beta1, beta2 = optimizer.betas
    mean, square = slots["exp_avg"], slots["exp_avg_sq"]
    new_mean = writer.emit("Add", mean, writer.emit("Mul", writer.emit("Sub", gradient, mean), writer.scalar(1 - beta1)))
    fresh = writer.emit("Mul", writer.emit("Mul", gradient, gradient), writer.scalar(1 - beta2))
    new_square = writer.emit("Add", writer.emit("Mul", square, writer.scalar(beta2)), fresh)
    below = writer.emit("Add", writer.emit("Div", writer.emit("Sqrt", new_square), root), writer.scalar(optimizer.eps))
    moved = writer.emit("Sub", parameter, writer.emit("Mul", writer.emit("Div", new_mean, below), rate))
    return {"p": moved, "exp_avg": new_mean, "exp_avg_sq": new_square}
