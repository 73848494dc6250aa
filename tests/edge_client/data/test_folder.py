from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edge_client.data import DataSource, open_source
from wire.data_config import DataConfig, DataSplit
from wire.engine import Array
from wire.errors import DataError


def rgb(height: int = 4, width: int = 6, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: Array, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def animals(folder: Path) -> dict[str, Array]:
    """Four pictures in three classes, by id; written in another order than that of their names."""
    names = ["dog/z.png", "ant/2.png", "cat/x.png", "ant/1.png"]
    pictures = {name: rgb(seed=seed) for seed, name in enumerate(names)}
    for name, pixels in pictures.items():
        save(folder / name, pixels)
    return dict(sorted(pictures.items()))


def open_folder(folder: Path, split: Any = "test", test: Path | None = None, **keys: Any) -> DataSource:
    own = DataSplit(path=str(test or folder))
    config = DataConfig(kind="folder", path=str(folder), **{"scale": 1.0, "test": own, **keys})
    return open_source(config, split, seed=0, segment="bottom", lane=0, batch_size=64)


def first(source: DataSource) -> NDArray[np.float32]:
    """The first image, [channels, height, width]."""
    return np.asarray(source.batch(0, 0).inputs[0][0], np.float32)


def test_ids_can_be_the_names_of_the_files(tmp_path: Path) -> None:
    animals(tmp_path)
    assert open_folder(tmp_path, id_column="name").batch(0, 0).ids == ("1", "2", "x", "z")
    save(tmp_path / "dog" / "1.png", rgb())
    with pytest.raises(DataError, match="1 samples with an id that another one has"):
        open_folder(tmp_path, id_column="name")
    assert open_folder(tmp_path).samples == 5


def test_classes_are_numbered_by_name_and_ids_are_paths(tmp_path: Path) -> None:
    pictures = animals(tmp_path)
    source = open_folder(tmp_path)
    batch = source.batch(0, 0)
    assert source.samples == 4
    assert source.classes == 3
    assert source.input_shapes == ((3, 4, 6),)
    assert batch.ids == ("ant/1.png", "ant/2.png", "cat/x.png", "dog/z.png")
    assert batch.target is not None
    assert batch.target.dtype == np.int64
    assert batch.target.tolist() == [0, 0, 1, 2]
    assert batch.inputs[0].dtype == np.float32
    assert np.array_equal(batch.inputs[0], np.stack(list(pictures.values())).transpose(0, 3, 1, 2))


def test_training_shuffles_pictures_labels_and_ids_together(tmp_path: Path) -> None:
    pictures = animals(tmp_path)
    batch = open_folder(tmp_path, "train").batch(0, 0)
    assert sorted(batch.ids) == list(pictures)
    assert batch.target is not None
    for image, name, label in zip(batch.inputs[0], batch.ids, batch.target.tolist(), strict=True):
        assert np.array_equal(image, pictures[name].transpose(2, 0, 1))
        assert label == ["ant", "cat", "dog"].index(name.split("/")[0])


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".ppm", ".tif", ".tiff"])
def test_formats_without_loss_are_exact(tmp_path: Path, suffix: str) -> None:
    pixels = rgb()
    save(tmp_path / f"a/x{suffix}", pixels)
    assert np.array_equal(first(open_folder(tmp_path)), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpegs_are_near(tmp_path: Path, suffix: str) -> None:
    pixels = np.full((16, 24, 3), (200, 100, 40), np.uint8)
    save(tmp_path / f"a/x{suffix}", pixels, quality=95)
    assert np.abs(first(open_folder(tmp_path)) - pixels.transpose(2, 0, 1)).max() <= 4


def test_images_are_scaled_to_one_unless_told_otherwise(tmp_path: Path) -> None:
    pixels = rgb()
    save(tmp_path / "a/x.png", pixels)
    inputs = first(open_folder(tmp_path, scale=None))
    assert np.array_equal(inputs, pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("size", [None, (4, 6)])
def test_grey_files_become_three_equal_channels_or_stay_one(tmp_path: Path, size: Any) -> None:
    grey = rgb()[:, :, 0]
    save(tmp_path / "a/x.png", grey)
    three, one = open_folder(tmp_path, image_size=size), open_folder(tmp_path, channels=1, image_size=size)
    assert three.input_shapes == ((3, 4, 6),)
    assert one.input_shapes == ((1, 4, 6),)
    assert np.array_equal(first(three), np.stack([grey] * 3))
    assert np.array_equal(first(one), grey[None])


def test_colours_become_luminance_with_one_channel(tmp_path: Path) -> None:
    """ITU-R 601: 0.299 R + 0.587 G + 0.114 B."""
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    save(tmp_path / "a/x.png", pixels)
    assert np.abs(first(open_folder(tmp_path, channels=1))[0, 0] - np.array([76.2, 149.7, 29.1, 255])).max() <= 1


def test_palettes_become_colours(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pixels = np.array([[[255, 0, 0], [0, 0, 255]], [[0, 0, 255], [255, 0, 0]]], np.uint8)
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=2).save(tmp_path / "a/x.png")
    assert np.array_equal(first(open_folder(tmp_path)), pixels.transpose(2, 0, 1))


def test_image_size_is_height_then_width(tmp_path: Path) -> None:
    halves = np.zeros((12, 20, 3), np.uint8)
    halves[:, 10:] = 240
    save(tmp_path / "a/x.png", halves)
    source = open_folder(tmp_path, image_size=(3, 10))
    assert source.input_shapes == ((3, 3, 10),)
    image = first(source)
    assert image[:, :, :4].max() == 0
    assert image[:, :, 6:].min() == 240


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_images_are_brought_to_image_size(tmp_path: Path, suffix: str, channels: Any) -> None:
    """A plain colour stays that colour whether it grows or shrinks; a JPEG is decoded at a fraction of its size."""
    for number, (height, width) in enumerate([(3, 5), (8, 8), (160, 200), (8, 200)]):
        save(tmp_path / f"a/{number}.{suffix}", np.full((height, width, 3), 50 * number + 30, np.uint8))
    inputs = open_folder(tmp_path, image_size=(8, 8), channels=channels).batch(0, 0).inputs[0]
    assert inputs.shape == (4, channels, 8, 8)
    assert np.abs(np.subtract(inputs, np.array([30, 80, 130, 180], np.float32).reshape(4, 1, 1, 1))).max() <= 2


def stripes(width: int) -> Array:
    """64 x 64, black and light columns in turn."""
    return np.repeat(np.where(np.arange(64) // width % 2, 200, 0)[None], 64, axis=0).astype(np.uint8)


def test_scaling_down_takes_all_pixels_into_account(tmp_path: Path) -> None:
    save(tmp_path / "a/x.png", stripes(1))
    assert np.abs(first(open_folder(tmp_path, image_size=(16, 16)))[:, :, 2:-2] - 100).max() < 10


def test_a_jpeg_is_not_decoded_smaller_than_needed(tmp_path: Path) -> None:
    save(tmp_path / "a/x.jpg", stripes(4), quality=95)
    image = first(open_folder(tmp_path, image_size=(32, 32)))
    assert np.abs(image - stripes(4)[::2, ::2]).max() < 40  # an eighth of its size would be grey all over


def test_an_image_that_has_the_size_is_not_touched(tmp_path: Path) -> None:
    pixels = rgb()
    save(tmp_path / "a/x.png", pixels)
    assert np.array_equal(first(open_folder(tmp_path, image_size=(4, 6))), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("other", [(6, 4), (4, 7), (5, 6)])
def test_sizes_that_differ_need_image_size(tmp_path: Path, other: tuple[int, int]) -> None:
    save(tmp_path / "a/1.png", rgb(4, 6))
    save(tmp_path / "a/2.png", rgb(*other))
    source = open_folder(tmp_path)
    with pytest.raises(DataError, match=f"2.png is {other[0]} x {other[1]}, the first image 4 x 6; set `image_size` to scale them"):
        source.batch(0, 0)
    assert open_folder(tmp_path, image_size=(4, 6)).batch(0, 0).inputs[0].shape == (2, 3, 4, 6)


def test_an_undecodable_file_is_named_when_its_batch_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", rgb())
    (tmp_path / "a/2.png").write_text("not a picture")
    source = open_folder(tmp_path)
    with pytest.raises(DataError, match=r"a/2\.png cannot be decoded \(.*\); replace or remove it"):
        source.batch(0, 0)
    (tmp_path / "a/1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a/1\.png cannot be decoded"):
        open_folder(tmp_path)


def test_a_program_disguised_as_a_picture_is_not_run(tmp_path: Path) -> None:
    """PostScript would be handed to Ghostscript."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"a/x\.png cannot be decoded \(cannot identify image file"):
        open_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a/x.{suffix}"
    save(path, rgb(20, 30))
    whole = path.read_bytes()
    for size in range(0, len(whole) - 20, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="cannot be decoded"):
            open_folder(tmp_path, image_size=(4, 6))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_changed_anywhere_gives_an_image_or_one_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a/x.{suffix}"
    save(path, rgb())
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            assert open_folder(tmp_path, image_size=(4, 6)).batch(0, 0).inputs[0].shape == (1, 3, 4, 6)
        except DataError as exc:
            assert "\n" not in str(exc)  # noqa: PT017 - or there is an image
            refused += 1
    assert refused


def png_of_size(height: int, width: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("height", "width", "names"),
    [(8500, 9000, "9000 x 8500 pixels; the limit is 67108864"), (60000, 60000, "cannot be decoded .*decompression bomb")],
)
def test_dimensions_are_checked_before_anything_is_decoded(tmp_path: Path, height: int, width: int, names: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_bytes(png_of_size(height, width))
    with pytest.raises(DataError, match=names):
        open_folder(tmp_path)


def test_a_file_that_goes_while_it_is_used_is_named(tmp_path: Path) -> None:
    animals(tmp_path)
    source = open_folder(tmp_path)
    (tmp_path / "cat/x.png").unlink()
    with pytest.raises(DataError, match=r"cat/x\.png does not exist"):
        source.batch(0, 0)


def test_a_class_without_test_images_does_not_renumber_the_others(tmp_path: Path) -> None:
    animals(tmp_path / "train")
    save(tmp_path / "test/dog/1.png", rgb())
    save(tmp_path / "test/cat/1.png", rgb())
    source = open_folder(tmp_path / "train", test=tmp_path / "test")
    batch = source.batch(0, 0)
    assert source.classes == 3
    assert batch.ids == ("cat/1.png", "dog/1.png")
    assert batch.target is not None
    assert batch.target.tolist() == [1, 2]


def test_a_test_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    animals(tmp_path / "train")
    save(tmp_path / "test/cat/1.png", rgb())
    save(tmp_path / "test/emu/1.png", rgb())
    with pytest.raises(DataError, match="test has the folder 'emu', which is no training class; list it in `classes` or move it away"):
        open_folder(tmp_path / "train", test=tmp_path / "test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_is_refused(tmp_path: Path, split: str) -> None:
    animals(tmp_path)
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee/notes.txt").write_text("none yet")
    with pytest.raises(DataError, match=r"bee has no images \(\.bmp, .*\); fill or remove the folder of this class"):
        open_folder(tmp_path, split)


def test_class_names_that_are_given_number_the_folders(tmp_path: Path) -> None:
    """A party that lacks a class still numbers the others as all do."""
    animals(tmp_path)
    source = open_folder(tmp_path, classes=("dog", "emu", "cat", "ant"))
    batch = source.batch(0, 0)
    assert source.classes == 4
    assert batch.ids == ("dog/z.png", "cat/x.png", "ant/1.png", "ant/2.png")
    assert batch.target is not None
    assert batch.target.tolist() == [0, 2, 3, 3]
    with pytest.raises(DataError, match="has the folder 'cat', which is no training class"):
        open_folder(tmp_path, "train", classes=("dog", "ant"))


def test_given_class_names_make_the_training_folder_unnecessary(tmp_path: Path) -> None:
    save(tmp_path / "test/cat/1.png", rgb())
    with pytest.raises(DataError, match="train does not exist, so the classes are not known; list their names with `classes`"):
        open_folder(tmp_path / "train", test=tmp_path / "test")
    batch = open_folder(tmp_path / "train", test=tmp_path / "test", classes=("ant", "cat")).batch(0, 0)
    assert batch.target is not None
    assert batch.target.tolist() == [1]


def test_hidden_folders_and_files_beside_the_classes_are_no_classes(tmp_path: Path) -> None:
    pictures = animals(tmp_path)
    save(tmp_path / ".thumbnails/1.png", rgb())
    (tmp_path / ".empty").mkdir()
    save(tmp_path / "cover.png", rgb())
    (tmp_path / "cat/notes.txt").write_text("tabby")
    source = open_folder(tmp_path)
    assert source.classes == 3
    assert source.batch(0, 0).ids == tuple(pictures)


def test_folders_inside_a_class_belong_to_it(tmp_path: Path) -> None:
    animals(tmp_path)
    save(tmp_path / "cat/2024/spring/1.png", rgb())
    save(tmp_path / "cat/a/1.png", rgb())
    batch = open_folder(tmp_path).batch(0, 0)
    assert batch.ids == ("ant/1.png", "ant/2.png", "cat/2024/spring/1.png", "cat/a/1.png", "cat/x.png", "dog/z.png")
    assert batch.target is not None
    assert batch.target.tolist() == [0, 0, 1, 1, 1, 2]


def test_shards_keep_ids_labels_and_class_numbers(tmp_path: Path) -> None:
    pictures = animals(tmp_path)
    for shard, names, labels in (("1/2", ["ant/1.png", "cat/x.png"], [0, 1]), ("2/2", ["ant/2.png", "dog/z.png"], [0, 2])):
        source = open_folder(tmp_path, shard=shard)
        batch = source.batch(0, 0)
        assert source.classes == 3
        assert list(batch.ids) == names
        assert batch.target is not None
        assert batch.target.tolist() == labels
        assert np.array_equal(batch.inputs[0], np.stack([pictures[name].transpose(2, 0, 1) for name in names]))


def test_without_a_target_there_are_images_and_ids(tmp_path: Path) -> None:
    animals(tmp_path)
    source = open_folder(tmp_path, target="none")
    assert source.classes is None
    assert source.batch(0, 0).target is None
    assert len(source.batch(0, 0).ids) == 4


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.png", rgb())
    with pytest.raises(DataError, match=r"has no images \(\.bmp, .*\) in the folder of any class"):
        open_folder(tmp_path)
    with pytest.raises(DataError, match=r"x\.png is not a folder; `path` of kind 'folder' holds one folder of images for each class"):
        open_folder(tmp_path / "x.png")
    with pytest.raises(DataError, match="nowhere is not a folder"):
        open_folder(tmp_path / "nowhere", "train")
