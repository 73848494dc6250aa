"""What a party's slice of a run has, and has not."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from export.prepare import build_segments
from export.slicing import slice_table, write_slice
from wire.errors import GraphError, UsageError
from wire.parse import plain
from wire.runfile import Run, load_run, parse_run

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.toml"))


def parties(run: Run) -> list[str]:
    return list(run.graph().parties)


def texts(value: Any) -> set[str]:
    """Every text in a table, keys included."""
    if isinstance(value, dict):
        return set(value) | {text for item in value.values() for text in texts(item)}
    if isinstance(value, list):
        return {text for item in value for text in texts(item)}
    return {value} if isinstance(value, str) else set()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_party_finds_in_its_slice_what_the_graph_says(path: Path, tmp_path: Path) -> None:
    run = load_run(path)
    for party in parties(run):
        out = tmp_path / f"{party}.toml"
        write_slice(path, party=party, out=out)
        mine = load_run(out)
        assert mine.slice_for(party) == run.slice_for(party)
        assert mine.digest == run.digest
        assert [mine.topics(line) for line in run.slice_for(party).lines] == [run.topics(line) for line in run.slice_for(party).lines]
        assert mine.topic_key == ""
        if not run.is_client(party) or not run.reads_data(party):
            assert mine.ids_key == "", "who passes hashes on, or looks labels up by them, is not given the key"
        if run.is_client(party):
            assert mine.client(party) == run.client(party)
            assert not run.reads_data(party) or mine.data_of(party) == run.data_of(party)
        for other in parties(run):
            if other != party:
                with pytest.raises(UsageError, match=f"is the slice of `{party}`, not of `{other}`"):
                    mine.slice_for(other)
        with pytest.raises(UsageError, match="does not know the whole run"):
            mine.graph()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_server_builds_from_its_slice_what_it_would_from_the_run(path: Path, tmp_path: Path) -> None:
    run = load_run(path)
    whole = build_segments(run)
    for server in run.all_servers:
        table = slice_table(run, server.name, whole, base=str(path.parent))
        out = tmp_path / f"{server.name}.toml"
        out.write_text(tomli_w.dumps(table))
        built = build_segments(load_run(out))
        for slot in run.slice_for(server.name).slots:
            mine, theirs = built[slot.segment], whole[slot.segment]
            assert (mine.inputs, mine.outputs, mine.loss) == (theirs.inputs, theirs.outputs, theirs.loss)
            state = theirs.module.state_dict()
            assert all((value == state[name]).all() for name, value in mine.module.state_dict().items())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_nobody_beyond_the_neighbours_is_named(path: Path) -> None:
    table = tomllib.loads(path.read_text())
    if "server" in table:
        table["server"]["name"] = "hq"  # for the word "server" is a value of other keys
    run = parse_run(table, base=str(path.parent))
    segments = build_segments(run)
    graph = run.graph()
    for party in parties(run):
        told = texts(slice_table(run, party, segments))
        strangers = set(parties(run)) - {party, *graph.neighbours(party)}
        assert not told & strangers
        lines = {line.edge for line in graph.slice_for(party).lines}
        assert not told & {run.token(edge) for edge in run.edges if edge not in lines and not _within(run, party, edge)}
        if run.is_client(party):
            assert not told & {each.build for each in run.segments}, "a client has its bundle, and nobody's network"


def _within(run: Run, party: str, edge: str) -> bool:
    return any(end.edge == edge for slot in run.slice_for(party).slots for end in (*slot.inputs, *slot.outputs))


def test_of_whom_there_is_none_there_is_no_slice(tmp_path: Path) -> None:
    run = load_run(EXAMPLES[0])
    with pytest.raises(GraphError, match="no segment is placed on `nobody`; parties are"):
        slice_table(run, "nobody", build_segments(run))
    assert plain(run.slice) is None
    assert not list(tmp_path.iterdir())
