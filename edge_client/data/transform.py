"""From records as they lie in a file to what a network takes: float32, scaled, augmented, normalised.

The order of the arithmetic is that of torchvision's ToTensor, RandomCrop, RandomHorizontalFlip and Normalize, to the last bit.
Shapes: N batch, C channels, H height, W width, L length, F features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_client.data.samples import Layout
from wire.data_config import Augment, DataConfig, Normalize
from wire.engine import Array
from wire.errors import DataError

__all__ = ["Transform"]


class Transform:
    """``[data]``'s scale, normalisation and augmentation for samples of one layout and shape.

    Raises DataError on construction where they do not fit the samples.
    """

    def __init__(self, config: DataConfig, layout: Layout, example: Array) -> None:
        """``example`` is any batch of raw records, for its dtype and shape."""
        self._layout: Layout = layout
        self._augment = config.augment
        is_image = layout in ("NHW", "NHWC", "NCHW")
        self._scale = np.float32(config.scale or (255 if is_image and example.dtype == np.uint8 else 1))
        self.shape = _arrange(example, layout).shape[1:]
        if (config.augment.flip or config.augment.crop_padding) and not is_image:
            raise DataError(f"`augment` has `flip` or `crop_padding`, which need images; these samples have the shape {list(self.shape)}")
        self._statistics = self._spread(config)

    def _spread(self, config: DataConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Mean and standard deviation, shaped to be applied to a batch."""
        if config.normalize == Normalize():
            return None
        given = len(config.normalize.mean)
        if given not in (1, self.shape[0]):
            what = "columns" if len(self.shape) == 1 else "channels"
            raise DataError(f"`normalize` has {given} numbers, but samples have {self.shape[0]} {what}; give 1 or {self.shape[0]}")
        spread = (-1,) + (1,) * (len(self.shape) - 1)
        return np.array(config.normalize.mean, np.float32).reshape(spread), np.array(config.normalize.std, np.float32).reshape(spread)

    def __call__(self, raw: Array, rng: np.random.Generator | None) -> NDArray[np.float32]:
        """Records [N, ...] as float32 [N, F], [N, C, L] or [N, C, H, W]; augmented if there is an ``rng``."""
        values = np.array(_arrange(raw, self._layout), np.float32, order="C")
        if self._scale != 1:
            values /= self._scale
        if rng is not None:
            values = _move(values, self._augment, rng)
        if self._statistics is not None:
            values -= self._statistics[0]
            values /= self._statistics[1]
        if rng is not None and self._augment.noise:
            values += rng.standard_normal(values.shape, np.float32) * np.float32(self._augment.noise)
        return values


def _arrange(raw: Array, layout: Layout) -> Array:
    if layout == "NHW" or (layout == "NCL" and raw.ndim == 2):
        return raw[:, None]
    return raw.transpose(0, 3, 1, 2) if layout == "NHWC" else raw


def _move(images: NDArray[np.float32], augment: Augment, rng: np.random.Generator) -> NDArray[np.float32]:
    """Random crops and flips of float32 [N, C, H, W]."""
    n, _, height, width = images.shape if images.ndim == 4 else (len(images), 0, 0, 0)
    if augment.crop_padding:
        pad = augment.crop_padding
        top, left = rng.integers(0, 2 * pad + 1, size=(2, n))
        padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        images = windows[np.arange(n), :, top, left]
    if augment.flip:
        flipped = rng.integers(0, 2, size=n).astype(bool)
        images[flipped] = images[flipped, :, :, ::-1]
    return images
