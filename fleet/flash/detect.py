"""Finds the boot partition of an image, and how its first start is told what to do; what is not known for certain is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import BinaryIO

from fleet.flash.boot_files import FORMATS, INSTALL, PAYLOAD, Format
from fleet.flash.fat import FatVolume
from fleet.flash.partitions import read_partitions
from wire.errors import UsageError

__all__ = ["CMDLINE", "CMDLINE_BYTES", "check_untouched", "find_format", "open_boot"]

CMDLINE = "cmdline.txt"
CMDLINE_BYTES = 1 << 14
_TEXT_BYTES = 1 << 16
_FIRSTBOOT = "init=/usr/lib/raspberrypi-sys-mods/firstboot"


def open_boot(image: BinaryIO, *, name: str) -> FatVolume:
    """The FAT partition that a Raspberry Pi starts from. Raises UsageError where there is none."""
    partitions = [each for each in read_partitions(image, name=name) if each.fat]
    for partition in partitions:
        volume = FatVolume(image, partition, name=name)
        if CMDLINE in (there := volume.entries()) and "config.txt" in there:
            return volume
    found = "no FAT partition" if not partitions else f"no FAT partition with {CMDLINE} and config.txt"
    raise UsageError(f"{name} has {found}: it is no image for a Raspberry Pi; take Raspberry Pi OS (64-bit)")


def find_format(volume: FatVolume, *, name: str, wanted: str | None) -> Format:
    """By the files that the image was published with. ``wanted``: what the operator says instead. Raises UsageError."""
    there = volume.entries()
    if wanted is not None:
        return FORMATS[wanted]
    cloud, preseed = "user-data" in there and "meta-data" in there, "rpi-preseed.toml" in there
    first = _FIRSTBOOT in volume.read(CMDLINE, limit_bytes=CMDLINE_BYTES).decode(errors="replace").split()
    found = [kind for kind, so in (("cloud-init", cloud), ("preseed", preseed)) if so] or ["firstrun"] * first
    if len(found) != 1:
        seen = f"signs of {' and '.join(found)}" if found else "no user-data, no rpi-preseed.toml, and cmdline.txt is not Bookworm's"
        raise UsageError(f"how {name} is set up at its first start is not clear ({seen}); say it with --format {' or '.join(FORMATS)}")
    return FORMATS[found[0]]


def check_untouched(volume: FatVolume, *, name: str, files: Mapping[str, str]) -> None:
    """Raises UsageError where somebody, or we, have set the image up already: their settings would be lost."""
    there = volume.entries()
    cmdline = volume.read(CMDLINE, limit_bytes=CMDLINE_BYTES).decode(errors="replace")
    if "32-bit" in _issue(volume) or ("kernel8.img" not in there and "kernel_2712.img" not in there):
        raise UsageError(f"{name} has no 64-bit kernel, and there is no onnxruntime for 32-bit ARM; take the 64-bit edition")
    settled = [word for word in cmdline.split() if word.startswith(("systemd.run=", "ds=nocloud"))]
    settled += [each for each in (PAYLOAD, INSTALL, "firstrun.sh") if each in there]
    for each in ("user-data", "network-config", "rpi-preseed.toml"):
        if each in there and each in files and _says_something(volume.read(each, limit_bytes=_TEXT_BYTES).decode(errors="replace")):
            settled.append(each)
    if settled:
        raise UsageError(f"{name} has been set up already ({settled[0]} on its boot partition); start from the image as it was published")


def _says_something(text: str) -> bool:
    """Whether there is more than comments: Raspberry Pi OS publishes its files as examples that are commented out."""
    return any(not re.fullmatch(r"\s*(#.*)?|config_version.*", line) for line in text.splitlines())


def _issue(volume: FatVolume) -> str:
    return volume.read("issue.txt", limit_bytes=_TEXT_BYTES).decode(errors="replace") if "issue.txt" in volume.entries() else ""
