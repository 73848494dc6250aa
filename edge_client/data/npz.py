"""NPZ files (MedMNIST, Keras's mnist.npz, ``np.savez``): read array by array and record by record, never with pickle."""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from edge_client.data.rows import Block, reading
from edge_client.data.samples import Layout, Request, Samples, check_same_count, named, numbered, picked_targets
from wire.data_config import Split
from wire.errors import DataError
from wire.limits import LIMITS

__all__ = ["open_npz", "read_npz"]

_USUAL: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("X_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val"), ("X_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test"), ("X_test", "y_test")),
}
_HEADER_BYTES = 10_000  # numpy's own bound for headers that are not trusted
_DESCR = re.compile(r"""["']descr["']\s*:\s*["']([<>|=]?(?:b1|[iu][1248]|f[248]))["']""")
_TEXT = re.compile(_DESCR.pattern.replace("(?:b1", "(?:U[1-9][0-9]{0,3}|b1"))
_ORDER = re.compile(r"""["']fortran_order["']\s*:\s*(True|False)\b""")
_SHAPE = re.compile(r"""["']shape["']\s*:\s*\(((?:[0-9]{1,18}L?\s*,?\s*)*)\)""")
_CHANNELS = (1, 3, 4)

_Ids = Callable[[NDArray[np.int64]], tuple[str, ...]]


def read_npz(request: Request) -> Samples:
    """One split of an NPZ file. Raises DataError."""
    names = _array_names(request.path)
    images_name, labels_name = _choose(request, names)
    images = open_npz(request.path, images_name, names)
    layout = request.config.layout or _layout(images)
    _check_layout(images, layout)
    labels = None if request.config.target == "none" else open_npz(request.path, labels_name, names)
    picked, target, classes = picked_targets(request, images, labels)
    in_memory = len(picked) * images.record_bytes <= request.memory_bytes
    return Samples(
        rows=images.rows(picked, in_memory=in_memory),
        layout=layout,
        target=target,
        ids=_ids(request, images, names, picked) or numbered(f"{request.path.name}/{images_name}", picked),
        classes=classes,
    )


def _ids(request: Request, images: Block, names: tuple[str, ...], picked: NDArray[np.int64]) -> _Ids | None:
    """What the array that ``id_column`` names gives: text, or whole numbers as a table would write them."""
    if request.id_column is None:
        return None
    block = open_npz(request.path, request.id_column, names, text=True)
    check_same_count(images.name, images.count, block.name, block.count, what="ids")
    if block.shape or block.dtype.kind not in "iuU":
        raise DataError(f"{block.name} holds no ids; they are one text or whole number a sample")
    if (
        block.dtype.kind == "U"
        and block.load(picked).view(np.dtype(np.uint32).newbyteorder(block.dtype.byteorder)).max(initial=0) > sys.maxunicode
    ):
        raise DataError(f"{block.name} is damaged: it has characters that do not exist; get the file again")
    return named([str(value) for value in block.load(picked).tolist()], request.path, f"array {request.id_column!r}")


def open_npz(path: Path, name: str, names: tuple[str, ...], *, text: bool = False) -> Block:
    """Find the array ``name`` in an NPZ file and read its header. ``names`` are those that the file has; ``text``: it may be of text.

    Raises DataError.
    """
    if name not in names:
        raise DataError(f"{path} has no array {name!r}; it has {', '.join(names[:12]) or 'none'}")
    label = f"array {name!r} of {path}"
    with reading(path), ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        _check_member(info, label)
        with archive.open(info) as stream:
            header = _read_header(stream, label, _TEXT if text else _DESCR)
        stored = info.compress_type == ZIP_STORED
        start = _data_start(path, info) if stored else 0
    return Block(
        name=label,
        path=path,
        count=header.count,
        shape=header.shape,
        dtype=header.dtype,
        packed_bytes=info.file_size - header.size_bytes if stored else info.compress_size,
        offset_bytes=start + header.size_bytes,
        unpack=None if stored else (lambda: _unpack(path, info.filename, header.size_bytes)),
    )


@dataclass(frozen=True, slots=True)
class _Header:
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size_bytes: int


def _array_names(path: Path) -> tuple[str, ...]:
    if path.is_dir():
        raise DataError(f"{path} is a folder; `path` of kind 'npz' is the file")
    with reading(path), ZipFile(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def _choose(request: Request, names: tuple[str, ...]) -> tuple[str, str]:
    """The run's names, or the usual pair that the file has."""
    has = ", ".join(names[:12]) or "none"
    usual = _USUAL[request.split]
    images = request.images or next((name for name, _ in usual if name in names), None)
    if images is None:
        raise DataError(f"{request.path} has no {usual[0][0]} or {usual[1][0]}; name the arrays with `images` and `labels`. It has {has}")
    labels = request.labels or {name: partner for pairs in _USUAL.values() for name, partner in pairs}.get(images, "")
    if not labels and request.config.target != "none":
        raise DataError(f"`labels` is missing: name the array of {request.path} with the labels of {images!r}. It has {has}")
    return images, labels


def _check_member(info: ZipInfo, label: str) -> None:
    if info.flag_bits & 1:
        raise DataError(f"{label} is encrypted; save the file without a password")
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise DataError(f"{label} is packed by method {info.compress_type}; save it with np.savez or np.savez_compressed")
    if info.compress_type == ZIP_STORED and info.compress_size != info.file_size:
        raise DataError(f"{label} is damaged (two sizes for bytes that are not packed); get the file again")


def _read_header(stream: Any, label: str, dtype: re.Pattern[str]) -> _Header:
    """The header that numpy.save writes. It is matched, not evaluated; numpy's own reader evaluates it as a Python literal."""
    start = stream.read(12)
    if len(start) < 12:
        raise EOFError("an array ends within its header")
    if start[:8] not in (b"\x93NUMPY\x01\0", b"\x93NUMPY\x02\0"):
        raise DataError(f"{label} is not an array that numpy.save wrote")
    length, prefix = (int.from_bytes(start[8:10], "little"), 10) if start[6] == 1 else (int.from_bytes(start[8:12], "little"), 12)
    if not 2 <= length <= _HEADER_BYTES:
        raise DataError(f"{label} has a header of {length} bytes; the limit is {_HEADER_BYTES}")
    text = (start[prefix:] + stream.read(length - (12 - prefix))).decode("latin-1")
    found = [pattern.search(text) for pattern in (dtype, _ORDER, _SHAPE)]
    if not all(found):
        shown = text[:80].strip()
        raise DataError(f"{label} is damaged or has no plain numbers (objects would need pickle, which is never used): {shown!r}")
    descr, order, dims = (match[1] for match in found if match)
    shape = tuple(int(dim) for dim in re.findall("[0-9]+", dims))
    return _checked(_Header(shape[0] if shape else 0, shape[1:], np.dtype(descr), prefix + length), order == "True", label)


def _checked(header: _Header, column_major: bool, label: str) -> _Header:
    if len(header.shape) >= LIMITS.tensor_dims:
        raise DataError(f"{label} has {len(header.shape) + 1} dimensions; the limit is {LIMITS.tensor_dims}")
    if column_major and header.shape:
        raise DataError(f"{label} is stored column by column; save np.ascontiguousarray(...) of it")
    return header


def _data_start(path: Path, info: ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header, whose two last fields are the lengths of what follows it."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise EOFError("a member's header is missing")
        name_bytes, extra_bytes = struct.unpack("<HH", local[26:])
        start = info.header_offset + 30 + int(name_bytes) + int(extra_bytes)
        if start + info.file_size > file.seek(0, io.SEEK_END):
            raise EOFError("an array reaches beyond the end")
    return start


def _unpack(path: Path, member: str, header_bytes: int) -> BinaryIO:
    with ZipFile(path) as archive:  # a member keeps the file open for itself
        stream = archive.open(member)
    stream.read(header_bytes)
    return stream  # type: ignore[return-value]  # ZipExtFile reads like one


def _layout(images: Block) -> Layout:
    shape = images.shape
    if len(shape) == 1:
        return "NF"
    if len(shape) == 2:
        return "NHW"
    if len(shape) == 3 and (shape[0] in _CHANNELS) is not (shape[2] in _CHANNELS):
        return "NHWC" if shape[2] in _CHANNELS else "NCHW"
    raise DataError(f"{images.name} has samples of shape {list(shape)}; say how they lie with `layout` (NF, NCL, NHW, NHWC or NCHW)")


def _check_layout(images: Block, layout: Layout) -> None:
    if len(images.shape) != len(layout) - 1 and not (layout == "NCL" and len(images.shape) == 1):
        raise DataError(f"{images.name} has samples of shape {list(images.shape)}; that is not `layout` {layout!r}")
