"""CIFAR-10 and CIFAR-100, the binary version: https://www.cs.toronto.edu/~kriz/cifar.html. A record is its labels, then 3*32*32 bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.data.rows import Block, JoinedRows, reading
from edge_client.data.samples import Request, Samples, targets
from wire.errors import DataError

__all__ = ["read_cifar"]

_IMAGE = (3, 32, 32)
_FILES = {
    ("cifar10", "train"): tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    ("cifar10", "test"): ("test_batch.bin",),
    ("cifar100", "train"): ("train.bin",),
    ("cifar100", "test"): ("test.bin",),
}
_CLASSES = {("cifar10", 0): 10, ("cifar100", 0): 20, ("cifar100", 1): 100}


def read_cifar(request: Request) -> Samples:
    """One split of a folder of CIFAR binary files. Raises DataError."""
    kind = request.config.kind
    files = _FILES.get((kind, request.split))
    if files is None:
        raise DataError(f"{kind} has no {request.split} files; hold some training samples out with `validation_fraction`")
    blocks = [_open(request.path, name, 1 if kind == "cifar10" else 2) for name in files]
    starts = np.cumsum([0, *(block.count for block in blocks)])
    column = 1 if kind == "cifar100" and request.labels != "coarse" else 0

    def labels(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.uint8]:
        return np.concatenate([block.load_skipped(some)[:, column] for block, some in zip(blocks, rows, strict=True)])

    picked = request.pick(int(starts[-1]), lambda: labels([np.arange(block.count) for block in blocks]))
    own = [picked[(picked >= low) & (picked < high)] - low for low, high in pairwise(starts)]
    target, classes = None, None
    if request.config.target != "none":
        target, classes = targets(labels(own), "class", where=str(request.path))
        _check_classes(request, classes or 0, _CLASSES[kind, column])
    in_memory = len(picked) * blocks[0].record_bytes <= request.memory_bytes
    return Samples(
        rows=JoinedRows([block.rows(rows, in_memory=in_memory) for block, rows in zip(blocks, own, strict=True)]),
        layout="NCHW",
        target=target,
        ids=_ids(files, starts, picked),
        classes=classes,
    )


def _open(folder: Path, name: str, label_bytes: int) -> Block:
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path} does not exist; `path` is the folder of CIFAR's binary version (not the Python one)")
    record = label_bytes + int(np.prod(_IMAGE))
    with reading(path):
        size = path.stat().st_size
    if size % record:
        raise DataError(f"{path} is truncated: {size} bytes are not a whole number of records of {record}; get it again")
    return Block(
        name=str(path), path=path, count=size // record, shape=_IMAGE, dtype=np.dtype(np.uint8), packed_bytes=size, skip_bytes=label_bytes
    )


def _check_classes(request: Request, found: int, known: int) -> None:
    if found > known:
        raise DataError(f"{request.path} has the label {found - 1}, but {request.config.kind} has {known} classes; it is damaged")


def _ids(files: tuple[str, ...], starts: NDArray[np.int64], picked: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], tuple[str, ...]]:
    def ids(at: NDArray[np.int64]) -> tuple[str, ...]:
        rows = picked[at]
        parts = np.searchsorted(starts, rows, side="right") - 1
        return tuple(f"{files[part]}#{row}" for part, row in zip(parts.tolist(), (rows - starts[parts]).tolist(), strict=True))

    return ids
