"""Images of cards as Raspberry Pi OS publishes them, small: their file lists with made-up contents, by mkfs.vfat and mtools."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["BOOKWORM", "SECTOR", "TRIXIE", "fsck", "make_image", "mtools"]

SECTOR = 512
START = 8192  # the first sector of the boot partition in published images
_BOARDS = (
    "bcm2710-rpi-2-b bcm2710-rpi-3-b-plus bcm2710-rpi-3-b bcm2710-rpi-cm3 bcm2710-rpi-cm0 bcm2710-rpi-zero-2-w bcm2710-rpi-zero-2 "
    "bcm2711-rpi-400 bcm2711-rpi-4-b bcm2711-rpi-cm4-io bcm2711-rpi-cm4 bcm2711-rpi-cm4s bcm2712-d-rpi-5-b bcm2712-rpi-500 bcm2712-rpi-5-b "
    "bcm2712-rpi-cm5-cm4io bcm2712-rpi-cm5-cm5io bcm2712-rpi-cm5l-cm4io bcm2712-rpi-cm5l-cm5io bcm2712d0-rpi-5-b"
)
_COMMON = {f"{board}.dtb": 30_000 for board in _BOARDS.split()} | {
    "bootcode.bin": 52_476,
    "fixup.dat": 7_303,
    "fixup4.dat": 5_446,
    "fixup4cd.dat": 3_230,
    "fixup4db.dat": 8_430,
    "fixup4x.dat": 8_434,
    "fixup_cd.dat": 3_230,
    "fixup_db.dat": 10_257,
    "fixup_x.dat": 10_257,
    "initramfs8": 900_000,
    "initramfs_2712": 900_000,
    "kernel8.img": 900_000,
    "kernel_2712.img": 900_000,
    "LICENCE.broadcom": 1_594,
    "start.elf": 298_000,
    "start4.elf": 225_000,
    "start4cd.elf": 80_000,
    "start4db.elf": 37_000,
    "start4x.elf": 30_000,
    "start_cd.elf": 80_000,
    "start_db.elf": 48_000,
    "start_x.elf": 37_000,
}
_OVERLAYS = {f"overlays/{name}.dtbo": 1_200 for name in ("README", "vc4-kms-v3d", "disable-bt", "w1-gpio", "i2c-rtc", "imx219", "act-led")}
_CONFIG = "dtparam=audio=on\ncamera_auto_detect=1\nauto_initramfs=1\ndtoverlay=vc4-kms-v3d\narm_64bit=1\n[all]\n"
_ISSUE = "Raspberry Pi reference {day}\nGenerated using pi-gen, https://github.com/RPi-Distro/pi-gen, stage2\n"
_KERNEL = "console=serial0,115200 console=tty1 root=PARTUUID=4f8a8dd1-02 rootfstype=ext4 fsck.repair=yes rootwait"
BOOKWORM: dict[str, int | str] = {
    **_COMMON,
    **_OVERLAYS,
    "cmdline.txt": f"{_KERNEL} quiet init=/usr/lib/raspberrypi-sys-mods/firstboot\n",
    "config.txt": _CONFIG,
    "issue.txt": _ISSUE.format(day="2025-05-13"),
}
TRIXIE: dict[str, int | str] = {
    **_COMMON,
    **_OVERLAYS,
    "cmdline.txt": f"{_KERNEL} resize\n",
    "config.txt": _CONFIG,
    "issue.txt": _ISSUE.format(day="2025-12-04"),
    "meta-data": "# This is the meta-data configuration file for cloud-init.\ndsmode: local\ninstance_id: rpios-image\n",
    "network-config": "# This file contains a netplan-compatible configuration.\n#network:\n#  version: 2\n",
    "user-data": "#cloud-config\n\n# The modules of cloud-init are set here.\n#hostname: raspberrypi\n",
}


def make_image(
    out: Path,
    files: Mapping[str, int | str | bytes],
    *,
    table: str = "dos",
    wide: bool = True,
    size_mb: int = 48,
    cluster_sectors: int = 1,
    root: Path | None = None,
) -> Path:
    """``files``: contents, or so many bytes that nothing can guess. ``table``: dos or gpt. ``wide``: FAT32 instead of FAT16. The second
    partition is ``root``, a file system, or random bytes."""
    sectors, rest = size_mb * 2048, 2048 if root is None else root.stat().st_size // SECTOR
    with open(out, "wb") as image:
        image.truncate((START + sectors + rest + 2048) * SECTOR)
    kinds = ("c", "83") if table == "dos" else ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "0FC63DAF-8483-4772-8E79-3D69D8477DE4")
    name = "label-id: 0x4f8a8dd1\n" if table == "dos" else ""
    rows = f"label: {table}\n{name}start={START}, size={sectors}, type={kinds[0]}\nstart={START + sectors}, size={rest}, type={kinds[1]}\n"
    _do("sfdisk", "--quiet", str(out), text=rows)
    bits = ["-F", "32" if wide else "16", "-s", str(cluster_sectors), "-n", "bootfs"]
    _do("mkfs.vfat", *bits, "--offset", str(START), str(out), str(sectors // 2))
    if root is not None:
        _do("dd", f"if={root}", f"of={out}", "bs=1M", f"seek={(START + sectors) * SECTOR}", "oflag=seek_bytes", "conv=notrunc,sparse")
    else:
        with open(out, "r+b") as image:
            image.seek((START + sectors) * SECTOR)
            image.write(os.urandom(rest * SECTOR))
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(os.urandom(content) if isinstance(content, int) else content.encode() if isinstance(content, str) else content)
        mtools("mcopy", out, "-s", *(str(path) for path in sorted(Path(folder).iterdir())), "::/")
    return out


def mtools(program: str, image: Path, *words: str) -> bytes:
    """mtools on the boot partition; raises where it complains."""
    return _do(program, "-i", f"{image}@@{START * SECTOR}", *words)


def fsck(image: Path, folder: Path) -> str:
    """What dosfstools says of the boot partition; raises where it would mend anything."""
    alone = folder / "boot.fat"
    data = image.read_bytes()
    alone.write_bytes(data[START * SECTOR : -(2048 + 2048) * SECTOR])
    return _do("fsck.fat", "-n", "-v", str(alone)).decode()


def _do(*command: str, text: str | None = None) -> bytes:
    env = os.environ | {"MTOOLS_SKIP_CHECK": "0", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(command, input=None if text is None else text.encode(), capture_output=True, env=env, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()} {done.stdout.decode()}"
    return done.stdout
