"""What a client computes and sends, counted from real graphs and real frames: the replay of the paper's Tables 1 and 2.

FLOPs are what ``torch.utils.flop_counter`` counts while the segment that ``export.cut`` cuts off runs a training step: two for each
multiply-add of convolutions and linear layers, forward and backward; normalisation, activations and pooling count nothing. Raw input needs
no gradient, so a first layer's backward counts once and not twice.

Bytes are whole PUBLISH packets (``wire.transport.window``), of frames (``wire.frames``), of messages that both ends' ``Cuts`` encode from a
step that both ends' engines really take, labels included.
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
from torch.utils.flop_counter import FlopCounterMode

from export.cut import cut
from export.load import load_model
from export.prepare import RunSegment, build_segments
from server.engine import TorchEngine
from wire.codecs import PLAIN, encode_array, parse_codec
from wire.control import Control, encode_control
from wire.cut import LABELS, Cuts
from wire.engine import Array
from wire.frames import Frame, Kind, Mode, encode
from wire.manifest import TensorSpec
from wire.messages import Work
from wire.runfile import Run, parse_run
from wire.store import dump_state, weights_of
from wire.transport.window import publish_bytes

__all__ = ["MODELS", "Flops", "Traffic", "built", "client_flops", "crossing", "frame_bytes", "int8_weights", "parameters", "traffic"]

MODELS = Path(__file__).resolve().parent / "paper_models.py"
IMAGE = (3, 32, 32)
_BATCH = 2  # FLOPs are counted of so many samples: enough for BatchNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Of one sample: the forward pass, and a training step (forward and backward)."""

    forward: float
    step: float


def client_flops(model: nn.Module, at: str | None, shape: Sequence[int] = IMAGE) -> Flops:
    """Of what lies before the cut after ``at``; None: of the whole network, its loss included."""
    inputs = torch.randn(_BATCH, *shape)
    module = model if at is None else cut(model, at, (inputs,))[0].module
    module.train()
    with FlopCounterMode(display=False) as counter:
        output = module(inputs)
        forward = counter.get_total_flops()
        loss = nn.functional.cross_entropy(output, torch.zeros(_BATCH, dtype=torch.int64)) if at is None else output.sum()
        loss.backward()
        step = counter.get_total_flops()
    return Flops(forward=forward / _BATCH, step=step / _BATCH)


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
    ends = {name: _End(run, name, segment) for name, segment in build_segments(run).items()}
    up, down = _step(run, ends, classes, batch)
    client = ends["bottom"]
    whole = {name: weights_of(end.engine) for name, end in ends.items()}
    trained = {name: {key: value for key, value in state.items() if key.startswith("p.")} for name, state in whole.items()}
    codecs = dump_state(client.cuts.state())
    return Traffic(
        up=up / batch,
        down=down / batch,
        hand_over=_message_bytes(run, {"bottom": dump_state(client.engine.state()), "@codecs": codecs}),
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


class _End:
    """A segment, the engine that trains it, and the cut at its side."""

    def __init__(self, run: Run, name: str, segment: RunSegment) -> None:
        self.engine = TorchEngine(
            segment.module,
            inputs=segment.inputs,
            outputs=segment.outputs,
            optimizer=run.optimizer,
            loss=segment.loss,
            segment=name,
        )
        graph = run.graph()
        self.party = graph.slice_for(graph.party_of(name, 0))
        self.cuts = Cuts(run, self.party, {name: self.engine})
        self.work = Work(segment=name, lane=0, step=0, global_step=0, mode=Mode.TRAIN)
        self.names = [spec.name for spec in segment.outputs]


def _step(run: Run, ends: Mapping[str, _End], classes: int, batch: int) -> tuple[int, int]:
    """A training step from raw data to the client's update: bytes up and down."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((batch, *IMAGE)).astype(np.float32), rng.integers(0, classes, batch)
    client, server = ends["bottom"], ends["top"]
    outputs: dict[str, Array] = dict(zip(client.names, client.engine.forward(0, images), strict=True))
    (sent,) = client.cuts.encode_forward(client.work, outputs, {LABELS: labels}, 0.0).values()
    arrived = server.cuts.decode_forward(server.work, {"bottom>top": sent}, 0.0)
    server.engine.forward(0, *(arrived[LABELS if spec.name == "target" else spec.name] for spec in server.engine.inputs))
    found = zip(server.engine.inputs, server.engine.backward(0), strict=True)
    grads = {spec.name: grad for spec, grad in found if grad is not None}
    (returned,) = server.cuts.encode_backward(server.work, grads, 0.0).values()
    back = client.cuts.decode_backward(client.work, {"bottom>top": returned}, 0.0)
    client.engine.backward(0, *(back[name] for name in client.names))
    return frame_bytes(run, Frame(kind=Kind.FORWARD, payload=sent)), frame_bytes(run, Frame(kind=Kind.BACKWARD, payload=returned))


def _message_bytes(run: Run, blobs: Mapping[str, bytes]) -> int:
    return frame_bytes(run, Frame(kind=Kind.CONTROL, payload=encode_control(Control(kind="done", body={"seq": 1}, blobs=blobs))))


def frame_bytes(run: Run, frame: Frame) -> int:
    """All PUBLISH packets of a message, over MQTT 5 on a line that takes parts of the run file's size."""
    (line,) = run.graph().slice_for(run.clients[0].name).lines
    topic, _ = run.topics(line)
    parts = encode(frame, run_tag=run.tag, part_bytes=run.broker.part_bytes)
    return sum(publish_bytes(len(topic), len(part), properties_bytes=1) for part in parts)


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
