"""A card with a whole system on it, as Raspberry Pi OS Bookworm is published, and a machine that starts from it as a board does."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from tests.fleet.images import BOOKWORM, SECTOR, START, make_image, mtools
from tools.arm_disk import SYSTEM_PATH, ArmDisk
from tools.arm_machine import Machine

__all__ = ["Card", "published"]

_BOOT_MB = 160
_ROOT_AT = (START + _BOOT_MB * 2048) * SECTOR
# What a board's firmware does to the line, and then: all that the system says also goes to the console, and a panic ends the machine.
_CONSOLE = " panic=-1 systemd.journald.forward_to_console=1 systemd.journald.max_level_console=info"


def published(disk: ArmDisk, out: Path) -> Path:
    """The image that an operator would download: boot files, kernel and first RAM disk on FAT, and the root file system."""
    texts = {name: BOOKWORM[name] for name in ("cmdline.txt", "config.txt", "issue.txt")}
    files = texts | {"kernel8.img": disk.kernel.read_bytes(), "initramfs8": disk.initrd.read_bytes()}
    return make_image(out, files, size_mb=_BOOT_MB, root=disk.root)


class Card:
    """``image``: written by the machine. ``folder``: for what is taken out of it."""

    def __init__(self, image: Path, folder: Path, *, log: Path) -> None:
        self.image, self.folder = image, folder
        self.machine = Machine(image, log=log)

    def cmdline(self) -> str:
        return mtools("mtype", self.image, "::cmdline.txt").decode().strip()

    def boot_files(self) -> list[str]:
        said = mtools("mdir", self.image, "-b", "::/").decode()
        return sorted(line.removeprefix("::/") for line in said.splitlines())

    def boot_holds(self, secret: bytes) -> bool:
        """Whether it is anywhere on the boot partition, in what belongs to no file too."""
        with open(self.image, "rb") as image:
            return secret in image.read(_ROOT_AT)

    def power_on(self) -> None:
        """As a board's firmware: kernel, RAM disk and line are read from the boot partition, each time anew."""
        for name in ("kernel8.img", "initramfs8"):
            (self.folder / name).write_bytes(mtools("mtype", self.image, f"::{name}"))
        line = self.cmdline().replace("serial0", "ttyAMA0").replace(" console=tty1", "")
        self.machine.start(kernel=self.folder / "kernel8.img", initrd=self.folder / "initramfs8", cmdline=line + _CONSOLE)

    # ------------------------------------------------------------ the root file system, while the machine is off

    def write(self, files: dict[str, Path]) -> None:
        """Put files there, at paths whose folders are made."""
        folders = sorted({parent for path in files for parent in Path(path).parents if parent.name})
        lines = [f"mkdir {each}" for each in folders] + [f"write {source} {path}" for path, source in files.items()]
        self._debugfs(self.image, _ROOT_AT, "-w", lines=lines)
        for path, source in files.items():
            assert self._debugfs(self.image, _ROOT_AT, lines=[f"cat {path}"]) == source.read_bytes(), f"{path} was not written"

    def read(self, path: str) -> bytes:
        """After what a mount would do first: the journal is played back, on a copy. Empty where there is no such file."""
        root = self.folder / "root.ext4"
        if not root.exists() or root.stat().st_mtime < self.image.stat().st_mtime:
            words = [f"if={self.image}", f"of={root}", "bs=1M", f"skip={_ROOT_AT}", "iflag=skip_bytes", "conv=sparse"]
            subprocess.run(["dd", *words], check=True, capture_output=True)
            done = subprocess.run(["e2fsck", "-fp", str(root)], env=os.environ | {"PATH": SYSTEM_PATH}, capture_output=True, text=True)
            assert done.returncode in (0, 1), f"the root file system needs more than its journal: {done.stdout}"
        return self._debugfs(root, 0, lines=[f"cat {path}"])

    def ledger(self, path: str) -> list[tuple[Any, ...]]:
        """The steps of the client's own ledger."""
        for tail in ("", "-wal"):
            (self.folder / f"ledger.sqlite{tail}").write_bytes(self.read(path + tail))
        with contextlib.closing(sqlite3.connect(self.folder / "ledger.sqlite")) as db:
            return db.execute("SELECT edge, lane, step, global_step, applied FROM steps ORDER BY edge, lane, step").fetchall()

    def _debugfs(self, image: Path, at: int, *words: str, lines: list[str]) -> bytes:
        command = ["debugfs", *words, "-f", "-", f"{image}?offset={at}" if at else str(image)]
        env = os.environ | {"PATH": SYSTEM_PATH}
        done = subprocess.run(command, input="".join(f"{line}\n" for line in lines).encode(), env=env, capture_output=True)
        # It repeats each line that it was told, and prints errors where the answer would be.
        return re.sub(rb"(?m)^debugfs: .*\n", b"", done.stdout)
