"""Whatever a peer writes into a control message is read within its bounds or dropped, and the run goes on to the right weights."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.test_actor import GRAPHS, check, make
from tests.wire.toy_run import World
from wire.bodies import UNREADABLE, read_command, read_done, read_fetch, read_hello, read_weights
from wire.codecs import offer_for
from wire.frames import Frame, Kind, encode
from wire.graph import Line
from wire.limits import LIMITS
from wire.messages import FrameArrived, Send, StoreEpoch
from wire.parse import whole

STEPS = {"lanes": [0, 1], "starts": [4, 4], "places": [0, 1], "width": 2, "rounds": 3, "first_global": 8}
BODIES: dict[str, Any] = {
    "hello": {"boot": 1 << 32, "epoch": 0, "digest": "d", "codecs": offer_for(["int8"]).plain()},
    "lost": {"epoch": 0},
    "done": {
        "seq": 0,
        "boot": 1,
        "result": {
            "checkpoints": [0, 3],
            "facts": {"batches": {"0": {"train": 3}}, "samples": {"0": {"train": 40}}, "weights": {"0": {"bottom": 900}}},
            "metrics": {"loss": 0.5},
            "counts": {"0": {"loss": 0.5}},
        },
    },
    "cmd": {"seq": 1, "op": "train", "lanes": [0, 1], "args": {"epoch": 0, "steps": STEPS, "total_steps": 24}},
}
NO_NUMBERS: list[Any] = [-1, 1 << 63, 10**400, 1.0, 0.5, True, "1", None, [], {}, float("inf"), float("-inf"), float("nan")]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all numbers but those that may be fractions."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if type(value) is int:
        yield path
    for key, item in items:
        yield from leaves(item, (*path, key))


def with_value(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = at = copy.deepcopy(body)
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return body


def payload(kind: str, body: dict[str, Any]) -> bytes:
    """Infinity as a peer would get it past a reader that looks out for ``Infinity``."""
    text = json.dumps({"kind": kind, "body": body, "blobs": []}).replace("Infinity", "1e999").encode()
    return len(text).to_bytes(4, "little") + text


def begun(name: str = "vanilla") -> World:
    world = World(make(GRAPHS[name]))
    while min(len(party.ledger) for party in world.parties.values()) < 2:
        world.turn()
    return world


def give(world: World, kind: str, data: bytes) -> list[Any]:
    """``hello``, ``done`` and ``lost`` to the server, a command to the client; the effects, which must fit on a line."""
    party = world.parties["c0" if kind == "cmd" else "server"]
    (line,) = party.slice.lines
    epoch = 0 if kind == "hello" else party.actor.epoch
    frame = Frame(kind=Kind.HELLO if kind == "hello" else Kind.CONTROL, epoch=epoch, lane=line.lane, step=7, payload=data)
    effects = list(party.actor.handle(FrameArrived(line=line, frame=frame)))
    for effect in effects:
        if isinstance(effect, Send):
            encode(effect.frame, run_tag=1, part_bytes=4096)
    for effect in effects:
        party.carry_out(effect)
    return effects


CASES = [(kind, path) for kind, body in BODIES.items() for path in leaves(body)]


@pytest.mark.parametrize(("kind", "path"), CASES, ids=lambda value: value if isinstance(value, str) else ".".join(map(str, value)))
def test_what_is_no_number_there_is_noted_and_changes_nothing(kind: str, path: tuple[Any, ...]) -> None:
    world = begun()
    before = {name: (party.actor.epoch, world.disks[name].epoch) for name, party in world.parties.items()}
    seq = world.parties["server"].actor._running.seq  # type: ignore[union-attr]
    for value in NO_NUMBERS:
        body = BODIES[kind] if "seq" not in BODIES[kind] or path == ("seq",) else {**BODIES[kind], "seq": seq + (kind == "cmd")}
        noted = len(world.notes)
        effects = give(world, kind, payload(kind, with_value(body, path, value)))
        assert not [effect for effect in effects if isinstance(effect, StoreEpoch)]
        assert len(world.notes) == noted + 1, value
        assert world.notes[-1][1].kind in ("corrupt", "protocol")
    assert {name: (party.actor.epoch, world.disks[name].epoch) for name, party in world.parties.items()} == before
    check(world.setup, world)


@pytest.mark.parametrize("kind", ["hello", "lost"])
@pytest.mark.parametrize("epoch", [(1 << 32) - 1, LIMITS.claimed_epoch + 1, 1 << 32])
def test_an_epoch_that_leaves_no_room_for_ours_is_not_taken_up(kind: str, epoch: int) -> None:
    world = begun()
    ours = world.disks["server"].epoch
    give(world, kind, payload(kind, {**BODIES[kind], "epoch": epoch}))
    assert world.notes[-1][1].kind in ("corrupt", "protocol")
    assert world.disks["server"].epoch == ours
    check(world.setup, world)


@pytest.mark.parametrize("kind", ["hello", "lost"])
def test_the_largest_epoch_that_is_taken_up_leaves_half_of_them(kind: str) -> None:
    world = begun()
    for _ in range(3):  # whoever says it again gets no further
        give(world, kind, payload(kind, {**BODIES[kind], "epoch": LIMITS.claimed_epoch}))
    assert world.disks["server"].epoch <= LIMITS.claimed_epoch + 3
    check(world.setup, world)


@given(st.data())
def test_readers_raise_what_they_say(data: st.DataObject) -> None:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2))
    kind = data.draw(st.sampled_from(["hello", "done", "cmd"]))
    body = copy.deepcopy(BODIES[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        at = body
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not (isinstance(at[key], (dict, list)) and at[key]) or data.draw(st.booleans()):
                break
            at = at[key]
        at[key] = data.draw(anything)
    try:
        read = {"hello": lambda: read_hello(body, ours=1), "done": lambda: read_done(body), "cmd": lambda: read_command(body, {})}[kind]()
    except UNREADABLE:
        return
    assert read is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"op": 3},
        {"args": []},
        {"args": {}},
        {"op": "save", "args": {}},
        {"op": "restore", "args": {}},
        {"op": "keep", "args": {}},
        {"op": "fetch", "args": {}},
        {"op": "fetch", "args": {"lane": 1 << 16}},
        {"op": "offer", "args": {}},
        {"op": "adopt", "args": {"round": -1}},
        {"op": "average", "args": {"round": 1, "samples": {}, "first": True, "last": True}},
        {"op": "tell", "args": {"split": "test", "epoch": 0}},
        {"op": "evaluate", "args": {"steps": STEPS, "batch": LIMITS.batches + 1}},
        {"args": {"steps": {**STEPS, "rounds": LIMITS.batches + 1}}},
        {"args": {"steps": {**STEPS, "lanes": [0, 0]}}},
        {"args": {"steps": {**STEPS, "lanes": [], "starts": [], "places": []}}},
        {"args": {"steps": {**STEPS, "places": [0]}}},
        {"args": {"steps": {**STEPS, "places": [1, 0]}}},
        {"args": {"steps": {**STEPS, "places": [1, 1]}}},
        {"args": {"steps": {**STEPS, "places": [0, 2]}}},
        {"args": {"steps": {**STEPS, "width": 0}}},
        {"args": {"steps": {**STEPS, "width": (1 << 16) + 1}}},
        {"args": {"steps": {**STEPS, "width": 1 << 16, "first_global": (1 << 32) - (3 << 16) + 1}}},
        {"args": {"steps": {name: value for name, value in STEPS.items() if name not in ("places", "width")}}},
        {"args": {"steps": {**STEPS, "starts": [4]}}},
        {"args": {"steps": {**STEPS, "starts": [4, (1 << 32) - 2]}}},
        {"args": {"steps": {**STEPS, "first_global": (1 << 32) - 5}}},
    ],
)
def test_a_command_that_nobody_could_carry_out_is_not_begun(changed: dict[str, Any]) -> None:
    read_command(BODIES["cmd"], {})
    with pytest.raises(UNREADABLE):
        read_command({**BODIES["cmd"], **changed}, {})


KEY = base64.b64encode(bytes(range(32))).decode()
FETCH = {"seq": 4, "key": KEY}


@pytest.mark.parametrize(
    "changed",
    [*({"seq": value} for value in NO_NUMBERS), {"key": None}, {"key": 7}, {"key": ""}, {"key": KEY[:-4]}, {"key": KEY + "AAAA"},
     {"key": KEY + "\n"}, {"key": "é" + KEY[1:]}, {"key": KEY[:42] + "9="}],
)  # fmt: skip
def test_a_fetch_that_names_no_order_or_no_key_is_not_read(changed: dict[str, Any]) -> None:
    assert read_fetch(FETCH).key == bytes(range(32))
    with pytest.raises(UNREADABLE):
        read_fetch({**FETCH, **changed})


def test_weights_that_are_not_there_are_not_read() -> None:
    assert read_weights({"seq": 4}, {"sealed": b"x"}).sealed == b"x"
    for body, blobs in (({"seq": 4}, {}), ({"seq": -1}, {"sealed": b"x"}), ({}, {"sealed": b"x"})):
        with pytest.raises(UNREADABLE):
            read_weights(body, blobs)


def test_the_bounds_themselves_fit() -> None:
    assert read_hello({**BODIES["hello"], "boot": (1 << 63) - 1, "epoch": LIMITS.claimed_epoch}, ours=0).boot == (1 << 63) - 1
    assert read_hello({**BODIES["hello"], "epoch": (1 << 32) - 1}, ours=(1 << 32) - 1).epoch == (1 << 32) - 1
    last = {**STEPS, "starts": [(1 << 32) - 3, 0], "first_global": (1 << 32) - 6}
    assert read_command({**BODIES["cmd"], "args": {"steps": last}}, {})[0] == 1


@pytest.mark.parametrize("value", [10**400, -1, True, "1", None])
@pytest.mark.parametrize("table", ["metrics", "counts"])
def test_a_metric_that_is_no_number_is_refused(table: str, value: Any) -> None:
    numbers = {"loss": value}
    with pytest.raises(UNREADABLE):
        read_done({"seq": 0, "boot": 1, "result": {table: numbers if table == "metrics" else {"0": numbers}}})


@pytest.mark.parametrize("data", ["x" * 5000, [[1]] * 5000, 10**400, -1, "a\nb", True])
def test_what_is_said_of_a_bad_number_is_short(data: object) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 0 to 9") as caught:
        whole(data, below=10)
    assert len(str(caught.value)) < 100
    assert "\n" not in str(caught.value)


def test_a_line_that_is_not_from_a_child_is_not_listened_to() -> None:
    world = begun()
    hello = Frame(kind=Kind.HELLO, payload=payload("hello", BODIES["hello"]))
    assert world.parties["server"].actor.handle(FrameArrived(line=Line("x>top", 0, False), frame=hello)) == ()
