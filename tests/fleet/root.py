"""A device's root file system, as far as its first start needs one: its own /etc, /var, /opt and /boot over the /usr of this computer, or
that of an arm64 Debian, which qemu-user runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ENTER", "Root"]

# Our own namespace; what is mounted in it goes with it.
ENTER = """
set -e
root=$1 usr=$2; shift 2
mount --bind "$usr" "$root/usr"
mount -o remount,bind,ro "$root/usr"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755,size=1m dev "$root/dev"
for each in null zero random urandom; do touch "$root/dev/$each"; mount --bind "/dev/$each" "$root/dev/$each"; done
exec chroot "$root" /usr/bin/env -i SYSTEMD_OFFLINE=1 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nmine:x:1000:1000::/home/mine:/bin/sh\n",
    "group": "root:x:0:\nmine:x:1000:\n",
    "shadow": "root:*:19000:0:99999:7:::\nmine:*:19000:0:99999:7:::\n",
    "gshadow": "root:*::\nmine:*::\n",
    "hostname": "raspberrypi\n",
    "hosts": "127.0.0.1\tlocalhost\n127.0.1.1\traspberrypi\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\n",
    "login.defs": "SYS_UID_MIN 100\nSYS_UID_MAX 999\nSYS_GID_MIN 100\nSYS_GID_MAX 999\n",
}


class Root:
    """Needs root. ``boot``: the folder at which the boot partition is mounted. ``usr``: read-only, with the programs of the device."""

    def __init__(self, folder: Path, *, usr: Path = Path("/usr")) -> None:
        self.folder, self.usr = folder, usr
        self.boot = folder / "boot/firmware"
        for name in ("usr", "proc", "dev", "tmp", "run", "root", "opt", "var/log", "var/lib", "etc/systemd/system", "boot/firmware"):
            (folder / name).mkdir(parents=True)
        (folder / "etc/NetworkManager/system-connections").mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (folder / name).symlink_to(f"usr/{name}")
        for name, text in _ETC.items():
            (folder / "etc" / name).write_text(text)
        os.chmod(folder / "tmp", 0o1777)

    def insert(self, files: Mapping[str, bytes]) -> None:
        """Put files on the boot partition."""
        for name, data in files.items():
            (self.boot / name).write_bytes(data)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        enter = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", ENTER, "sh", str(self.folder), str(self.usr)]
        return subprocess.run([*enter, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def holders(self, secret: str, *, below: str = ".") -> list[str]:
        """The files in which a text is found."""
        done = subprocess.run(["grep", "-rlaF", "--devices=skip", "-e", secret, below], cwd=self.folder, capture_output=True, text=True)
        return sorted(line.removeprefix("./") for line in done.stdout.splitlines())

    def modes(self, name: str) -> tuple[str, str]:
        """(owner, mode) of a file, by the device's own list of users."""
        stat = (self.folder / name).lstat()
        rows = [row.split(":") for row in self.read("etc/passwd").splitlines()]
        return next(row[0] for row in rows if row[2] == str(stat.st_uid)), f"{stat.st_mode & 0o777:o}"
