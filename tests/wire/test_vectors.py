"""The golden vectors: our bytes are these bytes, and a decoder written from the specification reads them alike."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.vectors.make import FILE, vectors
from tests.wire import foreign
from tests.wire.codecs.kit import read_any
from wire.control import decode_control
from wire.frames import Reassembler
from wire.holdings import Holdings

GOLDEN: dict[str, Any] = json.loads(FILE.read_text())


def test_what_we_encode_is_golden() -> None:
    assert json.loads(json.dumps(vectors())) == GOLDEN


@pytest.mark.parametrize("vector", GOLDEN["frames"], ids=lambda vector: vector["name"])
def test_frames(vector: dict[str, Any]) -> None:
    parts = [bytes.fromhex(part) for part in vector["parts"]]
    reassembler = Reassembler()
    frames = [reassembler.feed("t", part, vector["run_tag"]) for part in parts]
    assert frames[:-1] == [None] * (len(parts) - 1)
    whole = frames[-1]
    assert whole is not None
    foreign_parts = [foreign.read_frame(part) for part in parts]
    assert [(each["part"], each["parts"]) for each in foreign_parts] == [(at, len(parts)) for at in range(len(parts))]
    assert b"".join(each["payload"] for each in foreign_parts) == whole.payload == bytes.fromhex(vector["payload"])
    for key in ("kind", "mode", "void", "epoch", "lane", "step", "global_step"):
        assert {each[key] for each in foreign_parts} == {vector[key]} == {getattr(whole, key)}


@pytest.mark.parametrize("vector", GOLDEN["tensors"], ids=lambda vector: vector["name"])
def test_tensors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    ours, theirs = read_any(data)["x"], foreign.read_tensors(data)["x"]
    assert ours.dtype == vector["dtype"]
    assert list(ours.shape) == vector["shape"] == list(theirs.shape)
    np.testing.assert_array_equal(ours, theirs)
    if vector["codec"] in ("", "fp32"):
        np.testing.assert_array_equal(ours, np.array(vector["values"], vector["dtype"]).reshape(vector["shape"]))


def test_control() -> None:
    data = bytes.fromhex(next(each for each in GOLDEN["frames"] if each["name"] == "control")["payload"])
    ours = decode_control(data)
    assert (ours.kind, ours.body, ours.blobs) == foreign.read_control(data)


def test_resend() -> None:
    data = bytes.fromhex(next(each for each in GOLDEN["frames"] if each["name"] == "resend")["payload"])
    ours, (asks, part_bytes, ranges, partial) = Holdings.decode(data), foreign.read_resend(data)
    assert (ours.asks, ours.part_bytes) == (asks, part_bytes)
    assert [(*key, *steps) for key, steps in ours.ranges.items()] == ranges
    assert [(each.kind, each.mode, each.step, each.parts, sorted(each.held)) for each in ours.partial] == partial


@pytest.mark.parametrize("vector", GOLDEN["topics"], ids=lambda vector: vector["key"])
def test_topics(vector: dict[str, Any]) -> None:
    assert foreign.topic_pair(vector["run"], vector["key"], vector["edge"], vector["lane"]) == vector["topics"]
