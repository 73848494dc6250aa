"""Who gets a release when, and what a device may ask for: the conversation without sockets, told what comes and at which second."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from fleet.deploy.peer import Pace, Peer
from fleet.deploy.releases import Outcome
from fleet.deploy.rollout import Rollout
from fleet.deploy.stages import parse_share, parse_stages
from wire.fleet.release import Release, ReleaseFile
from wire.fleet.talk import Ask, Chunk, Offer, State, Want
from wire.limits import LIMITS

RUN, GRAPH = "a" * 64, "b" * 64
MB = 1 << 20
PACE = Pace(ask_s=10.0, offer_s=20.0, away_s=35.0)


def peer(name: str, *, outcome: Outcome = "open", size_bytes: int = MB, newest: int = 9, fresh: bool = False) -> Peer:
    files = (
        ReleaseFile(path="run.toml", sha256=RUN, size_bytes=100),
        ReleaseFile(path="bundle/body/step.onnx", sha256=GRAPH, size_bytes=size_bytes),
    )
    release = Release(format=1, version=5, device=name, minimum=0, expires_s=1, files=files)
    return Peer(release, Offer(manifest=b"list", signature=bytes(64)), outcome=outcome, newest=newest, fresh=fresh, pace=PACE)


def state(**facts: Any) -> State:
    plain: dict[str, Any] = {"boot": 1, "release": 0, "highest": 0, "client": "running", "code": "1", "agent": "1", "uptime_s": 1.0}
    if facts.get("release"):
        plain["digest"] = hashlib.sha256(b"list").hexdigest()
    return State(**(plain | {"connections": 1, "disk_free_bytes": 1, "memory_free_bytes": 1} | facts))


def rollout(*peers: Peer, stages: str = "1,100%", stop_at: float = 0.1, until_s: float = 1e6) -> Rollout:
    return Rollout(peers, counts=parse_stages(stages).counts(len(peers)), stop_at=stop_at, until_s=until_s)


def offered(found: Rollout, now_s: float) -> list[str]:
    return [name for name, message in found.due(now_s) if isinstance(message, Offer)]


def answer(found: Rollout, name: str, now_s: float, **facts: Any) -> None:
    """To the newest question."""
    found.heard(name, state(token=list(found.peers[name]._asked)[-1], **facts), now_s)


# ------------------------------------------------------------ stages


@pytest.mark.parametrize(
    ("text", "devices", "counts"),
    [("1,10%,100%", 50, [1, 5, 50]), ("1,10%,100%", 3, [1, 1, 3]), ("5,10%", 2, [2, 2]), ("100%", 7, [7]), ("10,1", 20, [10, 10])],
)
def test_stages(text: str, devices: int, counts: list[int]) -> None:
    assert parse_stages(text).counts(devices) == counts


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "1,,2", "-1", "x", "10 %", "1;2"])
def test_what_is_no_list_of_stages(text: str) -> None:
    with pytest.raises(ValueError, match="is not written like"):
        parse_stages(text)
    with pytest.raises(ValueError, match="is not written like 10%"):
        parse_share(text.replace("0%", "x"))


def test_the_first_stage_takes_who_is_there_and_the_next_one_waits_for_it() -> None:
    found = rollout(*(peer(f"c{at}") for at in range(4)), stages="1,50%,100%")
    assert offered(found, 0.0) == []
    for name in ("c2", "c3"):
        found.heard(name, state(), 1.0)
    assert offered(found, 1.0) == ["c2"]
    found.heard("c0", state(), 1.0)
    assert offered(found, 2.0) == []
    found.heard("c2", state(release=5, highest=5, offered=5, stage="trial"), 3.0)
    assert offered(found, 3.0) == []
    found.heard("c2", state(release=5, highest=5, offered=5, stage="healthy"), 4.0)
    assert offered(found, 4.0) == ["c0"]  # two of four
    found.heard("c0", state(release=5, highest=5), 5.0)
    assert offered(found, 5.0) == ["c3"]
    found.heard("c3", state(release=5, highest=5), 6.0)
    assert offered(found, 6.0) == []
    assert found.end(6.0) is None
    found.heard("c1", state(), 50.0)
    assert offered(found, 50.0) == ["c1"]
    found.heard("c1", state(release=5, highest=5), 51.0)
    assert offered(found, 51.0) == []
    assert found.end(51.0) == "done"


def test_it_stops_when_more_than_so_many_have_failed() -> None:
    names = [f"c{at}" for at in range(20)]
    found = rollout(*(peer(name) for name in names), stages="100%", stop_at=0.1)
    for name in names:
        found.heard(name, state(), 0.0)
    assert offered(found, 0.0) == names
    for at, name in enumerate(names[:3]):
        assert found.end(1.0) is None
        answer(found, name, 1.0 + at, highest=5, offered=5, stage="returned" if at else "refused", reason="no")
    assert found.end(4.0) == "stopped"
    assert [each.name for each in found.failed] == names[:3]


def test_its_time_ends() -> None:
    found = rollout(peer("c0"), until_s=100.0)
    assert (found.end(99.0), found.end(100.0)) == (None, "late")


def test_who_had_begun_before_goes_first() -> None:
    found = rollout(peer("c0"), peer("c1"))
    found.heard("c0", state(), 0.0)
    found.heard("c1", state(highest=5, offered=5, stage="fetching"), 0.0)
    assert offered(found, 0.0) == ["c1"]  # it knows it, and not that we are back
    assert [each.name for each in found.tried] == ["c1"]
    found.heard("c1", Want(version=5, sha256=RUN, offset=0, count_bytes=100), 0.5)
    assert found.next_piece() is not None


def test_what_had_ended_before_is_not_done_again_but_on_a_device_that_was_set_up_anew() -> None:
    found = rollout(
        peer("c0", outcome="healthy"), peer("c1", outcome="healthy"), peer("c2", outcome="returned"), stages="100%", stop_at=0.5
    )
    assert offered(found, 0.0) == []
    assert found.end(0.0) == "done"
    found = rollout(peer("c0", outcome="healthy"), peer("c1", outcome="returned"), peer("c2"), stages="100%", stop_at=0.5)
    for name in ("c0", "c1", "c2"):
        found.heard(name, state(highest=0), 0.0)
    assert offered(found, 0.0) == ["c0", "c1", "c2"]


def test_who_runs_something_else_than_what_was_healthy_is_told() -> None:
    found = rollout(peer("c0", outcome="healthy"), peer("c1", outcome="healthy"), stages="100%", stop_at=0.5)
    found.heard("c0", state(release=3, highest=5), 0.0)
    found.heard("c1", state(release=5, highest=5, offered=6, stage="refused"), 0.0)
    assert offered(found, 0.0) == []
    assert (found.peers["c0"].phase, found.peers["c1"].phase) == ("returned", "healthy")
    assert "runs release 3 now; --again" in found.peers["c0"].reason


# ------------------------------------------------------------ a registry that was lost

OTHER = {"release": 5, "highest": 5, "digest": "0" * 64}


@pytest.mark.parametrize(
    ("facts", "first", "knows_better"),
    [
        (OTHER, {"fresh": True}, True),  # the same number, other contents
        (OTHER, {"outcome": "healthy"}, True),
        ({**OTHER, "offered": 5, "stage": "trial"}, {}, True),
        ({"highest": 5}, {"fresh": True}, True),  # it has had that number, whatever became of it
        ({"highest": 5}, {}, False),
        ({"release": 8, "highest": 8}, {}, False),  # the registry knows of 9
        ({"release": 10, "highest": 10}, {}, True),
        ({"release": 10, "highest": 10}, {"outcome": "healthy"}, True),
        ({"release": 5, "highest": 10}, {}, False),  # it runs just this
        ({"highest": 4}, {"fresh": True}, False),
    ],
)
def test_numbers_that_come_twice_are_told(facts: dict[str, Any], first: dict[str, Any], knows_better: bool) -> None:
    found = rollout(peer("c0", **first))
    found.heard("c0", state(**facts), 0.0)
    sent = offered(found, 0.0)
    c0 = found.peers["c0"]
    assert c0.misnumbered is knows_better
    if knows_better:
        assert (sent, c0.phase) == ([], "refused")
        assert f"--above {facts['highest']}" in c0.reason
        assert found.end(0.0) == "stopped"
    else:
        assert bool(sent) is (facts.get("release") != 5)


def test_its_own_number_is_no_news_once_it_was_offered() -> None:
    found = rollout(peer("c0", fresh=True))
    found.heard("c0", state(), 0.0)
    assert offered(found, 0.0) == ["c0"]
    found.heard("c0", state(highest=5, offered=5, stage="fetching"), 1.0)
    assert offered(found, 60.0) == []
    found.heard("c0", state(highest=5, offered=5, stage="fetching"), 60.0)
    assert offered(found, 60.0) == ["c0"]
    assert not found.peers["c0"].misnumbered


# ------------------------------------------------------------ who does not get on

OVER_AND_OVER = [{"boot": boot, "offered": 5, "highest": 5, "stage": "fetching", "have_bytes": 7} for boot in range(10)]


def canary(*says: dict[str, Any]) -> Rollout:
    """c0 of four was offered it first, and said this."""
    found = rollout(*(peer(f"c{at}") for at in range(4)), stages="1,50%,100%")
    found.heard("c0", state(), 0.0)
    assert offered(found, 0.0) == ["c0"]
    list(found.due(1.0))
    for at, facts in enumerate(says):
        found.heard("c0", state(**facts), 60.0 + at)
        list(found.due(60.0 + at))
    return found


def others(found: Rollout, now_s: float) -> list[str]:
    """Who else is offered it, if they are there."""
    for name in ("c1", "c2", "c3"):
        found.heard(name, found.peers[name].state or state(), now_s)
    return [name for name in offered(found, now_s) if name != "c0"]


@pytest.mark.parametrize("says", [[], [{}] * 10, OVER_AND_OVER], ids=["unplugged", "deaf", "starts over and over"])
def test_one_device_that_does_not_get_on_holds_up_nobody_else(says: list[dict[str, Any]]) -> None:
    found = canary(*says)
    assert others(found, 1790.0) == []
    assert others(found, 1900.0) == ["c1"]
    assert found.peers["c0"].aside
    for name, then in (("c1", ["c2"]), ("c2", ["c3"]), ("c3", [])):
        found.heard(name, state(release=5, highest=5), 1901.0)
        assert others(found, 1901.0) == then
    assert found.end(9e4) is None  # the last stage waits for everybody
    found.heard("c0", state(offered=5, highest=5, stage="fetching", have_bytes=8), 9e4)
    list(found.due(9e4))
    assert found.end(9e4) is None
    found.heard("c0", state(release=5, highest=5, offered=5, stage="healthy"), 9e4)
    list(found.due(9e4))
    assert found.end(9e4) == "done"
    assert not found.peers["c0"].aside


def test_a_slow_one_is_waited_for_and_its_place_is_not_given_twice() -> None:
    found = canary(*OVER_AND_OVER[:1])
    for at in range(1, 5):
        found.heard("c0", state(offered=5, highest=5, stage="fetching", have_bytes=7 + at), 1700.0 * at)
        assert others(found, 1700.0 * at) == []
    assert others(found, 1700.0 * 4 + 1800.0) == ["c1"]
    assert others(found, 1700.0 * 4 + 1801.0) == []
    found.heard("c0", state(offered=5, highest=5, stage="fetching", have_bytes=100), 9000.0)
    list(found.due(9000.0))
    assert not found.peers["c0"].aside
    found.heard("c1", state(release=5, highest=5), 9001.0)
    assert others(found, 9001.0) == []  # c0 counts again


def test_no_more_than_so_many_are_replaced() -> None:
    found = canary()
    assert others(found, 1900.0) == ["c1"]
    assert others(found, 1901.0) == []
    assert others(found, 8000.0) == ["c1"]  # an offer in vain
    assert found.peers["c1"].aside


def test_who_falls_silent_on_trial_has_failed() -> None:
    found = canary({"release": 5, "highest": 5, "offered": 5, "stage": "trial"})
    assert others(found, 1859.0) == []
    assert found.end(1859.0) is None
    assert others(found, 1861.0) == []
    assert found.end(1861.0) == "stopped"


def test_no_time_passes_while_the_operator_is_cut_off() -> None:
    found = canary()
    list(found.due(100.0))
    found.cut()
    assert others(found, 86_400.0) == []
    assert not found.peers["c0"].aside
    assert others(found, 86_400.0 + 1600.0) == []
    assert others(found, 86_400.0 + 1701.0) == ["c1"]


# ------------------------------------------------------------ one device


def test_an_offer_comes_again_until_it_is_taken() -> None:
    found = rollout(peer("c0"))
    found.heard("c0", state(), 0.0)
    assert offered(found, 0.0) == ["c0"]
    assert offered(found, 19.0) == []
    found.heard("c0", state(), 19.0)
    assert offered(found, 21.0) == ["c0"]
    found.heard("c0", state(offered=5, highest=5, stage="fetching"), 40.0)
    found.heard("c0", Want(version=5, sha256=RUN, offset=0, count_bytes=1), 41.0)
    assert offered(found, 60.0) == []
    found.heard("c0", state(offered=5, highest=5, stage="fetching"), 70.0)
    assert offered(found, 70.0) == ["c0"]  # it asks for nothing
    found.heard("c0", state(), 91.0)  # its disk was lost
    assert offered(found, 91.0) == ["c0"]
    assert offered(found, 200.0) == []  # it is away


def test_who_takes_no_notice_is_given_up() -> None:
    """It has had that number before, as a card that was written anew and keeps to what is newer."""
    found = rollout(peer("c0"))
    times = []
    for second in range(200):
        found.heard("c0", state(highest=7), second)
        times += [second] if offered(found, second) else []
    assert times == [0, 20, 60]
    assert found.peers["c0"].phase == "refused"
    assert "has had release 7 before; --again" in found.peers["c0"].reason


def test_offers_become_rarer_where_none_arrives() -> None:
    found, times = rollout(peer("c0")), []
    for second in range(4000):
        found.heard("c0", state(), second)
        times += [second] if offered(found, second) else []
    assert times == [0, 20, 60, 140, 300, 620, 1260, 1900, 2540, 3180, 3820]
    found.heard("c0", state(connections=2), 3841.0)  # it has come back, and what was on its way is lost
    assert offered(found, 3841.0) == ["c0"]
    found.cut()
    found.heard("c0", state(connections=2), 3842.0)
    assert offered(found, 3842.0) == ["c0"]


def test_everybody_is_asked_now_and_then_and_at_once_after_an_offer() -> None:
    found = rollout(peer("c0"), peer("c1"))
    assert [name for name, message in found.due(0.0) if isinstance(message, Ask)] == ["c0", "c1"]
    assert list(found.due(9.0)) == []
    answer(found, "c0", 9.5)
    assert found.peers["c0"].round_trip_s == 9.5
    assert [(name, type(message)) for name, message in found.due(9.5)] == [("c0", Offer), ("c0", Ask)]


def test_a_refusal_counts_once_it_answers_this_offer() -> None:
    found = rollout(peer("c0"))
    old = {"offered": 5, "stage": "refused", "reason": "no room"}
    found.heard("c0", state(**old), 0.0)
    assert offered(found, 0.0) == ["c0"]
    found.heard("c0", state(**old), 0.1)  # said before it had the offer
    found.heard("c0", state(token=12345, **old), 0.2)
    assert found.peers["c0"].phase == "offered"
    answer(found, "c0", 1.0, **old)
    assert (found.peers["c0"].phase, found.peers["c0"].reason) == ("refused", "no room")


def test_who_was_given_another_key_refuses_what_it_cannot_read() -> None:
    found = rollout(peer("c0"))
    facts = {"offered": 0, "stage": "refused", "reason": "not signed by a key that this device was given"}
    found.heard("c0", state(**facts), 0.0)  # somebody else's, before
    assert offered(found, 0.0) == ["c0"]
    answer(found, "c0", 1.0, **facts)
    assert (found.peers["c0"].phase, found.peers["c0"].reason) == ("refused", facts["reason"])


def test_a_refusal_does_not_count_where_the_offer_may_be_lost() -> None:
    """The device has connected anew since: what it says now is of what was before."""
    found = rollout(peer("c0"))
    old = {"offered": 5, "stage": "refused", "reason": "no room"}
    found.heard("c0", state(**old), 0.0)
    assert offered(found, 0.0) == ["c0"]
    answer(found, "c0", 1.0, connections=2, **old)
    assert found.peers["c0"].phase == "offered"
    found.heard("c0", state(connections=2, **old), 20.0)
    assert offered(found, 20.0) == ["c0"]
    answer(found, "c0", 21.0, connections=2, **old)
    assert found.peers["c0"].phase == "refused"


def test_after_a_cut_it_is_offered_again_and_nothing_is_on_its_way() -> None:
    found = fetching()
    found.heard("c0", Want(version=5, sha256=RUN, offset=0, count_bytes=100), 1.0)
    found.cut()
    assert found.next_piece() is None
    found.heard("c0", state(), 2.0)
    assert offered(found, 2.0) == ["c0"]


# ------------------------------------------------------------ what may be asked for


def fetching(*names: str, size_bytes: int = MB) -> Rollout:
    names = names or ("c0",)
    found = rollout(*(peer(name, size_bytes=size_bytes) for name in names), stages="100%")
    for name in names:
        found.heard(name, state(), 0.0)
    assert offered(found, 0.0) == list(names)
    return found


@pytest.mark.parametrize(
    "asked",
    [
        {"sha256": "c" * 64},  # of no file of this release
        {"version": 4},
        {"version": 6},
        {"offset": MB, "count_bytes": 1},
        {"offset": MB - 10, "count_bytes": 11},
        {"offset": LIMITS.release_bytes - 1, "count_bytes": LIMITS.chunk_bytes},
        {"sha256": RUN, "count_bytes": 101},
    ],
)
def test_what_is_not_of_its_release_is_not_sent(asked: dict[str, Any]) -> None:
    found = fetching()
    found.heard("c0", Want(**({"version": 5, "sha256": GRAPH, "offset": 0, "count_bytes": 1} | asked)), 1.0)
    assert found.next_piece() is None
    assert found.peers["c0"].strange == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"offset": -1},
        {"count_bytes": 0},
        {"count_bytes": LIMITS.chunk_bytes + 1},
        {"version": -1},
        {"sha256": "x"},
        {"sha256": "../" * 21 + "x"},
    ],
)
def test_what_is_no_question_is_not_even_one(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"whole number|hexadecimal"):
        Want(**({"version": 5, "sha256": GRAPH, "offset": 0, "count_bytes": 1} | asked))


def test_who_was_not_offered_it_gets_nothing_of_it() -> None:
    found = rollout(peer("c0"), peer("c1"))
    found.heard("c0", state(), 0.0)
    assert offered(found, 0.0) == ["c0"]
    for name in ("c1", "c2"):
        found.heard(name, Want(version=5, sha256=RUN, offset=0, count_bytes=1), 0.0)
        found.heard(name, Chunk(sha256=RUN, offset=0, data=b"x"), 0.0)
        found.heard(name, found.peers["c0"].offer, 0.0)
    assert found.next_piece() is None


def test_questions_are_kept_up_to_a_bound_and_each_once() -> None:
    found = fetching()
    for at in range(10_000):
        found.heard("c0", Want(version=5, sha256=GRAPH, offset=at % 200, count_bytes=1), 1.0)
    pieces = []
    while (piece := found.next_piece()) is not None:
        pieces.append(piece)
    assert len(pieces) == 8  # no more on their way to one device
    while len(pieces) < 1000:
        found.sent("c0")
        if (piece := found.next_piece()) is None:
            break
        pieces.append(piece)
    assert [piece.offset for piece in pieces] == list(range(32))


def test_devices_take_turns() -> None:
    found = fetching("c0", "c1", "c2")
    for at in range(20):
        found.heard("c0", Want(version=5, sha256=GRAPH, offset=at, count_bytes=1), 1.0)
    for name in ("c1", "c2"):
        found.heard(name, Want(version=5, sha256=RUN, offset=0, count_bytes=1), 1.0)
    order = [piece.device for _ in range(5) if (piece := found.next_piece()) is not None]
    assert sorted(order[:3]) == ["c0", "c1", "c2"]


def test_who_asks_for_all_of_it_again_and_again_is_given_up() -> None:
    found, sent_bytes = fetching(), 0
    for _ in range(10_000):
        found.heard("c0", Want(version=5, sha256=GRAPH, offset=0, count_bytes=LIMITS.chunk_bytes), 1.0)
        piece = found.next_piece()
        if piece is None:
            break
        sent_bytes += piece.count_bytes
        found.sent("c0")
    assert found.peers["c0"].phase == "refused"
    assert "more than 3 times over" in found.peers["c0"].reason
    assert sent_bytes <= 8 * MB


def test_what_it_says_of_its_bytes_is_shown_within_bounds() -> None:
    found = fetching()
    found.heard("c0", state(offered=5, stage="fetching", have_bytes=1 << 39, of_bytes=1), 1.0)
    assert found.peers["c0"].have_bytes == found.peers["c0"].release.size_bytes
    found.heard("c0", state(offered=4, stage="fetching", have_bytes=1 << 39), 2.0)
    assert found.peers["c0"].have_bytes == 0


@pytest.mark.parametrize(
    "facts",
    [
        {"have_bytes": -1},
        {"release": 1 << 70},
        {"step": -2},
        {"boot": 1 << 64},
        {"uptime_s": float("nan")},
        {"certificate_until_s": float("inf")},
        {"certificate_until_s": 1e30},
        {"reason": "x" * 301},
    ],
)
def test_a_state_that_no_device_can_be_in(facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        state(**facts)
