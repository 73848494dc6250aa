"""Whose key a hand-over is sealed to: the run file's, or the one seen first, and no other after that."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wire.errors import CutlayerError, GraphError, PeerMismatch, RunFileError, StorageError, exit_code
from wire.keys import PeerKeys, load_key
from wire.limits import LIMITS
from wire.parse import key_text

BLOBS = {"bottom": b"weights" * 100, "@codecs": b""}
WHERE: dict[str, Any] = {"lane": 0, "epoch": 2, "number": 9}


def keys_of(folder: Path, party: str, said: list[str] | None = None, **pinned: str) -> PeerKeys:
    say = (said if said is not None else []).append
    return PeerKeys(folder / party, run="field", party=party, takers={0: "c1"} if party == "c0" else {}, pinned=pinned, say=say)


def refused(error: type[CutlayerError], keys: PeerKeys, key: bytes) -> str:
    with pytest.raises(error) as caught:
        keys.seal(BLOBS, key=key, **WHERE)
    assert "\n" not in str(caught.value)
    assert exit_code(caught.value) == 2
    return str(caught.value)


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        first = load_key(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    path = tmp_path / "a" / "b" / "private.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(tmp_path / "a" / "b").private_bytes_raw() == first.private_bytes_raw() == path.read_bytes()
    assert [each.name for each in path.parent.iterdir()] == ["private.key"]


def public(folder: Path) -> str:
    return key_text(load_key(folder).public_key().public_bytes_raw())


def test_of_processes_that_find_no_key_one_makes_it(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(public, [tmp_path] * 16))) == 1


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    load_key(tmp_path)
    (tmp_path / "private.key").write_bytes(b"short")
    with pytest.raises(StorageError, match=r"private\.key has 5 bytes, so it is no key; remove it"):
        load_key(tmp_path)


def test_what_one_seals_the_other_opens(tmp_path: Path) -> None:
    giver, taker = keys_of(tmp_path, "c0"), keys_of(tmp_path, "c1")
    sealed = giver.seal(BLOBS, key=taker.public, **WHERE)
    assert taker.open(sealed, **WHERE) == BLOBS
    for place in ({"lane": 1}, {"epoch": 3}, {"number": 8}):
        with pytest.raises(PeerMismatch, match=r"cannot be opened .*for another place"):
            taker.open(sealed, **WHERE | place)
    with pytest.raises(PeerMismatch, match="cannot be opened"):
        taker.open(sealed[:-1], **WHERE)


def test_the_key_that_is_seen_first_is_kept_over_a_restart(tmp_path: Path) -> None:
    said: list[str] = []
    taker, other = keys_of(tmp_path, "c1"), keys_of(tmp_path, "c2")
    keys_of(tmp_path, "c0", said).seal(BLOBS, key=taker.public, **WHERE)
    assert said == [f"`c1` has the key {key_text(taker.public)}; `public_key` of [[clients]] would make sure of it"]
    again = keys_of(tmp_path, "c0", said)
    again.seal(BLOBS, key=taker.public, **WHERE)
    assert len(said) == 1
    text = refused(PeerMismatch, again, other.public)
    assert f"it had {key_text(taker.public)} before; if `c1` was set up anew, take it out of {tmp_path}/c0/peers.json" in text
    (tmp_path / "c0" / "peers.json").unlink()
    keys_of(tmp_path, "c0").seal(BLOBS, key=other.public, **WHERE)


def test_a_key_in_the_run_file_counts_more_than_the_one_seen(tmp_path: Path) -> None:
    taker, other = keys_of(tmp_path, "c1"), keys_of(tmp_path, "c2")
    keys_of(tmp_path, "c0").seal(BLOBS, key=other.public, **WHERE)
    pinned = keys_of(tmp_path, "c0", c1=key_text(taker.public))
    text = refused(PeerMismatch, pinned, other.public)
    assert f"its `public_key` in the run file is {key_text(taker.public)}" in text
    assert taker.open(pinned.seal(BLOBS, key=taker.public, **WHERE), **WHERE) == BLOBS


def test_what_is_no_key_is_refused_and_not_remembered(tmp_path: Path) -> None:
    giver, taker = keys_of(tmp_path, "c0"), keys_of(tmp_path, "c1")
    assert "is no key" in refused(PeerMismatch, giver, bytes(32))
    giver.seal(BLOBS, key=taker.public, **WHERE)


def test_ones_own_key_must_be_the_one_in_the_run_file(tmp_path: Path) -> None:
    other = keys_of(tmp_path, "c1")
    with pytest.raises(RunFileError, match="`public_key` of the client `c0` in the run file is"):
        keys_of(tmp_path, "c0", c0=key_text(other.public))


def test_more_than_a_message_takes_is_refused(tmp_path: Path) -> None:
    giver, taker = keys_of(tmp_path, "c0"), keys_of(tmp_path, "c1")
    with pytest.raises(GraphError, match="cut the network further to the front"):
        giver.seal({"bottom": bytes(LIMITS.message_bytes - 4096)}, key=taker.public, **WHERE)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"c1": 3}', '{"c1": "AAAA"}', "{"])
def test_a_damaged_list_of_keys_is_named(tmp_path: Path, text: str) -> None:
    keys_of(tmp_path, "c0")
    (tmp_path / "c0" / "peers.json").write_text(text)
    with pytest.raises(StorageError, match=r"peers\.json is not readable .*; remove it"):
        keys_of(tmp_path, "c0")


def test_a_client_without_peers_does_not_load_a_cryptographic_library() -> None:
    code = "import sys, edge_client.process, wire.process; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60).returncode == 0
