"""Builds and runs the client's image for 64-bit ARM where no Docker engine runs: ``python3 -m tools.arm_image {register,build,run}``.

``build`` makes a Debian base for arm64 with debootstrap, carries the locked wheels in and gives both to buildah with ``Dockerfile.arm``;
its RUN steps are emulated by qemu-user. ``run`` starts the image's client as a container engine would: its user, its environment, a root
file system that is read-only, ``/data`` and ``/keys`` from outside, and the host's network. Needs root, Debian and the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.arm_container import enter, write_board
from tools.arm_debs import ArmDebs, unpack
from tools.lock_device import PLATFORMS
from wire.errors import CutlayerError, UsageError, exit_code

__all__ = ["CACHE", "IMAGE", "ArmImage", "main", "missing", "register"]

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutlayer" / "arm"
IMAGE = "localhost/cutlayer-client"
SUITE, PYTHON = "bookworm", "3.11"
PROGRAMS = {"debootstrap": "debootstrap", "buildah": "buildah", "qemu-aarch64-static": "qemu-user-static"}
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_ENTRIES = Path("/usr/lib/binfmt.d")
_CONTEXT = ("LICENSE", "cutlayer.py", "requirements-device.txt", "wire", "edge_client")
# What Debian's own container images leave out too: documents, translations, the package manager's lists and downloads.
_BALLAST = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists", "var/log")


# ------------------------------------------------------------------ what the computer must have


def missing() -> str | None:
    """What this computer lacks for ``build`` and ``run``, and how to get it, in one line; None where it has everything."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        return "building and running the ARM image needs root on Linux (debootstrap, mounts): run it as root, or use docker buildx"
    native = platform.machine() == "aarch64"
    lacking = [package for name, package in PROGRAMS.items() if not shutil.which(name) and not (native and name.startswith("qemu"))]
    if lacking:
        return f"{', '.join(lacking)} is missing: apt-get install {' '.join(lacking)}"
    if not native and not (_BINFMT / "qemu-aarch64").exists():
        return "this kernel does not hand ARM programs to qemu yet: python3 -m tools.arm_image register"
    return None


def register() -> None:
    """Mount binfmt_misc and register Debian's qemu for ARM programs of 64 and 32 bits, until the next boot. Raises UsageError."""
    if not (_BINFMT / "register").exists():
        _do(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)])
    for name in () if platform.machine() == "aarch64" else ("qemu-aarch64", "qemu-arm"):
        entry = _ENTRIES / f"{name}.conf"
        try:
            if not (_BINFMT / name).exists():
                (_BINFMT / "register").write_bytes(entry.read_bytes())
        except OSError as exc:
            raise UsageError(f"cannot register qemu from {entry}: {exc.strerror}; as root: apt-get install qemu-user-static") from exc


def _do(command: Sequence[str]) -> str:
    """What it printed. Raises UsageError with the command's last line, or with the error that one of ours printed in it."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        reason = next((line for line in said if line.startswith("cutlayer: error: ")), said[-1]).removeprefix("cutlayer: error: ")
        raise UsageError(f"`{' '.join(command[:1])}` failed: {reason}")
    return done.stdout


# ------------------------------------------------------------------ the image


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmImage:
    """The client's image in a storage of its own below ``cache``. Raises UsageError throughout, in one line, where something fails."""

    cache: Path = CACHE
    arch: str = "arm64"

    def build(self, *, base: str | None = None) -> None:
        """Build it from this work tree. ``base``: an image of the storage, instead of a Debian that is made once and kept."""
        with self._locked(), self._tidied():
            base = base or self._base()
            with tempfile.TemporaryDirectory(prefix="cutlayer-arm-") as folder:
                self._fill_context(Path(folder))
                self._buildah("bud", "--isolation", "chroot", "--arch", self.arch, "--pull-never", "--format", "docker",
                              "--build-arg", f"BASE={base}", "--file", str(ROOT / "Dockerfile.arm"), "--tag", IMAGE, folder)  # fmt: skip

    def config(self) -> dict[str, Any]:
        """The image's configuration as Docker writes it: User, Env, Entrypoint, Volumes, Healthcheck …"""
        if not self._has(IMAGE):
            raise UsageError("the image is not built yet: python3 -m tools.arm_image build")
        found: dict[str, Any] = json.loads(self._buildah("inspect", "--type", "image", IMAGE))
        config: dict[str, Any] = found["Docker"]["config"]
        return config

    def root(self) -> Path:
        """The image, unpacked: the folder that is a container's root. Do not write to it."""
        with self._locked():
            name = "cutlayer-root"
            if name not in self._buildah("containers", "--format", "{{.ContainerName}}").split():
                self._buildah("from", "--pull-never", "--name", name, IMAGE)
            return Path(self._buildah("mount", name).strip())

    def device_usr(self) -> Path:
        """The /usr of a device: the Debian below the image, and systemd, whose files are laid there without being set up. Made once."""
        folder = self.cache / f"usr-{SUITE}"
        with self._locked():
            if not folder.is_dir():
                base = self._base()
                with tempfile.TemporaryDirectory(prefix="usr-", dir=self.cache) as scratch, self._tidied():
                    container = self._buildah("from", "--pull-never", base).strip()
                    root = Path(self._buildah("mount", container).strip())
                    _do(["cp", "-a", str(root), f"{scratch}/root"])
                    debs = ArmDebs(Path(scratch) / "apt", status=root / "var/lib/dpkg/status")
                    unpack(debs.needed("systemd"), Path(scratch) / "root")
                    os.rename(f"{scratch}/root/usr", folder)
        return folder

    def size_bytes(self) -> int:
        """Of all regular files of the unpacked image; a file with several names counts once."""
        found = {(stat.st_dev, stat.st_ino): stat.st_size for stat in _stats(self.root())}
        return sum(found.values())

    def command(
        self, args: Sequence[str], *, data: Path, keys: Path | None = None, cpu: str | None = None, entrypoint: Sequence[str] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        """The command and the environment of a process that is the container, until it ends; signals to it reach the client.

        ``data``, ``keys``: folders for the volumes; the image's user must be able to write ``data``. ``cpu``: one that qemu knows, such as
        cortex-a53. ``entrypoint`` replaces the image's.
        """
        config, root = self.config(), self.root()
        keys = keys or self.cache / "no-keys"
        keys.mkdir(parents=True, exist_ok=True)
        board = write_board(self.cache / "boards", cpu)
        start = [*(entrypoint or config["Entrypoint"]), *args]
        env = dict(entry.split("=", 1) for entry in config["Env"]) | ({"QEMU_CPU": cpu} if cpu else {})
        return enter(root, start, data=data, keys=keys, user=config["User"], folder=config["WorkingDir"], board=board), env

    # ------------------------------------------------------------ how it is made

    def _base(self) -> str:
        name = f"localhost/cutlayer-base:{SUITE}"
        if not self._has(name):
            with tempfile.TemporaryDirectory(prefix="debootstrap-", dir=self.cache) as folder:
                _do(["debootstrap", f"--arch={self.arch}", "--variant=minbase", "--include=python3,python3-venv", SUITE, folder])
                self.import_root(name, Path(folder))
        return name

    def _has(self, name: str) -> bool:
        return bool(self._buildah("images", "--quiet", "--filter", f"reference={name}").strip())

    def import_root(self, name: str, folder: Path) -> None:
        """The root file system in ``folder`` as the image ``name``, without what Debian's own container images lack too."""
        for ballast in _BALLAST:
            for each in (folder / ballast).glob("*"):
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        for file in ("hostname", "hosts", "resolv.conf"):  # debootstrap copies ours; a container has those of the machine it runs on
            (folder / "etc" / file).unlink(missing_ok=True)
            (folder / "etc" / file).touch()
        container = self._buildah("from", "--arch", self.arch, "scratch").strip()
        self._buildah("add", "--quiet", container, str(folder), "/")
        self._buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self._buildah("commit", "--quiet", "--rm", "--format", "docker", container, name)

    def _fill_context(self, folder: Path) -> None:
        """What ``Dockerfile.arm`` copies, and the wheels of the lock file."""
        for name in _CONTEXT:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)
        shutil.copytree(self._wheels(), folder / "wheels")

    def _wheels(self) -> Path:
        """The work tree's own wheels/, or the lock file's, downloaded once."""
        if any((ROOT / "wheels").glob("*.whl")):
            return ROOT / "wheels"
        lock = ROOT / "requirements-device.txt"
        folder = self.cache / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
        if not folder.is_dir():
            beside = folder.with_suffix(".new")
            shutil.rmtree(beside, ignore_errors=True)
            tags = [word for tag in PLATFORMS["aarch64"] for word in ("--platform", tag)]
            _do([*_pip(), "download", "--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:", *tags,
                 "--python-version", PYTHON, "--implementation", "cp", "--dest", str(beside), "--requirement", str(lock)])  # fmt: skip
            beside.rename(folder)
        return folder

    def _buildah(self, *args: str) -> str:
        self.cache.mkdir(parents=True, exist_ok=True)
        store = ["--root", str(self.cache / "storage"), "--runroot", str(self.cache / "run"), "--storage-driver", "vfs"]
        return _do(["buildah", *store, *args])

    @contextlib.contextmanager
    def _tidied(self) -> Iterator[None]:
        """Removes, however it ends, containers and images without a name: the storage holds each of them whole."""
        try:
            yield
        finally:
            self._buildah("rm", "--all")
            self._buildah("rmi", "--prune")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time makes or unpacks images."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with open(self.cache / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for at, _, names in os.walk(folder):
        for name in names:
            stat = os.lstat(os.path.join(at, name))
            if not os.path.islink(os.path.join(at, name)):
                yield stat


def _pip() -> list[str]:
    """A pip on the host; Debian's python3 may come without one, and then a throw-away virtual environment has it."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip"]
    venv = CACHE / "pip"
    _do([sys.executable, "-m", "venv", str(venv)])
    return [str(venv / "bin" / "python"), "-m", "pip"]


# ------------------------------------------------------------------ the command


def main(argv: Sequence[str] | None = None) -> int:
    """The exit codes are those of ``cutlayer``; ``run`` ends as the client does."""
    args = _parser().parse_args(argv)
    try:
        if args.verb == "register":
            register()
            return 0
        if (lacking := missing()) is not None:
            raise UsageError(lacking)
        image = ArmImage(cache=args.cache)
        if args.verb == "build":
            image.build()
            print(f"{IMAGE}: {image.size_bytes() / 1e6:.0f} MB unpacked")
            return 0
        return _run(image, args)
    except KeyboardInterrupt:
        return 130
    except CutlayerError as exc:
        print(f"arm_image: error: {exc}", file=sys.stderr)
        return exit_code(exc)


def _run(image: ArmImage, args: argparse.Namespace) -> int:
    if not args.data.is_dir():
        raise UsageError(f"{args.data} is not a folder; give the one that holds run.toml, the bundle and the data as --data")
    command, env = image.command(args.args, data=args.data, keys=args.keys, cpu=args.cpu, entrypoint=args.entrypoint)
    os.execve(command[0], command, env)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tools.arm_image", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--cache", type=Path, default=CACHE, metavar="DIR", help="where base, wheels and images are kept (default %(default)s)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("register", help="mount binfmt_misc and register qemu for ARM programs, until the next boot")
    verbs.add_parser("build", help=f"build {IMAGE} from Dockerfile.arm and this work tree")
    run = verbs.add_parser("run", help="start the image's client: run --data DIR -- /data/run.toml --party NAME --broker URL")
    run.add_argument("--data", type=Path, required=True, metavar="DIR", help="becomes /data; its owner should be user 10001")
    run.add_argument("--keys", type=Path, metavar="DIR", help="becomes /keys, read-only")
    run.add_argument("--cpu", metavar="NAME", help="the processor to emulate, such as cortex-a53 (Pi 3, Zero 2 W) or cortex-a72 (Pi 4)")
    run.add_argument("--entrypoint", nargs=1, metavar="PROGRAM", help="instead of the image's own")
    run.add_argument("args", nargs="*", metavar="ARG", help="for the client")
    return parser


if __name__ == "__main__":
    sys.exit(main())
