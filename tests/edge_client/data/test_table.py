from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_client.data import DataSource, open_source
from wire.data_config import DataConfig, DataSplit
from wire.errors import DataError

TABLE = "age,dose,sick\n50,0.5,0\n61,-1.25,1\n42,3e-3,1\n"
ON_DISK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def open_table(path: Path, split: Any = "test", **keys: Any) -> DataSource:
    config = DataConfig(kind="csv", path=str(path), test=DataSplit(path=str(path)), **{"labels": "sick", **keys})
    return open_source(config, split, seed=0, segment="bottom", lane=0, batch_size=64)


def opened(folder: Path, text: str | bytes, name: str = "t.csv", **keys: Any) -> DataSource:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return open_table(folder / name, **keys)


def values(source: DataSource) -> Any:
    return source.batch(0, 0).inputs[0].tolist()


def target(source: DataSource) -> Any:
    found = source.batch(0, 0).target
    assert found is not None
    return found.tolist()


@pytest.mark.parametrize(("name", "text"), [("t.csv", TABLE), ("t.tsv", TABLE.replace(",", "\t")), ("t.tab", TABLE.replace(",", "\t"))])
def test_a_table_is_all_columns_but_the_label(tmp_path: Path, name: str, text: str) -> None:
    source = opened(tmp_path, text, name)
    batch = source.batch(0, 0)
    assert source.samples == 3
    assert source.classes == 2
    assert source.input_shapes == ((2,),)
    assert batch.inputs[0].dtype == np.float32
    assert np.array_equal(batch.inputs[0], np.array([[50, 0.5], [61, -1.25], [42, 3e-3]], np.float32))
    assert batch.target is not None
    assert batch.target.dtype == np.int64
    assert batch.target.tolist() == [0, 1, 1]
    assert batch.ids == (f"{name}#0", f"{name}#1", f"{name}#2")


def test_features_are_read_in_the_order_they_are_named(tmp_path: Path) -> None:
    text = "a,b,sick,c,note\n1,2,0,3,some text\n4,5,1,6,\n"
    assert values(opened(tmp_path, text, features=("c", "a"))) == [[3, 1], [6, 4]]
    assert values(opened(tmp_path, text, features=("b",))) == [[2], [5]]


def test_the_id_column_gives_ids_and_is_no_feature(tmp_path: Path) -> None:
    source = opened(tmp_path, "patient,age,sick\nx-7,50,0\nMüller,61,1\n3,70,1\n", id_column="patient")
    assert source.batch(0, 0).ids == ("x-7", "Müller", "3")
    assert values(source) == [[50], [61], [70]]


def test_training_shuffles_rows_labels_and_ids_together(tmp_path: Path) -> None:
    text = "n,id,sick\n" + "".join(f"{row},id{row},{row % 3}\n" for row in range(20))
    batch = opened(tmp_path, text, id_column="id", split="train").batch(0, 0)
    rows = [int(name.removeprefix("id")) for name in batch.ids]
    assert rows != sorted(rows)
    assert sorted(rows) == list(range(20))
    assert batch.inputs[0][:, 0].tolist() == rows
    assert batch.target is not None
    assert batch.target.tolist() == [row % 3 for row in rows]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ("a,1,0\nb,2,0\na,3,0\n", "has 1 samples with an id that another one has (column 'id'); ids must be there and differ"),
        ("a,1,0\n,2,0\n", "has 1 samples without an id (column 'id')"),
    ],
)
def test_ids_must_be_there_and_differ(tmp_path: Path, rows: str, names: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, "id,n,sick\n" + rows, id_column="id")
    assert names in str(caught.value)
    assert "'a'" not in str(caught.value), "ids are nobody else's business, and errors travel"


def test_text_classes_are_numbered_as_listed(tmp_path: Path) -> None:
    text = "n,sick\n1,no\n2,perhaps\n3,no\n"
    source = opened(tmp_path, text, classes=("yes", "no", "perhaps"))
    assert target(source) == [1, 2, 1]
    assert source.classes == 3
    assert opened(tmp_path, text, classes=("no", "perhaps", "yes")).classes == 3  # whichever of them this party has
    with pytest.raises(DataError, match=r"t\.csv line 3, column 'sick' is 'perhaps', which `classes` does not list"):
        opened(tmp_path, text, classes=("yes", "no"))
    with pytest.raises(DataError, match=r"t\.csv line 2, column 'sick' is 'no'; list the names of all classes with `classes`"):
        opened(tmp_path, text)


def test_listed_classes_may_look_like_numbers(tmp_path: Path) -> None:
    assert target(opened(tmp_path, "n,sick\n1,10\n2,5\n", classes=("5", "10"))) == [1, 0]


def test_number_targets(tmp_path: Path) -> None:
    source = opened(tmp_path, "n,sick\n1,-0.1\n2,7\n3,1e-3\n", target="number")
    batch = source.batch(0, 0)
    assert source.classes is None
    assert batch.target is not None
    assert batch.target.dtype == np.float32
    assert np.array_equal(batch.target, np.array([-0.1, 7, 1e-3], np.float32))


def test_without_a_target_the_label_column_is_not_read(tmp_path: Path) -> None:
    source = opened(tmp_path, "n,sick\n1,\n2,unknown\n", target="none")
    assert source.batch(0, 0).target is None
    assert source.classes is None
    assert values(source) == [[1], [2]]
    assert values(opened(tmp_path, "n,m\n1,2\n", target="none", labels=None)) == [[1, 2]]


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("1.5", "has the label 1.5; classes are whole numbers from 0"),
        ("-1", "has the label -1;"),
        ("2147483648", "has the label 2.14748e+09;"),
    ],
)
def test_classes_are_whole_numbers_from_0(tmp_path: Path, label: str, names: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, f"n,sick\n1,0\n2,{label}\n")
    assert f"t.csv, column 'sick', {names}" in str(caught.value)
    assert target(opened(tmp_path, f"n,sick\n1,0\n2,{label}\n", target="number")) == [0, np.float32(label)]


@pytest.mark.parametrize("cell", ["", " ", '""'])
@pytest.mark.parametrize("column", ["n", "sick"])
def test_missing_cells_are_refused_with_line_and_column(tmp_path: Path, cell: str, column: str) -> None:
    row = f"{cell},0" if column == "n" else f"2,{cell}"
    with pytest.raises(DataError, match=rf"t\.csv line 3, column '{column}' is empty; fill the value in or remove the row"):
        opened(tmp_path, f"n,sick\n1,0\n{row}\n3,1\n")


@pytest.mark.parametrize(
    "cell", ["1_000", "nan", "NaN", "-nan", "inf", "-Infinity", "1e39", "-1e400", "0x10", "1,5", "1.5.2", "12 kg", "NA", "?", "1-"]
)
@pytest.mark.parametrize("column", ["n", "sick"])
def test_what_is_no_finite_number_is_refused(tmp_path: Path, cell: str, column: str) -> None:
    row = f'"{cell}",0' if column == "n" else f'2,"{cell}"'
    with pytest.raises(DataError) as caught:
        opened(tmp_path, f"n,sick\n1,0\n{row}\n", target="number")
    assert f"t.csv line 3, column '{column}' is {cell!r}; it must be a finite number" in str(caught.value)


def test_a_long_cell_is_shown_in_part(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, f"n,sick\n{'x' * 5000},0\n")
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


@pytest.mark.parametrize("cell", [" 1.5", "1.5 ", "+1.5", "15e-1", "1.50000", '"1.5"', '" 1.5"'])
def test_ways_to_write_a_number(tmp_path: Path, cell: str) -> None:
    assert values(opened(tmp_path, f"n,sick\n{cell},0\n")) == [[1.5]]


@pytest.mark.parametrize(("row", "cells"), [("2", 1), ("2,0,5", 3), ("2,0,", 3)])
def test_ragged_rows_are_refused(tmp_path: Path, row: str, cells: int) -> None:
    with pytest.raises(DataError, match=rf"t\.csv line 4 has {cells} cells, the header 2; mend the row"):
        opened(tmp_path, f"n,sick\n1,0\n\n{row}\n")


@pytest.mark.parametrize("text", ["\n".join, "\r\n".join, "\r".join])
def test_line_ends_and_blank_lines(tmp_path: Path, text: Any) -> None:
    source = opened(tmp_path, text(["n,sick", "", "1,0", "", "", "2,1"]))
    assert values(source) == [[1], [2]]
    assert source.batch(0, 0).ids == ("t.csv#0", "t.csv#1")


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    text = "\ufeffsick,n\n1,5\n"
    assert values(opened(tmp_path, text)) == [[5]]
    assert target(opened(tmp_path, text)) == [1]


def test_quoted_cells(tmp_path: Path) -> None:
    text = '"patient, name","the ""dose""",sick\n"Doe, ""J""\nJr",1,0\n"O\'Hara","2","1"\n'
    source = opened(tmp_path, text, id_column="patient, name", features=('the "dose"',))
    assert values(source) == [[1], [2]]
    assert source.batch(0, 0).ids == ('Doe, "J"\nJr', "O'Hara")


@pytest.mark.parametrize("row", ['"1"x,0', '"1,0'])
def test_broken_quotes_are_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match=r"t\.csv line 3: "):
        opened(tmp_path, f"n,sick\n1,0\n{row}\n")


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv line 5, column 'n' is 'x'"):
        opened(tmp_path, 'id,n,sick\n"two\nlines",1,0\n\nb,x,0\n', id_column="id")


def test_an_over_long_line_is_refused(tmp_path: Path) -> None:
    for text in ("x" * (1 << 20), "n,sick\n1,0\n" + "0" * (1 << 20) + ",1\n"):
        with pytest.raises(DataError, match=r"t\.csv has a line of more than 1048576 characters; this is not a table"):
            opened(tmp_path, text)


@pytest.mark.parametrize("text", ["", "\n", "\r\n\r\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"t\.csv is empty; its first line must name the columns"):
        opened(tmp_path, text)


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv has a header but no rows"):
        opened(tmp_path, "n,sick\n\n")


def test_a_duplicate_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv has two columns 'n'; give each a name of its own"):
        opened(tmp_path, "n,sick,m,n\n1,0,2,3\n")


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"labels": "ill"}, "has no column 'ill' (`labels`); its columns are n, id, sick"),
        ({"id_column": "name"}, "has no column 'name' (`id_column`); its columns are n, id, sick"),
        ({"features": ("n", "m")}, "has no column 'm' (`features`); its columns are n, id, sick"),
    ],
)
def test_an_unknown_column_is_refused(tmp_path: Path, keys: dict[str, Any], names: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, "n,id,sick\n1,a,0\n", **keys)
    assert names in str(caught.value)


def test_of_many_columns_the_first_are_named(tmp_path: Path) -> None:
    header = ",".join(f"c{number}" for number in range(300))
    with pytest.raises(DataError, match=r"its columns are c0, c1, .*, c11, …$"):
        opened(tmp_path, f"{header}\n{header}\n")


def test_a_table_of_labels_alone_has_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv has no column left to read; list them with `features`"):
        opened(tmp_path, "sick\n1\n")


def test_a_signal_has_one_channel(tmp_path: Path) -> None:
    source = opened(tmp_path, "t0,t1,t2,sick\n1,2,3,0\n4,5,6,1\n", layout="NCL")
    assert source.input_shapes == ((1, 3),)
    assert values(source) == [[[1, 2, 3]], [[4, 5, 6]]]


def test_a_share_is_read_from_its_own_rows_alone(tmp_path: Path) -> None:
    """Another party's mistake is not this one's."""
    text = "n,sick\n0,0\nbad,1\n2,1\n3\n4,0\n"
    source = opened(tmp_path, text, shard="1/2")
    assert values(source) == [[0], [2], [4]]
    assert source.batch(0, 0).ids == ("t.csv#0", "t.csv#2", "t.csv#4")
    with pytest.raises(DataError, match=r"line 3, column 'n' is 'bad'"):
        opened(tmp_path, text, shard="2/2")


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv does not exist"):
        open_table(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="is a folder; `path` of kind 'csv' is the file"):
        open_table(tmp_path)
    with pytest.raises(DataError, match=r"t\.csv is not UTF-8 text after line \d+; save it as UTF-8"):
        opened(tmp_path, "name,sick\nMüller,1\n".encode("latin-1"))


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=10,
    ),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["csv", "tsv"]),
)
@ON_DISK
def test_every_float32_comes_back_exactly(tmp_path: Path, rows: list[list[float]], quoting: Any, suffix: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if suffix == "tsv" else ",", quoting=quoting)
    writer.writerow(["a", "b", "sick"])
    writer.writerows(rows)
    batch = opened(tmp_path, text.getvalue(), f"t.{suffix}", target="number").batch(0, 0)
    assert np.column_stack([batch.inputs[0], np.asarray(batch.target)]).tobytes() == np.array(rows, np.float32).tobytes()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=8, unique=True))
@ON_DISK
def test_any_text_is_an_id(tmp_path: Path, names: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["id", "n", "sick"], *([name, 1, 0] for name in names)])
    assert opened(tmp_path, text.getvalue(), id_column="id").batch(0, 0).ids == tuple(names)


@given(st.binary(max_size=120) | st.text(st.sampled_from('01.,"\n\r\te-_ xä'), max_size=60).map(str.encode))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_samples_or_one_error(tmp_path: Path, data: bytes) -> None:
    try:
        batch = opened(tmp_path, b"n,sick\n" + data).batch(0, 0)
    except DataError as exc:
        assert "\n" not in str(exc)  # noqa: PT017 - or there are samples
    else:
        assert np.isfinite(batch.inputs[0]).all()
        assert len(batch.ids) == len(batch.inputs[0]) == len(target(open_table(tmp_path / "t.csv")))
