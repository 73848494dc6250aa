"""This computer as a device: how many operations a second the device engine reaches on it, and what a call takes beside them."""

from __future__ import annotations

import os
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulation.field.device import Device
from wire.engine import Engine

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FORWARD_FLOPS", "measure_device"]

# Of a sample: 6 maps of 28 x 28 by windows of 25, and 16 of 10 x 10 by windows of 6 x 25; a multiply-add is two.
FORWARD_FLOPS = 2 * (6 * 28 * 28 * 25 + 16 * 10 * 10 * 6 * 25)
_BATCHES = (1, 64)
_STEPS = 10
_WAIT_S = 0.2  # before each step, as a line lets wait: caches have gone cold by then, and a step takes twice as long and more
_CALLS = 2  # of the engine in a step: forward and backward
_LR = 1e-6
_SHARE = 0.75  # of the memory that is left to a client


def measure_device(*, server: bool = False) -> Device:
    """Train the convolutions of LeNet with the device engine, or the server's, on all cores, with batches of 1 and of 64: the line through
    the two gives operations a second and what each call takes beside them. Takes five seconds. Its power is not measured: joules are 0."""
    small_s, large_s = _server_seconds() if server else _client_seconds()
    # A backward counts twice its forward's operations.
    flops = 3 * FORWARD_FLOPS * (_BATCHES[1] - _BATCHES[0]) / max(large_s - small_s, 1e-9)
    beside_s = max(0.0, small_s - 3 * FORWARD_FLOPS * _BATCHES[0] / flops) / _CALLS
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = "this-server" if server else "this"
    return Device(name=name, flops=flops, step_s=beside_s, idle_w=0.0, flop_j=0.0, memory_bytes=int(memory * _SHARE))


def _convolutions() -> nn.Sequential:
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))


def _client_seconds() -> list[float]:
    import torch

    from edge_client.engine import load_engine
    from export import SGD, export_segment

    with tempfile.TemporaryDirectory() as folder:
        export_segment(_convolutions(), [torch.zeros(2, 1, 28, 28)], folder, optimizer=SGD(lr=_LR))
        return [_step_seconds(load_engine(folder), batch) for batch in _BATCHES]


def _server_seconds() -> list[float]:
    from server.engine import TorchEngine
    from wire.manifest import TensorSpec
    from wire.optim import SGD

    image = TensorSpec(name="input", dtype="float32", shape=("batch", 1, 28, 28), gradient=True)
    maps = TensorSpec(name="output", dtype="float32", shape=("batch", 16, 5, 5), gradient=True)
    return [
        _step_seconds(TorchEngine(_convolutions(), inputs=(image,), outputs=(maps,), optimizer=SGD(lr=_LR)), batch) for batch in _BATCHES
    ]


def _step_seconds(engine: Engine, batch: int) -> float:
    inputs = [_drawn(spec.shape, batch) for spec in engine.inputs]
    grads = [_drawn(spec.shape, batch) for spec in engine.outputs]
    seconds = []
    for step in range(_STEPS):
        time.sleep(_WAIT_S)
        begun_s = time.perf_counter()
        engine.forward(step, *inputs)
        engine.backward(step, *grads, lr=_LR)
        seconds.append(time.perf_counter() - begun_s)
    return min(seconds)  # what others do on this computer takes nothing from the board


def _drawn(shape: tuple[int | str, ...], batch: int) -> NDArray[np.float32]:
    sizes = [batch if dim == "batch" else int(dim) for dim in shape]
    return np.random.default_rng(0).standard_normal(sizes, dtype=np.float32) * np.float32(0.1)
