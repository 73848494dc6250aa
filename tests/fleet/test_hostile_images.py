"""Images that are truncated, damaged or made to hurt: each is one line, never a traceback, an endless loop or a file full of memory."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.flash.detect import check_untouched, find_format, open_boot
from fleet.flash.partitions import read_partitions
from tests.fleet.images import BOOKWORM, SECTOR, START, TRIXIE, make_image, mtools
from wire.errors import UsageError

BOOT = START * SECTOR


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_image(tmp_path_factory.mktemp("good") / "image.img", BOOKWORM, size_mb=40).read_bytes()


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_image(tmp_path_factory.mktemp("gpt") / "image.img", BOOKWORM, table="gpt", size_mb=40).read_bytes()


def _open(data: bytes, folder: Path) -> None:
    path = folder / "image.img"
    path.write_bytes(data)
    with open(path, "rb") as file:
        volume = open_boot(file, name="image.img")
        find_format(volume, name="image.img", wanted=None)
        check_untouched(volume, name="image.img", files={})


def _with(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


@pytest.mark.parametrize(
    ("what", "at", "new", "said"),
    [
        ("no table", 510, b"\0\0", "has no partition table"),
        ("empty table", 446, bytes(64), "is empty"),
        ("partition over the table", 446 + 8, _u32(0), "lies over the partition table"),
        ("partition past the end", 446 + 12, _u32(0xFFFFFFFF), "it is cut off"),
        ("no FAT type", 446 + 4, b"\x83", "no FAT partition"),
        ("no boot sector", BOOT + 510, b"\0\0", "no FAT file system"),
        ("sectors of no bytes", BOOT + 11, b"\0\0", "no FAT file system"),
        ("clusters of three sectors", BOOT + 13, b"\3", "no FAT file system"),
        ("no reserved sectors", BOOT + 14, b"\0\0", "no FAT file system"),
        ("two hundred tables", BOOT + 16, b"\xc8", "no FAT file system"),
        ("a table of two terabytes", BOOT + 36, _u32(0xFFFFFFFF), "no FAT file system"),
        ("a table too short", BOOT + 36, _u32(1), "neither FAT16 nor FAT32"),
        ("more sectors than there are", BOOT + 32, _u32(0x7FFFFFFF), "fetch the image again"),
        ("one sector", BOOT + 32, _u32(1), "neither FAT16 nor FAT32"),
        ("one table of two", BOOT + 40, b"\x81\0", "keeps one file table of two"),
        ("root outside", BOOT + 44, _u32(0x0FFFFFF0), "leads astray"),
        ("root at zero", BOOT + 44, _u32(0), "leads astray"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_damaged_image_is_one_line(good: bytes, tmp_path: Path, what: str, at: int, new: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said) as told:
        _open(_with(good, at, new), tmp_path)
    assert "\n" not in str(told.value), what


def test_a_chain_that_goes_in_a_circle(good: bytes, tmp_path: Path) -> None:
    (reserved,) = struct.unpack_from("<H", good, BOOT + 14)
    table = BOOT + reserved * SECTOR
    with pytest.raises(UsageError, match="leads astray"):
        _open(_with(good, table + 4 * 2, _u32(2)), tmp_path)  # the root's first cluster leads to itself


@pytest.mark.parametrize("end", [0, 100, 511, 512, 4096, BOOT, BOOT + 300, BOOT + 40 * SECTOR, BOOT + (40 << 20) - 1])
def test_an_image_that_is_cut_off(good: bytes, gpt: bytes, tmp_path: Path, end: int) -> None:
    for data in (good, gpt):
        with pytest.raises(UsageError, match=r"cut off|no partition table"):
            _open(data[:end], tmp_path)


@pytest.mark.parametrize(
    ("at", "new", "said"),
    [
        (512, b"EFI FART", "there is none"),
        (512 + 12, _u32(4096), "there is none"),
        (512 + 16, b"\0", "checksum of the GPT of"),
        (1024 + 56, b"\xff", "checksum of the GPT's entries"),
    ],
)
def test_a_damaged_gpt_is_one_line(gpt: bytes, tmp_path: Path, at: int, new: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _open(_with(gpt, at, new), tmp_path)


@pytest.mark.parametrize(("count", "each"), [(0xFFFFFFFF, 128), (128, 0xFFFFFFF8), (128, 0), (128, 129)])
def test_a_gpt_with_a_right_checksum_and_sizes_that_no_card_has(gpt: bytes, tmp_path: Path, count: int, each: int) -> None:
    head = bytearray(gpt[512 : 512 + 92])
    struct.pack_into("<II", head, 80, count, each)
    struct.pack_into("<I", head, 16, 0)
    struct.pack_into("<I", head, 16, zlib.crc32(head))
    with pytest.raises(UsageError, match="which no card has"):
        _open(_with(gpt, 512, bytes(head)), tmp_path)


@settings(max_examples=60)
@given(changes=st.lists(st.tuples(st.integers(0, 1023), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6))
def test_any_bytes_in_the_two_heads_are_read_or_refused(good: bytes, changes: list[tuple[int, bytes]]) -> None:
    image = io.BytesIO(good)
    for at, new in changes:
        image.seek(at if at < 512 else BOOT + at - 512)
        image.write(new)
    with contextlib.suppress(UsageError):  # and nothing else, nor a loop without end
        volume = open_boot(image, name="any.img")
        for name in list(volume.entries())[:8]:
            volume.read(name, limit_bytes=1 << 16)


def test_partitions_are_those_of_the_table(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.img"
    path.write_bytes(good)
    with open(path, "rb") as file:
        found = [(each.number, each.start_bytes, each.size_bytes, each.fat) for each in read_partitions(file, name="image.img")]
    assert found == [(1, BOOT, 40 << 20, True), (2, BOOT + (40 << 20), 1 << 20, False)]


# ------------------------------------------------------------------ which format it is


@pytest.mark.parametrize(
    ("base", "drop", "extra", "found"),
    [
        (BOOKWORM, (), {}, "firstrun"),
        (TRIXIE, (), {}, "cloud-init"),
        (TRIXIE, ("user-data", "network-config", "meta-data"), {"rpi-preseed.toml": 'config_version = "1.1"\n'}, "preseed"),
        (TRIXIE, ("user-data",), {}, None),
        (TRIXIE, (), {"rpi-preseed.toml": ""}, None),
        (BOOKWORM, ("cmdline.txt",), {"cmdline.txt": "console=tty1 root=/dev/sda2\n"}, None),
    ],
)
def test_the_format_is_found_or_asked_for(
    tmp_path: Path, base: dict[str, int | str], drop: tuple[str, ...], extra: dict[str, str], found: str | None
) -> None:
    small = {name: 100 if isinstance(size, int) else size for name, size in base.items() if name not in drop and "/" not in name}
    with open(make_image(tmp_path / "image.img", small | extra, size_mb=40), "rb") as file:
        volume = open_boot(file, name="image.img")
        if found is None:
            with pytest.raises(UsageError, match=r"is not clear .* say it with --format firstrun or cloud-init or preseed"):
                find_format(volume, name="image.img", wanted=None)
            assert find_format(volume, name="image.img", wanted="preseed").name == "preseed"
        else:
            assert find_format(volume, name="image.img", wanted=None).name == found


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"firstrun.sh": "#!/bin/sh\n"}, "set up already .firstrun.sh"),
        ({"user-data": "#cloud-config\nhostname: mine\n"}, "set up already .user-data"),
        ({"cutlayer-payload.tar": "x"}, "set up already .cutlayer-payload.tar"),
        ({"cmdline.txt": "console=tty1 ds=nocloud;i=rpi-imager-17\n"}, "set up already .ds=nocloud"),
    ],
)
def test_what_somebody_has_set_up_is_left_alone(tmp_path: Path, extra: dict[str, str], said: str) -> None:
    small = {name: 100 if isinstance(size, int) else size for name, size in TRIXIE.items() if "/" not in name}
    with open(make_image(tmp_path / "image.img", small | extra, size_mb=40), "rb") as file, pytest.raises(UsageError, match=said):
        check_untouched(open_boot(file, name="image.img"), name="image.img", files={"user-data": ""})


def test_a_32_bit_image_is_refused(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image.img", {"cmdline.txt": "console=tty1\n", "config.txt": "", "kernel7.img": 100}, size_mb=40)
    assert b"kernel7" in mtools("mdir", image, "-b", "::/")
    with open(image, "rb") as file, pytest.raises(UsageError, match="no 64-bit kernel"):
        check_untouched(open_boot(file, name="image.img"), name="image.img", files={})
