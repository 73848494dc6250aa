"""The spool is a cache: it may forget anything at any time, but gives out nothing wrong, keeps its bounds and never stops a party."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.frames import Frame, Kind, Mode
from wire.graph import Line
from wire.recall import Recall
from wire.spool import Spool, SpoolConfig, SpoolKey, digest_of

PLENTY = SpoolConfig(limit_bytes=1 << 20, bytes_per_s=1 << 30)


def key(step: int, *, edge: str = "bottom>top", lane: int = 0, mode: Mode = Mode.TRAIN) -> SpoolKey:
    return SpoolKey(edge, lane, mode, step)


def payload(step: int, size: int = 1000) -> bytes:
    return random.Random(step).randbytes(size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


def filled(path: Path, steps: int, config: SpoolConfig = PLENTY) -> None:
    spool = Spool(path, config)
    for step in range(steps):
        spool.put(key(step), payload(step), after=3)
    spool.close()


def test_what_was_put_is_there_after_a_restart(path: Path) -> None:
    filled(path, 5)
    spool = Spool(path, PLENTY)
    assert spool.held(3) == [key(step) for step in range(5)]
    assert [spool.get(key(step)) for step in range(5)] == [(digest_of(payload(step)), payload(step)) for step in range(5)]
    assert spool.get(key(5)) is None
    assert spool.get(key(0, lane=1)) is None
    assert spool.get(key(0, mode=Mode.EVAL)) is None
    assert spool.held_bytes == 5000


def test_a_killed_process_loses_nothing(path: Path) -> None:
    """Another connection sees each message when ``put`` has returned, though nothing was closed."""
    spool = Spool(path, PLENTY)
    spool.put(key(1), payload(1), after=0)
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT payload FROM messages").fetchall() == [(payload(1),)]


def test_clearing_forgets_what_came_before_a_checkpoint_and_nothing_else(path: Path) -> None:
    spool = Spool(path, PLENTY)
    for step in range(6):
        spool.put(key(step), payload(step), after=step // 2)
    spool.clear_before(1)
    assert spool.held(0) == [key(step) for step in range(2, 6)]
    assert spool.held(2) == [key(4), key(5)]
    assert spool.held_bytes == 4000


def test_a_step_that_comes_otherwise_replaces_what_was_there(path: Path) -> None:
    spool = Spool(path, PLENTY)
    spool.put(key(0), payload(0), after=0)
    spool.put(key(0), payload(7, 300), after=0)
    assert spool.get(key(0)) == (digest_of(payload(7, 300)), payload(7, 300))
    assert spool.held_bytes == 300


def test_the_limit_holds_and_is_said_once(path: Path) -> None:
    said: list[str] = []
    spool = Spool(path, SpoolConfig(limit_bytes=2500, bytes_per_s=1 << 30), say=said.append)
    for step in range(5):
        spool.put(key(step), payload(step), after=0)
    assert spool.held(0) == [key(0), key(1)]
    assert spool.held_bytes == 2000
    assert len(said) == 1
    assert "2500 bytes" in said[0]
    assert "spool.limit_bytes" in said[0]
    spool.put(key(9), payload(9, 400), after=0)
    assert spool.get(key(9)) is not None, "what fits still finds room"
    spool.clear_before(1)
    spool.put(key(3), payload(3), after=1)
    assert spool.held(0) == [key(3)]


def test_a_limit_of_zero_makes_no_file_and_leaves_one_alone(path: Path) -> None:
    spool = Spool(path, SpoolConfig(limit_bytes=0))
    spool.put(key(0), payload(0), after=0)
    assert spool.get(key(0)) is None
    assert spool.held(0) == []
    spool.close(remove=True)
    assert not path.exists()
    filled(path, 1)
    Spool(path, SpoolConfig(limit_bytes=0)).close(remove=True)
    assert Spool(path, PLENTY).held(0) == [key(0)]


def test_forgetting_leaves_no_file(path: Path) -> None:
    filled(path, 3)
    Spool.forget(path)
    assert list(path.parent.glob(f"{path.name}*")) == []
    Spool.forget(path)


def test_writing_is_bounded_by_the_second(path: Path) -> None:
    now_s = [100.0]
    spool = Spool(path, SpoolConfig(limit_bytes=1 << 20, bytes_per_s=1000), clock=lambda: now_s[0])
    for step in range(40):
        spool.put(key(step), payload(step), after=0)
    assert len(spool.held(0)) == 16, "a burst of 16 seconds"
    now_s[0] += 3.0
    for step in range(40, 60):
        spool.put(key(step), payload(step), after=0)
    assert len(spool.held(0)) == 19
    now_s[0] += 1.0
    spool.put(key(60), payload(60, 100_000), after=0)
    assert spool.get(key(60)) is not None, "one long message may overdraw the allowance"
    now_s[0] += 50.0
    spool.put(key(61), payload(61), after=0)
    assert spool.get(key(61)) is None, "and is paid back first"
    now_s[0] += 1000.0
    for step in range(62, 100):
        spool.put(key(step), payload(step), after=0)
    assert len(spool.held(0)) == 20 + 16, "a long rest allows no more than a burst"


def test_what_is_there_already_costs_no_allowance(path: Path) -> None:
    spool = Spool(path, SpoolConfig(limit_bytes=1 << 20, bytes_per_s=1000), clock=lambda: 0.0)
    for _ in range(100):
        spool.put(key(0), payload(0), after=0)
    spool.put(key(1), payload(1), after=0)
    assert spool.held(0) == [key(0), key(1)]


@pytest.mark.parametrize("column", ["payload", "digest"])
def test_a_damaged_row_is_not_given_out_and_goes(column: str, path: Path) -> None:
    filled(path, 3)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"UPDATE messages SET {column} = zeroblob(length({column})) WHERE step = 1")
        db.commit()
    spool = Spool(path, PLENTY)
    assert spool.get(key(1)) is None
    assert spool.held(0) == [key(0), key(2)]
    assert spool.get(key(2)) == (digest_of(payload(2)), payload(2))
    assert spool.held_bytes == 2000


NOT_OURS = {
    "a step over 32 bits": {"step": 2**40},
    "a step below 0": {"step": -1},
    "a step without end": {"step": float("inf")},
    "a mode below 0": {"mode": -1},
    "a mode over 8 bits": {"mode": 300},
    "a lane over 16 bits": {"lane": 1 << 16},
    "a lane without end": {"lane": float("-inf")},
    "a lane that is no number": {"lane": "zz"},
    "a lane that is nothing": {"lane": None},
    "a size without end": {"size": float("inf")},
    "a size that is no number": {"size": "zz"},
    "a size over all": {"size": 2**62},
}


@pytest.mark.parametrize("damage", NOT_OURS.values(), ids=NOT_OURS.keys())
def test_a_row_that_can_be_read_and_is_none_of_ours_costs_bytes_only(damage: dict[str, object], path: Path) -> None:
    filled(path, 3)
    ((column, value),) = damage.items()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"UPDATE messages SET {column} = ? WHERE step = 1", (value,))
        db.commit()
    line, sent = Line("bottom>top", 0, False), []
    for _ in range(2):
        said: list[str] = []
        spool = Spool(path, PLENTY, say=said.append)
        recall = Recall([line], spool, checkpoint=3, send=lambda line, frame: sent.append(frame))
        recall.restored(3, 1)
        recall.saved(4)
        frame = Frame(kind=Kind.FORWARD, epoch=1, step=7, payload=payload(7))
        assert recall.incoming(line, frame) == frame
        spool.close()
    assert said == [], "it is said once, and the row is gone"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_done_to_the_file_nothing_wrong_is_given_out(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("spool") / "spool.sqlite"
    filled(path, 8)
    file = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 30))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    del file[data.draw(st.integers(0, 2 * len(file))) :]
    path.write_bytes(bytes(file))
    said: list[str] = []
    spool = Spool(path, PLENTY, say=said.append)
    spool.held(0)
    for step in range(8):
        found = spool.get(key(step))
        assert found is None or found == (digest_of(payload(step)), payload(step))
    spool.clear_before(9)
    spool.put(key(100), payload(100), after=9)
    assert len(said) <= 2
    assert all("\n" not in text and str(path) in text for text in said)
    assert spool.get(key(100)) is not None or len(said) == 2
    spool.close()


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", random.Random(1).randbytes(5000)])
def test_a_file_that_is_no_spool_is_made_anew_with_a_line(rubbish: bytes, path: Path) -> None:
    path.write_bytes(rubbish)
    said: list[str] = []
    spool = Spool(path, PLENTY, say=said.append)
    spool.put(key(0), payload(0), after=0)
    assert spool.get(key(0)) == (digest_of(payload(0)), payload(0))
    assert len(said) == (1 if rubbish else 0)
    assert all("made anew" in text and "crosses the line again" in text for text in said)


def test_a_spool_of_another_version_is_made_anew(path: Path) -> None:
    filled(path, 2)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    said: list[str] = []
    spool = Spool(path, PLENTY, say=said.append)
    assert spool.held(0) == []
    assert len(said) == 1
    assert "version 99" in said[0]


def test_a_file_that_is_far_over_its_limit_is_made_anew_unread(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    said: list[str] = []
    spool = Spool(path, PLENTY, say=said.append)
    spool.put(key(0), payload(0), after=0)
    assert spool.held(0) == [key(0)]
    assert "larger than its limit" in said[0]


def test_where_nothing_can_be_written_the_party_goes_on_without(tmp_path: Path) -> None:
    said: list[str] = []
    spool = Spool(tmp_path / "no such folder" / "spool.sqlite", PLENTY, say=said.append)
    spool.put(key(0), payload(0), after=0)
    assert spool.get(key(0)) is None
    spool.clear_before(3)
    spool.close(remove=True)
    assert len(said) == 2
    assert "goes on without it" in said[1]


def test_a_file_that_is_deleted_under_it_stops_nobody(path: Path) -> None:
    spool = Spool(path, PLENTY)
    spool.put(key(0), payload(0), after=0)
    for each in path.parent.glob("spool.sqlite*"):
        each.unlink()
    spool.put(key(1), payload(1), after=0)
    found = spool.get(key(1))
    assert found is None or found[1] == payload(1)
    spool.clear_before(5)
    spool.close(remove=True)


def test_closed_for_good_it_leaves_no_file(path: Path) -> None:
    filled(path, 3)
    Spool(path, PLENTY).close(remove=True)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["limit_bytes", "bytes_per_s"])
def test_a_bound_below_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` is -1; it must be 0 or more"):
        SpoolConfig(**{name: -1})
