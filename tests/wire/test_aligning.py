"""A run whose parties hold other parts of the same records: aligned once, the same after any fault, and nobody learns whom others have."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.wire import test_straggler
from tests.wire.test_actor import FAULTS, check
from tests.wire.toy_align import KEY, ToyAlign, hashed, holders, source
from tests.wire.toy_run import Faults, Setup, World
from wire.aligning import AlignedProgram, Aligner, counts_of
from wire.alignment import BLANK
from wire.bodies import read_command, read_done
from wire.data_config import Augment, Normalize
from wire.errors import DataError, GraphError, PeerMismatch, RunFileError
from wire.feed import Feed
from wire.graph import Edge, Graph, Segment
from wire.program import Plan, TrainingProgram


def graph_of(*segments: tuple[str, str], edges: str, labels_from: str | None = None) -> Graph:
    """``t``, ``u`` and ``h`` own losses, the last with labels at home; a party a lane where several are named."""
    made = []
    for name, on in segments:
        loss: dict[str, Any] = {"loss": True, "labels": "local"} if name == "h" else {"loss": True, "labels_from": labels_from}
        made.append(Segment(name=name, parties=tuple(on.split()), **(loss if name in "tuh" else {})))
    return Graph(segments=tuple(made), edges=tuple(Edge(source=pair[0], target=pair[1]) for pair in edges.split()), coordinator="server")


VERTICAL = graph_of(("a", "pa"), ("b", "pb"), ("t", "server"), edges="at bt")
GRAPHS = {
    "vertical": VERTICAL,
    "three": graph_of(("a", "pa"), ("b", "pb"), ("c", "pc"), ("t", "server"), edges="at bt ct"),
    "extended": graph_of(("a", "pa"), ("b", "pb"), ("m", "pm"), ("t", "server"), edges="am bm mt"),
    "multi-task": graph_of(("a", "pa"), ("b", "pb"), ("t", "server"), ("u", "server2"), edges="at bt au bu"),
    "lanes": graph_of(("a", "a0 a1"), ("b", "b0 b1"), ("t", "server"), edges="at bt"),
    "second": graph_of(("a", "pa"), ("b", "pb"), ("m", "pm"), ("t", "server"), edges="am bm mt", labels_from="b"),
    "u-shape": graph_of(("a", "pa"), ("b", "pb"), ("k", "server"), ("h", "pb"), edges="ak bk kh"),
}


def make(graph: Graph, records: dict[str, dict[str, list[str]]], *, missing: str = "drop", batch_size: int = 2, **keys: Any) -> Setup:
    align = ToyAlign(records, missing=missing, batch_size=batch_size)
    plan = Plan(lanes=graph.lanes, epochs=2, schedule="independent", checkpoint_every=3, collect=True)
    batches = {lane: align.batches(graph, lane) for lane in range(graph.lanes)}
    return Setup(graph=graph, plan=plan, batches=batches, align=align, **keys)


def some_records(graph: Graph) -> dict[str, dict[str, list[str]]]:
    """Five records that all hold, and of each party one that it alone has; every party in another order."""
    found: dict[str, dict[str, list[str]]] = {}
    for lane in range(graph.lanes):
        for at, party in enumerate(holders(graph, lane)):
            names = [f"{lane}/{number}" for number in range(5)]
            found[party] = {"train": [f"only {party}", *names][:: (-1) ** at], "test": [*names[at:], *names[:at]]}
    return found


@pytest.mark.parametrize("missing", ["drop", "zero"])
@pytest.mark.parametrize("name", GRAPHS)
def test_an_undisturbed_run_sees_the_common_order(name: str, missing: str) -> None:
    graph = GRAPHS[name]
    setup = make(graph, some_records(graph), missing=missing, in_flight=2)
    world = World(setup)
    check(setup, world)
    assert world.asked == sum(len(holders(graph, lane)) for lane in range(graph.lanes)), "everybody was asked once"
    for party, blobs in world.given:
        segments = {slot.segment for slot in graph.slice_for(party).slots}
        assert {name.split("/")[2] for name in blobs} <= segments, "a list went to another party than it is of"
        own = {hashed(record) for records in setup.align.records[party].values() for record in records}
        listed = {blob[at : at + 16] for blob in blobs.values() for at in range(0, len(blob), 16)}
        assert listed - {BLANK} <= own
        lane = next(lane for lane in range(graph.lanes) if party in holders(graph, lane))
        lacks = set(setup.align.order(graph, lane, "train")) - set(setup.align.records[party]["train"])
        assert (BLANK in listed) is bool(lacks)


@st.composite
def cases(draw: st.DrawFn) -> Setup:
    graph = GRAPHS[draw(st.sampled_from(sorted(GRAPHS)))]
    records: dict[str, dict[str, list[str]]] = {}
    for lane in range(graph.lanes):
        pool = [f"{lane} {number}" for number in range(draw(st.integers(3, 7)))]
        for party in holders(graph, lane):
            held = {split: [name for name in pool if draw(st.integers(0, 4))] for split in ("train", "test")}
            records[party] = {split: draw(st.permutations(names)) for split, names in held.items()}
    assume(all(names for splits in records.values() for names in splits.values()))
    setup = make(
        graph,
        records,
        missing=draw(st.sampled_from(["drop", "zero"])),
        batch_size=draw(st.integers(1, 3)),
        in_flight=draw(st.integers(1, 2)),
    )
    align = setup.align
    assert align is not None
    least = {"train": align.batch_size, "test": 1}
    assume(all(len(align.order(graph, lane, split)) >= count for lane in range(graph.lanes) for split, count in least.items()))
    return setup


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(cases(), st.integers(0, 2**32), FAULTS, st.integers(0, 2))
def test_no_fault_changes_what_is_trained_on(setup: Setup, seed: int, faults: Faults, unaligned: int) -> None:
    check(setup, World(setup, seed=seed, faults=dataclasses.replace(faults, unaligned=unaligned)))


LATE_FAULTS = st.builds(Faults, restarts=st.integers(0, 2), cuts=st.integers(0, 2), naps=st.integers(0, 4), early=st.integers(0, 4))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(cases(), st.integers(0, 2**32), LATE_FAULTS, st.integers(0, 3))
def test_neither_halts_nor_late_steps_change_what_is_trained_on(setup: Setup, seed: int, faults: Faults, halts: int) -> None:
    setup.straggler = test_straggler.VOID
    test_straggler.check(setup, World(setup, seed=seed, faults=dataclasses.replace(faults, halts=halts)))


def started_again(*, without: tuple[str, ...]) -> tuple[Setup, World]:
    """All parties start again in the middle of training, some without what they kept."""
    setup = make(VERTICAL, some_records(VERTICAL), missing="zero")
    world = World(setup)
    while min(len(party.ledger) for party in world.parties.values()) < 4:
        world.turn()
    for name in ("pa", "server", "pb"):
        if name in without:
            world.disks[name].alignment = None
        world.start(name)
    check(setup, world)
    return setup, world


def test_a_run_that_is_started_again_is_not_aligned_again() -> None:
    assert started_again(without=())[1].asked == 2


@pytest.mark.parametrize("without", [("pa",), ("pa", "pb")])
def test_where_an_alignment_is_lost_all_are_asked_again_and_come_to_the_same_order(without: tuple[str, ...]) -> None:
    assert started_again(without=without)[1].asked == 4


def ended(records: dict[str, dict[str, list[str]]], *, graph: Graph = VERTICAL, **keys: Any) -> dict[str, str | None]:
    """What each party of a run that cannot begin said at its end."""
    world = World(make(graph, records, **keys))
    for _ in range(1000):
        world.turn()
        if all(party.gone for party in world.parties.values()):
            assert all(not party.ledger for party in world.parties.values())
            return {name: party.error for name, party in world.parties.items()}
    raise AssertionError("somebody still waits")


@pytest.mark.parametrize(
    ("left", "right", "missing", "said"),
    [
        (
            ["1", "2", "3"],
            ["4", "5"],
            "drop",
            "of the train records of lane 0 0 are common to all, and 2 are needed (`a` 3, `b` 2 are held)",
        ),
        (["1", "2", "3"], ["3", "5"], "drop", "1 are common to all, and 2 are needed"),
        (["1"], ["1", "2", "3"], "zero", "1 are left that have labels, and 2 are needed (`a` 1, `b` 3 are held)"),
    ],
)
def test_too_few_common_records_end_the_run_with_the_counts_and_the_likely_cause(left, right, missing, said) -> None:
    errors = ended({"pa": {"train": left, "test": ["x"]}, "pb": {"train": right, "test": ["x"]}}, missing=missing)
    text = errors.pop("server") or ""
    assert said in text
    assert "`ids_key`" in text
    assert "\n" not in text
    assert set(errors.values()) == {"the run cannot begin; the coordinator says why"}, "how many others hold is not for the institutions"


def test_no_common_record_to_evaluate_ends_the_run_as_well_and_who_is_behind_a_hop_hears_of_it() -> None:
    held = ["1", "2", "3"]
    errors = ended({"pa": {"train": held, "test": ["x"]}, "pb": {"train": held, "test": ["y"]}}, graph=GRAPHS["extended"])
    assert "of the test records of lane 0 0 are common to all, and 1 are needed" in (errors["server"] or "")
    assert all(errors.values())


def test_batches_follow_from_the_strictest_party() -> None:
    """One party would leave a last batch of one out: so must all, or their steps would be of other batches."""
    names = ["1", "2", "3"]
    feeds = [Feed({"train": source(names, train=True, batch_size=2, drop_last=drop)}) for drop in (True, False)]
    assert [feed.counts["train"] for feed in feeds] == [1, 2]
    parties = [aligner(feed, party=party, kept={}) for feed, party in zip(feeds, ("pa", "pb"), strict=True)]
    inner = TrainingProgram(make(VERTICAL, some_records(VERTICAL)).plan)
    program = AlignedProgram(inner, missing="drop", batch_size=2, splits=("train",), lanes=1, secret=b"s")
    program.sized(parties[0].facts())
    assert program.next().op == "ids"
    (left, left_ids), (right, right_ids) = (party.ids() for party in parties)
    program.done({"least": {"0": left["least"]["0"] | right["least"]["0"]}}, left_ids | right_ids)
    command = program.next()
    answers = [party.align(command.args, command.blobs)["facts"] for party in parties]
    assert [feed.counts["train"] for feed in feeds] == [1, 1]
    both = {"aligned": {"0": answers[0]["aligned"]["0"] | answers[1]["aligned"]["0"]}, "batches": answers[0]["batches"]}
    with pytest.raises(PeerMismatch, match="did not take the alignment"):
        program.done({"facts": answers[0]}, {})
    program.done({"facts": both}, {})
    train = program.next()
    assert (train.op, train.args["steps"]["rounds"]) == ("train", 1)


# ---------------------------------------------------------------- one institution


def aligner(feed: Feed, *, party: str = "pa", key: bytes = KEY, kept: dict[str, bytes]) -> Aligner:
    return Aligner(VERTICAL.slice_for(party), feed, key=key, load=lambda: kept.get(party), keep=lambda data: kept.update({party: data}))


def feed_of(*names: str) -> Feed:
    return Feed({"train": source(list(names), train=True, batch_size=2)})


def lists(*records: str) -> dict[str, bytes]:
    return {"ids/0/a/train": b"".join(hashed(name) if name else BLANK for name in records)}


ARGS = {"token": "0123456789abcdef" * 2, "least": 1}


def test_what_was_kept_is_taken_up_for_the_same_records_and_key_only() -> None:
    kept: dict[str, bytes] = {}
    aligner(feed_of("1", "2", "3"), kept=kept).align(ARGS, lists("3", "", "1"))
    same = feed_of("1", "2", "3")
    facts = aligner(same, kept=kept).facts()
    assert facts == {"batches": {"0": {"train": 2}}, "samples": {"0": {"train": 3}}, "aligned": {"0": {"a": ARGS["token"]}}}
    assert sorted(name for index in (0, 1) for name in same.train(index).ids) == ["", "1", "3"]
    none = {"aligned": {"0": {"a": ""}}}
    assert aligner(feed_of("1", "3", "2"), kept=kept).facts() == none, "another order of the file"
    assert aligner(feed_of("1", "2", "3", "4"), kept=kept).facts() == none, "another record"
    assert aligner(feed_of("1", "2", "3"), key=b"another", kept=kept).facts() == none
    for damaged in (b"", kept["pa"][:-1], b"rubbish"):
        assert aligner(feed_of("1", "2", "3"), kept={"pa": damaged}).facts() == none


def test_a_person_is_told_the_counts_and_nothing_that_a_peer_made_up() -> None:
    blobs = {**lists("1", "", "2"), "ids/0/b/train": hashed("1") * 3, "ids/0/a/test": hashed("3"), "ids/0/\x1b[2J/test": b"", "x": b"1"}
    assert counts_of(blobs) == (
        "lane 0, records aligned for train 3 (`a` holds 2, `b` holds 3); lane 0, records aligned for test 1 (`a` holds 1)"
    )


def test_ids_that_stand_twice_are_counted_and_not_named() -> None:
    with pytest.raises(DataError, match="2 of 5 train records have an id that another one has") as caught:
        aligner(feed_of("kim", "lee", "kim", "kim", "ann"), kept={})
    assert "kim" not in str(caught.value)


def test_without_a_key_nothing_is_hashed() -> None:
    with pytest.raises(RunFileError, match="`ids_key`"):
        aligner(feed_of("1"), key=b"", kept={})


@pytest.mark.parametrize("blobs", [{}, lists("4"), lists("1", "1"), {"ids/0/a/train": b"123"}, {"ids/0/b/train": hashed("1")}])
def test_a_list_that_is_not_of_our_records_is_refused_and_not_kept(blobs: dict[str, bytes]) -> None:
    kept: dict[str, bytes] = {}
    with pytest.raises(PeerMismatch):
        aligner(feed_of("1", "2"), kept=kept).align(ARGS, blobs)
    assert kept == {}


def test_a_run_where_one_party_has_all_data_has_nothing_to_align() -> None:
    graph = graph_of(("a", "pa"), ("t", "server"), edges="at")
    errors = ended({"pa": {"train": ["1", "2"], "test": ["1"]}}, graph=graph)
    assert errors["server"] == "`[align]` joins the records of several parties, but in lane 0 only one has raw data; leave it out"


def test_a_party_with_data_in_two_lanes_is_refused() -> None:
    graph = graph_of(("a", "pa pb"), ("b", "pb pc"), ("t", "server"), edges="at bt")
    with pytest.raises(GraphError, match="`pb` has data in 2 lanes"):
        Aligner(graph.slice_for("pb"), feed_of("1"), key=KEY, load=lambda: None, keep=lambda data: None)


# ---------------------------------------------------------------- the source


@given(
    count=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    train=st.booleans(),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_an_aligned_source_serves_the_list_with_zeros_for_what_is_not_here(count, batch_size, train, epoch, data) -> None:
    places = data.draw(st.lists(st.integers(-1, count - 1), min_size=1, max_size=12))
    whole = source([str(at) for at in range(count)], train=train, batch_size=batch_size)
    ours = whole.aligned(np.array(places, np.int64), least=1)
    twin = source([str(at) for at in range(len(places))], train=train, batch_size=batch_size, segment="other")
    assert (ours.samples, ours.batches) == (len(places), twin.batches)
    for index in range(ours.batches):
        batch, order = ours.batch(epoch, index), [int(name) for name in twin.batch(epoch, index).ids]
        held = [places[at] for at in order]
        assert batch.ids == tuple(str(at) if at >= 0 else "" for at in held)
        assert batch.inputs[0].tolist() == [[at + 1, 10 * at] if at >= 0 else [0, 0] for at in held]
        assert batch.target is not None
        assert batch.target.tolist() == [max(at, 0) for at in held]
    assert whole.batch(epoch, 0).ids == source([str(at) for at in range(count)], train=train, batch_size=batch_size).batch(epoch, 0).ids


def test_what_is_not_here_is_zero_after_normalisation_and_noise_and_changes_no_other_sample() -> None:
    keys = {"normalize": Normalize(mean=(5.0,), std=(2.0,)), "augment": Augment(noise=0.5)}
    whole = source(["a", "b", "c"], train=True, batch_size=3, **keys)
    full, blank = (whole.aligned(np.array(places), least=1).batch(0, 0) for places in ([0, 1, 2], [0, -1, 2]))
    at = blank.ids.index("")
    assert not blank.inputs[0][at].any()
    assert full.inputs[0][at].all()
    others = [row for row in range(3) if row != at]
    assert np.array_equal(blank.inputs[0][others], full.inputs[0][others])


# ---------------------------------------------------------------- what a peer may write


@pytest.mark.parametrize("token", [None, 3, "", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n"])
def test_a_token_is_32_hex_digits(token: Any) -> None:
    with pytest.raises(ValueError, match="32 hex digits"):
        read_command({"seq": 1, "op": "align", "lanes": [0], "args": {"token": token, "least": 1}}, {})
    if token == "":
        return  # not aligned yet
    with pytest.raises(ValueError, match="32 hex digits"):
        read_done({"seq": 1, "boot": 1, "result": {"facts": {"aligned": {"0": {"a": token}}}}})


@pytest.mark.parametrize("least", [None, -1, 1.0, True, 1 << 32])
def test_least_is_a_whole_number(least: Any) -> None:
    with pytest.raises(ValueError, match="whole number"):
        read_command({"seq": 1, "op": "align", "lanes": [0], "args": {**ARGS, "least": least}}, {})
    with pytest.raises(ValueError, match="whole number"):
        read_done({"seq": 1, "boot": 1, "result": {"least": {"0": {"a": least}}}})


@pytest.mark.parametrize("labels", [1, None, "yes", False])
def test_who_brings_labels_says_so_or_nothing(labels: Any) -> None:
    with pytest.raises(TypeError, match="brings labels"):
        read_done({"seq": 1, "boot": 1, "result": {"labels": {"0": {"a": labels}}}})


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "\x1b[2J", "a" * 65])
@pytest.mark.parametrize(
    "result", [{"least": {"0": {"": 1}}}, {"labels": {"0": {"": True}}}, {"facts": {"aligned": {"0": {"": "0" * 32}}}}]
)
def test_a_segment_has_a_name_that_can_stand_in_a_message(name: str, result: dict[str, Any]) -> None:
    renamed = json.loads(json.dumps(result).replace('"": ', json.dumps(name) + ": "))
    with pytest.raises(ValueError, match="a name of a segment"):
        read_done({"seq": 1, "boot": 1, "result": renamed})
