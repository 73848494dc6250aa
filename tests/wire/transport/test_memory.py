"""The broker in memory: without faults nothing is lost; with faults, what befalls a publish follows from the seed alone."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.transport.base import Delivered, LinkDown, LinkUp, Received, TransportEvent
from wire.transport.memory import Faults, MemoryHub

COUNT = 200


def arrivals(faults: Faults, seed: int, *, count: int = COUNT) -> tuple[list[TransportEvent], list[TransportEvent]]:
    """What the sender and the receiver hear of ``count`` publishes."""
    hub = MemoryHub(faults=faults, seed=seed)
    sender, receiver = hub.transport("a"), hub.transport("b")
    sent: list[TransportEvent] = []
    got: list[TransportEvent] = []
    sender.open((), sent.append)
    receiver.open(("t",), got.append)
    for number in range(count):
        sender.publish("t", number.to_bytes(4, "big"), number)
    sender.close()
    receiver.close()
    return sent, got


def numbers(events: list[TransportEvent]) -> list[int]:
    return [int.from_bytes(event.payload, "big") for event in events if isinstance(event, Received)]


def test_without_faults_everything_arrives_once_and_in_order() -> None:
    sent, got = arrivals(Faults(), 0)
    assert numbers(got) == list(range(COUNT))
    assert sent == [LinkUp(), *(Delivered(token=number) for number in range(COUNT))]


@pytest.mark.parametrize("fault", ["lose", "repeat", "damage", "reorder", "cut"])
def test_each_fault_is_what_it_is_called(fault: str) -> None:
    chances: dict[str, Any] = {fault: 0.3}
    sent, got = arrivals(Faults(**chances), 1)
    arrived = numbers(got)
    counts = Counter(arrived)
    told = [event.token for event in sent if isinstance(event, Delivered)]
    if fault == "lose":
        assert set(arrived) < set(range(COUNT))
        assert told == list(range(COUNT))
    elif fault == "repeat":
        assert set(counts.values()) == {1, 2}
        assert sorted(counts) == list(range(COUNT))
    elif fault == "damage":
        wrong = [(number, found) for number, found in enumerate(arrived) if number != found]
        assert wrong
        assert {(number ^ found).bit_count() for number, found in wrong} == {1}
    elif fault == "reorder":
        assert arrived != sorted(arrived)
        assert set(range(COUNT - 20)) <= set(arrived)
        assert max(counts.values()) == 1
    else:
        assert LinkDown(reason="cut on purpose", retry_in_s=0.0) in sent
        assert sent[sent.index(LinkDown(reason="cut on purpose", retry_in_s=0.0)) + 1] == LinkUp()
        assert arrived == told


chance = st.floats(0.0, 1.0)


@given(st.builds(Faults, lose=chance, repeat=chance, damage=chance, reorder=chance, cut=chance), st.integers())
def test_equal_seeds_give_equal_faults(faults: Faults, seed: int) -> None:
    assert arrivals(faults, seed, count=20) == arrivals(faults, seed, count=20)


def test_faults_of_a_topic_do_not_depend_on_other_threads() -> None:
    faults = Faults(lose=0.2, repeat=0.2, reorder=0.2)

    def heard(*, together: bool) -> dict[str, list[int]]:
        hub = MemoryHub(faults=faults, seed=7)
        got: dict[str, list[TransportEvent]] = {name: [] for name in "xyz"}
        for name in "xyz":
            hub.transport().open((name,), got[name].append)
        sender = hub.transport()
        sender.open((), lambda event: None)

        def publish(name: str) -> None:
            for number in range(COUNT):
                sender.publish(name, number.to_bytes(4, "big"), number)

        threads = [threading.Thread(target=publish, args=(name,)) for name in "xyz"]
        for thread in threads:
            thread.start()
            if not together:
                thread.join()
        for thread in threads:
            thread.join()
        return {name: numbers(events) for name, events in got.items()}

    assert heard(together=True) == heard(together=False)


def test_topics_are_separate_and_a_closed_transport_is_silent() -> None:
    hub = MemoryHub()
    got: list[TransportEvent] = []
    reader, other, writer = hub.transport(), hub.transport(), hub.transport()
    reader.open(("mine",), got.append)
    other.open(("theirs",), lambda event: pytest.fail(f"{event}") if isinstance(event, Received) else None)
    writer.publish("mine", b"too early", 0)
    writer.open((), lambda event: None)
    writer.publish("mine", b"1", 1)
    reader.close()
    reader.close()
    writer.publish("mine", b"2", 2)
    writer.close()
    writer.publish("mine", b"3", 3)
    assert got == [LinkUp(), Received(topic="mine", payload=b"1")]


def test_a_transport_is_opened_once() -> None:
    transport = MemoryHub().transport("a")
    transport.open((), lambda event: None)
    with pytest.raises(RuntimeError):
        transport.open((), lambda event: None)


def test_a_chance_is_a_chance() -> None:
    with pytest.raises(ValueError, match="`lose` is 1"):
        Faults(lose=1.5)
