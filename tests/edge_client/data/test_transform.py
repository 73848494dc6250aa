from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_client.data import DataSource, open_source
from edge_client.data.transform import Transform
from wire.data_config import Augment, DataConfig, Normalize
from wire.engine import Array
from wire.errors import DataError
from wire.feed import Batch

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
SHAPES: dict[Any, tuple[int, ...]] = {"NF": (5,), "NCL": (3, 7), "NHW": (4, 6), "NHWC": (4, 6, 3), "NCHW": (3, 4, 6)}
IMAGES = ("NHW", "NHWC", "NCHW")


def transform(example: Array, layout: Any = "NCHW", **keys: Any) -> Transform:
    return Transform(DataConfig(kind="npz", path="x", **keys), layout, example[:1])


def apply(raw: Array, layout: Any = "NCHW", seed: int | None = None, **keys: Any) -> NDArray[np.float32]:
    """``seed``: that of the augmentation; None is evaluation."""
    return transform(raw, layout, **keys)(raw, None if seed is None else np.random.default_rng(seed))


def pixels(n: int = 64, channels: int = 3, height: int = 4, width: int = 6) -> NDArray[np.uint8]:
    """No pixel is 0, so that padding shows."""
    return np.random.default_rng(n).integers(1, 256, (n, channels, height, width), dtype=np.uint8)


# ---------------------------------------------------------------- numbers


def test_scale_and_normalize_are_exact_for_every_pixel_value() -> None:
    raw = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    values = apply(raw, normalize=Normalize(mean=(0.2860,), std=(0.3530,)))
    wanted = [(np.float32(value) / np.float32(255) - np.float32(0.2860)) / np.float32(0.3530) for value in range(256)]
    assert values.dtype == np.float32
    assert values.ravel().tolist() == [float(value) for value in wanted]


def test_the_arithmetic_is_that_of_torchvision_to_the_last_bit() -> None:
    """ToTensor is ``div(255)``, Normalize ``sub_(mean).div_(std)``."""
    raw = pixels()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    wanted = torch.from_numpy(raw).float().div(255).sub_(mean).div_(std).numpy()
    assert np.array_equal(apply(raw, normalize=Normalize(mean=MEAN, std=STD)), wanted)
    assert np.array_equal(apply(raw.transpose(0, 2, 3, 1), "NHWC", normalize=Normalize(mean=MEAN, std=STD)), wanted)


@pytest.mark.parametrize(
    ("layout", "dtype", "scale", "divisor"),
    [
        *((layout, "u1", None, 255) for layout in IMAGES),
        *((layout, "u1", None, 1) for layout in ("NF", "NCL")),
        *((layout, dtype, None, 1) for layout in IMAGES for dtype in ("u2", "i1", ">i4", "f4", "f8", "?")),
        *((layout, dtype, 16.0, 16) for layout in SHAPES for dtype in ("u1", "f8")),
        ("NHW", "u1", 1.0, 1),
    ],
)
def test_eight_bit_images_alone_are_divided_by_255_unless_told_otherwise(
    layout: Any, dtype: str, scale: float | None, divisor: int
) -> None:
    raw = np.random.default_rng(0).integers(0, 100, (3, *SHAPES[layout])).astype(dtype)
    values = apply(raw, layout, scale=scale)
    moved = raw.transpose(0, 3, 1, 2) if layout == "NHWC" else raw
    assert values.dtype == np.float32
    assert np.array_equal(values.ravel(), moved.astype(np.float32).ravel() / np.float32(divisor))


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("single", [False, True])
def test_each_channel_or_column_has_its_own_statistics(layout: Any, single: bool) -> None:
    raw = np.random.default_rng(0).standard_normal((8, *SHAPES[layout])).astype(np.float32)
    plain = apply(raw, layout)
    channels = plain.shape[1]
    mean, std = [0.5 * (n + 1) for n in range(channels)], [1.0 + n for n in range(channels)]
    if single:
        mean, std = [mean[0]] * channels, [3.0] * channels
    keys = Normalize(mean=tuple(mean[:1] if single else mean), std=tuple(std[:1] if single else std))
    values = apply(raw, layout, normalize=keys)
    assert values.shape == plain.shape
    for channel in range(channels):
        assert np.array_equal(values[:, channel], (plain[:, channel] - np.float32(mean[channel])) / np.float32(std[channel]))


@pytest.mark.parametrize(
    ("layout", "given", "names"),
    [
        ("NCHW", 2, "`normalize` has 2 numbers, but samples have 3 channels; give 1 or 3"),
        ("NHWC", 4, "`normalize` has 4 numbers, but samples have 3 channels; give 1 or 3"),
        ("NHW", 4, "`normalize` has 4 numbers, but samples have 1 channels; give 1 or 1"),
        ("NCL", 7, "`normalize` has 7 numbers, but samples have 3 channels; give 1 or 3"),
        ("NF", 4, "`normalize` has 4 numbers, but samples have 5 columns; give 1 or 5"),
    ],
)
def test_a_wrong_number_of_channels_is_refused(layout: Any, given: int, names: str) -> None:
    with pytest.raises(DataError) as caught:
        transform(np.zeros((1, *SHAPES[layout])), layout, normalize=Normalize(mean=(0.5,) * given, std=(1.0,) * given))
    assert str(caught.value) == names


@pytest.mark.parametrize(
    ("layout", "shape", "gives"),
    [
        ("NF", (5,), (5,)),
        ("NCL", (7,), (1, 7)),
        ("NCL", (3, 7), (3, 7)),
        ("NHW", (4, 6), (1, 4, 6)),
        ("NHWC", (4, 6, 3), (3, 4, 6)),
        ("NCHW", (3, 4, 6), (3, 4, 6)),
    ],
)
@pytest.mark.parametrize("seed", [None, 0])
def test_layouts(layout: Any, shape: tuple[int, ...], gives: tuple[int, ...], seed: int | None) -> None:
    """Channels first and one after the other in memory, as a network takes them; the records themselves stay as they are."""
    raw = np.random.default_rng(0).random((9, *shape)).astype(np.float32)
    before = raw.tobytes()
    augment = Augment(flip=True, crop_padding=2, noise=0.1) if layout in IMAGES else Augment(noise=0.1)
    applied = transform(raw, layout, scale=2.0, normalize=Normalize(mean=(0.1,), std=(3.0,)), augment=augment)
    values = applied(raw, None if seed is None else np.random.default_rng(seed))
    assert applied.shape == gives
    assert values.shape == (9, *gives)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert raw.tobytes() == before


# ---------------------------------------------------------------- augmentation


def test_a_flip_mirrors_half_of_the_images_left_to_right() -> None:
    raw = pixels(400)
    values = apply(raw, seed=0, scale=1.0, augment=Augment(flip=True))
    mirrored = np.array([np.array_equal(value, image[:, :, ::-1]) for value, image in zip(values, raw, strict=True)])
    kept = np.array([np.array_equal(value, image) for value, image in zip(values, raw, strict=True)])
    assert (mirrored ^ kept).all()
    assert abs(mirrored.sum() - 200) < 5 * 10  # 5 standard deviations
    assert not np.array_equal(values, apply(raw, seed=1, scale=1.0, augment=Augment(flip=True)))


@pytest.mark.parametrize("padding", [1, 2, 5])
def test_a_crop_is_a_window_of_the_padded_image(padding: int) -> None:
    raw = pixels(600)
    values = apply(raw, seed=0, scale=1.0, augment=Augment(crop_padding=padding))
    padded = np.pad(raw, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    found = []
    for value, image in zip(values, padded, strict=True):
        places = product(range(2 * padding + 1), repeat=2)
        found.append([place for place in places if np.array_equal(value, image[:, place[0] : place[0] + 4, place[1] : place[1] + 6])])
    assert all(found)
    reached = {place for places in found for place in places if len(places) == 1}
    assert padding == 5 or len(reached) == (2 * padding + 1) ** 2  # every window, up, down, left and right


@given(st.integers(0, 2**32), st.booleans(), st.integers(0, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_crops_and_flips_keep_every_shape(seed: int, flip: bool, padding: int, channels: int, height: int, width: int) -> None:
    raw = pixels(7, channels, height, width)
    values = apply(raw, seed=seed, scale=1.0, augment=Augment(flip=flip, crop_padding=padding))
    assert values.shape == raw.shape
    for value, image in zip(values, raw, strict=True):
        assert set(value.ravel().tolist()) <= {0, *image.ravel().tolist()}
        assert len({channel.tobytes() for channel in value == 0}) == 1  # all channels moved together


def test_padding_is_black_before_it_is_normalised() -> None:
    raw = np.full((50, 1, 3, 3), 255, np.uint8)
    values = apply(raw, seed=0, normalize=Normalize(mean=(0.25,), std=(0.5,)), augment=Augment(crop_padding=1))
    assert set(values.ravel().tolist()) == {-0.5, 1.5}


@pytest.mark.parametrize("layout", SHAPES)
def test_noise_is_gaussian_and_comes_after_normalisation(layout: Any) -> None:
    raw = np.full((4000, *SHAPES[layout]), 7.0)
    values = apply(raw, layout, seed=0, normalize=Normalize(mean=(2.0,), std=(100.0,)), augment=Augment(noise=0.5)).astype(np.float64)
    noise = values - 0.05
    error = 0.5 / np.sqrt(noise.size)
    assert abs(noise.mean()) < 5 * error
    assert abs(noise.std() - 0.5) < 5 * error / np.sqrt(2)
    assert abs((np.abs(noise) < 0.5).mean() - 0.6827) < 0.02
    assert len(np.unique(values)) > 0.99 * values.size  # each number has its own


@pytest.mark.parametrize("layout", ["NF", "NCL"])
@pytest.mark.parametrize("augment", [Augment(flip=True), Augment(crop_padding=1)])
def test_only_images_can_be_flipped_and_cropped(layout: Any, augment: Augment) -> None:
    shape = r"\[5\]" if layout == "NF" else r"\[3, 7\]"
    with pytest.raises(
        DataError, match=rf"`augment` has `flip` or `crop_padding`, which need images; these samples have the shape {shape}"
    ):
        transform(np.zeros((1, *SHAPES[layout])), layout, augment=augment)


@pytest.mark.parametrize("layout", SHAPES)
def test_without_augmentation_training_is_as_evaluation(layout: Any) -> None:
    raw = np.random.default_rng(0).random((5, *SHAPES[layout]))
    normalize = Normalize(mean=(0.3,), std=(2.0,))
    assert np.array_equal(apply(raw, layout, seed=0, normalize=normalize), apply(raw, layout, normalize=normalize))


# ---------------------------------------------------------------- what it is drawn by

ALL = Augment(flip=True, crop_padding=2, noise=0.1)


def open_images(path: Path, split: Any = "train", memory_bytes: int = 1 << 20, augment: Augment = ALL, **keys: Any) -> DataSource:
    how = {"seed": 0, "segment": "bottom", "lane": 0, "batch_size": 4, **keys}
    config = DataConfig(kind="npz", path=str(path), target="none", layout="NCHW", augment=augment, validation_fraction=0.25)
    return open_source(config, split, memory_bytes=memory_bytes, **how)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x_train=pixels(16), x_test=pixels(5))
    return tmp_path / "d.npz"


def clean(batch: Batch) -> NDArray[np.float32]:
    """The batch's images as they are."""
    rows = [int(name.split("#")[1]) for name in batch.ids]
    return pixels(16)[rows].astype(np.float32) / np.float32(255)


def test_training_is_augmented_and_evaluation_is_not(file: Path) -> None:
    train = open_images(file).batch(0, 0)
    assert not np.array_equal(train.inputs[0], clean(train))
    held = open_images(file, "validation").batch(0, 0)
    assert np.array_equal(held.inputs[0], clean(held))
    test = open_images(file, "test", batch_size=5).batch(3, 0)
    assert np.array_equal(test.inputs[0], pixels(5).astype(np.float32) / np.float32(255))


def test_augmentation_is_drawn_anew_for_every_sample_of_every_epoch(file: Path) -> None:
    np.savez(file, x_train=np.full((16, 3, 4, 6), 128, np.uint8))  # one image, so that what differs is the noise
    source = open_images(file, augment=Augment(noise=0.1))
    drawn = [image.tobytes() for epoch, index in product(range(3), range(3)) for image in source.batch(epoch, index).inputs[0]]
    assert len(drawn) == len(set(drawn)) == 3 * 12


def test_a_restart_draws_the_same(file: Path) -> None:
    """Whatever was asked for before, and wherever the records are held."""
    source = open_images(file)
    batches = {(epoch, index): source.batch(epoch, index).inputs[0].tobytes() for epoch in range(2) for index in range(3)}
    assert len(set(batches.values())) == 6
    for (epoch, index), wanted in reversed(batches.items()):
        assert open_images(file).batch(epoch, index).inputs[0].tobytes() == wanted
        assert open_images(file, memory_bytes=0).batch(epoch, index).inputs[0].tobytes() == wanted


@pytest.mark.parametrize("keys", [{"seed": 1}, {"segment": "other"}, {"lane": 1}])
def test_seed_segment_and_lane_each_change_what_is_drawn(file: Path, keys: dict[str, Any]) -> None:
    np.savez(file, x_train=np.full((16, 3, 4, 6), 128, np.uint8))  # one image, so that the order does not matter
    drawn, again, other = (open_images(file, augment=Augment(noise=0.1), **more).batch(0, 0).inputs[0] for more in ({}, {}, keys))
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, other)
