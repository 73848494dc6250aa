"""The agent's parts by themselves, without a process: what a device must live through, whatever it is told or finds on its disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_client.agent.agent import Agent
from edge_client.agent.shelf import Launch, NotNow, Shelf
from edge_client.agent.updates import Updates
from edge_client.heartbeat import read_beat
from tests.fleet import cut_update
from tests.fleet.fleets import until
from tests.fleet.operator_peer import Signed, frame, signed
from tests.fleet.test_watch import SOUND, pack
from wire.errors import BundleError, FrameError
from wire.fleet.talk import Chunk, Offer, decode_message

STATE = {
    "boot": 1,
    "release": 0,
    "highest": 0,
    "client": "running",
    "code": "1",
    "agent": "1",
    "uptime_s": 1.0,
    "connections": 1,
    "disk_free_bytes": 1,
    "memory_free_bytes": 1,
}


# ------------------------------------------------------------ what a process or a peer may say


@pytest.mark.parametrize("lie", [{"step": -7}, {"step": 2**70}, {"number": -1}, {"run": "\ud800"}, {"pid": 2**70}, {"code": "\udfff"}])
def test_a_heartbeat_that_lies_is_none(tmp_path: Path, lie: dict[str, Any]) -> None:
    beat = {"pid": 3, "number": 1, "run": "r", "code": "1"}
    (tmp_path / "beat").write_text(json.dumps(beat))
    assert read_beat(tmp_path / "beat") is not None
    (tmp_path / "beat").write_text(json.dumps(beat | lie))
    assert read_beat(tmp_path / "beat") is None


@pytest.mark.parametrize(
    "lie",
    [
        {"reason": "\ud800"},
        {"run": "\udfff"},
        {"code": "\ud800"},
        {"agent": "\ud800"},
        {"digest": "x" * 64},
        {"digest": "0" * 65},
        {"step": 2**70},
        {"uptime_s": float("nan")},
    ],
)
def test_a_state_that_could_not_be_kept_is_passed_over(lie: dict[str, Any]) -> None:
    assert decode_message(frame(1, json.dumps(STATE | {"digest": "0" * 64}).encode()))
    with pytest.raises(FrameError):
        decode_message(frame(1, json.dumps(STATE | lie).encode()))


# ------------------------------------------------------------ what may be on a disk


def test_long_work_says_that_it_lives(tmp_path: Path) -> None:
    """Each piece of a file, and each file of a wheel that is compared."""
    cut_update.prepare(tmp_path)
    release = cut_update.whole(2, version=2)
    folder = tmp_path / "releases/2"
    for path, data in release.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "manifest").write_bytes(release.manifest)
    (folder / "signature").write_bytes(release.signature)
    words: list[int] = []
    shelf = Shelf(tmp_path / "releases", name="pi-1", keys=[cut_update.KEY.public_key()], alive=lambda: words.append(1))
    assert shelf.check(2) is not None
    assert len(words) == len(release.files) + 3


def test_what_says_nothing_of_the_disk_is_no_damage(tmp_path: Path) -> None:
    """Too many open files, as one example."""
    cut_update.prepare(tmp_path)
    updates = cut_update.device(tmp_path)
    held, old = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, old[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(NotNow):
            updates.begin_launch()
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert updates.begin_launch().version == 1


@contextlib.contextmanager
def full(size_bytes: int) -> Iterator[None]:
    """A disk that takes no file beyond ``size_bytes``."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def offered(updates: Updates, release: Signed) -> None:
    updates.offer(Offer(manifest=release.manifest, signature=release.signature))


def served(updates: Updates, release: Signed, *, piece_bytes: int = 1000, after_all: Callable[[], object] = lambda: None) -> None:
    """All steps until none is left; ``after_all``: whenever no piece is missing any more."""
    by_hash = {hashlib.sha256(data).hexdigest(): data for data in release.files.values()}
    release_bytes = sum(len(data) for data in release.files.values())
    for turn in range(500):
        wants = updates.wants(float(turn), piece_bytes=piece_bytes)
        for want in wants:
            data = by_hash[want.sha256][want.offset : want.offset + want.count_bytes]
            updates.take(Chunk(sha256=want.sha256, offset=want.offset, data=data), float(turn))
        if wants and updates.progress.have_bytes == release_bytes:
            after_all()
        if updates.step() is None:
            return
    raise AssertionError(f"no end: {updates.progress}")


def running(folder: Path, *versions: int, **changes: Any) -> Updates:
    """A device that runs the last of ``versions``, all healthy; ``changes``: of that one's manifest."""
    cut_update.prepare(folder)
    updates = cut_update.device(folder)
    for version in versions:
        more = changes if version == versions[-1] else {}
        release = signed(cut_update.KEY, cut_update.NEW, **{"version": version, "device": "pi-1", "expires_s": 1 << 39} | more)
        offered(updates, release)
        served(updates, release)
        updates.begin_launch()
        updates.prove()
        assert updates.books.current == version
    return updates


def test_a_disk_that_gets_full_while_a_release_comes(tmp_path: Path) -> None:
    """The operator is told, and what has come is not fetched again."""
    cut_update.prepare(tmp_path)
    updates, release = cut_update.device(tmp_path), cut_update.whole(2, version=2)
    offered(updates, release)
    with full(2600):
        served(updates, release)
    assert updates.progress.stage == "refused"
    assert "cannot write" in updates.progress.reason
    assert (tmp_path / "releases/2.new/bundle/bottom/.more.bin").stat().st_size == 2600
    offered(updates, release)
    assert updates.progress.stage == "fetching"
    while updates.progress.have_bytes == 0:
        updates.step()
    wanted = hashlib.sha256(cut_update.NEW["bundle/bottom/more.bin"]).hexdigest()
    assert [want.offset for want in updates.wants(0.0, piece_bytes=1000) if want.sha256 == wanted] == [2600]
    updates.link_is_up()
    served(updates, release)
    assert updates.progress.stage == "trial"


def test_a_file_that_rots_while_the_others_come(tmp_path: Path) -> None:
    cut_update.prepare(tmp_path)
    updates, release = cut_update.device(tmp_path), cut_update.whole(2, version=2)
    offered(updates, release)
    rotten = tmp_path / "releases/2.new/bundle/bottom/more.bin"
    rot = [b"rot"]
    served(updates, release, piece_bytes=50, after_all=lambda: rotten.write_bytes(rot.pop()) if rot else None)
    assert updates.progress.stage == "trial"
    assert (tmp_path / "releases/2/bundle/bottom/more.bin").read_bytes() == cut_update.NEW["bundle/bottom/more.bin"]


def test_what_was_unpacked_rots_on_a_full_disk(tmp_path: Path) -> None:
    """What ran before runs again; and where there is nothing, nobody is told that all is well, and the rest is left as it is."""
    updates = running(tmp_path, 2)
    (tmp_path / "releases/2/site/pack/m1.py").write_text("rot")
    with full(0):
        assert updates.begin_launch().version == 1
    assert (updates.progress.stage, updates.progress.offered) == ("returned", 2)

    updates = running(tmp_path / "other", 2, minimum=2)
    (tmp_path / "other/releases/2/site/pack/m1.py").write_text("rot")
    with full(0), pytest.raises(BundleError, match="none to go back to"):
        updates.begin_launch()
    assert (updates.progress.stage, updates.progress.offered) == ("refused", 2)
    assert (tmp_path / "other/releases/2/site/pack/m0.py").read_text() == "x = 0\n" * 50
    assert updates.begin_launch().version == 2
    assert updates.progress.stage == "healthy"


def test_another_release_of_a_number_that_was_taken(tmp_path: Path) -> None:
    updates = running(tmp_path, 2)
    other, same = cut_update.whole(1, version=2), cut_update.NEW
    for again in (updates, cut_update.device(tmp_path)):
        offered(again, other)
        assert again.progress.stage == "refused"
        assert "another release 2 was taken already; number it higher (`--above 2`)" in again.progress.reason
        offered(again, signed(cut_update.KEY, same, version=2, device="pi-1", expires_s=1 << 39))
        assert again.progress.stage == "healthy"
    (tmp_path / "card/releases/0").mkdir(parents=True)
    (tmp_path / "card/releases/state.json").write_text('{"highest": 2, "settled": 2}')
    fresh = cut_update.device(tmp_path / "card")
    offered(fresh, other)
    assert fresh.progress.stage == "refused"


def test_books_that_are_lost_keep_the_minimum(tmp_path: Path) -> None:
    running(tmp_path, 2, 3, minimum=3)
    (tmp_path / "releases/state.json").unlink()
    updates = cut_update.device(tmp_path)
    assert (updates.books.current, updates.books.floor, updates.books.highest) == (3, 3, 3)
    (tmp_path / "releases/3/run.toml").write_text("rot")
    with pytest.raises(BundleError, match="none to go back to"):
        updates.begin_launch()


def test_what_nobody_thought_of_costs_a_release_and_no_more(tmp_path: Path) -> None:
    cut_update.prepare(tmp_path)

    def surprise(launch: Launch) -> Iterator[float]:
        raise KeyError("surprise")
        yield 0.0

    shelf = Shelf(tmp_path / "releases", name="pi-1", keys=[cut_update.KEY.public_key()])
    updates = Updates(shelf, name="pi-1", check=surprise, say=lambda text: None)
    release = cut_update.whole(2, version=2)
    offered(updates, release)
    served(updates, release)
    assert updates.progress.stage == "refused"
    assert "KeyError: 'surprise'" in updates.progress.reason
    assert updates.begin_launch().version == 1


def test_a_wheel_that_nobody_can_open_does_not_keep_the_agent_from_starting(tmp_path: Path) -> None:
    """Its number is in the books already, and it is looked at with each start."""
    cut_update.prepare(tmp_path)
    data = bytearray(cut_update.wheel())
    data[data.rindex(b"PK\x01\x02") + 6] = 99
    files = cut_update.OLD | {"wheels/p-1-py3-none-any.whl": bytes(data)}
    release = signed(cut_update.KEY, files, version=2, device="pi-1", expires_s=1 << 39)
    updates = cut_update.device(tmp_path)
    offered(updates, release)
    (tmp_path / "releases/2.new/manifest").write_bytes(b"[" * (1 << 17))  # and one that is larger than any
    cut_update.device(tmp_path)
    offered(updates, release)
    served(updates, release)
    assert updates.progress.stage == "refused"
    assert "zip file version 9.9" in updates.progress.reason
    assert cut_update.device(tmp_path).begin_launch().version == 1


# ------------------------------------------------------------ the loop


def test_the_loop_outlives_what_nobody_thought_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, a log that fails in the middle of starting the client: it is found, looked after, and ended in the end."""
    (tmp_path / "releases/0").mkdir(parents=True)
    (tmp_path / "releases/0/run.toml").write_text("x = 1\n")
    with zipfile.ZipFile(io.BytesIO(pack("v0", SOUND))) as wheel:
        wheel.extractall(tmp_path / "venv")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "venv"))
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.endswith("is started"):
            raise KeyError("surprise")

    agent = Agent(tmp_path, name="pi-1", run_dir=tmp_path / "run", say=say)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        beat = until(lambda: read_beat(tmp_path / "run/heartbeat.json"), "the client")
        until(lambda: True if any("cannot be looked after: KeyError: 'surprise'" in line for line in said) else None, "a word about it")
    finally:
        agent.stop()
        thread.join(30)
    assert not thread.is_alive()
    assert not Path(f"/proc/{beat.pid}").exists()
    assert said.count("the client of release 0 is started") == 1
