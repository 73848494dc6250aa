"""mxfp4 against the definition: for each element every FP4 number is tried, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis.extra import numpy as hnp

from tests.wire.codecs.kit import FLOATS, decoded, payload
from wire.errors import CodecError

E2M1 = [Fraction(value) for value in (0, "1/2", 1, "3/2", 2, 3, 4, 6)]  # by code: two bits of exponent, one of mantissa


def exponent_of(magnitude: Fraction) -> int:
    """floor(log2(magnitude))"""
    at = -200
    while Fraction(2) ** (at + 1) <= magnitude:
        at += 1
    return at


def by_definition(values: list[float]) -> tuple[list[int], list[int]]:
    """(scales, codes) as section 6.3 of the specification has them."""
    scales, codes = [], []
    for at in range(0, len(values), 32):
        block = [Fraction(value) for value in values[at : at + 32]]
        largest = max(abs(value) for value in block)
        shared = max(-127, min(127, exponent_of(largest) - 2)) if largest else -127
        scales.append(shared + 127)
        for value, number in zip(values[at : at + 32], block, strict=True):
            scaled = abs(number) / Fraction(2) ** shared
            distance = [abs(scaled - each) for each in E2M1]
            nearest = [code for code in range(8) if distance[code] == min(distance)]
            code = next(code for code in nearest if len(nearest) == 1 or code % 2 == 0)
            codes.append(code + 8 * int(np.signbit(np.float32(value))))
    return scales, codes


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=9), elements=FLOATS))
@example(np.array([0.0, -0.0, 1e-45, 3.4e38, -3.4e38], np.float32))
@example(np.array([1e-45, -2e-45], np.float32))
@example(np.array([4, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 5.5, 7, -0.25, -0.75, -5], np.float32))  # every tie; 7 saturates
@example(np.arange(70, dtype=np.float32) - 35)
def test_every_element_is_the_nearest(array: np.ndarray) -> None:
    scales, codes = by_definition(array.ravel().tolist())
    data = payload("mxfp4", array)
    packed = sum(code << (4 * at) for at, code in enumerate(codes)).to_bytes(-(-len(codes) // 2), "little")
    assert data == bytes(scales) + packed
    wanted = [(-1) ** (code // 8) * E2M1[code % 8] * Fraction(2) ** (scales[at // 32] - 127) for at, code in enumerate(codes)]
    assert decoded("mxfp4", data, array.shape).ravel().tolist() == [float(np.float32(float(value))) for value in wanted]


def test_by_hand() -> None:
    # The largest magnitude, 12, is 1.5 * 2^3: the scale is 2^(3 - 2) = 2, and 12 / 2 = 6 is the largest FP4.
    assert payload("mxfp4", np.array([12, -1, 0, 3], np.float32)) == bytes([128, 0x97, 0x30])
    assert decoded("mxfp4", bytes([128, 0x97, 0x30]), (4,)).tolist() == [12, -1, 0, 3]


def test_a_block_has_a_scale_of_its_own() -> None:
    array = np.repeat(np.array([1000.0, 0.001], np.float32), 32)
    found = decoded("mxfp4", payload("mxfp4", array), (64,))
    assert np.abs(found / array - 1).max() <= 0.25  # 7.99 saturates at 6
    assert len(payload("mxfp4", array)) == 2 + 32


def test_specials_are_refused() -> None:
    with pytest.raises(CodecError, match="scale is not a number"):
        decoded("mxfp4", bytes([255, 0]), (1,))
    with pytest.raises(CodecError, match="not finite"):
        decoded("mxfp4", bytes([254, 7]), (1,))  # 6 * 2^127
    assert decoded("mxfp4", bytes([254, 2]), (1,)).tolist() == [2.0**127]
    assert decoded("mxfp4", bytes([0, 1]), (1,)).tolist() == [2.0**-128]
