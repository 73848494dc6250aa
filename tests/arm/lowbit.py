"""Runs on both machines: ``lowbit.py encode OUT`` writes low-bit messages, ``lowbit.py digest IN`` says what they decode to."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from wire.codecs import Context, parse_codec
from wire.manifest import TensorSpec

SHAPE = (64, 16, 7, 7)
CODEC = parse_codec("lowbit")
SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", *SHAPE[1:]))


def maps(seed: int) -> np.ndarray:
    """Smooth, sparse maps, so that neighbours tell something of each other."""
    rough = np.random.default_rng(seed).integers(-9, 10, SHAPE).astype(np.float32)
    smooth = rough + np.roll(rough, 1, 2) + np.roll(rough, 1, 3) + 2 * rough[:, :1]
    return np.maximum(smooth - 6, 0)


def encode(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for seed in range(4):
        forward = CODEC.encoder(SPEC, "forward").encode(maps(seed), Context(train=True))
        backward = CODEC.encoder(SPEC, "backward").encode(maps(seed + 10) - 5, Context(train=True, support=forward.support))
        (folder / f"{seed}.forward").write_bytes(b"".join(forward.pieces))
        (folder / f"{seed}.backward").write_bytes(b"".join(backward.pieces))


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for seed in range(4):
        forward, backward = (memoryview((folder / f"{seed}.{way}").read_bytes()) for way in ("forward", "backward"))
        arrived = CODEC.decode(forward, np.dtype(np.float32), SHAPE, Context())
        gradient = CODEC.decode(backward, np.dtype(np.float32), SHAPE, Context(support=arrived.support))
        found.update(arrived.array.tobytes() + gradient.array.tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    if sys.argv[1] == "encode":
        encode(Path(sys.argv[2]))
    else:
        print(digest(Path(sys.argv[2])))
