"""What holds of every codec: its text, its fallback, its state, and that whatever bytes arrive it gives a tensor or one kind of error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.wire.codecs.kit import FINITE, FOR_RUNS, context, received, sent, spec
from wire.codecs import CODECS, PLAIN, Codec, Decoded, decode_array, encode_array, encode_lossless, parse_codec, versions
from wire.errors import CodecError
from wire.limits import LIMITS

# ------------------------------------------------------------ text


@pytest.mark.parametrize("text", FOR_RUNS)
def test_a_codec_is_written_as_text(text: str) -> None:
    codec = parse_codec(text)
    assert codec.name == text.partition(":")[0]
    assert codec == parse_codec(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zip", "there is no codec 'zip'; it must be one of fp32, fp16, bf16, int8, int4, int2, mxfp4, topk, randtopk"),
        ("", "there is no codec ''"),
        ("raw", "there is no codec 'raw'"),
        ("packed", "there is no codec 'packed'"),
        ("INT8", "there is no codec 'INT8'"),
        ("int8:", "codec `int8` has no options; write 'int8'"),
        ("int8:bits=4", "codec `int8` has no options"),
        ("topk:", "option '' of codec `topk` must be key=value, once; its options: keep, values"),
        ("topk:keep", "option 'keep' of codec `topk` must be key=value"),
        ("topk:keep=0.1,keep=0.2", "option 'keep=0.2' of codec `topk` must be key=value, once"),
        ("topk:kep=0.1", "unknown key `topk.kep`; did you mean `keep`?"),
        ("topk:keep=much", "`topk.keep` must be a number, got 'much'"),
    ],
)
def test_a_mistake_says_what_exists(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_codec(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_and_numbers_are_their_own() -> None:
    assert len({codec.number for codec in CODECS.values()}) == len(CODECS)
    assert all(0 <= codec.number < 256 for codec in CODECS.values())
    assert set(versions()) == set(CODECS)
    assert all(":" not in name and "," not in name for name in CODECS)


# ------------------------------------------------------------ every codec of a run


@pytest.mark.parametrize("text", FOR_RUNS)
@given(array=FINITE, train=st.booleans())
def test_never_larger_than_fp32_and_both_ends_agree(text: str, array: np.ndarray, train: bool) -> None:
    codec, about = parse_codec(text), context(train)
    if array.ndim == 0 and codec.marks_support:
        return  # its check refuses a tensor without a batch
    encoded = sent(codec, array, about)
    assert encoded.size_bytes <= 4 * array.size
    found = received(encoded, array, about, marks_support=codec.marks_support)
    assert found.array.shape == array.shape
    assert found.array.flags.writeable
    assert np.isfinite(found.array).all()
    if codec.marks_support:
        np.testing.assert_array_equal(found.support, encoded.support)
        assert not found.array[~found.support].any()
    else:
        assert found.support is encoded.support is None
    if encoded.number == 1:
        np.testing.assert_array_equal(found.array, array)
    assert b"".join(sent(codec, array, about).pieces) == b"".join(encoded.pieces), "the same tensor gives other bytes"


@pytest.mark.parametrize("text", FOR_RUNS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_sent(text: str, value: float) -> None:
    with pytest.raises(CodecError, match="a value is not finite"):
        sent(text, np.array([[1.0, value]], np.float32))


@pytest.mark.parametrize("text", FOR_RUNS)
def test_only_float32_is_quantized(text: str) -> None:
    with pytest.raises(CodecError, match="float64"):
        sent(text, np.zeros((3, 2)))


@pytest.mark.parametrize("text", FOR_RUNS)
def test_evaluation_changes_no_encoder(text: str) -> None:
    array = np.random.default_rng(5).normal(size=(8, 30)).astype(np.float32)
    codec = parse_codec(text)
    encoder = codec.encoder(spec(array), "forward")
    encode_array(codec, encoder, array, context())
    before = {name: value.tobytes() for name, value in encoder.state().items()}
    encode_array(codec, encoder, array, context(train=False))
    assert {name: value.tobytes() for name, value in encoder.state().items()} == before


def test_layout_does_not_matter() -> None:
    array = np.random.default_rng(6).normal(size=(3, 40, 4)).astype(np.float32).transpose(2, 0, 1)
    for text in FOR_RUNS:
        assert sent(text, array).pieces == sent(text, np.ascontiguousarray(array)).pieces


def test_a_fallback_marks_what_is_not_zero() -> None:
    array = np.array([[0.0, 1.0], [2.0, 0.0]], np.float32)
    encoded = sent("topk:keep=0.9,values=fp32", array)
    assert encoded.number == 1
    assert encoded.kept is None
    np.testing.assert_array_equal(encoded.support, array != 0)
    np.testing.assert_array_equal(received(encoded, array, marks_support=True).support, array != 0)
    assert received(encoded, array).support is None


# ------------------------------------------------------------ whatever arrives

SHAPES = st.one_of(
    st.lists(st.integers(0, 6), max_size=4).map(tuple),
    st.sampled_from([(0, 2**26), (2**26, 0), (1, 2**20), (2**20, 1), (2**13, 2**7), (1,) * 8, (0,) * 8]),
)
DTYPES = st.sampled_from([np.dtype(name) for name in ("float32", "int64", "uint8", "bool", "float64", "int16")])


def judge(codec: type[Codec], data: bytes, dtype: np.dtype, shape: tuple[int, ...], support: Any) -> None:
    about = context(direction="backward", support=support)
    try:
        found: Decoded = decode_array(codec.number, memoryview(data), dtype, shape, about)
    except CodecError:
        return
    assert (found.array.dtype, found.array.shape) == (dtype, shape)
    assert found.support is None or (found.support.shape, found.support.dtype) == (shape, np.bool_)
    if found.array.dtype.kind == "f" and codec.name != "raw":
        assert np.isfinite(found.array).all()


@st.composite
def supports(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    choice = draw(st.sampled_from(["none", "random", "other shape"]))
    if choice == "none" or math.prod(shape) > 2000:
        return None
    return draw(hnp.arrays(np.bool_, shape if choice == "random" else (*shape, 2)[:8]))


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_rubbish_is_refused_or_a_tensor(name: str, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    judge(CODECS[name], data.draw(st.binary(max_size=120)), data.draw(DTYPES), shape, data.draw(supports(shape)))


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_sound_payload_that_was_changed_or_cut(name: str, data: st.DataObject) -> None:
    array = data.draw(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=8), elements=st.floats(-9, 9, width=32))
    )
    support = data.draw(supports(array.shape))
    if not CODECS[name].for_runs:
        array = array.astype(data.draw(st.sampled_from([np.int64, np.int8, np.bool_])))
        payload = bytearray(b"".join(encode_lossless(array).pieces))
    else:
        codec = parse_codec(name)
        fitting = support if support is not None and support.shape == array.shape else None
        encoder = codec.encoder(spec(array), "backward")
        payload = bytearray(b"".join(encoder.encode(array, context(direction="backward", support=fitting)).pieces))
    for _ in range(data.draw(st.integers(0, 3))):
        if payload:
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del payload[data.draw(st.integers(0, len(payload))) :]
    shape = array.shape if data.draw(st.booleans()) else data.draw(SHAPES)
    judge(CODECS[name], bytes(payload) + data.draw(st.binary(max_size=2)), array.dtype, shape, support)


def test_a_codec_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CodecError, match="codec number 255"):
        decode_array(255, memoryview(b""), np.dtype(np.float32), (0,), PLAIN)


def test_few_bytes_make_no_large_array_by_themselves() -> None:
    """The largest shape that a header may have: decoders that look at the length first make nothing of it."""
    shape = (2, LIMITS.tensor_elements // 2)
    for name, codec in CODECS.items():
        if name not in ("packed", "lowbit"):  # of which a constant is the point; a cut looks at the shape first
            with pytest.raises(CodecError):
                decode_array(codec.number, memoryview(bytes(40)), np.dtype(np.float32), shape, PLAIN)
