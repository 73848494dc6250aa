"""The releases of a device on its disk.

    releases/state.json     what is current, and all else that must be known after a power cut; replacing it is what switches releases
    releases/0/             what the device was set up with: run.toml, bundle/
    releases/N/             a release that is whole: manifest and signature as the operator made them, its files, wheels unpacked in site/
    releases/N.new/         one that is still coming; what has its own name there has its hash, and .NAME is a part of NAME

Nothing here moves by itself: ``edge_client.agent.updates`` decides.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edge_client.agent.wheels import mend_site
from wire.errors import BundleError, CutlayerError, StorageError, UsageError
from wire.files import storage_errors, sync_folder, write_atomically
from wire.fleet.release import RUN_FILE, SIGNATURE_BYTES, WHEELS, Release, ReleaseFile, load_release
from wire.limits import LIMITS
from wire.parse import parse, plain, whole

__all__ = ["Books", "Launch", "NotNow", "Shelf", "load_deploy_keys", "restored", "sync_tree"]

_PIECE_BYTES = 1 << 20
_BOOKS_BYTES = 1 << 14
_TRIES = 3  # where a disk fails to read
_END = "-----END PUBLIC KEY-----"
_VERSIONS = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """``current`` runs, or ``previous`` does again if it fails its ``trial``, whose ``launches`` are counted. ``highest``: the newest
    version that was ever taken on; none below it is. ``settled``: the newest that was ever switched to, or given up: it is not tried again.
    ``digest``: SHA-256 in hex of the manifest of ``highest``; empty where that is not known. ``floor``: nothing below runs. ``failed``: the
    version that was given up last, as ``verdict`` says, for ``reason``."""

    current: int = 0
    previous: int = 0
    trial: bool = False
    launches: int = 0
    highest: int = 0
    settled: int = 0
    floor: int = 0
    failed: int = 0
    verdict: Literal["", "returned", "refused"] = ""
    reason: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        for text in (self.reason, self.digest):
            text.encode()
        for number in (self.current, self.previous, self.launches, self.highest, self.settled, self.floor, self.failed):
            whole(number, below=_VERSIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start: ``folder`` holds run.toml, bundle/ and, where the release carries code, site/."""

    version: int
    folder: Path

    @property
    def site(self) -> Path | None:
        return self.folder / "site" if (self.folder / "site").is_dir() else None


def restored(whole: Mapping[int, Release]) -> Books:
    """The books of a device that has lost them, from the signed releases that are whole on its disk: the newest one runs, on trial where
    there is one to go back to. Their minimum holds, or a damaged file would bring back what is not to run any more."""
    if not whole:
        return Books()
    newest = max(whole)
    before = max((version for version in whole if version != newest), default=0)
    floor = max(release.minimum for release in whole.values())
    return Books(current=newest, previous=before, trial=before >= floor, highest=newest, settled=newest, floor=floor)


class NotNow(StorageError):
    """The system lacks something for the moment. Nothing is known of the disk."""


class Shelf:
    """``folder``: releases/ of the device ``name``; ``keys``: whose signature counts. ``alive``: called again and again in what takes
    long, for who would think that we hang."""

    def __init__(self, folder: Path, *, name: str, keys: Sequence[Ed25519PublicKey], alive: Callable[[], None] = lambda: None) -> None:
        self.folder, self.keys, self._name, self._alive = folder, keys, name, alive

    # ------------------------------------------------------------ the books

    def load(self) -> Books | None:
        """None where there are none, or none that can be read. Raises NotNow."""
        for _ in range(_TRIES):
            try:
                with open(self._books, "rb") as file:
                    return parse(Books, json.loads(file.read(_BOOKS_BYTES)), where="", error=UsageError)
            except (ValueError, RecursionError, UsageError):
                return None
            except OSError as exc:
                if (passing := _passing(exc, self._books)) is not None:
                    raise passing from exc
        return None

    def save(self, books: Books) -> None:
        """Raises StorageError."""
        write_atomically(self._books, json.dumps(plain(books)).encode())

    @property
    def _books(self) -> Path:
        return self.folder / "state.json"

    # ------------------------------------------------------------ folders

    def at(self, version: int) -> Path:
        return self.folder / str(version)

    def coming(self, version: int) -> Path:
        return self.folder / f"{version}.new"

    def versions(self, *, coming: bool = False) -> list[int]:
        """Those of which there is a folder, in their order: whole ones, or ``coming`` ones. Raises StorageError."""
        suffix = ".new" if coming else ""
        with storage_errors(self.folder), contextlib.suppress(FileNotFoundError):
            names = [path.name for path in self.folder.iterdir() if path.is_dir() and path.name.endswith(suffix)]
            found = [name.removesuffix(suffix) for name in names]
            return sorted(int(name) for name in found if name.isascii() and name.isdigit())
        return []

    def remove(self, folder: Path) -> None:
        """Raises StorageError. A power cut may leave a part of it, which then is nothing's."""
        with storage_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)

    # ------------------------------------------------------------ one release

    def write_head(self, folder: Path, manifest: bytes, signature: bytes) -> None:
        """Raises StorageError."""
        write_atomically(folder / "manifest", manifest)
        write_atomically(folder / "signature", signature)

    def head(self, folder: Path) -> Release:
        """The release that ``folder`` is, or is to be. Raises BundleError."""
        try:
            manifest = _read(folder / "manifest", LIMITS.release_manifest_bytes)
            signature = _read(folder / "signature", SIGNATURE_BYTES)
        except OSError as exc:
            raise _passing(exc, folder) or BundleError(f"{folder} is no release: {(exc.strerror or str(exc)).lower()}") from exc
        except StorageError as exc:
            raise BundleError(str(exc)) from exc
        release = load_release(manifest, signature, self.keys)
        if release.device != self._name or str(release.version) != folder.name.removesuffix(".new"):
            raise BundleError(f"{folder} holds release {release.version} of `{release.device}`")
        return release

    def digest(self, version: int) -> str:
        """SHA-256 of a release's manifest, in hex; empty where there is none, as for what the device was set up with."""
        try:
            return hashlib.sha256(_read(self.at(version) / "manifest", LIMITS.release_manifest_bytes)).hexdigest() if version else ""
        except (OSError, StorageError):
            return ""

    def check(self, version: int) -> Release | None:
        """Whether a release is as it was signed; what was unpacked of it is mended. None: the one that the device was set up with, which
        nobody has signed; or the keys are gone, and what ran goes on. Raises BundleError, StorageError, NotNow."""
        try:
            return self._checked(version)
        except CutlayerError:
            raise
        except OSError as exc:
            raise StorageError(f"cannot read {self.at(version)}: {exc.strerror or exc}") from exc
        except Exception as exc:  # a release may be anything, and none may cost us more than itself
            raise BundleError(f"{self.at(version)} cannot be checked ({type(exc).__name__}: {exc})") from exc

    def _checked(self, version: int) -> Release | None:
        folder = self.at(version)
        if version == 0 or not self.keys:
            if not (folder / RUN_FILE).is_file():
                raise BundleError(f"there is no {folder / RUN_FILE}; set the device up again with `cutlayer flash`")
            return None
        release = self.head(folder)
        for file in release.files:
            if not self.holds(folder, file):
                raise BundleError(f"{folder / file.path} is damaged")
        wheels = [folder / file.path for file in release.files if file.path.startswith(WHEELS)]
        if wheels:
            for _ in mend_site(wheels, folder / "site"):
                self._alive()
        return release

    def holds(self, folder: Path, file: ReleaseFile) -> bool:
        """Whether the file is there and has its hash. Raises NotNow."""
        path = folder / file.path
        for _ in range(_TRIES):
            try:
                return path.stat().st_size == file.size_bytes and self.sha256(path) == file.sha256
            except OSError as exc:
                if (passing := _passing(exc, path)) is not None:
                    raise passing from exc
                if exc.errno != errno.EIO:
                    return False
        return False

    def sha256(self, path: Path) -> str:
        """Of a file, in hex. Raises OSError."""
        found = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                found.update(piece)
                self._alive()
        return found.hexdigest()

    def coming_bytes(self) -> int:
        """Of what has come of releases that are not whole yet. Raises StorageError."""
        with storage_errors(self.folder):
            folders = [self.coming(version) for version in self.versions(coming=True)]
            return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

    def free_bytes(self) -> int:
        """Raises StorageError."""
        with storage_errors(self.folder):
            return shutil.disk_usage(self.folder).free


def load_deploy_keys(path: Path) -> tuple[Ed25519PublicKey, ...]:
    """The operator's public keys, Ed25519 in PEM form, one after the other; none where there is no such file. Raises UsageError."""
    try:
        text = _read(path, LIMITS.enrolment_bytes).decode("ascii")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot read {path}; bring the fleet's deploy.pub to this device") from exc
    return tuple(_deploy_key(part + _END, path) for part in text.split(_END)[:-1])


def _deploy_key(pem: str, path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem.strip().encode())
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"{path} is no public key in PEM form; bring the fleet's deploy.pub to this device") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is another kind of key than Ed25519; bring the fleet's deploy.pub to this device")
    return key


def _passing(exc: OSError, path: Path) -> NotNow | None:
    """Where it says nothing of what is on the disk."""
    if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return NotNow(f"cannot read {path} now: {exc.strerror}; it is tried again")
    return None


def sync_tree(folder: Path) -> None:
    """Bring the names below ``folder`` to the disk; the files' bytes are there already. Raises StorageError."""
    with storage_errors(folder):
        for each in (*_folders(folder), folder):
            sync_folder(each)


def _folders(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _folders(path)
            yield path


def _read(path: Path, limit_bytes: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise StorageError(f"{path} is larger than {limit_bytes} bytes")
    return data
