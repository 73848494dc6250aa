"""A device that loses power at its n-th deed of an update, for every n: ``python cut_update.py FOLDER STORY`` prints how many there were.

Each life is a process of its own, forked from this one, that is cut off right before a deed, or in the middle of one where bytes are
written; and with the power goes what was written and not synced: half of each such file is lost. Deeds are all that changes a disk, by
Python's audit events and by the two calls that it has none for. The life after it is cut as well, somewhere in its mending. Then the next
start must have a whole release to run, the old one or the new one, and the same offer must bring the new one.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import os
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.agent.shelf import Launch, Shelf
from edge_client.agent.updates import Updates
from tests.fleet.operator_peer import Signed, signed
from wire.errors import BundleError
from wire.fleet.talk import Chunk, decode_message

__all__ = ["BundleError", "device", "fetched", "prepare", "replace"]

CUT = 9
_EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.copyfile",
    "shutil.rmtree",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

# ------------------------------------------------------------ power


class Power:
    """Goes at deed ``at``; 0: never."""

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.at, self.deeds = str(folder), at, 0
        self._unsynced: dict[int, int] = {}  # inode -> a descriptor of our own
        sys.addaudithook(self._event)
        real_open, real_fsync = builtins.open, os.fsync

        def opened(file: Any, mode: str = "r", *more: Any, **others: Any) -> Any:
            found = real_open(file, mode, *more, **others)
            if isinstance(file, int) or not str(file).startswith(self.folder) or not set(mode) & set("wxa+"):
                return found
            self._written(found.fileno())
            return Torn(found, self)

        def synced(fd: int) -> None:
            self.deed()
            real_fsync(fd)
            kept = self._unsynced.pop(os.fstat(fd).st_ino, None)
            if kept is not None:
                os.close(kept)

        builtins.open, io.open, os.fsync = opened, opened, synced  # type: ignore[assignment]

    def _event(self, event: str, values: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not any(self._ours(value) for value in values):
            return
        if event == "open" and not (isinstance(values[2], int) and values[2] & _WRITING):
            return
        self.deed()

    def _ours(self, value: Any) -> bool:
        """A path, or the descriptor of the folder in which a whole tree is being removed."""
        if isinstance(value, int) and not isinstance(value, bool) and value > 2:
            try:
                value = os.readlink(f"/proc/self/fd/{value}")
            except OSError:
                return False
        return str(value).startswith(self.folder)

    def _written(self, fd: int) -> None:
        if os.fstat(fd).st_ino not in self._unsynced:
            self._unsynced[os.fstat(fd).st_ino] = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)

    def deed(self) -> None:
        self.deeds += 1
        if self.deeds == self.at:
            self.go()

    def go(self) -> None:
        for fd in self._unsynced.values():
            os.ftruncate(fd, os.fstat(fd).st_size // 2)
        os._exit(CUT)


class Torn:
    """A file whose writes may be cut in the middle."""

    def __init__(self, file: Any, power: Power) -> None:
        self._file, self._power = file, power

    def write(self, data: Any) -> Any:
        self._power.deeds += 1
        if self._power.deeds == self._power.at:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._power.go()
        return self._file.write(data)

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# ------------------------------------------------------------ the device


def wheel() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for at in range(3):
            file.writestr(zipfile.ZipInfo(f"pack/m{at}.py"), f"x = {at}\n" * 50)
    return data.getvalue()


OLD = {"run.toml": b"old = 1\n", "bundle/bottom/manifest.json": b"{}", "bundle/bottom/same.bin": b"same" * 500}
MIDDLE = OLD | {"run.toml": b"middle = 1\n", "bundle/bottom/forward.bin": bytes(2500)}
NEW = MIDDLE | {
    "run.toml": b"new = 1\n",
    "bundle/bottom/more.bin": os.urandom(3000),
    "bundle/twin.bin": b"same" * 500,
    "wheels/p-1-py3-none-any.whl": wheel(),
}


def whole(release: int, *, version: int) -> Signed:
    return signed(KEY, (OLD, MIDDLE, NEW)[release], version=version, device="pi-1", expires_s=1 << 39)


RELEASES = {1: whole(1, version=1), 2: whole(2, version=2), 3: whole(1, version=3)}
GOALS = {"keep": (2, 3), "return": (2,)}


def device(folder: Path) -> Updates:
    shelf = Shelf(folder / "releases", name="pi-1", keys=[KEY.public_key()])
    return Updates(shelf, name="pi-1", check=checked, say=lambda text: None)


def checked(launch: Launch) -> Iterator[float]:
    yield 0.0


def fetched(updates: Updates, version: int) -> None:
    """The operator is there, until the release is current or was given up."""
    offer, stock = decode_message(RELEASES[version].offer), RELEASES[version].files.values()
    by_hash = {hashlib.sha256(data).hexdigest(): data for data in stock}
    updates.offer(offer)  # type: ignore[arg-type]
    for turn in range(10_000):
        for want in updates.wants(float(turn), piece_bytes=1000):
            data = by_hash[want.sha256][want.offset : want.offset + want.count_bytes]
            updates.take(Chunk(sha256=want.sha256, offset=want.offset, data=data), float(turn))
        if updates.step() is None and updates.books.current == version:
            return
        if updates.progress.stage in ("returned", "refused") or (updates.books.settled == version and updates.books.current != version):
            return
    raise AssertionError(f"no end: {updates.books} {updates.progress}")


# ------------------------------------------------------------ stories


def update_and_keep(folder: Path) -> None:
    """From the second release to the third, which proves itself, and to a fourth; then the second is removed."""
    updates = device(folder)
    for version in GOALS["keep"]:
        if updates.books.settled < version:
            fetched(updates, version)
        if updates.books.trial:
            updates.begin_launch()
            updates.prove()


def update_and_return(folder: Path) -> None:
    """The new one is started three times and given back."""
    updates = device(folder)
    fetched(updates, 2)
    while updates.books.trial:
        updates.begin_launch()


STORIES: dict[str, Callable[[Path], None]] = {"keep": update_and_keep, "return": update_and_return}


def prepare(folder: Path) -> None:
    """A device that has been updated once, from what was on its card."""
    for path, data in OLD.items():
        place = folder / "releases/0" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    updates = device(folder)
    fetched(updates, 1)
    updates.begin_launch()
    updates.prove()
    assert updates.books.current == 1


def next_start(folder: Path, story: str) -> None:
    """After a cut: something whole starts at once, and the update goes through or has been given back for good."""
    updates = device(folder)
    launch = updates.begin_launch()
    check_files(launch)
    for version in GOALS[story]:
        if updates.books.settled < version:
            if updates.books.trial:
                updates.prove()
            fetched(updates, version)
            launch = updates.begin_launch()
            assert launch.version == version, (updates.books, updates.progress)
            check_files(launch)
    if updates.books.trial:
        updates.prove()
    assert (story, updates.books.current, updates.books.failed) in (("keep", 3, 0), ("return", 2, 0), ("return", 1, 2)), updates.books
    names = sorted(path.name for path in (folder / "releases").iterdir() if path.is_dir())
    assert names == {3: ["0", "2", "3"], 2: ["0", "1", "2"], 1: ["0", "1"]}[updates.books.current], names
    assert device(folder).begin_launch().version == updates.books.current


def check_files(launch: Launch) -> None:
    for path, data in RELEASES[launch.version].files.items():
        assert (launch.folder / path).read_bytes() == data, path
    if launch.version == 2:
        assert launch.site is not None
        assert [(launch.site / f"pack/m{at}.py").read_text() for at in range(3)] == [f"x = {at}\n" * 50 for at in range(3)]


def in_a_life(act: Callable[[], None]) -> int:
    """Its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cut_life(folder: Path, story: str, at: int) -> None:
    Power(folder, at)
    STORIES[story](folder)


def lives(folder: Path, story: str, at: int) -> bool:
    """Whether deed ``at`` was reached. Raises AssertionError where a life ends otherwise than it should."""
    code = in_a_life(lambda: cut_life(folder, story, at))
    assert code in (0, CUT), f"deed {at}: the life itself ends with {code}"
    if code == CUT:
        second = (7 * at) % 41 + 1
        assert in_a_life(lambda: cut_life(folder, story, second)) in (0, CUT), f"deed {at}, then {second}: the second life fails"
    assert in_a_life(lambda: next_start(folder, story)) == 0, f"deed {at}: the next start fails"
    return code == CUT


def main(folder: Path, story: str) -> None:
    prepare(folder / "first")
    at = 1
    while True:
        place = folder / str(at)
        shutil.copytree(folder / "first", place)
        if not lives(place, story, at):
            break
        shutil.rmtree(place)
        at += 1
    print(json.dumps({"cuts": at - 1}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
