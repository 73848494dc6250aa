"""IDX, the format of MNIST, Fashion-MNIST and EMNIST: https://yann.lecun.org/exdb/mnist/, "file formats"; gzipped or not."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edge_client.data.rows import Block, reading
from edge_client.data.samples import Layout, Request, Samples, numbered, picked_targets
from wire.data_config import Split
from wire.errors import DataError
from wire.limits import LIMITS

__all__ = ["open_idx", "read_idx"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIXES: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("t10k", "test"), "validation": ("val", "validation")}


def read_idx(request: Request) -> Samples:
    """One split of a folder of IDX files. Raises DataError."""
    images_path = _find(request, request.images, "images-idx3-ubyte")
    images = open_idx(images_path)
    layouts: dict[int, Layout] = {1: "NF", 2: "NHW"}
    if len(images.shape) not in layouts:
        raise DataError(f"{images_path} has samples of shape {list(images.shape)}; IDX images are [height, width]")
    labels = None if request.config.target == "none" else open_idx(_find(request, request.labels, "labels-idx1-ubyte"))
    picked, target, classes = picked_targets(request, images, labels)
    in_memory = len(picked) * images.record_bytes <= request.memory_bytes
    return Samples(
        rows=images.rows(picked, in_memory=in_memory),
        layout=layouts[len(images.shape)],
        target=target,
        ids=numbered(images_path.name.removesuffix(".gz"), picked),
        classes=classes,
    )


def open_idx(path: Path) -> Block:
    """Read an IDX header. Raises DataError: wrong magic, or a length that is not what the header says."""
    packed = path.suffix == ".gz"
    with reading(path):
        size = path.stat().st_size
        with _open(path, packed) as stream:
            magic = stream.read(4)
            if len(magic) == 4 and (magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0):
                raise DataError(f"{path} begins with {magic.hex(' ')}; this is not an IDX file")
            dims = stream.read(4 * magic[3]) if len(magic) == 4 else b""
    if len(magic) < 4 or len(dims) < 4 * magic[3]:
        raise DataError(f"{path} is truncated: it ends within the header; get it again")
    if magic[3] > LIMITS.tensor_dims:
        raise DataError(f"{path} has {magic[3]} dimensions; the limit is {LIMITS.tensor_dims}")
    header = 4 + len(dims)
    count, *shape = np.frombuffer(dims, ">u4").tolist()
    return Block(
        name=str(path),
        path=path,
        count=count,
        shape=tuple(shape),
        dtype=np.dtype(_DTYPES[magic[2]]),
        packed_bytes=size if packed else size - header,
        offset_bytes=header,
        unpack=(lambda: _skip(path, header)) if packed else None,
    )


def _open(path: Path, packed: bool) -> BinaryIO:
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]  # GzipFile reads like one


def _skip(path: Path, header: int) -> BinaryIO:
    stream = _open(path, True)
    stream.read(header)
    return stream


def _find(request: Request, named: str | None, ending: str) -> Path:
    """The file the run names, or the one with a usual name (``train-images-idx3-ubyte``, ``emnist-letters-test-…``), gzipped or not."""
    folder = request.path
    if named:
        return folder / named
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; `path` of kind 'idx' is the folder with {_usual(request.split, ending)}[.gz]")
    found = _candidates(folder, _PREFIXES[request.split], ending)
    if not found:
        raise DataError(f"{folder} has no {_usual(request.split, ending)}[.gz]; put it there or name the file with `images` and `labels`")
    if len({path.name.removesuffix(".gz") for path in found}) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise DataError(f"{folder} has several data sets ({names}); name one with `images` and `labels`")
    return min(found, key=lambda path: path.suffix == ".gz")  # the uncompressed one need not be held in memory


def _candidates(folder: Path, prefixes: Sequence[str], ending: str) -> list[Path]:
    endings = (ending, ending.replace("-idx", ".idx"))
    stems = {f"{prefix}-{end}" for prefix in prefixes for end in endings}
    with reading(folder):
        names = sorted(path for path in folder.iterdir() if path.is_file())
    exact = [path for path in names if path.name.removesuffix(".gz") in stems]
    return exact or [path for path in names if any(path.name.removesuffix(".gz").endswith("-" + stem) for stem in stems)]


def _usual(split: Split, ending: str) -> str:
    return f"{_PREFIXES[split][0]}-{ending}"
