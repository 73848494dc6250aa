"""The common list of keyed ids: which records, in what order, and what goes back to whom."""

from __future__ import annotations

import hmac
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.alignment import BLANK, Ids, common_ids, digest_of_ids, places_of, read_ids, repeated, returned
from wire.errors import PeerMismatch
from wire.ids import ID_BYTES
from wire.limits import LIMITS

# Ids that end with zeros, begin with them, or differ late or by the sign of a byte: what a comparison as text or as numbers gets wrong.
HASHES = st.one_of(
    st.binary(min_size=ID_BYTES, max_size=ID_BYTES),
    st.builds(
        lambda head, zeros: (head + bytes(ID_BYTES))[: ID_BYTES - zeros] + bytes(zeros),
        st.binary(min_size=1, max_size=4),
        st.integers(0, 12),
    ),
    st.builds(lambda last: b"\x7f" * 15 + bytes([last]), st.integers(0, 255)),
).filter(lambda id: id != BLANK)
LISTS = st.dictionaries(st.sampled_from("abcd"), st.lists(HASHES, unique=True, max_size=12), min_size=1)


def packed(ids: list[bytes]) -> Ids:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, ID_BYTES)


def plain(ids: Ids) -> list[bytes]:
    return [row.tobytes() for row in ids]


@st.composite
def overlapping(draw: st.DrawFn) -> dict[str, list[bytes]]:
    """Lists that have most of their ids in common, each in an order of its own."""
    pool = draw(st.lists(HASHES, unique=True, min_size=1, max_size=12))
    names = draw(st.sampled_from(["a", "ab", "abc"]))
    return {name: draw(st.permutations([id for id in pool if draw(st.booleans()) or draw(st.booleans())])) for name in names}


@given(st.one_of(LISTS, overlapping()))
def test_dropping_keeps_what_all_hold_in_the_order_of_the_hashes(lists: dict[str, list[bytes]]) -> None:
    common = common_ids({name: packed(ids) for name, ids in lists.items()}, missing="drop")
    assert plain(common) == sorted(set.intersection(*(set(ids) for ids in lists.values())))


@given(st.one_of(LISTS, overlapping()), st.sets(st.sampled_from("abcd")), st.binary(min_size=1, max_size=32))
def test_zeros_keep_what_anybody_holds_and_label_holders_do(lists: dict[str, list[bytes]], needed: set[str], secret: bytes) -> None:
    needed &= set(lists)
    common = common_ids({name: packed(ids) for name, ids in lists.items()}, missing="zero", needed=needed, secret=secret)
    wanted = set().union(*lists.values()).intersection(*(lists[name] for name in needed))
    assert plain(common) == sorted(wanted, key=lambda id: hmac.digest(secret, id, "sha256"))


@given(st.one_of(LISTS, overlapping()), st.sampled_from(["drop", "zero"]), st.randoms())
def test_the_order_of_nobodys_file_matters(lists: dict[str, list[bytes]], missing, rng: random.Random) -> None:
    before = common_ids({name: packed(ids) for name, ids in lists.items()}, missing=missing, secret=b"s")
    other = {name: packed(rng.sample(ids, len(ids))) for name, ids in rng.sample(list(lists.items()), len(lists))}
    assert np.array_equal(common_ids(other, missing=missing, secret=b"s"), before)


def test_another_secret_draws_another_order_of_the_same_records() -> None:
    """By the hashes a party could see between which of its own a missing record lies, and try people out."""
    lists = {"a": packed([bytes([at]) * 16 for at in range(1, 40)])}
    orders = [plain(common_ids(lists, missing="zero", secret=secret)) for secret in (b"one", b"two")]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == plain(lists["a"])
    assert orders[0] != sorted(orders[0])


@given(overlapping(), st.sampled_from(["drop", "zero"]))
def test_what_comes_back_has_ones_own_ids_only_and_leads_to_their_places(lists: dict[str, list[bytes]], missing) -> None:
    arrays = {name: packed(ids) for name, ids in lists.items()}
    common = plain(common_ids(arrays, missing=missing, secret=b"s"))
    for name, ids in lists.items():
        back = returned(packed(common), arrays[name])
        assert plain(back) == [id if id in ids else BLANK for id in common]
        assert [ids[at] if at >= 0 else BLANK for at in places_of(back, arrays[name]).tolist()] == plain(back)
        if missing == "drop":
            assert BLANK not in plain(back)


A, B, C = (bytes([at]) * 16 for at in (1, 200, 3))


@pytest.mark.parametrize("listed", [[A, C], [C], [A, A], [A, BLANK, A]])
def test_a_list_with_records_that_one_did_not_name_or_twice_is_refused(listed: list[bytes]) -> None:
    with pytest.raises(PeerMismatch, match="did not name"):
        places_of(packed(listed), packed([B, A]))


@pytest.mark.parametrize(
    ("blob", "said"),
    [(A[:-1], "15 bytes"), (A + BLANK, "blank or stand twice"), (A + B + A, "blank or stand twice")],
)
def test_ids_that_are_no_list_are_refused(blob: bytes, said: str) -> None:
    with pytest.raises(PeerMismatch, match=f"ids of segment `a`: .*{said}"):
        read_ids(blob, where="ids of segment `a`")


def test_a_list_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(PeerMismatch, match=str(LIMITS.aligned_records)):
        read_ids(bytes((LIMITS.aligned_records + 1) * ID_BYTES), where="ids")


def test_repeated_ids_are_counted() -> None:
    assert [repeated(packed(ids)) for ids in ([], [A], [A, B], [A, B, A, A, B])] == [0, 0, 0, 3]


def test_the_digest_of_a_list_knows_its_order() -> None:
    digests = {digest_of_ids(packed(ids)) for ids in ([], [A], [A, B], [B, A])}
    assert len(digests) == 4
