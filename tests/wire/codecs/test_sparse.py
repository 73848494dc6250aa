"""topk and randtopk, by their definitions: which values cross, how often which is drawn, and what comes back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.wire.codecs.kit import FLOATS, context, decoded, payload, received, sent
from wire.codecs import parse_codec
from wire.codecs.sparse import RandTopK, TopK
from wire.errors import CodecError

BATCHES = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 40)), elements=FLOATS | st.sampled_from([0.0, 1.0, -1.0]))


def kept(array: np.ndarray, k: int) -> np.ndarray:
    """By sorting each sample: the largest magnitudes, the first of equal ones."""
    mask = np.zeros(array.shape, bool)
    for row, out in zip(array, mask, strict=True):
        out[sorted(range(len(row)), key=lambda at: (-abs(float(row[at])), at))[:k]] = True
    return mask


@given(BATCHES, st.floats(0.01, 0.99))
def test_the_largest_of_each_sample_cross_and_nothing_else(array: np.ndarray, keep: float) -> None:
    codec = TopK(keep=keep, values="fp32")
    mask = kept(array, max(1, round(keep * array.shape[1])))
    found = codec.decode(memoryview(payload(codec, array)), np.dtype(np.float32), array.shape, context())
    np.testing.assert_array_equal(found.array, np.where(mask, array, 0))
    np.testing.assert_array_equal(found.support, mask)
    encoded = codec.encode(array, context())
    np.testing.assert_array_equal(encoded.support, mask, "the two ends disagree on the support")


@given(BATCHES)
def test_half_values_are_as_near_as_a_half_can_be(array: np.ndarray) -> None:
    found = decoded(TopK(keep=0.5), payload(TopK(keep=0.5), array), array.shape)
    wanted = decoded(TopK(keep=0.5, values="fp32"), payload(TopK(keep=0.5, values="fp32"), array), array.shape)
    largest = float(np.abs(wanted).max())
    # 11 bits of precision, down to the largest times 2^-29, where halves of the largest's scale begin to be subnormal.
    assert (np.abs(found.astype(np.float64) - wanted) <= np.maximum(np.abs(wanted) * 2.0**-11, max(largest * 2.0**-39, 2.0**-126))).all()


def test_gradients_of_a_mean_are_not_lost_in_half_precision() -> None:
    array = (np.random.default_rng(0).normal(size=(8, 50)) * 1e-9).astype(np.float32)
    found = decoded(TopK(keep=0.2), payload(TopK(keep=0.2), array), array.shape)
    assert np.abs(found[found != 0] / array[found != 0] - 1).max() <= 2.0**-11


def test_positions_take_the_smaller_of_two_forms() -> None:
    # 2 of 64: 6 bits each is less than 64 bits; 32 of 64 as a bitmap. Three bytes of head.
    array = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    assert len(payload("topk:keep=0.03,values=fp32", array)) == 3 + 4 * 2 * 6 // 8 + 4 * 2 * 4
    assert len(payload("topk:keep=0.5,values=fp32", array)) == 3 + 4 * 64 // 8 + 4 * 32 * 4
    assert len(payload("topk:keep=0.5", array)) == 3 + 4 * 64 // 8 + 4 * 32 * 2


def test_by_hand() -> None:
    array = np.array([[0.5, -4.0, 1.0, 0.0], [8.0, 0.0, 0.0, 0.25]], np.float32)
    halves = np.array([-4, 8], np.float32) * 2.0**11  # 8 becomes 2^14
    assert payload("topk:keep=0.25", array) == b"\x00\xf5\x01" + bytes([0b0001]) + halves.astype("<f2").tobytes()
    assert decoded("topk:keep=0.25", payload("topk:keep=0.25", array), (2, 4)).tolist() == [[0, -4, 0, 0], [8, 0, 0, 0]]


# ------------------------------------------------------------ randtopk


def drawn(alpha: float, k: int, array: np.ndarray) -> np.ndarray:
    return RandTopK(keep=k / array.shape[1], alpha=alpha).encode(array, context()).support


def exact(k: int, d: int, alpha: float) -> dict[int, float]:
    """How likely 0, 1, … of the k drawn values are from outside the top k: one draw after the other, as the paper has it."""
    chances = {(0, 0): 1.0}  # (taken from the top, taken from the others)
    for _ in range(k):
        following: dict[tuple[int, int], float] = {}
        for (top, other), chance in chances.items():
            outside = alpha if other < d - k else 0.0
            for step, likely in (((top + 1, other), 1 - outside), ((top, other + 1), outside)):
                following[step] = following.get(step, 0.0) + chance * likely
        chances = following
    return {other: chance for (_, other), chance in chances.items()}


@pytest.mark.parametrize(("d", "k", "alpha"), [(12, 3, 0.1), (12, 3, 0.5), (5, 3, 0.9), (6, 4, 1.0)])
def test_draws_follow_the_paper(d: int, k: int, alpha: float) -> None:
    rows = 40_000
    array = np.tile(np.arange(d, 0, -1).astype(np.float32), (rows, 1))  # the top k are the first k
    support = drawn(alpha, k, array)
    assert (support.sum(axis=1) == k).all()
    outside = support[:, k:].sum(axis=1)
    for count, chance in exact(k, d, alpha).items():
        assert (outside == count).mean() == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / rows) + 1e-9)
    # On either side every subset is as likely as any other.
    for side in (range(k), range(k, d)):
        for count in range(1, len(side)):
            chosen = support[support[:, side].sum(axis=1) == count][:, side]
            if len(chosen) < 2000:
                continue
            subsets = list(itertools.combinations(range(len(side)), count))
            for subset in subsets:
                share = (chosen[:, subset].sum(axis=1) == count).mean()
                assert share == pytest.approx(1 / len(subsets), abs=5 * np.sqrt(1 / len(subsets) / len(chosen)))


def test_randtopk_is_topk_outside_training_and_without_alpha() -> None:
    array = np.random.default_rng(2).normal(size=(16, 100)).astype(np.float32)
    assert payload("randtopk:keep=0.1,alpha=0.5", array, context(train=False)) == payload("topk:keep=0.1", array)
    assert payload("randtopk:keep=0.1,alpha=0", array) == payload("topk:keep=0.1", array)
    assert payload("randtopk:keep=0.1,alpha=0.5", array) != payload("topk:keep=0.1", array)


def test_the_same_step_draws_the_same_and_another_one_others() -> None:
    array = np.random.default_rng(2).normal(size=(16, 100)).astype(np.float32)
    codec = "randtopk:keep=0.1,alpha=0.5"
    assert payload(codec, array, context(step=3)) == payload(codec, array, context(step=3)) != payload(codec, array, context(step=4))


# ------------------------------------------------------------ backward


@pytest.mark.parametrize("codec", ["topk:keep=0.1", "randtopk:keep=0.1,alpha=0.3", "topk:keep=0.1,values=fp32"])
def test_gradients_come_back_where_values_crossed_without_positions(codec: str) -> None:
    rng = np.random.default_rng(4)
    array, grad = rng.normal(size=(2, 6, 5, 8)).astype(np.float32)
    forward = sent(codec, array)
    theirs = received(forward, array, marks_support=True)
    back = sent(codec, grad, context(direction="backward", support=theirs.support))
    assert back.size_bytes == 3 + forward.support.sum() * (4 if "fp32" in codec else 2)
    found = received(back, grad, context(direction="backward", support=forward.support)).array
    np.testing.assert_allclose(found, np.where(forward.support, grad, 0), rtol=2.0**-11)


@given(BATCHES, st.data())
def test_of_a_wider_support_the_largest_gradients_come_back(grad: np.ndarray, data: st.DataObject) -> None:
    codec = TopK(keep=0.2, values="fp32")
    support = data.draw(hnp.arrays(np.bool_, grad.shape))
    about = context(direction="backward", support=support)
    k = max(1, round(0.2 * grad.shape[1]))
    found = decoded(codec, payload(codec, grad, about), grad.shape, about)
    masked = np.where(support, grad, 0).astype(np.float32)
    np.testing.assert_array_equal(found, masked if support.sum(axis=1).max() <= k else np.where(kept(masked, k), masked, 0))


# ------------------------------------------------------------ what is refused


def test_options() -> None:
    for text, said in [
        ("topk:keep=0", "`keep` is 0.0; it must be above 0 and below 1"),
        ("topk:keep=1", "`keep` is 1.0"),
        ("topk:keep=nan", "`keep` is nan"),
        ("topk:values=fp8", "`topk.values` is 'fp8'; it must be one of 'fp16', 'fp32'"),
        ("randtopk:alpha=1.5", "`alpha` is 1.5; it must be 0 to 1"),
        ("topk:alpha=0.1", "unknown key `topk.alpha`"),
    ]:
        with pytest.raises(ValueError, match="topk") as caught:
            parse_codec(text)
        assert said in str(caught.value)


HEAD = b"\x00\x00"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "missing"),
        (b"\x06\x00\x01\x00", "no such flags"),
        (b"\x00\x7f\x01\x00", "exponent"),
        (HEAD + b"\x00\x00", "0 values a sample of 4"),
        (HEAD + b"\x05\x00", "5 values a sample of 4"),
        (HEAD + b"\x80", "cut short"),
        (HEAD + b"\x02" + bytes([0b0000]) + bytes(8), "not every sample has 2 positions"),  # the same one twice
        (b"\x02\x00\x01" + bytes([0b00010011]) + bytes(4), "not every sample has 1 positions"),
        (b"\x04\x00\x00", "said to be known"),
        (HEAD + b"\x01" + bytes([0b0001]) + bytes(3), "do not make"),
        (HEAD + b"\x01" + bytes([0b0001]) + b"\x00\x7c\x00\x00", "not finite"),
    ],
)
def test_payloads_that_cannot_be(data: bytes, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        decoded("topk", data, (2, 4))


def test_a_position_beyond_the_sample_is_refused() -> None:
    with pytest.raises(CodecError, match="beyond the 3 values"):
        decoded("topk", HEAD + b"\x01" + bytes([0b11]) + bytes(2), (1, 3))


@pytest.mark.parametrize("support", [None, np.ones((4, 2), bool), np.ones((2, 4, 1), bool)])
def test_a_support_that_does_not_fit_is_refused(support: np.ndarray | None) -> None:
    with pytest.raises(CodecError, match="said to be known"):
        decoded("topk", b"\x04\x00\x00" + bytes(16), (2, 4), context(direction="backward", support=support))
