"""Pulls the files of a release into its folder, piece by piece, and goes on at the byte where it stopped, whatever it was that stopped it.

No socket here: questions out, pieces in. What has its own name in the folder has its hash; a part of NAME is called .NAME, which no file
of a release can be. A piece counts where it continues its part; what was lost on the way is asked for again after a while.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_client.agent.shelf import Shelf, sync_tree
from edge_client.agent.wheels import unpack_wheels
from wire.errors import BundleError, StorageError
from wire.files import storage_errors
from wire.fleet.release import WHEELS, Release, ReleaseFile
from wire.fleet.talk import Chunk, Want
from wire.limits import LIMITS

__all__ = ["FIRST_PATIENCE_S", "LONGEST_PATIENCE_S", "Fetch"]

FIRST_PATIENCE_S, LONGEST_PATIENCE_S = 20.0, 600.0  # without any piece, until all is asked for again
_IDLE_S = 1.0
_ROUNDS = 4  # of comparing a release with the disk, and fetching what is not there
_OUTSTANDING = 6  # questions
_SPOILT = 3  # times that a whole file has another hash, until the release is given up


@dataclass(slots=True)
class _Missing:
    """``have_bytes``: of its part on disk; ``asked_bytes``: up to where it has been asked for."""

    file: ReleaseFile
    part: Path
    have_bytes: int
    asked_bytes: int
    spoilt: int = 0


class Fetch:
    """``folder`` holds the release's manifest already. ``missing`` is None until ``plan`` has run to its end."""

    def __init__(self, shelf: Shelf, folder: Path, release: Release) -> None:
        self._shelf, self._folder, self.release = shelf, folder, release
        self._missing: dict[str, _Missing] | None = None
        self._asked: dict[tuple[str, int], int] = {}  # (hash, offset) -> bytes
        self._heard_s = 0.0
        self._patience_s = FIRST_PATIENCE_S

    @property
    def done(self) -> bool:
        return self._missing is not None and not self._missing

    @property
    def have_bytes(self) -> int:
        if self._missing is None:
            return 0
        return self.release.size_bytes - sum(each.file.size_bytes - each.have_bytes for each in self._missing.values())

    def whole(self) -> Iterator[float]:
        """Until the folder holds all of it on the disk, wheels unpacked in site/. Raises BundleError for an unsound wheel, StorageError."""
        for _ in range(_ROUNDS):
            yield from self.plan()
            if self.done:
                break
            while not self.done:
                yield _IDLE_S  # and then once more against the disk
        else:
            raise StorageError("the disk does not keep what is written to it; look at it before you deploy again")
        self._shelf.remove(self._folder / "site")
        wheels = [self._folder / file.path for file in self.release.files if file.path.startswith(WHEELS)]
        if wheels:
            yield from unpack_wheels(wheels, self._folder / "site")
        sync_tree(self._folder)

    # ------------------------------------------------------------ what is here already

    def plan(self) -> Iterator[float]:
        """Look, file by file, at what is in the folder or in a release that is here; what is not goes on to be asked for. Raises
        StorageError."""
        missing: dict[str, _Missing] = {}
        wanted = {self._folder / file.path for file in self.release.files}
        wanted |= {self._part_path(file) for file in self.release.files} | {self._folder / "manifest", self._folder / "signature"}
        for path in [path for path in self._folder.rglob("*") if path.is_file() and path not in wanted]:
            with storage_errors(path):
                path.unlink()
        for file in self.release.files:
            if not self._shelf.holds(self._folder, file) and file.sha256 not in missing and not self._copied(file):
                missing[file.sha256] = self._part_of(file)
            yield 0.0
        self._missing = missing
        for each in [each for each in missing.values() if each.have_bytes == each.file.size_bytes]:
            self._complete(each)  # power went before it got its name, or it is empty

    def _copied(self, file: ReleaseFile) -> bool:
        """From another release, or from this one where it holds the same bytes twice: a copy, so that one bad sector does not take both."""
        twins = [other.path for other in self.release.files if other.sha256 == file.sha256]
        places = [self._folder / path for path in twins] + [self._shelf.at(version) / file.path for version in self._shelf.versions()]
        for place in places:
            try:
                if place.stat().st_size != file.size_bytes or self._shelf.sha256(place) != file.sha256:
                    continue
            except OSError:
                continue
            part = self._part_path(file)
            with storage_errors(part):
                part.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, part)
            return self._named(file, part)
        return False

    def _part_of(self, file: ReleaseFile) -> _Missing:
        part = self._part_path(file)
        with storage_errors(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            have = part.stat().st_size if part.exists() else 0
            if have > file.size_bytes or not part.exists():
                part.write_bytes(b"")
                have = 0
        return _Missing(file, part, have, have)

    def _part_path(self, file: ReleaseFile) -> Path:
        path = self._folder / file.path
        return path.with_name("." + path.name)

    # ------------------------------------------------------------ questions

    def wants(self, now_s: float, *, piece_bytes: int) -> list[Want]:
        """What is to be asked now. ``piece_bytes``: the longest piece that suits the line."""
        if not self._missing:
            return []
        if self._asked and now_s - self._heard_s > self._patience_s:
            self.ask_anew()
            self._patience_s = min(2 * self._patience_s, LONGEST_PATIENCE_S)
        if not self._asked:
            self.ask_anew()
            self._heard_s = now_s
        found: list[Want] = []
        for each in self._missing.values():
            while len(self._asked) < _OUTSTANDING and each.asked_bytes < each.file.size_bytes:
                count = min(piece_bytes, LIMITS.chunk_bytes, each.file.size_bytes - each.asked_bytes)
                version = self.release.version
                found.append(Want(version=version, sha256=each.file.sha256, offset=each.asked_bytes, count_bytes=count))
                self._asked[each.file.sha256, each.asked_bytes] = count
                each.asked_bytes += count
        return found

    def ask_anew(self) -> None:
        """What was asked for and has not come is lost."""
        self._asked.clear()
        for each in (self._missing or {}).values():
            each.asked_bytes = each.have_bytes

    def patient_again(self) -> None:
        """Somebody is there: what lies unanswered need not wait for long."""
        self._patience_s = FIRST_PATIENCE_S

    # ------------------------------------------------------------ pieces

    def take(self, chunk: Chunk, now_s: float) -> bool:
        """Whether it is a piece that was asked for. Raises StorageError, and BundleError where a file has another hash again and again."""
        count = self._asked.get((chunk.sha256, chunk.offset))
        if count is None or self._missing is None or len(chunk.data) != count:
            return False
        del self._asked[chunk.sha256, chunk.offset]
        self._heard_s = now_s
        self.patient_again()
        each = self._missing[chunk.sha256]
        if chunk.offset != each.have_bytes:
            return False  # one before it was lost; its turn comes again
        with storage_errors(each.part), open(each.part, "r+b") as file:
            file.seek(chunk.offset)
            file.write(chunk.data)
        each.have_bytes += count
        if each.have_bytes == each.file.size_bytes:
            self._complete(each)
        return True

    def _complete(self, each: _Missing) -> None:
        assert self._missing is not None
        if self._named(each.file, each.part):
            del self._missing[each.file.sha256]
            for other in [other for other in self.release.files if other.sha256 == each.file.sha256 and other != each.file]:
                self._copied(other)
            return
        each.spoilt += 1
        if each.spoilt == _SPOILT:
            raise BundleError(f"what came for {each.file.path} does not have the hash that was signed; deploy again from a sound bundle")
        with storage_errors(each.part):
            each.part.write_bytes(b"")
        each.have_bytes = each.asked_bytes = 0

    def _named(self, file: ReleaseFile, part: Path) -> bool:
        """Give a part its name, if it is the file."""
        with storage_errors(part):
            if self._shelf.sha256(part) != file.sha256:
                return False
            with open(part, "r+b") as written:
                os.fsync(written.fileno())
            os.replace(part, self._folder / file.path)
        return True
