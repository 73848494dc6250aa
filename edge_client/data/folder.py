"""A folder of images, one folder inside for each class. Files are decoded batch by batch; only their names are held in memory."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_client.data.rows import reading
from edge_client.data.samples import Request, Samples, named
from wire.engine import Array
from wire.errors import DataError
from wire.limits import LIMITS

__all__ = ["ImageRows", "read_folder"]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
# What Pillow raises for damaged files of the formats below.
_DECODING = (OSError, ValueError, EOFError, SyntaxError, TypeError, IndexError, OverflowError, struct.error)
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no EPS or the like, which start other programs


def read_folder(request: Request) -> Samples:
    """One split of images by class. Raises DataError."""
    root, config = request.path, request.config
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; `path` of kind 'folder' holds one folder of images for each class")
    names = config.classes or _class_names(request)
    found = [(f"{name}/{file}", number) for number, name in enumerate(names) for file in _images(root / name)]
    unknown = sorted(set(_folders(root)) - set(names))
    if unknown:
        raise DataError(f"{root} has the folder {unknown[0]!r}, which is no training class; list it in `classes` or move it away")
    if not found:
        raise DataError(f"{root} has no images ({', '.join(sorted(_SUFFIXES))}) in the folder of any class")
    picked = request.pick(len(found), lambda: np.array([number for _, number in found], np.int64))
    files = [found[row][0] for row in picked.tolist()]
    target = None if config.target == "none" else np.array([found[row][1] for row in picked.tolist()], np.int64)
    channels = config.channels or 3
    rows = ImageRows(root, files, config.image_size, channels)
    return Samples(
        rows=rows,
        layout="NHWC" if channels == 3 else "NHW",
        target=target,
        ids=named([Path(file).stem for file in files] if request.id_column else files, root, "names of files"),
        classes=None if target is None else len(names),
    )


class ImageRows:
    """Images decoded when they are asked for: uint8 [n, height, width, 3], or [n, height, width] with one channel.

    With ``size`` (height, width) None all must be as large as the first; otherwise they are scaled (bilinear).
    """

    def __init__(self, root: Path, files: list[str], size: tuple[int, int] | None, channels: int) -> None:
        self._root = root
        self._files = files
        self._resize = size is not None
        self._mode = "RGB" if channels == 3 else "L"
        self._image = _pillow()
        self._size = size or self._decode(files[0], None).shape[:2]

    def __len__(self) -> int:
        return len(self._files)

    def take(self, at: NDArray[np.int64]) -> Array:
        shape = (*self._size, 3) if self._mode == "RGB" else self._size
        images = np.empty((len(at), *shape), np.uint8)
        for image, place in zip(images, at.tolist(), strict=True):
            image[...] = self._decode(self._files[place], self._size)
        return images

    def _decode(self, file: str, size: tuple[int, ...] | None) -> NDArray[np.uint8]:
        path = self._root / file
        with reading(path):
            stream = path.open("rb")
        with stream:
            try:
                return self._pixels(stream, path, size)
            except (*_DECODING, self._image.DecompressionBombError) as exc:
                raise DataError(f"{path} cannot be decoded ({exc}); replace or remove it") from exc

    def _pixels(self, stream: Any, path: Path, size: tuple[int, ...] | None) -> NDArray[np.uint8]:
        with self._image.open(stream, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > LIMITS.tensor_elements:
                raise DataError(f"{path} has {width} x {height} pixels; the limit is {LIMITS.tensor_elements} (LIMITS.tensor_elements)")
            if size is not None and (height, width) != tuple(size):
                if not self._resize:
                    raise DataError(f"{path} is {height} x {width}, the first image {size[0]} x {size[1]}; set `image_size` to scale them")
                image.draft(self._mode, (size[1], size[0]))  # a JPEG is decoded no larger than needed
                resized = image.convert(self._mode).resize((size[1], size[0]), self._image.Resampling.BILINEAR)
                return np.asarray(resized, np.uint8)
            return np.asarray(image.convert(self._mode), np.uint8)


def _pillow() -> ModuleType:
    """Pillow is an extra: only this kind of data needs it."""
    try:
        from PIL import Image
    except ImportError as exc:
        raise DataError("data of kind 'folder' needs Pillow, which is not installed; run `pip install pillow`") from exc
    return Image


def _class_names(request: Request) -> tuple[str, ...]:
    """The training folder's, for all splits alike: a class that has no test images must not change the numbers of the others."""
    if not request.train_path.is_dir():
        raise DataError(f"{request.train_path} does not exist, so the classes are not known; list their names with `classes`")
    return _folders(request.train_path)


def _folders(root: Path) -> tuple[str, ...]:
    with reading(root):
        return tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _images(folder: Path) -> list[str]:
    """Image files of one class, by their path inside its folder, sorted. A class may be missing here, but its folder not be empty."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        found += [Path(parent, name).relative_to(folder).as_posix() for name in files if Path(name).suffix.lower() in _SUFFIXES]
    if not found and folder.is_dir():
        raise DataError(f"{folder} has no images ({', '.join(sorted(_SUFFIXES))}); fill or remove the folder of this class")
    return sorted(found)
