from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.rng import generator, keep_mask, permutation, uniform


@pytest.mark.parametrize(
    ("seed", "scope", "words"),
    [
        (0, (), [15699516911363345212, 13846088081940633739, 1117900124912041242]),
        (7, ("augment", "bottom", 1, 2, 3), [1538998272365727934, 14939510473829619804, 1043620014793080307]),
        (-1, ("x",), [10051459537403295572]),
    ],
)
def test_golden_words(seed: int, scope: tuple[str | int, ...], words: list[int]) -> None:
    """If these change, parties of different versions no longer agree, and no old run can be resumed."""
    raw = generator(seed, *scope).bit_generator.random_raw(len(words))  # type: ignore[attr-defined]
    assert raw.tolist() == words


def test_golden_permutations() -> None:
    assert permutation(0, "bottom", 0, 0, 10).tolist() == [5, 6, 1, 8, 7, 0, 9, 2, 3, 4]
    assert permutation(3, "bottom", 1, 4, 8).tolist() == [5, 4, 7, 2, 6, 1, 0, 3]


def test_golden_masks() -> None:
    """These are drawn on devices and on servers; a change of them would part the two."""
    assert keep_mask(0, "bottom", 0, 0, (2, 8), 0.75).tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]]
    assert keep_mask(7, "bottom", 12, 3, (5,), 0.5).tolist() == [1, 0, 1, 1, 1]


def test_golden_uniform_numbers() -> None:
    assert [value.hex() for value in uniform((3,), 0).tolist()] == ["0x1.e09c000000000p-4", "0x1.b041b80000000p-2", "0x1.0bbb4e0000000p-1"]
    scaled = uniform((2, 2), 7, "codec", "bottom>top", 3) * 2**24
    assert scaled.tolist() == [[15132556, 13526390], [12508761, 7568913]]


def test_the_same_scope_gives_the_same_stream_whatever_was_drawn_before() -> None:
    first = generator(5, "noise", 2)
    first.standard_normal(1000)
    assert np.array_equal(generator(5, "noise", 2).standard_normal(8), generator(5, "noise", 2).standard_normal(8))


def test_scopes_are_told_apart_by_type_and_length() -> None:
    scopes: list[tuple[str | int, ...]] = [(), ("a", 1), ("a", "1"), ("a1",), (1, "a"), ("a", 11), ("a", 1, 1), ("",), ("", "")]
    words = {int(generator(0, *scope).integers(0, 2**63)) for scope in scopes}
    assert len(words) == len(scopes)
    assert generator(12, 3).random() != generator(1, 23).random()


def test_numpys_whole_numbers_count_as_int() -> None:
    assert generator(0, "a", 3).random() == generator(0, "a", int(np.int32(3))).random()
    assert np.array_equal(permutation(0, "s", 1, 2, 9), permutation(np.int64(0), "s", np.int64(1), np.uint8(2), 9))  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [1.5, True, None, b"bytes"])
def test_other_scopes_are_refused(part: object) -> None:
    with pytest.raises(TypeError, match="text and whole numbers"):
        generator(0, part)  # type: ignore[arg-type]


@given(st.integers(-(2**70), 2**70), st.text(max_size=5), st.integers(0, 9), st.integers(0, 9), st.integers(0, 300))
def test_permutations_have_every_number_once(seed: int, segment: str, lane: int, epoch: int, n: int) -> None:
    order = permutation(seed, segment, lane, epoch, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_every_argument_changes_the_order() -> None:
    calls = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    assert len({tuple(permutation(*call, 50).tolist()) for call in calls}) == len(calls)


def test_permutations_are_not_biased() -> None:
    """Each of 4 numbers comes first in about a quarter of 2,000 epochs (5 standard deviations)."""
    firsts = np.bincount([int(permutation(0, "s", 0, epoch, 4)[0]) for epoch in range(2000)], minlength=4)
    assert np.abs(firsts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 1.0])
def test_masks_keep_as_many_as_they_should(keep: float) -> None:
    """Of 100,000 elements, within 5 standard deviations; and of each dimension alike."""
    mask = keep_mask(3, "s", 5, 0, (100, 1000), keep)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}
    for axes in ((0, 1), 0, 1):
        size = mask.size if axes == (0, 1) else mask.shape[axes]
        assert np.abs(mask.mean(axis=axes) - keep).max() <= 5 * np.sqrt(keep * (1 - keep) / size) + 3 / size


def test_every_argument_changes_the_mask() -> None:
    calls = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    assert len({keep_mask(*call, (64,), 0.5).tobytes() for call in calls}) == len(calls)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7,), (2, 3, 5)])
def test_masks_have_any_shape_and_begin_alike(shape: tuple[int, ...]) -> None:
    mask = keep_mask(3, "s", 5, 0, shape, 0.5)
    assert mask.shape == shape
    assert mask.ravel().tolist() == keep_mask(3, "s", 5, 0, (64,), 0.5)[: mask.size].tolist()


def test_uniform_numbers_are_even_and_of_24_bits() -> None:
    found = uniform((400, 250), 3, "codec", 1)
    assert found.dtype == np.float32
    assert 0 <= found.min() < found.max() < 1
    assert (found * 2**24 == np.floor(found * 2**24)).all()
    counts = np.histogram(found, 20, (0, 1))[0]
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000)
    assert np.array_equal(uniform((7,), 3, "codec", 1), found.ravel()[:7])
    assert not np.array_equal(uniform((7,), 3, "codec", 2), found.ravel()[:7])
    assert uniform((0, 3), 0).shape == (0, 3)
    assert uniform((), 0).shape == ()
