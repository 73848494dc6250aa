"""What a client computes and sends, counted from real graphs and real frames: the replay of the paper's Tables 1 and 2.

FLOPs are what ``export.flops`` counts while the segment that ``export.cut`` cuts off runs a training step.

Bytes are whole PUBLISH packets of messages that both ends of a cut (``simulation.crossing``) encode from a step that both ends' engines
really take, labels included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.cut import cut
from export.flops import Flops, flops_of
from export.load import load_model
from export.prepare import build_segments
from server.engine import TorchEngine
from simulation.crossing import Crossing, engine_for, packets_of
from wire.codecs import PLAIN, encode_array, parse_codec
from wire.control import Control, encode_control
from wire.cut import LABELS
from wire.engine import Array
from wire.frames import Frame, Kind
from wire.manifest import TensorSpec
from wire.runfile import Run, parse_run
from wire.store import dump_state, weights_of

__all__ = ["MODELS", "Traffic", "built", "client_flops", "crossing", "int8_weights", "parameters", "traffic"]

MODELS = Path(__file__).resolve().parent / "paper_models.py"
IMAGE = (3, 32, 32)
_BATCH = 2  # FLOPs are counted of so many samples: enough for BatchNorm


def client_flops(model: nn.Module, at: str | None, shape: Sequence[int] = IMAGE) -> Flops:
    """Of what lies before the cut after ``at``; None: of the whole network, its loss included."""
    inputs = torch.randn(_BATCH, *shape)
    module = model if at is None else cut(model, at, (inputs,))[0].module
    return flops_of(module, (inputs,), whole=at is None)


def crossing(model: nn.Module, at: str, shape: Sequence[int] = IMAGE) -> int:
    """Activations a sample that cross the cut."""
    return sum(value[0].numel() for value in cut(model, at, (torch.zeros(_BATCH, *shape),))[1].examples)


def parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


# ------------------------------------------------------------ bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of a client's messages. ``up`` and ``down``: of a training step's sample. ``hand_over``: of the client's segment, optimizer and
    codec state with it, one way. ``weights`` and ``gradients``: of the whole network, one way."""

    up: float
    down: float
    hand_over: int
    weights: int
    gradients: int


@cache
def traffic(build: str, at: str, *, classes: int, batch: int, forward: str = "fp32", backward: str = "fp32") -> Traffic:
    """One step of ``batch`` samples of normally distributed pixels, taken by engines with ``paper_models.py:BUILD`` cut after ``at``."""
    run = _run(build, at, classes=classes, batch=batch, forward=forward, backward=backward)
    engines = {name: engine_for(run, segment) for name, segment in build_segments(run).items()}
    line = Crossing(run, engines)
    up, down = _step(line, engines["bottom"], engines["top"], classes, batch)
    whole = {name: weights_of(engine) for name, engine in engines.items()}
    trained = {name: {key: value for key, value in state.items() if key.startswith("p.")} for name, state in whole.items()}
    codecs = dump_state(line.state())
    return Traffic(
        up=up / batch,
        down=down / batch,
        hand_over=_message_bytes(run, {"bottom": dump_state(engines["bottom"].state()), "@codecs": codecs}),
        weights=_message_bytes(run, {name: dump_state(state) for name, state in whole.items()}),
        gradients=_message_bytes(run, {name: dump_state(state) for name, state in trained.items()}),
    )


def _run(build: str, at: str, *, classes: int, batch: int, forward: str, backward: str) -> Run:
    table: Mapping[str, Any] = {
        "name": "paper",
        "epochs": 1,
        "batch_size": batch,
        "model": {"build": f"{MODELS}:{build}", "args": {"classes": classes}, "cut": [at], "input_shape": list(IMAGE)},
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        "codec": {"forward": forward, "backward": backward},
        "data": {"kind": "cifar100", "path": "."},
        "clients": [{"name": "client"}],
    }
    return parse_run(table, base=".")


def _step(line: Crossing, client: TorchEngine, server: TorchEngine, classes: int, batch: int) -> tuple[int, int]:
    """A training step from raw data to the client's update: bytes up and down."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((batch, *IMAGE)).astype(np.float32), rng.integers(0, classes, batch)
    names = [spec.name for spec in client.outputs]
    outputs: dict[str, Array] = dict(zip(names, client.forward(0, images), strict=True))
    up, arrived = line.forward(0, outputs, {LABELS: labels})
    server.forward(0, *(arrived[LABELS if spec.name == "target" else spec.name] for spec in server.inputs))
    found = zip(server.inputs, server.backward(0), strict=True)
    down, back = line.backward(0, {spec.name: grad for spec, grad in found if grad is not None})
    client.backward(0, *(back[name] for name in names))
    return sum(up), sum(down)


def _message_bytes(run: Run, blobs: Mapping[str, bytes]) -> int:
    control = Control(kind="done", body={"seq": 1}, blobs=blobs)
    return sum(packets_of(run, Frame(kind=Kind.CONTROL, payload=encode_control(control))))


def int8_weights(build: str, classes: int) -> int:
    """Bytes that the whole network's parameters take with the int8 codec, one tensor after the other."""
    codec, total = parse_codec("int8"), 0
    for name, value in built(build, classes).named_parameters():
        array = value.detach().numpy()
        spec = TensorSpec(name=name, dtype="float32", shape=array.shape)
        total += encode_array(codec, codec.encoder(spec, "forward"), array, PLAIN).size_bytes
    return total


@cache
def built(build: str, classes: int) -> nn.Module:
    """``paper_models.py:BUILD``."""
    return load_model(f"{MODELS}:{build}", {"classes": classes}, ".")
