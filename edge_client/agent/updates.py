"""What becomes of a release, from the offer to the proof: fetched, checked, switched to, and kept or given back.

No socket and no process of the client's here. All that must outlive a power cut is on disk before anything follows from it: after one,
``Updates`` made anew goes on where the last one was, with a whole release to start, the old one or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from edge_client.agent.fetch import Fetch
from edge_client.agent.offers import Progress, check_offer
from edge_client.agent.shelf import Books, Launch, NotNow, Shelf, restored, sync_tree
from wire.errors import BundleError, CutlayerError, StorageError
from wire.files import storage_errors
from wire.fleet.release import Release, load_release
from wire.fleet.talk import REASON_CHARS, Chunk, Offer, Want

__all__ = ["LAUNCHES", "Updates"]

LAUNCHES = 3  # of a release on trial


class Updates:
    """``check``: whether the client could begin with what is in a folder, as ``edge_client.agent.client.check_release``. ``clock``: seconds
    since 1970; ``say``: for the log. Work is done in steps, each of which says after how many seconds the next one is of use."""

    def __init__(
        self,
        shelf: Shelf,
        *,
        name: str,
        check: Callable[[Launch], Iterator[float]],
        clock: Callable[[], float] = time.time,
        say: Callable[[str], None] = print,
    ) -> None:
        self._shelf, self._name, self._check, self._clock, self._say = shelf, name, check, clock, say
        self._refused: Progress | None = None  # of an offer that was not taken on
        self._fetch: Fetch | None = None
        self._work: Iterator[float] | None = None
        self._ready = 0  # a version that is whole and waits for the switch
        self._stuck = ""  # why nothing can be started
        self.books = self._opened()
        self._go_on()

    # ------------------------------------------------------------ after a start

    def _opened(self) -> Books:
        books = self._shelf.load()
        if books is not None:
            return books
        found = [version for version in self._shelf.versions() if version and self._whole(version)]
        books = restored({version: self._shelf.head(self._shelf.at(version)) for version in found})
        for version in self._shelf.versions(coming=True):
            with contextlib.suppress(BundleError):  # what was coming comes still, and nothing older instead
                self._shelf.head(self._shelf.coming(version))
                books = replace(books, highest=max(books.highest, version))
        if books.current:
            self._say(f"{self._shelf.folder / 'state.json'} cannot be read: release {books.current} is the newest here")
        return books

    def _whole(self, version: int) -> bool:
        """Raises NotNow."""
        try:
            self._shelf.check(version)
        except NotNow:
            raise
        except CutlayerError:
            return False
        return True

    def _go_on(self) -> None:
        """Take up what was under way; a disk that refuses must not keep the client from being started."""
        version = self.books.highest
        try:
            self._tidy()
            if version == self.books.settled:
                return
            if version in self._shelf.versions():
                if self._whole(version):
                    self._ready = version
                else:
                    self._shelf.remove(self._shelf.at(version))
            elif version in self._shelf.versions(coming=True):
                self._begin(self._shelf.head(self._shelf.coming(version)))
        except BundleError:
            self._remove(self._shelf.coming(version))
        except StorageError as exc:
            self._refuse(version, f"release {version}: {exc}")

    def _tidy(self) -> None:
        """Remove what nobody will run any more."""
        books = self.books
        pending = {books.highest} if books.highest > books.settled else set()
        for version in set(self._shelf.versions()) - {0, books.current, books.previous} - pending:
            self._remove(self._shelf.at(version))
        for version in set(self._shelf.versions(coming=True)) - pending:
            self._remove(self._shelf.coming(version))

    def _remove(self, folder: Path) -> None:
        """Of no use any more; if the disk refuses, at another time."""
        try:
            self._shelf.remove(folder)
        except StorageError as exc:
            self._say(f"not removed: {exc}")

    # ------------------------------------------------------------ the operator's side

    @property
    def progress(self) -> Progress:
        books = self.books
        if self._refused is not None and not books.trial:  # or who waits for the trial to end would not see that it goes on
            return self._refused
        if self._ready:
            return Progress(offered=self._ready, stage="ready")
        if self._fetch is not None:
            size = self._fetch.release.size_bytes
            return Progress(offered=books.highest, stage="fetching", have_bytes=self._fetch.have_bytes, of_bytes=size)
        if self._stuck:
            return Progress(offered=books.current, stage="refused", reason=_text(self._stuck))
        if books.failed > books.current:
            return Progress(offered=books.failed, stage=books.verdict or "refused", reason=books.reason)
        if books.current:
            return Progress(offered=books.current, stage="trial" if books.trial else "healthy")
        return Progress()

    def offer(self, message: Offer) -> None:
        """Take it on, or refuse it and remember why."""
        version = 0
        try:
            release = load_release(message.manifest, message.signature, self._shelf.keys)
            version = release.version
            if self._is_another(release, message):
                raise BundleError(f"another release {version} was taken already; number it higher (`--above {version}`)")
            if self._is_under_way(release):
                self._refused = None
                return
            room_bytes = self._shelf.free_bytes() + self._shelf.coming_bytes()
            check_offer(release, self.books, name=self._name, now_s=self._clock(), free_bytes=room_bytes)
            self._take_on(release, message)
        except CutlayerError as exc:
            self._refuse(version, str(exc))
        except Exception as exc:  # noqa: BLE001 - an offer may be anything, and none may cost us more than itself
            self._refuse(version, f"release {version}: {_told(exc)}")

    def _take_on(self, release: Release, message: Offer) -> None:
        """Raises StorageError."""
        self._keep(replace(self.books, highest=release.version, digest=hashlib.sha256(message.manifest).hexdigest()))
        self._refused = None
        self._say(f"release {release.version}: offered, {len(release.files)} files of {release.size_bytes} bytes")
        self._make_room(release, message)
        self._begin(release)

    def _keep(self, books: Books) -> None:
        """Raises StorageError, and nothing has changed then."""
        self._shelf.save(books)
        self.books = books

    def _note(self, books: Books) -> None:
        """Changed all the same where the disk refuses: a power cut brings back what was, and no harm comes of that."""
        self.books = books
        try:
            self._shelf.save(books)
        except StorageError as exc:
            self._say(f"not written down: {exc}")

    def _is_another(self, release: Release, message: Offer) -> bool:
        """Whether it has the number of what was taken on last, and other contents: who has lost count must not be told that all is well."""
        version = release.version
        if release.device != self._name or version != self.books.highest:
            return False
        known = self.books.digest or self._shelf.digest(version)  # books of before do not say
        if known:
            return known != hashlib.sha256(message.manifest).hexdigest()
        return version == self.books.settled and version != self.books.failed  # a floor that the device was set up with

    def _is_under_way(self, release: Release) -> bool:
        """Or has been brought to its end already: the operator asks again. Raises NotNow."""
        if release.device != self._name or release.version != self.books.highest:
            return False
        if self._fetch is not None and self._fetch.release == release:
            self.link_is_up()  # whoever offers it again may have heard none of our questions
            return True
        if release.version > self.books.settled:
            return release.version == self._ready
        return release.version != self.books.current or self._whole(release.version)

    def _refuse(self, version: int, reason: str) -> None:
        self._refused = Progress(offered=version, stage="refused", reason=_text(reason))
        self._say(f"an offer is refused: {reason}")

    def _make_room(self, release: Release, message: Offer) -> None:
        """A folder for it, which takes over what an older one that was still coming has already. Raises StorageError."""
        self._fetch, self._work, self._ready = None, None, 0
        folder = self._shelf.coming(release.version)
        others = [version for version in self._shelf.versions(coming=True) if version != release.version]
        with storage_errors(folder):
            if others and not folder.exists():
                self._shelf.coming(others[-1]).rename(folder)
            folder.mkdir(parents=True, exist_ok=True)
        self._shelf.write_head(folder, message.manifest, message.signature)
        if release.version != self.books.current:
            self._tidy()

    def _begin(self, release: Release) -> None:
        self._fetch = Fetch(self._shelf, self._shelf.coming(release.version), release)
        self._work = self._whole_work(self._fetch)

    def wants(self, now_s: float, *, piece_bytes: int) -> list[Want]:
        return [] if self._fetch is None else self._fetch.wants(now_s, piece_bytes=piece_bytes)

    def take(self, chunk: Chunk, now_s: float) -> bool:
        """A piece of a file; whether it was one that was missing."""
        try:
            return self._fetch is not None and self._fetch.take(chunk, now_s)
        except BundleError as exc:
            self._abandon(str(exc), keep=False)
        except Exception as exc:  # noqa: BLE001 - the disk, or what nobody thought of
            self._abandon(_told(exc), keep=True)
        return False

    def link_is_up(self) -> None:
        """Somebody is there, and what was asked for before may be lost."""
        if self._fetch is not None:
            self._fetch.ask_anew()
            self._fetch.patient_again()

    # ------------------------------------------------------------ work

    def step(self) -> float | None:
        """Do the next piece of work; after how many seconds there may be more, or None: not before something comes. Raises StorageError
        where the disk refuses the switch."""
        if self._work is None:
            self._switch()
            return None
        version = self.books.highest
        try:
            return next(self._work)
        except StopIteration:
            self._work = None
            return 0.0
        except (StorageError, OSError) as exc:
            self._abandon(_told(exc), keep=True)
        except Exception as exc:  # noqa: BLE001 - a release may be anything, and none may cost us more than itself
            self._fail("refused", f"release {version}: {_told(exc)}", version=version)
        return None

    def _whole_work(self, fetch: Fetch) -> Iterator[float]:
        """From what is here already to a folder of its own. Raises CutlayerError."""
        version, folder = fetch.release.version, self._shelf.coming(fetch.release.version)
        yield from fetch.whole()
        yield from self._check(Launch(version=version, folder=folder))
        if version in self._shelf.versions():
            self._shelf.remove(self._shelf.at(version))  # the same one, damaged
        with storage_errors(folder):
            folder.rename(self._shelf.at(version))
        sync_tree(self._shelf.folder)
        self._fetch, self._ready = None, version
        self._say(f"release {version}: whole and checked")

    def _switch(self) -> None:
        """To a release that is ready, unless another one is on trial. Raises StorageError."""
        if not self._ready or self.books.trial:
            return
        version = self._ready
        if version != self.books.current:
            self._keep(replace(self.books, current=version, previous=self.books.current, trial=True, launches=0, settled=version))
            self._say(f"release {version}: on trial, after release {self.books.previous}")
        self._ready = 0

    def _abandon(self, reason: str, *, keep: bool) -> None:
        """Not the release's fault for good: the operator may offer it again, and it goes on with what is here if that is to be kept."""
        version = self.books.highest
        self._fetch, self._work = None, None
        self._refuse(version, f"release {version}: {reason}")
        folder = self._shelf.coming(version)
        self._remove(folder / "site" if keep else folder)

    def _fail(self, verdict: Literal["returned", "refused"], reason: str, *, version: int) -> None:
        """Never again."""
        if version == self.books.highest:
            self._fetch, self._work = None, None
        settled = max(version, self.books.settled)
        self._note(replace(self.books, failed=version, verdict=verdict, reason=_text(reason), settled=settled))
        self._say(reason)
        self._tidy()

    # ------------------------------------------------------------ the client's side

    def begin_launch(self) -> Launch:
        """What is to be started now; it has been checked, and counted where it is on trial. Raises BundleError: nothing here can be
        started; NotNow."""
        try:
            launch = self._sound_launch()
        except NotNow:
            raise
        except BundleError as exc:
            self._stuck = str(exc)
            raise
        self._stuck = ""
        return launch

    def _sound_launch(self) -> Launch:
        if self.books.trial and self.books.launches >= LAUNCHES:
            self.give_back(f"it was started {LAUNCHES} times and did not prove itself")
        while True:
            version = self.books.current
            try:
                self._shelf.check(version)
                break
            except NotNow:
                raise
            except (BundleError, StorageError) as exc:  # damaged, and no room to mend it
                self.give_back(str(exc))
        if self.books.trial:  # a client that is not counted is better than none
            self._note(replace(self.books, launches=self.books.launches + 1))
        return Launch(version=version, folder=self._shelf.at(version))

    def uncount_launch(self) -> None:
        """It was ended by us, before it could prove anything."""
        if self.books.trial and self.books.launches:
            self._note(replace(self.books, launches=self.books.launches - 1))

    def prove(self) -> None:
        """The release on trial is healthy. Raises BundleError as ``give_back``."""
        books = self.books
        try:
            release = self._shelf.head(self._shelf.at(books.current))
        except BundleError as exc:
            self.give_back(str(exc))
            return
        self._note(replace(books, trial=False, launches=0, floor=max(books.floor, release.minimum)))
        self._say(f"release {books.current}: healthy")
        self._tidy()

    def give_back(self, reason: str) -> None:
        """Go back to the release before, for good. Raises BundleError where there is none."""
        version, below = self.books.current, self._below()
        if below is None:
            raise BundleError(f"release {version}: {reason}, and there is none to go back to; deploy it again, or a newer one")
        self.books = replace(self.books, current=below, previous=0, trial=False, launches=0)
        self._fail("returned", f"release {version}: {reason}; back to release {below}", version=version)

    def _below(self) -> int | None:
        """Where to go back to; None: nowhere. On trial the floor has not moved yet, so what ran before is good enough."""
        books = self.books
        if books.current == 0:
            return None
        if books.trial or books.previous >= books.floor:
            return books.previous
        return 0 if books.floor == 0 else None


def _told(exc: Exception) -> str:
    return str(exc) if isinstance(exc, CutlayerError) else f"{type(exc).__name__}: {exc}"


def _text(reason: str) -> str:
    """As a State takes it."""
    return reason.encode(errors="replace").decode()[:REASON_CHARS]
