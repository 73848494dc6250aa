"""What a device that is somebody else's by now can do to a deploy: take its own update, or refuse it. Others get theirs all the same."""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from fleet.deploy.key import signing_key
from tests.fleet.agents import ASK, CHUNK, OFFER, STATE, WANT, Agent, framed
from tests.fleet.conftest import write_wheel
from tests.fleet.deploys import Field
from tests.fleet.fleets import until
from wire.errors import BundleError
from wire.fleet.release import load_release

WORDS = ("--to", "c0", "--to", "c1", "--stages", "100%", "--stop-at", "50%")


def forged_wants(agent: Agent, release: dict[str, Any]) -> None:
    """All that is not of its release, and then what is."""
    file, version = release["files"][0], release["version"]
    sound = {"version": version, "sha256": file["sha256"], "offset": 0, "count_bytes": 1}
    for wrong in (
        {"sha256": "c" * 64},
        {"sha256": "../../../ca/ca.key".ljust(64, "/")},
        {"sha256": 7},
        {"version": version + 1},
        {"version": -1},
        {"offset": -1},
        {"offset": file["size_bytes"]},
        {"offset": 1 << 62},
        {"count_bytes": 0},
        {"count_bytes": 1 << 40},
        {"count_bytes": file["size_bytes"] + 1},
        {"count_bytes": True},
        {"more": 1},
    ):
        agent.want(**(sound | wrong))
    agent.verdict, agent.on_offer = "healthy", None
    agent._take_offer(agent.signed)


def test_a_question_for_what_is_not_of_its_release(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    with field.agent("c0", on_offer=forged_wants) as rogue, field.agent("c1"):
        assert field.deploy(*WORDS).end() == ""
    assert rogue.release == 1
    asked = {(piece["sha256"], piece["offset"]) for piece in rogue.asked}
    assert set(rogue.pieces) == asked
    assert rogue.unasked == []
    assert re.search(r"c0: \d+ messages? of it dropped", capsys.readouterr().err)


def test_rubbish_and_floods(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    """Of everything that is no message, and of what an operator alone says; then more than anybody can read."""
    with field.agent("c0", on_offer=lambda agent, release: None) as rogue, field.agent("c1") as good:
        under_way = field.deploy(*WORDS, "--hours", "0.002")
        until(lambda: rogue.offers or None, "an offer")
        for data in rubbish():
            rogue.publish(data)
        for at in range(3000):
            rogue.say(boot=at, reason="x" * 300)
        field.ends("c1", "healthy")
        assert "`c0` did not come to an end in time" in under_way.end()
    assert good.release == 1
    said = capsys.readouterr().err
    assert "c0: " in said
    assert "dropped: damaged, too many, or for what is not its own" in said
    assert len(said.splitlines()) < 40
    assert "c1: 1 message" not in said


def rubbish() -> list[bytes]:
    sound = framed(ASK, b'{"token":1}')
    other_version = b"CF" + struct.pack("<BBII", 2, ASK, zlib.crc32(bytes([2, ASK]) + struct.pack("<I", 2) + b"{}"), 2) + b"{}"
    return [
        b"",
        b"CF",
        sound[:-1],
        sound[:6] + b"\0" + sound[7:],
        other_version,
        framed(9, b""),
        framed(STATE, b"\xff\xfe"),
        framed(STATE, b"[" * 60_000),
        framed(STATE, b"1" * 5000),
        framed(STATE, json.dumps({"boot": "x" * 60_000}).encode()),
        framed(STATE, b"{}"),
        framed(WANT, b"null"),
        framed(OFFER, bytes(60_000)),
        framed(CHUNK, bytes(40)),
        framed(CHUNK, bytes(60_000)),
        bytes(65_600),
        sound,
    ]


def test_a_device_that_never_has_enough(field: Field) -> None:
    """It asks for the same again without end, and says that it has more than there is."""
    wheel = write_wheel(field.folder, "cutlayer", "0.2.0", "py3-none-any", filling=os.urandom(200_000))
    words = (*WORDS, "--code", str(wheel))
    with field.agent("c0", insatiable=True) as rogue, field.agent("c1") as good:
        under_way = field.deploy(*words)
        until(lambda: rogue.pieces or None, "a piece")
        rogue.say(have_bytes=1 << 39, of_bytes=1)
        assert under_way.end() == "`c0` did not take it; --again tries anew"
    assert good.release == 1
    assert "more than 3 times over" in field.newest("c0").reason


def test_a_state_in_anothers_name(field: Field) -> None:
    """The broker lets nobody write to another's topic; a client of the same device has topics of its own, which are not read."""
    with field.agent("c1", verdict="refused") as rogue:
        under_way = field.deploy("--to", "c0")
        forged = framed(STATE, json.dumps(rogue.state(release=1, highest=1)).encode())
        assert rogue._client is not None
        for identity in ("c0.agent", "c0", "c1"):
            rogue._client.publish(f"cl/1/d/{identity}/up/talk", forged, 1)
        until(lambda: field.find("c0"), "a release for c0")
        with field.agent("c0") as agent:
            assert under_way.end() == ""
    assert len(agent.offers) == 1


def test_what_another_key_has_signed(field: Field, tmp_path: Path) -> None:
    """A device takes it from the fleet's own key alone, for itself alone."""
    with field.agent("c0"):
        assert field.deploy("--to", "c0").end() == ""
    row = field.newest("c0")
    key = signing_key(field.authority.fleet.folder).public_key()
    assert load_release(row.manifest, row.signature, [key]).device == "c0"
    for manifest, signature, keys in (
        (row.manifest, row.signature, [signing_key(tmp_path / "other").public_key()]),
        (row.manifest.replace(b'"c0"', b'"c1"'), row.signature, [key]),
        (row.manifest, row.signature[:-1] + bytes([row.signature[-1] ^ 1]), [key]),
    ):
        with pytest.raises(BundleError, match="not signed by a key"):
            load_release(manifest, signature, keys)


def test_a_device_that_was_given_another_key(field: Field) -> None:
    """It cannot say which release it refuses, for it reads nothing of it."""

    def refuses(agent: Agent, release: dict[str, Any]) -> None:
        agent.offered, agent.stage, agent.reason = 0, "refused", "not signed by a key that this device was given"
        agent.say()

    with field.agent("c0", on_offer=refuses):
        assert "stopped: 1 of 1 devices" in field.deploy("--to", "c0").end()
    assert field.newest("c0").reason == "not signed by a key that this device was given"
