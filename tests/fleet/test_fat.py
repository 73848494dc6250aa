"""The FAT file system: what we write is what mtools and dosfstools read, and nothing else changes."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from fleet.flash.detect import open_boot
from fleet.flash.fat import FatVolume
from tests.fleet.images import BOOKWORM, SECTOR, START, fsck, make_image, mtools
from wire.errors import UsageError

NOW = datetime(2026, 3, 4, 5, 6, 8)
KINDS = {
    "fat32": {},
    "fat16": {"wide": False, "cluster_sectors": 4},
    "gpt": {"table": "gpt"},
    "fat32-1k": {"cluster_sectors": 2, "size_mb": 72},
}


@pytest.fixture(scope="module", params=KINDS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp(request.param) / "image.img", BOOKWORM, **KINDS[request.param])


@pytest.fixture
def image(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(published, tmp_path / "copy.img"))


def _apart(one: bytes, other: bytes, spans: list[tuple[int, int]]) -> list[int]:
    """Bytes outside the spans in which two images differ."""
    apart = np.frombuffer(one, dtype=np.uint8) != np.frombuffer(other, dtype=np.uint8)
    for start, count in spans:
        apart[start : start + count] = False
    found: list[int] = np.flatnonzero(apart).tolist()
    return found


def test_files_are_read_as_mtools_wrote_them(published: Path) -> None:
    with open(published, "rb") as file:
        volume = open_boot(file, name="image")
        for name in ("cmdline.txt", "LICENCE.broadcom", "bcm2712-rpi-cm5l-cm4io.dtb", "kernel8.img", "initramfs_2712"):
            assert volume.read(name, limit_bytes=1 << 20) == mtools("mtype", published, f"::{name}"), name
        assert set(volume.entries()) == {name.partition("/")[0].lower() for name in BOOKWORM}
        assert volume.entries()["overlays"].folder


def test_others_read_what_we_write_and_all_else_is_as_it_was(published: Path, image: Path, tmp_path: Path) -> None:
    before = published.read_bytes()
    files = {"cutlayer-payload.tar": os.urandom(3_000_001), "user-data": b"#cloud-config\n", "cmdline.txt": b"x" * 5000, "empty": b""}
    with open(image, "r+b") as file:
        volume = open_boot(file, name="image")
        for name, data in files.items():
            volume.write(name, data, now=NOW)
        free, touched = volume.free_bytes, volume.touched
    after = image.read_bytes()
    assert len(after) == len(before)
    assert _apart(before, after, touched) == []
    for name, data in files.items():
        assert mtools("mtype", image, f"::{name}") == data, name
    for name in ("kernel8.img", "overlays/act-led.dtbo", "config.txt", "LICENCE.broadcom"):
        assert mtools("mtype", image, f"::{name}") == mtools("mtype", published, f"::{name}"), name
    listing = mtools("mdir", image, "-f", "-a", "::/").decode()
    assert "2026-03-04   5:06" in listing
    fsck(image, tmp_path)
    with open(image, "rb") as file:
        again = open_boot(file, name="image")
        assert again.free_bytes == free
        assert {name: again.read(name, limit_bytes=1 << 22) for name in files} == files


def test_only_the_table_the_folder_and_free_clusters_are_touched(image: Path) -> None:
    """What a file held that is replaced stays, and so does the partition behind."""
    with open(image, "r+b") as file:
        volume = open_boot(file, name="image")
        old = volume.read("kernel8.img", limit_bytes=1 << 20)
        place = image.read_bytes().find(old[:512])
        volume.write("kernel8.img", b"short", now=NOW)
    data = image.read_bytes()
    assert data.find(old[:512]) == place
    assert all(at >= START * SECTOR and at + count <= len(data) - 4096 * SECTOR for at, count in volume.touched)


def test_a_root_that_is_full_grows_and_what_does_not_fit_changes_nothing(image: Path, tmp_path: Path) -> None:
    with open(image, "r+b") as file:
        volume = open_boot(file, name="image")
        names = [f"a-rather-long-name-of-a-file-{at}.text" for at in range(60)]
        for name in names:
            volume.write(name, name.encode(), now=NOW)
        file.flush()
        before = image.read_bytes()
        with pytest.raises(UsageError, match=r"takes \d+ bytes, and the boot partition of image has \d+ free"):
            volume.write("big", bytes(volume.free_bytes), now=NOW)
        file.flush()
    assert image.read_bytes() == before
    assert all(mtools("mtype", image, f"::{name}") == name.encode() for name in names)
    fsck(image, tmp_path)


def test_a_partition_is_filled_to_its_last_cluster_but_one_and_emptied(image: Path, tmp_path: Path) -> None:
    with open(image, "r+b") as file:
        volume = open_boot(file, name="image")
        free = volume.free_bytes
        cluster = volume._layout.cluster_bytes
        volume.write("big", b"\1" * (free - cluster), now=NOW)
        assert volume.free_bytes == cluster
        volume.write("big", b"", now=NOW)
        assert volume.free_bytes in (free, free - cluster)  # the root may have grown
    fsck(image, tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", "ein ä", "x" * 65, "a\0b", "CON:"])
def test_names_that_are_not_plain_are_refused(image: Path, name: str) -> None:
    with open(image, "r+b") as file, pytest.raises(UsageError, match="cannot be a file of the boot partition"):
        open_boot(file, name="image").write(name, b"x", now=NOW)


def test_a_folder_is_not_overwritten(image: Path) -> None:
    with open(image, "r+b") as file:
        volume: FatVolume = open_boot(file, name="image")
        with pytest.raises(UsageError, match="overlays is a folder"):
            volume.write("overlays", b"x", now=NOW)
        with pytest.raises(UsageError, match="has no file overlays"):
            volume.read("overlays", limit_bytes=10)
        with pytest.raises(UsageError, match=r"kernel8.img .* has 900000 bytes, more than the 10"):
            volume.read("kernel8.img", limit_bytes=10)
