"""The agent's loop: one thread that watches the client, does a release's work in small steps, and speaks with the operator."""

from __future__ import annotations

import contextlib
import queue
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_client.agent.client import check_release
from edge_client.agent.line import Line, agent_broker
from edge_client.agent.notify import notify
from edge_client.agent.offers import Progress
from edge_client.agent.shelf import Shelf, load_deploy_keys
from edge_client.agent.updates import Updates
from edge_client.agent.watch import Patience, Watch
from edge_client.heartbeat import code_version
from edge_client.memory import rooms
from wire.errors import StorageError, UsageError
from wire.files import storage_errors
from wire.fleet.release import DEPLOY_PUB, RUN_FILE
from wire.fleet.talk import CODE_CHARS, END_OF_TIME_S, REASON_CHARS, RUN_CHARS, Ask, Chunk, Offer, State
from wire.limits import LIMITS
from wire.transport.broker_config import BrokerConfig

__all__ = ["Agent"]

_TURN_S = 1.0
_SAYS_EVERY_S = 5.0  # while a release is coming
_DISK_REST_S = 30.0
_ALIVE_EVERY_S = 10.0
_FAREWELL_S = 3.0  # in which what was said has gone out
_LOOK_EVERY_S = 10.0  # whether the certificate has come


class Agent:
    """``home``: the device's folder, with releases/ and deploy.pub; ``run_dir``: for what need not outlive a start of the system. Raises
    UsageError, StorageError where there is nothing that could be started."""

    def __init__(
        self, home: Path, *, name: str, run_dir: Path, patience: Patience | None = None, say: Callable[[str], None] = print
    ) -> None:
        self._home, self._name, self._say = home, name, say
        self._alive_s = time.monotonic()
        keys = self._keys(home / DEPLOY_PUB)
        if not (home / "releases").is_dir():
            raise UsageError(f"there is no {home / 'releases'}; set this device up with `cutlayer flash`")
        with storage_errors(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
        self._shelf = Shelf(home / "releases", name=name, keys=keys, alive=self._alive)
        self._updates = Updates(self._shelf, name=name, check=lambda launch: check_release(launch, name=name), say=say)
        self._watch = Watch(self._updates, name=name, heartbeat=run_dir / "heartbeat.json", patience=patience or Patience(), say=say)
        self._line = Line(name, wake=self._wake, say=say) if keys else None
        if self._line is None:
            say(f"there is no key in {home / 'deploy.pub'}: this device takes no releases")
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be rung from within a signal handler
        self._stop = False
        self._began_s = time.monotonic()
        self._boot = secrets.randbits(48)
        self._told: tuple[object, ...] = ()
        self._told_s = 0.0
        self._work_s = 0.0
        self._proven, self._look_s = -1, 0.0
        self._used: BrokerConfig | None = None
        self._leave_s = 0.0  # when the line goes elsewhere; 0: it does not
        self._reached = 0  # a version on trial, at whose broker we have been
        self._probe: Line | None = None

    def _keys(self, path: Path) -> Sequence[Ed25519PublicKey]:
        try:
            return load_deploy_keys(path)
        except UsageError as exc:  # no reason not to train
            self._say(str(exc))
            return ()

    def stop(self) -> None:
        """End client and loop; from a signal handler, too."""
        self._stop = True
        self._wake()

    def _wake(self) -> None:
        self._bell.put(None)

    def _alive(self) -> None:
        """In what takes long, as hashing a release on a slow card does."""
        now_s = time.monotonic()
        if now_s - self._alive_s > _ALIVE_EVERY_S:
            self._alive_s = now_s
            notify("WATCHDOG=1")

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Returns after ``stop``, when the client has ended."""
        try:
            while not (self._stop and self._watch.idle):
                if self._look_after():
                    notify("READY=1\nWATCHDOG=1")  # only here: the client was looked after
                self._rest(self._work())
        finally:
            notify("STOPPING=1")
            self._watch.kill()
            self._close_probe()
            if self._line is not None:
                self._line.close()

    def _rest(self, wait_s: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._bell.get(block=wait_s > 0, timeout=wait_s or None)
            while True:
                self._bell.get_nowait()

    def _look_after(self) -> bool:
        """The client's part of a turn; whether it was done."""
        try:
            if self._stop:
                self._watch.end()
            self._watch.turn(line_up=self._line is not None and self._line.up, reached=self._is_reached())
        except StorageError as exc:
            self._say(f"the disk refuses: {exc}")
        except Exception as exc:  # noqa: BLE001 - nobody would start a client again, nor could anybody reach this device
            self._say(f"the client cannot be looked after: {type(exc).__name__}: {exc}")
            return False
        return True

    def _work(self) -> float:
        """The operator's part; how long nothing has to be done then. Whatever is wrong with it, the client is still to be watched."""
        if self._stop or self._line is None:
            return _TURN_S
        try:
            self._converse(self._line)
            now_s = time.monotonic()
            if now_s >= self._work_s:
                next_s = self._updates.step()
                self._work_s = now_s + (_TURN_S if next_s is None else next_s)
            self._tell(self._line)
            return min(_TURN_S, max(0.0, self._work_s - time.monotonic()))
        except StorageError as exc:
            self._say(f"the disk refuses: {exc}")
        except Exception as exc:  # noqa: BLE001 - as above
            self._say(f"that went wrong, and is tried again: {type(exc).__name__}: {exc}")
        self._work_s = time.monotonic() + _DISK_REST_S
        return _TURN_S

    def _converse(self, line: Line) -> None:
        line.use(self._broker())
        for message in line.messages():
            if message is None:
                self._updates.link_is_up()
                self._told = ()
            elif isinstance(message, Ask):
                line.send(self._state(message.token))
            elif isinstance(message, Offer):
                self._updates.offer(message)
                self._told, self._work_s = (), 0.0
            elif isinstance(message, Chunk):
                self._updates.take(message, time.monotonic())
                self._work_s = 0.0
        if line.up:
            for want in self._updates.wants(time.monotonic(), piece_bytes=line.piece_bytes):
                line.send(want)

    def _broker(self) -> BrokerConfig | None:
        """While a release is on trial, that of the one before: no release may be able to cut us off from help. Where another one follows,
        who listens there is told first how the trial went."""
        books, now_s = self._updates.books, time.monotonic()
        proven = books.previous if books.trial else books.current
        if proven != self._proven and self._line is not None and self._line.up:
            self._leave_s = self._leave_s or now_s + _FAREWELL_S
            if now_s < self._leave_s:
                return self._used
        if proven != self._proven or now_s > self._look_s:
            self._proven, self._look_s, self._leave_s = proven, now_s + _LOOK_EVERY_S, 0.0
            self._used = agent_broker(self._shelf.at(proven) / RUN_FILE)
        return self._used

    def _is_reached(self) -> bool:
        """Whether we, too, have been connected where the release on trial has its broker: the operator could not help there otherwise."""
        books = self._updates.books
        if not books.trial or self._line is None:
            self._close_probe()
            return True
        if self._reached != books.current:
            there = agent_broker(self._shelf.at(books.current) / RUN_FILE)
            if there == agent_broker(self._shelf.at(books.previous) / RUN_FILE):
                self._reached = books.current
            elif there is not None:
                self._try_out(there, books.current)
        return self._reached == books.current

    def _try_out(self, broker: BrokerConfig, version: int) -> None:
        """A line of its own, and only for so long: where it is the same broker by another name, it takes the place of ours there."""
        if self._probe is None:
            self._probe = Line(self._name, wake=self._wake, say=lambda text: self._say(f"at the broker of release {version}: {text}"))
        self._probe.use(broker)
        for _ in self._probe.messages():
            pass
        if self._probe.up:
            self._reached = version
            self._close_probe()

    def _close_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
        self._probe = None

    # ------------------------------------------------------------ how the device is

    def _tell(self, line: Line) -> None:
        """Say it when it has changed; how far a release has come, now and then."""
        progress, now_s = self._updates.progress, time.monotonic()
        what = (progress.offered, progress.stage, progress.reason, self._updates.books.current, self._watch.state)
        if line.up and (what != self._told or (progress.stage == "fetching" and now_s - self._told_s > _SAYS_EVERY_S)):
            line.send(self._state(0))
            self._told, self._told_s = what, now_s

    def _state(self, token: int) -> State:
        progress, beat, line = self._updates.progress, self._watch.beat, self._line
        return State(
            token=token,
            boot=self._boot,
            release=self._updates.books.current,
            highest=self._updates.books.highest,
            offered=progress.offered,
            stage=progress.stage,
            have_bytes=progress.have_bytes,
            of_bytes=progress.of_bytes,
            reason=self._reason(progress),
            client=self._watch.state,
            run="" if beat is None else beat.run[:RUN_CHARS],
            step=-1 if beat is None else beat.step,
            code="" if beat is None else beat.code[:CODE_CHARS],
            agent=code_version(),
            uptime_s=round(time.monotonic() - self._began_s, 1),
            connections=0 if line is None else line.connections,
            disk_free_bytes=self._shelf.free_bytes(),
            memory_free_bytes=min((room.free_bytes for room in rooms(Path("/"))), default=0),
            certificate_until_s=self._certificate_until_s(),
            digest=self._shelf.digest(self._updates.books.current),
        )

    def _reason(self, progress: Progress) -> str:
        """Why the release is not here, or else why the client is not running."""
        reason = progress.reason or self._watch.reason
        return reason.encode(errors="replace").decode()[:REASON_CHARS]  # names of files may be no text

    def _certificate_until_s(self) -> float:
        """Of the agent's certificate; 0: it cannot be read."""
        with contextlib.suppress(Exception):  # of x509, some are of no kind
            if self._used is not None and self._used.cert is not None:
                data = Path(self._used.cert).read_bytes()[: LIMITS.enrolment_bytes]
                return min(x509.load_pem_x509_certificate(data).not_valid_after_utc.timestamp(), END_OF_TIME_S - 1)
        return 0.0
