"""Data that the paper's runs train on, made of Fashion-MNIST: a part of it, and a part of it in CIFAR's shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.data.idx import open_idx
from simulation.datasets import DatasetFacts, materialize
from wire.engine import Array

__all__ = ["coloured", "part_of_fashion"]

_FILES = {"train": "train", "test": "t10k"}


def part_of_fashion(folder: Path, *, train: int, test: int) -> dict[str, Any]:
    """A ``[data]`` table: so many samples of each split, evenly spread, in a file that needs no unpacking; made if missing."""
    path, facts = folder / f"fashion-{train}-{test}.npz", materialize("fashion-mnist", folder)
    if not path.exists():
        _write(path, _arrays(facts, {"train": train, "test": test}))
    return {"kind": "npz", "path": str(path), "layout": "NHW", "normalize": facts.data["normalize"]}


def coloured(folder: Path, *, train: int, test: int) -> dict[str, Any]:
    """The same as 3 x 32 x 32: a margin of two pixels, a dark ground and a light ink of any colour for each image, and noise on it all."""
    path = folder / f"coloured-{train}-{test}.npz"
    if not path.exists():
        arrays = _arrays(materialize("fashion-mnist", folder), {"train": train, "test": test})
        rng = np.random.default_rng(0)
        _write(path, arrays | {key: _paint(arrays[key], rng) for key in ("x_train", "x_test")})
    return {"kind": "npz", "path": str(path), "layout": "NHWC", "normalize": {"mean": [0.4], "std": [0.3]}}


def _paint(images: Array, rng: np.random.Generator) -> Array:
    """uint8 [N, 28, 28] as uint8 [N, 32, 32, 3]."""
    grays = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.float32)[..., None] / 255
    ground, ink = rng.uniform(0, 0.5, (len(images), 1, 1, 3)), rng.uniform(0.5, 1, (len(images), 1, 1, 3))
    painted = ground + grays * (ink - ground) + rng.normal(0, 0.05, (*grays.shape[:3], 3))
    return np.clip(painted * 255, 0, 255).astype(np.uint8)


def _arrays(facts: DatasetFacts, counts: Mapping[str, int]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for split, count in counts.items():
        for key, ending in (("x", "images-idx3-ubyte"), ("y", "labels-idx1-ubyte")):
            paths = (Path(facts.data["path"], f"{_FILES[split]}-{ending}{packed}") for packed in ("", ".gz"))
            block = open_idx(next(path for path in paths if path.exists()))
            found[f"{key}_{split}"] = block.load(np.arange(count) * block.count // count)
    return found


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **dict(arrays))
