"""The low-bit codec against its definition, worked out here once more with plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.wire.codecs.kit import context, decoded, payload, received, sent, spec
from wire.codecs import encode_array, parse_codec
from wire.errors import CodecError
from wire.manifest import TensorSpec

MAPS = hnp.arrays(np.float32, st.tuples(*(st.integers(1, 5) for _ in range(4))), elements=st.floats(-8, 8, width=32))


def by_definition(array: np.ndarray, multiple: float, levels: int) -> tuple[np.ndarray, list[float] | None]:
    """(symbols with signs, steps) of a first message [N, C, H, W]; no steps where float32 may round one to either side."""
    power = [float(np.mean(np.square(array[:, channel].astype(np.float64)))) for channel in range(array.shape[1])]
    mean = sum(power) / len(power) or 1.0
    wanted = [min(max(math.sqrt(each if each > mean * 2**-20 else mean) * multiple, 2.0**-99), 2.0**99) for each in power]
    if any(abs(8 * math.log2(each) % 1 - 0.5) < 1e-4 for each in wanted):
        return np.zeros(array.shape, int), None
    steps = [float(np.float32(2.0 ** (round(8 * math.log2(each)) / 8))) for each in wanted]
    symbols = np.zeros(array.shape, int)
    for at in np.ndindex(array.shape):
        value = float(array[at])
        symbols[at] = math.copysign(min(levels, math.floor(abs(value) / steps[at[1]] + 0.35)), value)
    return symbols, steps


@settings(deadline=None)
@given(array=MAPS, multiple=st.sampled_from([0.3, 1.0, 2.5]), levels=st.integers(1, 6))
def test_symbols_centroids_and_support_are_as_defined(array: np.ndarray, multiple: float, levels: int) -> None:
    text = f"lowbit:step={multiple},levels={levels}"
    found = decoded(text, payload(text, array), array.shape)
    symbols, steps = by_definition(array, multiple, levels)
    if steps is None:
        return
    scaled = np.abs(array) / np.array(steps, np.float32)[:, None, None]
    near = np.abs(scaled + 0.35 - np.rint(scaled + 0.35)) < 1e-4  # where float32 may fall to either side
    agree = (np.sign(found) == np.sign(symbols)) | near
    assert agree.all()
    for level in range(1, levels + 1):
        mine = np.abs(symbols) == level
        if mine.any() and not near.any():
            centroid = scaled[mine].mean()
            wanted = np.broadcast_to(np.array(steps)[:, None, None], array.shape)[mine] * centroid * np.sign(array[mine])
            np.testing.assert_allclose(found[mine], wanted, rtol=2e-3)


def test_by_hand() -> None:
    """Root mean square 2, so the step is 2: 1.2 is dead, 1.4 is not; 4 levels."""
    array = np.array([1.2, 1.4, 0.0, 3.0, 1.81053, 0.1, 0.0, 0.0, 3.7, 0.0, 3.61, 1.0], np.float32).reshape(1, 1, 3, 4)
    array *= np.float32(2.0 / np.sqrt(np.mean(np.square(array))))
    symbols, steps = by_definition(array, 1.0, 4)
    assert steps == [2.0]
    encoded = sent("lowbit", array)
    np.testing.assert_array_equal(encoded.support, symbols != 0)


@settings(deadline=None)
@given(
    array=hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=6), elements=st.floats(-100, 100, width=32)),
    data=st.data(),
)
def test_gradients_stay_on_the_support_and_are_powers_of_two_units(array: np.ndarray, data: st.DataObject) -> None:
    support = data.draw(hnp.arrays(np.bool_, array.shape))
    about = context(direction="backward", support=support)
    codec = parse_codec("lowbit")
    found = received(encode_array(codec, codec.encoder(spec(array), "backward"), array, about), array, about).array
    if found[~support].any():
        np.testing.assert_array_equal(found, array)  # so small that fp32 took its place
        return
    magnitudes = np.abs(found[found != 0]).astype(np.float64)
    if magnitudes.size and not np.array_equal(found, array):
        mean = np.abs(array[support]).mean(dtype=np.float64)
        exponents = np.log2(magnitudes / (8 * mean))
        np.testing.assert_allclose(exponents, np.rint(exponents), atol=1e-4)
        assert (np.sign(found[found != 0]) == np.sign(array[found != 0])).all()


def test_gradients_are_rounded_without_bias() -> None:
    array = np.random.default_rng(3).standard_t(3, size=(16, 60)).astype(np.float32)
    codec = parse_codec("lowbit:step=3")
    encoder = codec.encoder(spec(array), "backward")
    turns = 600
    total = np.zeros(array.shape)
    for step in range(turns):
        about = context(direction="backward", step=step)
        total += received(encode_array(codec, encoder, array, about), array, about).array
    unit = 3 * np.abs(array).mean()
    # One draw varies by at most half of the gap that it lies in, which is a unit, or as wide as the number is large.
    deviation = np.maximum(unit, np.abs(array)) / 2 / math.sqrt(turns)
    assert (np.abs(total / turns - array) < 5.5 * deviation).all()


def test_most_samples_without_gradient_cost_next_to_nothing() -> None:
    rng = np.random.default_rng(4)
    array = rng.normal(size=(128, 16, 7, 7)).astype(np.float32)
    array[8:] *= 1e-4
    about = context(direction="backward", support=rng.random(array.shape) < 0.3)
    codec = parse_codec("lowbit")
    dense = rng.normal(size=array.shape).astype(np.float32)
    few, all_alike = (encode_array(codec, codec.encoder(spec(array), "backward"), each, about).size_bytes for each in (array, dense))
    assert few < all_alike / 3


# ------------------------------------------------------------ what the encoder learns


def _steep(zero: np.ndarray) -> np.ndarray:
    """A gradient that no price exceeds, at one place, where the symbol is 0."""
    grad = np.zeros(zero.shape, np.float32)
    grad.reshape(-1)[np.flatnonzero(zero)[0]] = 1e6
    return grad


def test_steps_widen_where_much_is_beyond_the_last_level() -> None:
    """The gradient of such elements says nothing of the steps: left to it, they shrink while activations grow."""
    rng = np.random.default_rng(9)
    array = np.maximum(rng.normal(size=(64, 40)), 0).astype(np.float32)
    codec = parse_codec("lowbit:step=0.02,step_rate=0")
    encoder = codec.encoder(spec(array), "forward")
    beyond = []
    for step in range(60):
        encode_array(codec, encoder, array, context(step=step))
        beyond.append(float((array > 8 * encoder.state()["steps"][0]).mean()))
    assert beyond[0] > 0.4
    assert beyond[-1] < 0.02
    kept = encoder.state()["steps"].copy()
    encode_array(codec, encoder, array, context(step=61))
    assert (encoder.state()["steps"] == kept).all(), "and no wider than that"


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_a_price_never_pulls_harder_than_the_loss(scale: float) -> None:
    """Or activations that it has made small are driven to nothing: the slope grows as they shrink."""
    rng = np.random.default_rng(8)
    array = (np.maximum(rng.normal(size=(32, 40)), 0) * scale).astype(np.float32)
    encoder = parse_codec("lowbit:rate_weight=1").encoder(spec(array), "forward")
    encoded = encode_array(parse_codec("lowbit:rate_weight=1"), encoder, array, context())
    grad = rng.normal(scale=1e-3, size=array.shape).astype(np.float32)
    price = encoder.learn(encoded.kept, grad, context()) - grad
    assert np.linalg.norm(price) == pytest.approx(np.linalg.norm(grad), rel=1e-3)


def test_the_price_of_bits_is_the_slope_of_what_symbols_cost() -> None:
    array = np.maximum(np.random.default_rng(5).normal(size=(32, 3, 6, 6)), 0).astype(np.float32)
    codec = parse_codec("lowbit:rate_weight=0.01,step_rate=0,levels=3")
    encoder = codec.encoder(spec(array), "forward")
    encoded = encode_array(codec, encoder, array, context())
    found = received(encoded, array).array
    grad = _steep(found == 0)
    price = encoder.learn(encoded.kept, grad, context()) - grad
    assert not price[found == 0].any(), "a symbol that is 0 cannot get any cheaper"
    symbols, steps = by_definition(array, 1.0, 3)
    for channel in range(3):
        counts = np.bincount(symbols[:, channel].reshape(-1), minlength=4) + 0.5
        bits = -np.log2(counts / counts.sum())
        for level in range(1, 4):
            mine = symbols[:, channel] == level
            slope = (bits[level] - bits[level - 1]) / steps[channel] * 0.01 / 32
            np.testing.assert_allclose(price[:, channel][mine], slope, rtol=1e-4)


def test_prices_of_negative_values_point_to_zero_too() -> None:
    array = np.random.default_rng(6).normal(size=(16, 40)).astype(np.float32)
    codec = parse_codec("lowbit:rate_weight=0.1,step_rate=0")
    encoder = codec.encoder(spec(array), "forward")
    encoded = encode_array(codec, encoder, array, context())
    grad = _steep(~encoded.support)
    price = encoder.learn(encoded.kept, grad, context()) - grad
    assert (np.sign(price[encoded.support]) == np.sign(array[encoded.support])).mean() > 0.95


def test_steps_follow_their_gradient() -> None:
    """A loss that wants the decoded tensor to be like the sent one: its error must fall, from steps that are much too wide."""
    rng = np.random.default_rng(7)
    codec = parse_codec("lowbit:step=3,levels=4,step_rate=0.4")
    encoder = codec.encoder(TensorSpec(name="x", dtype="float32", shape=("batch", 4, 5, 5)), "forward")
    errors = []
    for step in range(150):
        array = np.abs(rng.normal(size=(32, 4, 5, 5))).astype(np.float32)
        encoded = encode_array(codec, encoder, array, context(step=step))
        found = received(encoded, array).array
        errors.append(float(np.square(found - array).mean()))
        encoder.learn(encoded.kept, ((found - array) / 32).astype(np.float32), context(step=step))
    assert np.mean(errors[-20:]) < 0.7 * np.mean(errors[:5])


def test_steps_that_let_nothing_through_come_back() -> None:
    """No symbol, no gradient: the steps must not wait for one."""
    codec = parse_codec("lowbit")
    array = np.abs(np.random.default_rng(13).normal(size=(16, 40))).astype(np.float32)
    encoder = codec.encoder(spec(array), "forward")
    encode_array(codec, encoder, array, context())
    encoder.load_state({**encoder.state(), "steps": np.full(1, 1e4, np.float32)})
    shares = [float(encode_array(codec, encoder, array, context(step=step)).support.mean()) for step in range(120)]
    assert shares[0] == 0
    assert 0.02 <= shares[-1] < 0.2


def test_it_goes_on_bit_for_bit_from_its_state() -> None:
    rng = np.random.default_rng(8)
    codec = parse_codec("lowbit:rate_weight=1e-4,bytes_per_sample=60")
    about = TensorSpec(name="x", dtype="float32", shape=("batch", 8, 6, 6))
    arrays = [np.maximum(rng.normal(size=(16, 8, 6, 6)), 0).astype(np.float32) for _ in range(12)]
    one, other = codec.encoder(about, "forward"), None
    said = []
    for step, array in enumerate(arrays):
        if step == 6:
            other = codec.encoder(about, "forward")
            other.load_state({name: value.copy() for name, value in one.state().items()})
        for encoder in (one, other):
            if encoder is not None:
                encoded = encode_array(codec, encoder, array, context(step=step))
                encoder.learn(encoded.kept, array / 100, context(step=step))
                said.append(b"".join(encoded.pieces))
    assert said[6::2] == said[7::2]


def test_a_message_needs_none_of_those_before_it() -> None:
    rng = np.random.default_rng(9)
    codec = parse_codec("lowbit")
    arrays = [np.maximum(rng.normal(size=(16, 8, 6, 6)), 0).astype(np.float32) for _ in range(5)]
    encoder = codec.encoder(spec(arrays[0]), "forward")
    messages = []
    for step, array in enumerate(arrays):
        encoded = encode_array(codec, encoder, array, context(step=step))
        encoder.learn(encoded.kept, array / 50, context(step=step))
        messages.append(encoded)
    for array, encoded in reversed(list(zip(arrays, messages, strict=True))):
        np.testing.assert_array_equal(received(encoded, array).support, encoded.support)


@pytest.mark.parametrize("size", [3e38, 1e30])
def test_no_gradient_makes_a_step_that_is_no_number(size: float) -> None:
    array = np.maximum(np.random.default_rng(12).normal(size=(8, 2, 5, 5)), 0).astype(np.float32)
    codec = parse_codec("lowbit:rate_weight=1e-3")
    encoder = codec.encoder(spec(array), "forward")
    encoded = encode_array(codec, encoder, array, context())
    huge = np.where(np.arange(array.size).reshape(array.shape) % 2, size, -size).astype(np.float32)
    encoder.learn(encoded.kept, huge, context())
    steps = encoder.state()["steps"]
    assert (np.isfinite(steps) & (steps > 0)).all()


@pytest.mark.parametrize("state", [{"steps": np.full(1, np.nan, np.float32)}, {"steps": np.full(1, -1, np.float32)}])
def test_a_state_that_cannot_be_is_refused(state: dict[str, np.ndarray]) -> None:
    encoder = parse_codec("lowbit").encoder(TensorSpec(name="x", dtype="float32", shape=("batch", 9)), "forward")
    with pytest.raises(ValueError, match="finite"):
        encoder.load_state({**encoder.state(), **state})


# ------------------------------------------------------------ budgets


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("budget", [40.0, 15.0])
def test_a_budget_is_held_and_used(direction: str, budget: float) -> None:
    rng = np.random.default_rng(10)
    codec = parse_codec(f"lowbit:bytes_per_sample={budget}")
    encoder = codec.encoder(TensorSpec(name="x", dtype="float32", shape=("batch", 16, 7, 7)), direction)
    spent = samples = 0
    for step in range(60):
        array = np.maximum(rng.normal(size=(64, 16, 7, 7)) * rng.uniform(0.8, 1.25), 0).astype(np.float32)
        spent += encode_array(codec, encoder, array, context(step=step, direction=direction)).size_bytes
        samples += len(array)
        assert spent <= budget * samples
    assert spent > 0.7 * budget * samples


def test_a_line_and_a_deadline_make_a_budget() -> None:
    codec = parse_codec("lowbit:rate_bps=9600,deadline_s=7200,samples=60000")
    assert codec.budget == 9600 * 7200 / 8 / 60000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lowbit:levels=0", "`levels` is 0; it must be 1 to 15"),
        ("lowbit:levels=16", "`levels` is 16"),
        ("lowbit:step=0", "`step` is 0"),
        ("lowbit:rate_weight=-1", "`rate_weight` is -1"),
        ("lowbit:step_rate=101", "`step_rate` is 101"),
        ("lowbit:bytes_per_sample=0", "`bytes_per_sample` is 0"),
        ("lowbit:rate_bps=9600", "`deadline_s`, `samples` is missing"),
        ("lowbit:rate_bps=9600,deadline_s=60,samples=10,bytes_per_sample=3", "not both"),
    ],
)
def test_options_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_codec(text)


@pytest.mark.parametrize(
    ("shape", "batch", "budget"), [((16, 7, 7), 64, 0.5), ((512, 4, 4), 4, 100), ((512, 4, 4), 16, 40), ((256, 2, 2), 16, 15)]
)
def test_a_budget_that_cannot_be_held_is_refused_before_the_first_step(shape: tuple[int, ...], batch: int, budget: float) -> None:
    tensor = TensorSpec(name="x", dtype="float32", shape=("batch", *shape))
    with pytest.raises(ValueError, match=f"cannot be held for {math.prod(shape)} elements in batches of {batch}"):
        parse_codec(f"lowbit:bytes_per_sample={budget}").check(tensor, "forward", batch)


def test_a_small_last_batch_pays_on_credit_and_changes_nothing_for_others() -> None:
    """Its head alone may be over its share: were it made coarser for that, all that follows would be, and nothing would come back."""
    rng = np.random.default_rng(11)
    codec = parse_codec("lowbit:bytes_per_sample=10")
    encoder = codec.encoder(TensorSpec(name="x", dtype="float32", shape=("batch", 8, 4, 4)), "forward")
    spent = samples = 0
    for step in range(90):
        array = np.maximum(rng.normal(size=(1 if step % 10 == 9 else 32, 8, 4, 4)), 0).astype(np.float32)
        encoded = encode_array(codec, encoder, array, context(step=step))
        spent, samples = spent + encoded.size_bytes, samples + len(array)
        assert encoded.support.any()
        assert spent <= 10 * (samples + 0.25 * 32)
        evaluated = encode_array(codec, encoder, np.abs(rng.normal(size=(32, 8, 4, 4))).astype(np.float32), context(train=False))
        if step > 10:
            assert evaluated.support.mean() > 0.02


# ------------------------------------------------------------ payloads that cannot be


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"\x03", "kind 3"),
        (b"\x00", "cut short"),
        (b"\x00\x00\x00\x00\x00", "cut short"),
        (b"\x00\x01\xff\x7f\x00\x00\x3c", "out of range"),
        (b"\x00\x01\x00\x00\x00\x00\x7c", "finite number above 0"),
        (b"\x00\x01\x00\x00\x00\x00\x00", "finite number above 0"),
        (b"\x02\x00\x00\x00\x00\x00", "out of range"),
        (b"\x02\x00", "cut short"),
    ],
)
def test_payloads_that_cannot_be(data: bytes, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        decoded("lowbit", data, (2, 1, 3, 3))


def test_a_support_that_does_not_fit_is_refused() -> None:
    array = np.ones((4, 6), np.float32)
    data = b"".join(parse_codec("lowbit").encoder(spec(array), "backward").encode(array, context(direction="backward")).pieces)
    with pytest.raises(CodecError, match="support"):
        decoded("lowbit", data, (4, 6), context(direction="backward", support=np.ones((4, 5), np.bool_)))
    with pytest.raises(CodecError):
        decoded("lowbit", data, (4, 6), context(direction="backward", support=np.zeros((4, 6), np.bool_)))
