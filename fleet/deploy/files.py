"""The files of releases on the operator's disk, each once, by its SHA-256: ``releases/`` in the fleet's folder.

A release is served from these copies for as long as devices fetch it, whatever becomes of the bundle that it was made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from wire.errors import StorageError
from wire.store import storage_errors, write_atomically

__all__ = ["ReleaseFiles"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ReleaseFiles:
    """``folder`` need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: bytes) -> str:
        """Keep it; returns its hash, in hex. Raises StorageError."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._folder / digest
        if not self.holds(digest):
            with storage_errors(self._folder):
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, data, private=True)  # a run file names topics and may hold keys
        return digest

    def holds(self, digest: str) -> bool:
        """Whether it is there, as it was put."""
        path = self._folder / digest
        return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest

    def piece(self, digest: str, offset: int, count_bytes: int) -> bytes:
        """Bytes of the file with this hash, which ``put`` returned. Raises StorageError where they are not there."""
        path = self._folder / digest
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(count_bytes)
        except OSError as exc:
            raise StorageError(f"cannot read {path}, which a release holds: {(exc.strerror or str(exc)).lower()}; deploy again") from exc
        if len(data) != count_bytes:
            raise StorageError(f"{path} is cut off, and a release holds it; remove it and deploy again")
        return data

    def keep_only(self, digests: Iterable[str]) -> None:
        """Remove all others."""
        kept = set(digests)
        with contextlib.suppress(FileNotFoundError):
            for path in list(self._folder.iterdir()):
                if path.name not in kept and _DIGEST.fullmatch(path.name.removesuffix(".new")):
                    path.unlink(missing_ok=True)
