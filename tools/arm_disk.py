"""A Debian for arm64 that boots in qemu's virtual machine: root file system, kernel and first RAM disk, made once and kept.

Its packages are unpacked here, which a processor of another kind can do too, and mke2fs writes them to a disk, both under fakeroot where
the caller is not root; their own scripts, which set them up, run in the machine, whose first start does nothing else. So it needs neither
root nor a loop device nor binfmt_misc.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tools.arm_debs import ArmDebs, unpack
from tools.arm_machine import Machine
from wire.errors import UsageError

__all__ = ["CACHE", "PROGRAMS", "ArmDisk", "make_disk", "missing"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutlayer" / "boot"
PROGRAMS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "sfdisk": "fdisk",
}
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# What every Debian has, though not all of it is called essential; then what Raspberry Pi OS has and a client needs.
_PACKAGES = (
    *("?essential", "usr-is-merged", "passwd", "mount", "e2fsprogs", "mawk", "apt", "debconf", "libpam-runtime"),
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "python3", "python3-venv", "ca-certificates"),
)
_DISK_BYTES = 1536 << 20
_SETUP_S = 3600.0
# In the order in which they are loaded, with what they need in front of them; ext4 and the rest are in the kernel.
_MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "virtio-rng", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1", "nls_utf8")

# ------------------------------------------------------------------ what Raspberry Pi OS has and Debian has not

# The first RAM disk. Like that of Raspberry Pi OS Bookworm it finds the root by its partition's id, and mends what is written for an older
# release, where the boot partition was mounted at /boot: in the kernel's line, and by an end of its own for firstrun.sh.
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod "/lib/$module" || echo "no $module"; done
init=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
    esac
done
until [ -b /dev/vda ]; do sleep 0.1; done
case $root in PARTUUID=*)
    id=$(dd if=/dev/vda bs=1 skip=440 count=4 2>/dev/null | hexdump -e '1/4 "%08x"')
    case $root in "PARTUUID=$id-"*) root=/dev/vda$((${root##*-})) ;; esac
esac
if grep -q ' systemd.run=/boot/firstrun.sh' /proc/cmdline; then
    mount -t vfat /dev/vda1 /boot
    sed -i 's| systemd.run=/boot/firstrun.sh| systemd.run=/boot/firmware/firstrun.sh|' /boot/cmdline.txt
    sed -i '/rm.*firstrun[.]sh$/,$d' /boot/firstrun.sh
    cat >>/boot/firstrun.sh <<'END'
rm -f /boot/firmware/firstrun.sh
sed -i 's| systemd[.][^ ]*||g' /boot/firmware/cmdline.txt
exit 0
END
    umount /boot
fi
mount -t ext4 -o ro "$root" /root || { echo "no root file system at $root"; poweroff -f; }
for each in proc sys dev; do mount --move /$each /root/$each; done
exec switch_root /root "$init"
"""
# What a published image does at its very first start, before ours: it takes itself out of the kernel's line and starts anew.
_FIRSTBOOT = """\
#!/bin/sh
mount -t vfat /dev/vda1 /boot/firmware
sed -i 's| init=[^ ]*||' /boot/firmware/cmdline.txt
umount /boot/firmware
echo "firstboot: done"
sync
reboot -f
"""
_SETUP = """\
#!/bin/sh
# The machine's first start: what dpkg does after it has unpacked.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true
off() { sync; mount -n -o remount,ro /dev/vda /; echo "setup: $1"; echo o >/proc/sysrq-trigger; sleep 60; }
mount -n -o remount,rw /dev/vda /
dpkg --configure --force-depends base-passwd base-files && dpkg --configure -a || off failed
rm -rf /setup
systemctl enable systemd-networkd.service
systemctl mask getty@tty1.service serial-getty@ttyAMA0.service apt-daily.timer apt-daily-upgrade.timer
: >/etc/machine-id
off done
"""
_FILES = {
    "setup": _SETUP,
    "usr/lib/raspberrypi-sys-mods/firstboot": _FIRSTBOOT,
    "etc/hostname": "raspberrypi\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\traspberrypi\n",
    "etc/fstab": "PARTUUID=4f8a8dd1-01 /boot/firmware vfat defaults 0 2\nPARTUUID=4f8a8dd1-02 / ext4 defaults,noatime 0 1\n",
    "etc/systemd/network/80-cable.network": "[Match]\nName=e*\n[Network]\nDHCP=yes\n",
}
# In DEBS ROOT FILES DISK SIZE_MB: dpkg's own records say that all is unpacked and nothing set up.
_UNPACK = """
set -e
mkdir -p "$2/var/lib/dpkg/info" "$2/var/lib/dpkg/updates" "$2/proc" "$2/sys" "$2/dev" "$2/run" "$2/tmp"
for each in bin lib sbin; do mkdir -p "$2/usr/$each"; ln -s "usr/$each" "$2/$each"; done
for deb in "$1"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --numeric-owner --keep-directory-symlink -C "$2" \\
        --exclude="./usr/share/doc/*" --exclude="./usr/share/locale/*" --exclude="./usr/share/man/*"
    id=$2/var/lib/dpkg/info/$(dpkg-deb --show --showformat='${Package}' "$deb")
    [ "$(dpkg-deb --field "$deb" Multi-Arch)" != same ] || id=$id:arm64
    dpkg-deb --fsys-tarfile "$deb" | tar -t | sed 's|^\\.||; s|/$||; s|^$|/.|' >"$id.list"
    rm -rf "$2/control"
    dpkg-deb --control "$deb" "$2/control"
    for file in "$2/control"/*; do
        case $file in */control/control | */control/conffiles) ;; *) cp -p "$file" "$id.${file##*/}" ;; esac
    done
    { echo "Status: install ok unpacked"; cat "$2/control/control"; echo; } >>"$2/var/lib/dpkg/status"
done
rm -rf "$2/control"
ln -sf mawk "$2/usr/bin/awk"
chmod 1777 "$2/tmp"
mkdir -p "$2/boot/firmware"
cp -R "$3/." "$2"
chmod 755 "$2/setup" "$2/usr/lib/raspberrypi-sys-mods/firstboot"
mke2fs -q -t ext4 -L rootfs -d "$2" "$4" "$5"
"""


def missing(*, also: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """What this computer lacks, in one line; None where it has everything. ``also``: further programs, and the packages that have them."""
    if not shutil.which("apt-get"):
        return "apt is missing: this needs Debian or a relative of it, whose apt fetches the packages for arm64"
    needed = PROGRAMS | dict(also) | ({} if os.geteuid() == 0 else {"fakeroot": "fakeroot"})
    lacking = sorted({package for name, package in needed.items() if not shutil.which(name, path=SYSTEM_PATH)})
    return f"missing: apt-get install {' '.join(lacking)}" if lacking else None


# ------------------------------------------------------------------ making it


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmDisk:
    """``root``: an ext4 file system, not partitioned. ``kernel`` and ``initrd``: as qemu and a Raspberry Pi take them. Copy them."""

    root: Path
    kernel: Path
    initrd: Path


def make_disk(cache: Path = CACHE) -> ArmDisk:
    """The one in ``cache``, or a new one, which takes some minutes. Raises UsageError."""
    recipe = hashlib.sha256(repr((_INIT, _FILES, _UNPACK, _PACKAGES, _MODULES, _DISK_BYTES)).encode()).hexdigest()[:12]
    folder = cache / f"bookworm-{recipe}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as beside:
                _make(Path(beside))
                os.rename(beside, folder)
                os.mkdir(beside)  # for its removal
    return ArmDisk(root=folder / "root.ext4", kernel=folder / "vmlinuz", initrd=folder / "initrd")


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=folder) as scratch:
        _kernel(Path(scratch), folder)
        _root(Path(scratch), folder / "root.ext4")
    machine = Machine(folder / "root.ext4", log=folder / "setup.log", cache="unsafe")
    machine.start(kernel=folder / "vmlinuz", initrd=folder / "initrd", cmdline="console=ttyAMA0 panic=-1 root=/dev/vda init=/setup")
    try:
        machine.wait_for("setup: done$", _SETUP_S)
        machine.wait_end(120.0)
    finally:
        machine.close()
    _do(["e2fsck", "-fp", str(folder / "root.ext4")], good=(0, 1))  # the script that was running was still open when it was removed


def _kernel(scratch: Path, folder: Path) -> None:
    """The kernel, and the RAM disk that holds busybox and the few modules that the kernel lacks."""
    debs = ArmDebs(scratch / "apt")
    (busybox,) = debs.download("busybox-static")
    unpack([debs.kernel(), busybox], scratch / "kernel")
    (kernel,) = (scratch / "kernel/boot").glob("vmlinuz-*")
    shutil.copy(kernel, folder / "vmlinuz")
    modules = {path.name.removesuffix(".ko"): path for path in (scratch / "kernel/lib/modules").rglob("*.ko")}
    loaded = list(dict.fromkeys(each for name in _MODULES for each in _in_order(name, modules)))
    files = {"init": _INIT.encode(), "bin/busybox": (scratch / "kernel/bin/busybox").read_bytes()}
    files |= {f"lib/{name}.ko": modules[name].read_bytes() for name in loaded}
    files["modules"] = "".join(f"{name}.ko\n" for name in loaded).encode()
    (folder / "initrd").write_bytes(_cpio(files, ("bin", "boot", "dev", "lib", "proc", "root", "sys")))


def _in_order(name: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """What a module says that it needs, and then the module."""
    if name not in modules:
        return  # built into this kernel
    _, _, rest = modules[name].read_bytes().partition(b"\0depends=")
    for each in filter(None, rest.partition(b"\0")[0].decode().split(",")):
        yield from _in_order(each, modules)
    yield name


def _cpio(files: Mapping[str, bytes], folders: Sequence[str]) -> bytes:
    """An archive in the kernel's format, `newc`; all files can be executed."""
    entries = [*((name, 0o40755, b"") for name in folders), *((name, 0o100755, data) for name, data in files.items())]
    packed = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")]):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        packed += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        packed += bytes(-len(packed) % 4) + data
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


def _root(scratch: Path, disk: Path) -> None:
    for name, text in _FILES.items():
        path = scratch / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    debs = ArmDebs(scratch / "packages").needed(*_PACKAGES)
    where = [str(each) for each in (debs[0].parent, scratch / "root", scratch / "files", disk)]
    shell = ["/bin/sh", "-c", _UNPACK, "sh", *where, f"{_DISK_BYTES >> 20}M"]
    _do([*([] if os.geteuid() == 0 else ["fakeroot"]), *shell])


def _do(command: list[str], *, good: tuple[int, ...] = (0,)) -> None:
    env = os.environ | {"PATH": SYSTEM_PATH}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode not in good:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise UsageError(f"the root file system was not made: {command[0]}: {said[-1]}")
