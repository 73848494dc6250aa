"""The card of a machine that boots, without the machine: what is laid on it is read from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.boot.card import Card, published
from tools.arm_disk import SYSTEM_PATH, ArmDisk, missing


@pytest.fixture
def card(tmp_path: Path) -> Card:
    disk = ArmDisk(root=tmp_path / "root", kernel=tmp_path / "kernel", initrd=tmp_path / "initrd")
    disk.kernel.write_bytes(b"kernel")
    disk.initrd.write_bytes(b"initrd")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(disk.root), "8M"], check=True, env=os.environ | {"PATH": SYSTEM_PATH})
    return Card(published(disk, tmp_path / "card.img"), tmp_path, log=tmp_path / "console.log")


def test_files_on_the_root_file_system(card: Card, tmp_path: Path) -> None:
    data = os.urandom(70_000)
    (tmp_path / "data").write_bytes(data)
    card.write({"/var/lib/cutlayer/data/digits.npz": tmp_path / "data"})
    assert card.read("/var/lib/cutlayer/data/digits.npz") == data
    assert card.read("/var/lib/cutlayer/none") == b""


def test_the_boot_partition(card: Card) -> None:
    assert card.boot_files() == ["cmdline.txt", "config.txt", "initramfs8", "issue.txt", "kernel8.img"]
    assert card.cmdline().endswith(" init=/usr/lib/raspberrypi-sys-mods/firstboot")
    assert card.boot_holds(b"init=/usr/lib/raspberrypi-sys-mods/firstboot")
    assert not card.boot_holds(b"init=/sbin/other")


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.arm_disk.SYSTEM_PATH", "/nowhere")
    said = missing()
    assert said is not None
    assert said.startswith("missing: apt-get install ")
    assert {"qemu-system-arm", "mtools"} <= set(said.split())
    assert "\n" not in said
