"""What encoding and decoding take: a batch of 64 x 784 activations and its gradients, by every codec, on one core.

The activations are what the first layers of a network give for Fashion-MNIST, after ReLU and pooling; gradients are drawn, a few
samples having most of them.

    python -m benchmarks.codecs [ROUNDS]        writes docs/benchmarks/codecs.md
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import link_models
from benchmarks.common import hardware, spread, write_page
from edge_client.data import open_source
from simulation.datasets import materialize
from wire.codecs import Codec, Context, Direction, Encoded, decode_array, encode_array, parse_codec
from wire.data_config import DataConfig
from wire.errors import RunFileError
from wire.manifest import TensorSpec
from wire.parse import parse

Floats = NDArray[np.float32]

CODECS = ("fp32", "fp16", "bf16", "int8", "int4", "int2", "mxfp4", "topk:keep=0.1", "randtopk:keep=0.1", "lowbit", "lowbit:step=2")
BAR_MS, RATE_WINS_MS = 5.0, 10.0
ROUNDS = 60
BATCH = 64


def activations() -> Floats:
    with tempfile.TemporaryDirectory() as folder:
        facts = materialize("fashion-mnist", Path(folder, "data"))
        config = parse(DataConfig, dict(facts.data), where="data", error=RunFileError)
        batch = open_source(config, "test", seed=0, segment="", lane=0, batch_size=BATCH, base_dir=folder).batch(0, 0)
    torch.manual_seed(0)
    layers = list(link_models.fashion().named_children())
    upto = [name for name, _ in layers].index("pool2") + 1
    with torch.no_grad():
        found = torch.nn.Sequential(*(layer for _, layer in layers[:upto])).train()(torch.from_numpy(batch.inputs[0]))
    return np.ascontiguousarray(found.numpy())


def gradients(shape: tuple[int, ...]) -> Floats:
    rng = np.random.default_rng(0)
    weight = np.exp(2 * rng.normal(size=(shape[0], *[1] * (len(shape) - 1))))
    return (1e-4 * weight * rng.normal(size=shape)).astype(np.float32)


class Timed:
    """One codec in one direction; times are CPU seconds of this thread."""

    def __init__(self, codec: Codec, direction: Direction, array: Floats, context: Context) -> None:
        spec = TensorSpec(name="x", dtype="float32", shape=("batch", *array.shape[1:]))
        self._codec, self._array, self._context = codec, array, context
        self._encoder = codec.encoder(spec, direction)
        self.encode_s: list[float] = []
        self.decode_s: list[float] = []
        self.size_bytes = 0

    def turn(self) -> Encoded:
        begun = time.thread_time()
        encoded = encode_array(self._codec, self._encoder, self._array, self._context)
        data = b"".join(encoded.pieces)
        self.encode_s.append(time.thread_time() - begun)
        self.size_bytes = len(data)
        begun = time.thread_time()
        decode_array(encoded.number, memoryview(data), self._array.dtype, self._array.shape, self._context)
        self.decode_s.append(time.thread_time() - begun)
        return encoded


def main(rounds: int = ROUNDS) -> None:
    torch.set_num_threads(1)
    maps = activations()
    grads = gradients(maps.shape)
    timed = {}
    for name in CODECS:
        codec = parse_codec(name)
        up = Timed(codec, "forward", maps, Context(train=True))
        support = up.turn().support
        timed[name] = (up, Timed(codec, "backward", grads, Context(train=True, support=support)))
    for pair in timed.values():
        for each in pair:
            each.encode_s.clear()
            each.decode_s.clear()
    for _ in range(rounds):
        for pair in timed.values():  # alternating, so that what the machine does meanwhile befalls all alike
            for each in pair:
                each.turn()
    write_page("codecs", page(timed, rounds))


def page(timed: dict[str, tuple[Timed, Timed]], rounds: int) -> list[str]:
    lines = [
        "# What codecs take",
        "",
        f"Encoding and decoding {BATCH} x 784 activations after ReLU and pooling (a network's first layers on Fashion-MNIST), and their",
        "gradients. Milliseconds of CPU time of one thread, median and quartiles. `lowbit` codes activations by their neighbours.",
        "",
        *hardware("numpy"),
        f"- script: `make bench-codecs`, {rounds} rounds",
        f"- bar: {BAR_MS:.0f} ms to encode and decode activations, {RATE_WINS_MS:.0f} ms where that saves bytes",
        "",
        "| codec | bits up | encode | decode | both | bits down | encode | decode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (up, down) in timed.items():
        both = [one + other for one, other in zip(up.encode_s, up.decode_s, strict=True)]
        elements = BATCH * 784
        lines.append(
            f"| `{name}` | {8 * up.size_bytes / elements:.2f} | {spread(up.encode_s)} | {spread(up.decode_s)} | {spread(both)} "
            f"| {8 * down.size_bytes / elements:.2f} | {spread(down.encode_s)} | {spread(down.decode_s)} |"
        )
    return lines


if __name__ == "__main__":
    main(*[int(each) for each in sys.argv[1:]])
