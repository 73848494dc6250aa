"""What is sealed opens with the recipient's key, in the place that it was sealed for, unchanged; and in no other case."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors.make import FILE
from tests.wire import foreign
from wire.errors import ProtocolError
from wire.sealed import OVERHEAD_BYTES, Place, open_sealed, seal

KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
PLACE = Place(run="field", lane=1, epoch=3, number=17)
GOLDEN: list[dict[str, Any]] = json.loads(FILE.read_text())["sealed"]


@given(content=st.binary(max_size=300), run=st.text(max_size=64), numbers=st.tuples(*[st.integers(0, 2**16 - 1)] * 3))
@settings(deadline=None)
def test_a_round_trip(content: bytes, run: str, numbers: tuple[int, int, int]) -> None:
    place = Place(run=run, lane=numbers[0], epoch=numbers[1], number=numbers[2])
    sealed = seal(content, recipient=PUBLIC, place=place)
    assert len(sealed) == len(content) + OVERHEAD_BYTES
    assert open_sealed(sealed, key=KEY, place=place) == content


def test_megabytes_cross_and_two_of_the_same_look_different() -> None:
    content = bytes(5 << 20)
    first, second = (seal(content, recipient=PUBLIC, place=PLACE) for _ in range(2))
    assert open_sealed(first, key=KEY, place=PLACE) == open_sealed(second, key=KEY, place=PLACE) == content
    assert first[1:33] != second[1:33], "one ephemeral key for two would be one nonce for two"
    assert first[33:] != second[33:]


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: vector["run"])
def test_known_answers(vector: dict[str, Any]) -> None:
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["recipient_private"]))
    place = Place(**{name: vector[name] for name in ("run", "lane", "epoch", "number")})
    sealed = bytes.fromhex(vector["bytes"])
    assert open_sealed(sealed, key=key, place=place).hex() == vector["content"]
    opened = foreign.open_sealed(sealed, bytes.fromhex(vector["recipient_private"]), *(getattr(place, name) for name in place.__slots__))
    assert opened.hex() == vector["content"]


def test_a_bit_that_is_turned_anywhere_is_noticed() -> None:
    sealed = seal(b"weights", recipient=PUBLIC, place=PLACE)
    for at in range(len(sealed)):
        for bit in (0, 6):
            changed = bytearray(sealed)
            changed[at] ^= 1 << bit
            with pytest.raises(ProtocolError):
                open_sealed(bytes(changed), key=KEY, place=PLACE)


def test_what_is_cut_short_or_longer_is_noticed() -> None:
    sealed = seal(b"weights", recipient=PUBLIC, place=PLACE)
    for data in (*(sealed[:at] for at in range(len(sealed))), sealed + b"\0"):
        with pytest.raises(ProtocolError):
            open_sealed(data, key=KEY, place=PLACE)


@pytest.mark.parametrize("changes", [{"run": "fields"}, {"run": ""}, {"lane": 0}, {"epoch": 4}, {"number": 16}])
def test_it_opens_in_no_other_place(changes: dict[str, Any]) -> None:
    sealed = seal(b"weights", recipient=PUBLIC, place=PLACE)
    with pytest.raises(ProtocolError, match="for another place"):
        open_sealed(sealed, key=KEY, place=dataclasses.replace(PLACE, **changes))


def test_nobody_else_opens_it() -> None:
    sealed = seal(b"weights", recipient=PUBLIC, place=PLACE)
    with pytest.raises(ProtocolError, match="sealed to another key"):
        open_sealed(sealed, key=X25519PrivateKey.generate(), place=PLACE)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31)])
def test_what_is_no_key_is_refused_at_both_ends(public: bytes) -> None:
    """Among them points that would make the secret zero for everybody."""
    with pytest.raises(ProtocolError, match="no X25519 key"):
        seal(b"weights", recipient=public, place=PLACE)
    if len(public) == 32:
        with pytest.raises(ProtocolError, match="no X25519 key"):
            open_sealed(b"\x01" + public + bytes(40), key=KEY, place=PLACE)
