"""Enters an unpacked image as a container engine would, without one: what ``tools.arm_image run`` starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

__all__ = ["enter", "write_board"]

# Processors that qemu plays with all that onnxruntime looks at before it chooses its kernels: part number and revision.
_PARTS = {"cortex-a53": ("0xd03", "4"), "cortex-a72": ("0xd08", "3")}
_CPUINFO = """\
processor\t: {at}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: {revision}

"""
# The container: a mount namespace of its own in which the image's root is bound read-only, then the image's user inside that root.
# Without the host's /sys: onnxruntime's look for ARM cores in an x86-64 machine's ends in a crash.
_ENTER = """
set -e
root=$1 data=$2 keys=$3 user=$4 folder=$5 board=$6; shift 6
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o ro proc "$root/proc"
if [ -d "$board" ]; then
    mount --bind "$board/cpuinfo" "$root/proc/cpuinfo"
    mount --bind -o ro "$board/sys" "$root/sys"
fi
mount -t tmpfs -o mode=755,size=1m dev "$root/dev"
for each in null zero random urandom; do touch "$root/dev/$each"; mount --bind "/dev/$each" "$root/dev/$each"; done
mount -o remount,ro "$root/dev"
for each in hosts resolv.conf; do [ ! -f "$root/etc/$each" ] || mount --bind -o ro "/etc/$each" "$root/etc/$each"; done
mount --bind "$data" "$root/data"
mount --bind "$keys" "$root/keys"
mount -o remount,bind,ro "$root/keys"
exec setpriv --no-new-privs chroot --userspec="$user" "$root" /usr/bin/env -C "$folder" "$@"
"""


def enter(root: Path, start: Sequence[str], *, data: Path, keys: Path, user: str, folder: str, board: Path | None) -> list[str]:
    """The command that is ``start`` inside ``root``, as the image's ``user`` in its ``folder``.

    The root is read-only but for ``data``, which is /data; ``keys`` is /keys. ``board``: from ``write_board``. It needs root.
    """
    where = [str(root), str(data.resolve()), str(keys.resolve()), _ids(root, user), folder, str(board or "")]
    return [shutil.which("unshare") or "unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _ENTER, "sh", *where, *start]


def write_board(folder: Path, cpu: str | None) -> Path | None:
    """What a board's kernel says of its processor, as files below ``folder``; None for a processor that is not in the table."""
    if cpu not in _PARTS:
        return None
    part, revision = _PARTS[cpu]
    count = len(os.sched_getaffinity(0))
    system = folder / cpu / "sys/devices/system/cpu"
    system.mkdir(parents=True, exist_ok=True)
    (folder / cpu / "cpuinfo").write_text("".join(_CPUINFO.format(at=at, part=part, revision=revision) for at in range(count)))
    for name in ("possible", "present"):
        (system / name).write_text(f"0-{count - 1}\n")
    return folder / cpu


def _ids(root: Path, user: str) -> str:
    """``uid:gid`` of a user's name, by the image's own list."""
    rows = [row.split(":") for row in (root / "etc/passwd").read_text().splitlines()]
    return next(f"{row[2]}:{row[3]}" for row in rows if row[0] == user)
