from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edge_client.data import DataSource, open_source
from edge_client.data.samples import check_same_count, numbered, targets
from wire.data_config import Augment, DataConfig, DataSplit
from wire.engine import Array
from wire.errors import DataError
from wire.feed import Batch

ON_DISK = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = st.integers(0, 2**32)


def write(folder: Path, count: int, save: Any = np.savez) -> None:
    """Row ``r`` of training is [r, -r] with label r % 3; the test samples come from 1000 on."""
    rows = np.arange(count, dtype=np.float32)
    arrays: dict[str, Array] = {}
    for split, first in (("train", 0), ("test", 1000)):
        arrays[f"x_{split}"] = np.stack([first + rows, -first - rows], axis=1)
        arrays[f"y_{split}"] = np.arange(count) % 3
    save(folder / "d.npz", **arrays)


def open_rows(folder: Path, split: Any = "train", **keys: Any) -> DataSource:
    how = {"seed": 0, "segment": "bottom", "lane": 0, "batch_size": 4}
    how |= {key: keys.pop(key) for key in (*how, "base_dir", "min_batch", "memory_bytes") if key in keys}
    return open_source(DataConfig(kind="npz", path=str(keys.pop("path", folder / "d.npz")), **keys), split, **how)  # type: ignore[arg-type]


def rows_of(batch: Batch) -> list[int]:
    return [int(value) for value in batch.inputs[0][:, 0]]


def epoch_of(source: DataSource, epoch: int = 0) -> list[list[int]]:
    return [rows_of(source.batch(epoch, index)) for index in range(source.batches)]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def held_out(folder: Path, fraction: float, **keys: Any) -> tuple[set[int], set[int]]:
    train, held = (flat(epoch_of(open_rows(folder, split, validation_fraction=fraction, **keys))) for split in ("train", "validation"))
    assert len(set(train)) == len(train)
    assert len(set(held)) == len(held)
    return set(train), set(held)


def same(left: Batch, right: Batch) -> bool:
    assert left.target is not None
    assert right.target is not None
    return (left.inputs[0].tobytes(), left.target.tobytes(), left.ids) == (right.inputs[0].tobytes(), right.target.tobytes(), right.ids)


# ---------------------------------------------------------------- order


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=SEEDS, lane=st.integers(0, 5), epoch=st.integers(0, 1000))
@ON_DISK
def test_batches_of_an_epoch_are_a_permutation_of_the_share(
    tmp_path: Path, count: int, batch_size: int, seed: int, lane: int, epoch: int
) -> None:
    write(tmp_path, count)
    source = open_rows(tmp_path, batch_size=batch_size, seed=seed, lane=lane)
    batches = epoch_of(source, epoch)
    assert source.samples == count
    assert sorted(flat(batches)) == list(range(count))
    assert [len(batch) for batch in batches] == [batch_size] * (count // batch_size) + [count % batch_size] * bool(count % batch_size)


def test_inputs_target_and_ids_of_a_sample_stay_together(tmp_path: Path) -> None:
    write(tmp_path, 11)
    source = open_rows(tmp_path)
    for epoch in range(3):
        for index in range(source.batches):
            batch = source.batch(epoch, index)
            rows = rows_of(batch)
            assert batch.inputs[0].tolist() == [[row, -row] for row in rows]
            assert batch.target is not None
            assert batch.target.tolist() == [row % 3 for row in rows]
            assert batch.ids == tuple(f"d.npz/x_train#{row}" for row in rows)


def test_the_order_is_the_one_that_all_versions_agree_on(tmp_path: Path) -> None:
    """The golden permutation of (seed 0, "bottom", lane 0, epoch 0); another one could not resume an old run."""
    write(tmp_path, 10)
    assert epoch_of(open_rows(tmp_path)) == [[5, 6, 1, 8], [7, 0, 9, 2], [3, 4]]


def test_seed_segment_lane_and_epoch_each_change_the_order(tmp_path: Path) -> None:
    write(tmp_path, 40)
    orders = [flat(epoch_of(open_rows(tmp_path, **keys))) for keys in ({}, {"seed": 1}, {"segment": "other"}, {"lane": 1})]
    orders.append(flat(epoch_of(open_rows(tmp_path), 1)))
    assert len(set(map(tuple, orders))) == len(orders)
    assert flat(epoch_of(open_rows(tmp_path))) == orders[0]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12), SEEDS)
@ON_DISK
def test_a_batch_does_not_depend_on_those_before_it(tmp_path: Path, asked: list[tuple[int, int]], seed: int) -> None:
    """A restarted party opens its files anew and asks for the batch at which it stopped."""
    write(tmp_path, 10)
    source = open_rows(tmp_path, seed=seed, augment=Augment(noise=1.0))
    for epoch, index in asked:
        assert same(source.batch(epoch, index), open_rows(tmp_path, seed=seed, augment=Augment(noise=1.0)).batch(epoch, index))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_memory_that_is_given_changes_nothing(tmp_path: Path, save: Any, split: str) -> None:
    """In memory, read from the file, or unpacked on disk: the same batches."""
    write(tmp_path, 20, save)
    keys: dict[str, Any] = {"shard": "2/3", "augment": Augment(noise=0.5)}
    sources = [open_rows(tmp_path, split, memory_bytes=memory_bytes, **keys) for memory_bytes in (0, 7 * 8 - 1, 7 * 8, 1 << 20)]
    for epoch in range(2):
        for index in range(2):
            assert all(same(sources[0].batch(epoch, index), source.batch(epoch, index)) for source in sources[1:])


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_batch_belongs_to_its_caller(tmp_path: Path, split: str) -> None:
    write(tmp_path, 4)
    source = open_rows(tmp_path, split)
    before = source.batch(0, 0)
    before.inputs[0][...] = 77
    assert before.target is not None
    before.target[...] = 77
    assert same(source.batch(0, 0), open_rows(tmp_path, split).batch(0, 0))


@pytest.mark.parametrize("split", ["test", "validation"])
def test_evaluation_is_in_the_order_of_the_file_in_every_epoch(tmp_path: Path, split: str) -> None:
    write(tmp_path, 30)
    for keys in ({}, {"seed": 5}, {"lane": 2}):
        source = open_rows(tmp_path, split, validation_fraction=0.5, **keys)
        rows = flat(epoch_of(source))
        assert rows == sorted(rows)
        assert rows == flat(epoch_of(source, 7))


def test_parties_that_meet_at_a_fan_in_take_the_same_rows(tmp_path: Path) -> None:
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, 10)
    keys: dict[str, Any] = {"seed": 3, "segment": "join", "lane": 1, "validation_fraction": 0.2}
    left, right = (open_rows(tmp_path / name, **keys) for name in ("left", "right"))
    for epoch in range(3):
        assert epoch_of(left, epoch) == epoch_of(right, epoch)


# ---------------------------------------------------------------- the share


@given(count=st.integers(1, 40), parts=st.integers(1, 7), seed=SEEDS)
@ON_DISK
def test_shards_are_disjoint_and_cover_all(tmp_path: Path, count: int, parts: int, seed: int) -> None:
    assume(count >= parts)
    write(tmp_path, count)
    for split, start in (("train", 0), ("test", 1000)):
        shares = [flat(epoch_of(open_rows(tmp_path, split, shard=f"{part + 1}/{parts}", seed=seed))) for part in range(parts)]
        assert sorted(flat(shares)) == list(range(start, start + count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shard_2_of_3_is_every_third_sample_from_the_second(tmp_path: Path) -> None:
    write(tmp_path, 10)
    assert flat(epoch_of(open_rows(tmp_path, "test", shard="2/3"))) == [1001, 1004, 1007]


@given(count=st.integers(2, 40), parts=st.integers(1, 4), fraction=st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9]), seed=SEEDS)
@ON_DISK
def test_what_is_held_out_is_the_same_for_all_shards(tmp_path: Path, count: int, parts: int, fraction: float, seed: int) -> None:
    wanted = round(count * fraction)
    assume(min(wanted, count - wanted) >= parts)
    write(tmp_path, count)
    train, held = held_out(tmp_path, fraction, seed=seed)
    assert len(held) == wanted
    assert not train & held
    assert train | held == set(range(count))
    shares = [held_out(tmp_path, fraction, seed=seed, shard=f"{part + 1}/{parts}", lane=part, segment=f"s{part}") for part in range(parts)]
    assert set.union(*(mine for mine, _ in shares)) == train
    assert set.union(*(mine for _, mine in shares)) == held
    assert sum(len(mine) for mine, _ in shares) == len(train)
    assert sum(len(mine) for _, mine in shares) == len(held)


def test_what_is_held_out_follows_the_seed_alone(tmp_path: Path) -> None:
    write(tmp_path, 40)
    splits = [held_out(tmp_path, 0.25, **keys) for keys in ({}, {"lane": 3}, {"segment": "x"}, {"batch_size": 9})]
    assert all(split == splits[0] for split in splits)
    assert held_out(tmp_path, 0.25, seed=1) != splits[0]


def test_the_test_split_is_whole_whatever_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, 10)
    assert flat(epoch_of(open_rows(tmp_path, "test", validation_fraction=0.5))) == list(range(1000, 1010))


@pytest.mark.parametrize(("fraction", "held"), [(0.01, 0), (0.99, 10)])
def test_both_sides_of_a_hold_out_need_samples(tmp_path: Path, fraction: float, held: int) -> None:
    write(tmp_path, 10)
    for split in ("train", "validation"):
        with pytest.raises(DataError, match=f"`validation_fraction` {fraction} of 10 samples holds out {held}; it must leave some on both"):
            open_rows(tmp_path, split, validation_fraction=fraction)


@given(count=st.integers(1, 40), limit=st.integers(1, 50))
@ON_DISK
def test_limit_keeps_that_many_evenly_spread(tmp_path: Path, count: int, limit: int) -> None:
    write(tmp_path, count)
    rows = flat(epoch_of(open_rows(tmp_path, "test", limit=limit)))
    assert len(rows) == min(count, limit)
    gaps = np.diff([*rows, 1000 + count])
    assert rows[0] == 1000
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_hold_out_then_shard_then_limit(tmp_path: Path) -> None:
    write(tmp_path, 40)
    train, held = (sorted(rows) for rows in held_out(tmp_path, 0.5))
    keys: dict[str, Any] = {"validation_fraction": 0.5, "shard": "2/2", "limit": 5}
    assert sorted(flat(epoch_of(open_rows(tmp_path, **keys)))) == train[1::2][::2]
    assert flat(epoch_of(open_rows(tmp_path, "validation", **keys))) == held[1::2][::2]


def test_a_split_may_have_a_share_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, 10)
    keys: dict[str, Any] = {"shard": "2/2", "test": DataSplit(shard="1/1", limit=2)}
    assert sorted(flat(epoch_of(open_rows(tmp_path, **keys)))) == [1, 3, 5, 7, 9]
    assert flat(epoch_of(open_rows(tmp_path, "test", **keys))) == [1000, 1005]


def test_an_empty_share_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with pytest.raises(DataError, match="the train share is empty: `shard` is '3/3', and there are 2 samples"):
        open_rows(tmp_path, shard="3/3")


# ---------------------------------------------------------------- the last batch


def test_drop_last_leaves_the_partial_training_batch_out(tmp_path: Path) -> None:
    write(tmp_path, 10)
    train, test = (open_rows(tmp_path, split, drop_last=True) for split in ("train", "test"))
    assert [len(batch) for batch in epoch_of(train)] == [4, 4]
    assert [len(batch) for batch in epoch_of(test)] == [4, 4, 2]
    assert [len(batch) for batch in epoch_of(open_rows(tmp_path))] == [4, 4, 2]
    left_out = [set(range(10)) - set(flat(epoch_of(train, epoch))) for epoch in range(40)]
    assert {len(rows) for rows in left_out} == {2}
    assert set.union(*left_out) == set(range(10))  # over the epochs everybody's turn


@pytest.mark.parametrize(("count", "min_batch", "sizes"), [(9, 1, [4, 4, 1]), (9, 2, [4, 4]), (10, 2, [4, 4, 2]), (8, 4, [4, 4])])
def test_a_last_batch_too_small_to_train_on_is_left_out(tmp_path: Path, count: int, min_batch: int, sizes: list[int]) -> None:
    write(tmp_path, count)
    assert [len(batch) for batch in epoch_of(open_rows(tmp_path, min_batch=min_batch))] == sizes
    assert len(flat(epoch_of(open_rows(tmp_path, "test", min_batch=min_batch)))) == count


def test_what_cannot_make_a_batch_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 3)
    assert epoch_of(open_rows(tmp_path, "test", batch_size=8)) == [[1000, 1001, 1002]]
    assert [len(batch) for batch in epoch_of(open_rows(tmp_path, batch_size=8))] == [3]
    with pytest.raises(DataError, match="3 samples make no batch of 8; lower `batch_size`, or set `drop_last = false`"):
        open_rows(tmp_path, batch_size=8, drop_last=True)
    with pytest.raises(DataError, match="3 samples make no batch of 8"):
        open_rows(tmp_path, batch_size=8, min_batch=4)
    with pytest.raises(DataError, match="`batch_size` is 1, but this network trains on 2 samples or more at a time"):
        open_rows(tmp_path, batch_size=1, min_batch=2)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("index", [-1, 3, 10**9])
def test_a_batch_out_of_range_is_an_index_error(tmp_path: Path, split: str, index: int) -> None:
    write(tmp_path, 10)
    with pytest.raises(IndexError, match=f"batch {index} of 3"):
        open_rows(tmp_path, split).batch(0, index)


@pytest.mark.parametrize("keys", [{"batch_size": 0}, {"batch_size": -3}, {"min_batch": 0}])
def test_sizes_below_one_are_the_callers_mistake(tmp_path: Path, keys: dict[str, int]) -> None:
    write(tmp_path, 10)
    with pytest.raises(ValueError, match="both must be 1 or more"):
        open_rows(tmp_path, **keys)


# ---------------------------------------------------------------- ids and places


def test_an_id_names_the_same_sample_in_every_epoch_shard_and_order(tmp_path: Path) -> None:
    write(tmp_path, 20)
    seen: dict[str, set[int]] = {}
    for keys in ({}, {"shard": "1/2"}, {"shard": "2/2"}, {"seed": 9}, {"limit": 7}, {"validation_fraction": 0.3}, {"batch_size": 3}):
        source = open_rows(tmp_path, **keys)
        for epoch in range(2):
            for index in range(source.batches):
                batch = source.batch(epoch, index)
                for name, row in zip(batch.ids, rows_of(batch), strict=True):
                    seen.setdefault(name, set()).add(row)
    assert seen == {f"d.npz/x_train#{row}": {row} for row in range(20)}


@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_id_prefix_goes_before_all_ids(tmp_path: Path, split: str) -> None:
    write(tmp_path, 6)
    plain, prefixed = (open_rows(tmp_path, split, id_prefix=prefix, validation_fraction=0.4) for prefix in ("", "clinic 2/"))
    assert prefixed.batch(0, 0).ids == tuple(f"clinic 2/{name}" for name in plain.batch(0, 0).ids)
    assert same(plain.batch(0, 0), open_rows(tmp_path, split, validation_fraction=0.4).batch(0, 0))


def test_relative_paths_begin_at_the_base_and_a_tilde_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    for base, path in ((tmp_path, "data/d.npz"), (tmp_path / "data", "d.npz"), ("/", tmp_path / "data/d.npz"), ("/", "~/data/d.npz")):
        assert open_rows(tmp_path, path=path, base_dir=base).samples == 5
    with pytest.raises(DataError, match=r"data/data/d\.npz does not exist"):
        open_rows(tmp_path, path="data/d.npz", base_dir=tmp_path / "data")


def test_a_split_with_a_path_of_its_own(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("later", 7)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, count)
    keys: dict[str, Any] = {"path": "train/d.npz", "base_dir": tmp_path, "test": DataSplit(path="later/d.npz")}
    assert open_rows(tmp_path, **keys).samples == 5
    assert open_rows(tmp_path, "test", **keys).samples == 7
    assert open_rows(tmp_path, "validation", validation_fraction=0.4, **keys).samples == 2  # of the training file


@pytest.mark.parametrize(("split", "remedy"), [("test", ""), ("validation", " or set `validation_fraction`")])
def test_a_split_that_nobody_described_is_refused(tmp_path: Path, split: Any, remedy: str) -> None:
    (tmp_path / "t.csv").write_text("n,y\n1,0\n")
    config = DataConfig(kind="csv", path="t.csv", labels="y")
    with pytest.raises(DataError) as caught:
        open_source(config, split, seed=0, segment="bottom", lane=0, batch_size=4, base_dir=tmp_path)
    assert str(caught.value) == f"[data] says nothing of {split} samples; add a [data.{split}] table{remedy}"


# ---------------------------------------------------------------- labels as targets


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i4", "u8", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_classes_of_every_number_type(dtype: str, shape: tuple[int, ...]) -> None:
    classes, count = targets(np.array([0, 1, 1]).astype(dtype).reshape(shape), "class", where="y")
    assert classes is not None
    assert classes.dtype == np.int64
    assert classes.tolist() == [0, 1, 1]
    assert count == 2


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0, 1.5], "1.5"), ([0.0, np.nan], "nan"), ([np.inf], "inf"), ([3, -1], "-1"), ([2**31], "2.14748e+09"), ([-(2**63)], "-9.22337e+18")],
)
def test_other_classes_are_refused(values: list[float], shown: str) -> None:
    with pytest.raises(DataError) as caught:
        targets(np.array(values), "class", where="y.idx")
    assert str(caught.value) == f'y.idx has the label {shown}; classes are whole numbers from 0 (`target = "number"` takes others)'


def test_the_largest_class_is_taken() -> None:
    classes, count = targets(np.array([2**31 - 1]), "class", where="y")
    assert classes is not None
    assert classes.tolist() == [2**31 - 1]
    assert count == 2**31


@pytest.mark.parametrize(("shape", "gives"), [((6,), (6,)), ((6, 1), (6,)), ((2, 3), (2, 3))])
def test_numbers_are_float32_in_their_shape(shape: tuple[int, ...], gives: tuple[int, ...]) -> None:
    values = np.linspace(-2, 3, 6)
    numbers, classes = targets(values.reshape(shape), "number", where="y")
    assert numbers is not None
    assert numbers.dtype == np.float32
    assert numbers.shape == gives
    assert numbers.ravel().tolist() == values.astype(np.float32).tolist()
    assert classes is None


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="y has labels that are not finite; mend or remove them"):
        targets(np.array([0.0, value]), "number", where="y")


def test_several_numbers_are_no_class() -> None:
    with pytest.raises(DataError, match=r"y has labels of shape \[2\]; a class is one number"):
        targets(np.zeros((3, 2)), "class", where="y")
    assert targets(np.zeros((3, 2)), "none", where="y") == (None, None)


def test_as_many_labels_as_samples() -> None:
    check_same_count("x", 3, "y", 3)
    with pytest.raises(DataError, match="x has 3 samples but y has 4 labels; they do not belong together"):
        check_same_count("x", 3, "y", 4)


def test_numbered_ids_are_rows_of_the_file() -> None:
    assert numbered("f", np.array([3, 8, 9]))(np.array([2, 0])) == ("f#9", "f#3")


def test_aligned_records_are_not_held_out_by_row(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with pytest.raises(DataError, match=r"give each party a `\[data.validation\]`"):
        open_source(
            DataConfig(kind="npz", path=str(tmp_path / "d.npz"), validation_fraction=0.2),
            "train",
            seed=0,
            segment="bottom",
            lane=0,
            batch_size=4,
            stream="aligned",
        )
