"""What a party keeps on disk outlives the party: whole checkpoints, a ledger that agrees with them, one process at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from wire.errors import CheckpointError, StorageError
from wire.limits import LIMITS
from wire.store import (
    Checkpoint,
    LedgerRow,
    Store,
    collected_path,
    dump_state,
    load_state,
    newest_checkpoint,
    storage_errors,
    write_atomically,
)

Array = NDArray[Any]
REPOSITORY = Path(__file__).resolve().parents[2]
DTYPES = [np.dtype(name) for name in ("float32", "float64", "int64", "int32", "uint8", "bool")]
STATES = st.dictionaries(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
    max_size=4,
)


def _state(seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        "p.weight": random.standard_normal((2, 3)).astype(np.float32),
        "b.count": np.array(seed, np.int64),
        "s.step": np.array(seed, np.int64),
    }


def _checkpoint(id: int, *, program: dict[str, Any] | None = None) -> Checkpoint:
    codecs = {"bottom>top|*|forward|act|step": np.arange(id, id + 3, dtype=np.float32)}
    common = {"bottom|p.weight": _state(2000 + id)["p.weight"]}
    return Checkpoint(id=id, segments={"bottom": _state(id), "head": _state(1000 + id)}, codecs=codecs, common=common, program=program)


def _row(step: int, *, edge: str = "a>b", lane: int = 0, applied: bool = True, note: str = "") -> LedgerRow:
    return LedgerRow(edge=edge, lane=lane, step=step, global_step=step, applied=applied, epoch=1, note=note)


@contextlib.contextmanager
def _store(folder: Path, digest: str = "d") -> Iterator[Store]:
    store = Store(folder, digest=digest)
    try:
        yield store
    finally:
        store.close()


def _same(found: Checkpoint, wanted: Checkpoint) -> None:
    assert (found.id, found.program) == (wanted.id, wanted.program)
    _same_state(found.codecs, wanted.codecs)
    _same_state(found.common, wanted.common)
    assert set(found.segments) == set(wanted.segments)
    for segment, state in wanted.segments.items():
        _same_state(found.segments[segment], state)


def _same_state(found: Any, wanted: Any) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def _trained(folder: Path) -> None:
    """A party that saved 0, 1 and 2 with a step and a loss after each."""
    with _store(folder) as store:
        for id in range(3):
            store.save(_checkpoint(id, program={"at": id}))
            store.record(_row(id))
            store.record_loss(id, 0, id / 2)


def _cut_power(folder: Path, script: str) -> None:
    """Run a script that holds the folder, in a process of its own that is killed with no chance to tidy up."""
    lines = [
        "import os, signal, sys",
        "from pathlib import Path",
        "from tests.wire.test_store import _checkpoint, _row, Store",
        f"store = Store(Path({str(folder)!r}), digest='d')",
        script,
        "os.kill(os.getpid(), signal.SIGKILL)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


# ------------------------------------------------------------ checkpoints


def test_a_restart_finds_the_newest_checkpoint(tmp_path: Path) -> None:
    _trained(tmp_path / "a")
    with _store(tmp_path / "a") as store:
        assert store.checkpoints() == (1, 2), "two are kept"
        _same(store.load(2), _checkpoint(2, program={"at": 2}))


def test_the_folder_is_made_and_empty_at_first(tmp_path: Path) -> None:
    with _store(tmp_path / "deep/down/a") as store:
        assert store.checkpoints() == ()
        assert (store.epoch, store.finished, store.rows(), store.losses()) == (0, False, [], [])


@given(state=STATES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_state_comes_back_bit_for_bit(state: dict[str, Array], tmp_path: Path) -> None:
    _same_state(load_state(dump_state(state), where="memory"), state)
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    with _store(tmp_path / "a") as store:
        store.save(Checkpoint(id=0, segments={"only": state, "none": {}}))
        _same(store.load(0), Checkpoint(id=0, segments={"only": state, "none": {}}))


def test_a_state_in_another_memory_order_comes_back(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    np.testing.assert_array_equal(load_state(dump_state({"x": array}), where="memory")["x"], array)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    _trained(tmp_path)
    with _store(tmp_path) as store:
        for id in (0, 3):
            with pytest.raises(CheckpointError, match=rf"checkpoint {id} .* is damaged"):
                store.load(id)
        assert store.checkpoints() == (1, 2)


def test_loading_gives_up_the_future_in_the_ledger_too(tmp_path: Path) -> None:
    """Rows and weights never disagree."""
    _trained(tmp_path)
    with _store(tmp_path) as store:
        assert [row.step for row in store.rows()] == [0, 1, 2]
        store.load(2)
        assert [row.step for row in store.rows()] == [0, 1]
        assert store.losses() == [(0, 0.0), (1, 0.5)]
        store.load(1)
        assert [row.step for row in store.rows()] == [0]
        assert store.losses() == [(0, 0.0)]
        assert store.checkpoints() == (1,)
        store.record(_row(1, applied=False))
        store.save(_checkpoint(2, program={"at": "anew"}))
    with _store(tmp_path) as store:
        assert store.checkpoints() == (1, 2)
        _same(store.load(2), _checkpoint(2, program={"at": "anew"}))
        assert [(row.step, row.applied) for row in store.rows()] == [(0, True), (1, False)]


@given(
    words=st.lists(st.sampled_from(["step", "save", "load newest", "load oldest", "restart"]), min_size=1, max_size=25),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_ledger_is_always_that_of_the_weights(words: list[str], tmp_path: Path) -> None:
    """Whatever happens in whatever order: after ``load``, what the ledger holds is what it held when the checkpoint was saved."""
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    store = Store(tmp_path / "a", digest="d")
    saved: dict[int, list[LedgerRow]] = {}
    next_id, next_step = 0, 0
    for word in words:
        if word == "step":
            store.record(_row(next_step, note=str(next_id)))
            next_step += 1
        elif word == "save":
            store.save(_checkpoint(next_id))
            saved[next_id] = store.rows()
            next_id += 1
        elif word == "restart":
            store.close()
            store = Store(tmp_path / "a", digest="d")
        elif store.checkpoints():
            chosen = store.checkpoints()[-1 if word == "load newest" else 0]
            _same(store.load(chosen), _checkpoint(chosen))
            assert store.rows() == saved[chosen]
            next_id, next_step = chosen + 1, len(saved[chosen])
        kept = store.checkpoints()
        assert len(kept) <= 2
        assert kept[-1:] == ((next_id - 1,) if next_id else ())
    store.close()


# ------------------------------------------------------------ power cuts


def test_what_was_saved_survives_a_power_cut_and_what_came_after_is_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    _cut_power(folder, "store.save(_checkpoint(0)); store.record(_row(0)); store.save(_checkpoint(1)); store.record(_row(1))")
    with _store(folder) as store:
        assert store.checkpoints() == (0, 1)
        assert [row.step for row in store.rows()] == [0]
        _same(store.load(1), _checkpoint(1))
        store.record(_row(1))


@pytest.mark.parametrize(
    ("call", "nth"),
    [("mkdir", 1), *(("fsync", nth) for nth in range(1, 6)), ("replace", 1), ("replace", 2), ("unlink", 1), ("unlink", 2), ("rmdir", 1)],
)
def test_a_power_cut_while_saving_leaves_a_whole_checkpoint(call: str, nth: int, tmp_path: Path) -> None:
    """Killed before the nth call of some kind that ``save`` makes; where there are fewer, it was saved."""
    folder = tmp_path / "a"
    _trained(folder)
    _cut_power(
        folder,
        "left = [" + str(nth) + "]\n"
        "def counted(real):\n"
        "    def call(*args, **options):\n"
        "        left[0] -= 1\n"
        "        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return real(*args, **options)\n"
        "    return call\n"
        f"os.{call} = counted(os.{call})\n"
        "store.record(_row(3))\n"
        "store.save(_checkpoint(3))",
    )
    with _store(folder) as store:
        found = store.checkpoints()
        assert found in ((1, 2), (2, 3), (1, 2, 3))
        _same(store.load(found[-1]), _checkpoint(found[-1], program={"at": 2} if found[-1] == 2 else None))
        assert [row.step for row in store.rows()] == ([0, 1] if found[-1] == 2 else [0, 1, 2, 3])
        assert not list((folder / "checkpoints").glob("*.new"))
        store.save(_checkpoint(found[-1] + 1))
        assert store.checkpoints() == (found[-1], found[-1] + 1)


# ------------------------------------------------------------ damage


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[tuple[Store, Path]]:
    """A store, and the folder of its newest checkpoint."""
    _trained(tmp_path)
    with _store(tmp_path) as store:
        yield store, tmp_path / "checkpoints" / "2"


FILES = ["bottom.safetensors", "head.safetensors", "codecs.state", "common.state", "meta.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_cut_off_at_any_byte_is_refused_and_the_one_before_serves(name: str, damaged: tuple[Store, Path]) -> None:
    store, folder = damaged
    data, rows = (folder / name).read_bytes(), store.rows()
    for length in range(len(data)):
        (folder / name).write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=str(folder)) as caught:
            store.load(2)
        assert "\n" not in str(caught.value)
    assert store.rows() == rows, "nothing is given up for a checkpoint that cannot be read"
    assert store.checkpoints() == (1, 2)
    shutil.rmtree(folder)
    assert store.checkpoints() == (1,)
    _same(store.load(1), _checkpoint(1, program={"at": 1}))


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_file_missing_is_not_used(name: str, damaged: tuple[Store, Path]) -> None:
    store, folder = damaged
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint 2 .* is damaged .*; remove it to fall back to the one before"):
        store.load(2)
    assert 1 in store.checkpoints()
    _same(store.load(1), _checkpoint(1, program={"at": 1}))


@given(
    name=st.sampled_from(FILES),
    at=st.integers(0, 10**6),
    bit=st.integers(0, 7),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_gives_a_checkpoint_or_one_error(name: str, at: int, bit: int, damaged: tuple[Store, Path]) -> None:
    store, folder = damaged
    good = (folder / name).read_bytes()
    data = bytearray(good)
    data[at % len(data)] ^= 1 << bit
    (folder / name).write_bytes(data)
    try:
        with contextlib.suppress(CheckpointError):
            assert store.load(2).id == 2
    finally:
        (folder / name).write_bytes(good)


def test_a_folder_without_its_mark_in_the_ledger_is_no_checkpoint(damaged: tuple[Store, Path]) -> None:
    """Nor is anything else that lies there."""
    store, folder = damaged
    shutil.copytree(folder, folder.with_name("7"))
    shutil.copytree(folder, folder.with_name("backup"))
    folder.with_name("1").joinpath("meta.json").unlink()
    assert store.checkpoints() == (2,)


def test_a_half_written_folder_is_cleared_away(tmp_path: Path) -> None:
    _trained(tmp_path)
    shutil.copytree(tmp_path / "checkpoints/2", tmp_path / "checkpoints/3.new")
    with _store(tmp_path) as store:
        assert store.checkpoints() == (1, 2)
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^the weights of x is not readable"):
        load_state(data, where="the weights of x")


def test_a_state_from_a_peer_has_a_limit() -> None:
    with pytest.raises(CheckpointError, match=f"more than the limit of {LIMITS.message_bytes}"):
        load_state(bytes(LIMITS.message_bytes + 1), where="the weights of x")


# ------------------------------------------------------------ the ledger


def test_a_step_ends_once_on_a_line(tmp_path: Path) -> None:
    with _store(tmp_path) as store:
        store.record(_row(4))
        for again in (_row(4), _row(4, applied=False, note="void")):
            with pytest.raises(CheckpointError, match="step 4 of lane 0 ended twice on edge a>b"):
                store.record(again)
        store.record(_row(4, lane=1))
        store.record(_row(4, edge="b>c"))
        assert len(store.rows()) == 3
    with _store(tmp_path) as store, pytest.raises(CheckpointError, match="ended twice"):
        store.record(_row(4))


def test_rows_come_back_by_edge_lane_and_step(tmp_path: Path) -> None:
    rows = [_row(2), _row(0, note="`y` is not finite", applied=False), _row(1, lane=1), _row(5, edge="A>b"), _row(1)]
    with _store(tmp_path) as store:
        for row in rows:
            store.record(row)
    with _store(tmp_path) as store:
        assert store.rows() == sorted(rows, key=lambda row: (row.edge, row.lane, row.step))


def test_losses_come_back_in_order_and_a_later_one_takes_the_place(tmp_path: Path) -> None:
    with _store(tmp_path) as store:
        for step, loss in ((2, 0.5), (0, 2.0), (1, 1.0), (2, 0.25)):
            store.record_loss(step, 0, loss)
    with _store(tmp_path) as store:
        assert store.losses() == [(0, 2.0), (1, 1.0), (2, 0.25)]


# ------------------------------------------------------------ identity


def test_every_start_has_a_number_of_its_own(tmp_path: Path) -> None:
    found = []
    for _ in range(3):
        with _store(tmp_path / "a") as store:
            found.append(store.boot)
    assert found == sorted(set(found)), "a later start has a larger one"
    shutil.rmtree(tmp_path / "a")
    with _store(tmp_path / "a") as store:
        assert store.boot not in found, "even after the folder was lost"


def test_epoch_and_end_outlive_the_party(tmp_path: Path) -> None:
    _cut_power(tmp_path / "a", "store.store_epoch(7)")
    with _store(tmp_path / "a") as store:
        assert (store.epoch, store.finished) == (7, False)
        store.store_finished()
    with _store(tmp_path / "a") as store:
        assert (store.epoch, store.finished) == (7, True)


def _start(folder: Path, digest: str = "d") -> str:
    """The last words of a process that starts there."""
    script = f"from wire.store import Store; from pathlib import Path; Store(Path({str(folder)!r}), digest={digest!r}).close()"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    return done.stderr.strip().rpartition("\n")[2]


def test_the_state_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    _trained(tmp_path)
    before = (tmp_path / "party.json").read_bytes()
    said = f"wire.errors.CheckpointError: {tmp_path} holds the state of a run with other settings; give the run another `name`"
    assert _start(tmp_path, digest="other").startswith(said)
    assert (tmp_path / "party.json").read_bytes() == before
    with _store(tmp_path) as store:
        assert store.checkpoints() == (1, 2)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"digest": "d"}', b"\xff"])
def test_an_identity_that_cannot_be_read_is_refused(data: bytes, tmp_path: Path) -> None:
    _trained(tmp_path)
    (tmp_path / "party.json").write_bytes(data)
    said = _start(tmp_path)
    assert said.startswith(f"wire.errors.CheckpointError: {tmp_path / 'party.json'} ")
    assert said.endswith(f"; remove {tmp_path} to start this run anew")
    assert (tmp_path / "party.json").read_bytes() == data


# ------------------------------------------------------------ one process at a time


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with _store(tmp_path) as store:
        boot = store.boot
        said = f"wire.errors.StorageError: another process uses {tmp_path}; a party runs once: stop that process first"
        assert _start(tmp_path) == said
        store.save(_checkpoint(0))
    assert _start(tmp_path) == ""
    with _store(tmp_path) as store:
        assert store.boot == boot + (2 << 32), "the one that was refused has not started"
        assert store.checkpoints() == (0,)


def test_a_process_that_died_holds_nothing(tmp_path: Path) -> None:
    _cut_power(tmp_path, "")
    with _store(tmp_path) as store:
        assert store.checkpoints() == ()


# ------------------------------------------------------------ the disk


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file/a: Not a directory; check the disk"):
        Store(tmp_path / "file/a", digest="d")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_remedy(number: int) -> None:
    with pytest.raises(StorageError, match="cannot write x: the disk is full; free some space"), storage_errors(Path("x")):
        raise OSError(number, os.strerror(number))


def test_a_full_device_is_a_full_disk(tmp_path: Path) -> None:
    """/dev/full says that it is."""
    (tmp_path / "party.json.new").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="the disk is full"):
        write_atomically(tmp_path / "party.json", b"x" * 10)
    assert not (tmp_path / "party.json").exists()


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep/x.bin"
    for data in (b"old", b"new and longer", b""):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert [each.name for each in path.parent.iterdir()] == ["x.bin"]
    path.with_name("x.bin.new").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*x\.bin: Is a directory"):
        write_atomically(path, b"newest")
    assert path.read_bytes() == b""


# ------------------------------------------------------------ after the end


def test_the_newest_checkpoint_of_a_finished_run_is_read_without_taking_the_folder(tmp_path: Path) -> None:
    _trained(tmp_path)
    with pytest.raises(CheckpointError, match=f"the run in {tmp_path} is not finished"):
        newest_checkpoint(tmp_path)
    with _store(tmp_path) as store:
        store.store_finished()
        found = newest_checkpoint(tmp_path)
    assert set(found) == {"bottom", "head"}
    for segment, state in _checkpoint(2).segments.items():
        _same_state(found[segment], state)


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_folder_without_a_party_has_no_checkpoint(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "party.json").write_text(text)
    with pytest.raises(CheckpointError, match="holds no state of this party") as caught:
        newest_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_lanes_gave_away_lies_apart(tmp_path: Path) -> None:
    paths = {collected_path(tmp_path, lane, segment) for lane in range(3) for segment in ("bottom", "head")}
    assert len(paths) == 6
    for path in paths:
        write_atomically(path, dump_state(_state(1)))
    assert {path.relative_to(tmp_path).parts[0] for path in paths} == {"result"}


def test_the_identity_file_is_what_it_is_said_to_be(tmp_path: Path) -> None:
    with _store(tmp_path) as store:
        store.store_epoch(3)
    found = json.loads((tmp_path / "party.json").read_text())
    assert (found["digest"], found["epoch"], found["boot"], found["finished"]) == ("d", 3, 1, False)
