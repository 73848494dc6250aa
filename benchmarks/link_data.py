"""Data that the link benchmark makes: coloured shapes, and Fashion-MNIST with samples that make their steps void."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.data.idx import open_idx
from wire.engine import Array

__all__ = ["poisoned_fashion", "shapes"]

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

_SIZE = 32


def _ring(x: Floats, y: Floats) -> Mask:
    radius = np.hypot(x, y)
    return (radius < 1) & (radius > 0.6)


# In a shape's own coordinates, its extent being about -1 to 1.
_SHAPES: tuple[Callable[[Floats, Floats], Mask], ...] = (
    lambda x, y: np.hypot(x, y) < 1,
    lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.85,
    lambda x, y: (y > -0.6) & (np.abs(x) < (1 - y) * 0.6),
    lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.28) & (np.maximum(np.abs(x), np.abs(y)) < 1),
    _ring,
    lambda x, y: (np.abs(y) < 0.9) & (np.abs(x) < 0.9) & (np.floor((y + 1) * 2.5) % 2 == 0),
    lambda x, y: np.hypot(x, y) < 0.55 + 0.4 * np.cos(5 * np.arctan2(y, x)),
    lambda x, y: (np.hypot(x, y) < 1) & (np.hypot(x - 0.45, y) > 0.75),
)


def shapes(path: Path, *, train: int = 6000, test: int = 2000, seed: int = 0) -> dict[str, Any]:
    """A ``[data]`` table: 8 kinds of shapes of any colour, size, place and angle on a coloured ground, with noise; made if missing."""
    if not path.exists():
        images, labels = _draw(np.random.default_rng(seed), train + test)
        with open(path, "wb") as file:
            np.savez(file, x_train=images[:train], y_train=labels[:train], x_test=images[train:], y_test=labels[train:])
    return {"kind": "npz", "path": str(path), "layout": "NHWC", "normalize": {"mean": [0.5], "std": [0.25]}}


def _draw(rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    labels = rng.integers(0, len(_SHAPES), count)
    rows, columns = np.indices((_SIZE, _SIZE)) / (_SIZE - 1) * 2 - 1
    images = np.empty((count, _SIZE, _SIZE, 3), np.uint8)
    for at, label in enumerate(labels):
        angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.75)
        left, top = rng.uniform(-0.4, 0.4, 2)
        x, y = (columns - left) / size, (rows - top) / size
        inside = _SHAPES[label](x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle))
        ground, ink, slope = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3), rng.uniform(-0.3, 0.3, (2, 3))
        canvas = ground + rows[..., None] * slope[0] + columns[..., None] * slope[1]
        canvas[inside] = ink
        canvas += rng.normal(0, 0.12, canvas.shape)
        images[at] = np.clip(canvas * 255, 0, 255)
    return images, labels.astype(np.int64)


def poisoned_fashion(folder: Path, path: Path, *, share: float, batch_size: int) -> dict[str, Any]:
    """Fashion-MNIST (IDX files in ``folder``) as float32, with one pixel NaN in as many samples as make ``share`` of the batches void."""
    if not path.exists():
        images, tests = (_normalized(_idx(folder, f"{split}-images-idx3-ubyte")) for split in ("train", "t10k"))
        labels, test_labels = (_idx(folder, f"{split}-labels-idx1-ubyte") for split in ("train", "t10k"))
        chosen = np.random.default_rng(0).choice(len(images), round(share * len(images) / batch_size), replace=False)
        images[chosen, 0, 0] = np.nan
        with open(path, "wb") as file:
            np.savez(file, x_train=images, x_test=tests, y_train=labels, y_test=test_labels)
    return {"kind": "npz", "path": str(path), "layout": "NHW"}


def _idx(folder: Path, name: str) -> Array:
    block = open_idx(next(path for path in (folder / name, folder / f"{name}.gz") if path.exists()))
    return block.load(np.arange(block.count))


def _normalized(images: Array) -> Array:
    return ((images / np.float32(255) - np.float32(0.286)) / np.float32(0.353)).astype(np.float32)
