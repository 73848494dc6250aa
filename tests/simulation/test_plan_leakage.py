"""Distance correlation: against sums written out by hand, and what must hold of it on any data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from simulation.plan.leakage import LEAST_SAMPLES, distance_correlation

Floats = NDArray[np.float64]


def by_sums(x: Floats, y: Floats) -> float:
    """The unbiased estimate as its definition has it, an element at a time."""
    count = len(x)

    def centred(rows: Floats) -> list[list[float]]:
        far = [[math.dist(one, other) for other in rows.tolist()] for one in rows.tolist()]
        sums = [sum(row) for row in far]
        total = sum(sums) / ((count - 1) * (count - 2))
        return [
            [0.0 if i == j else far[i][j] - sums[i] / (count - 2) - sums[j] / (count - 2) + total for j in range(count)]
            for i in range(count)
        ]

    def product(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(a[i][j] * b[i][j] for i in range(count) for j in range(count))

    one, other = centred(x), centred(y)
    spread = math.sqrt(product(one, one) * product(other, other))
    return math.sqrt(max(0.0, product(one, other) / spread)) if spread else 0.0


def drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


def test_four_numbers_by_hand() -> None:
    """x = 0, 1, 3, 7 against y = 0, 1, 1, 0, by pairs 01 02 03 12 13 23.

    Distances of x are 1 3 7 2 6 4, its sums 11 9 9 17 and 46 in all; of y 1 1 0 0 1 1, sums 2 each and 8 in all. Centred,
    a_ij - (a_i + a_j) / 2 + total / 6, and times 3: of x -4 2 2 2 2 -4, of y 1 1 -2 -2 1 1. The product is -12, the squares 48 and 12.
    """
    x, y = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([[0.0], [1.0], [1.0], [0.0]])
    total_x, total_y = 46 / 6, 8 / 6
    of_x = [1 - 10 + total_x, 3 - 10 + total_x, 7 - 14 + total_x, 2 - 9 + total_x, 6 - 13 + total_x, 4 - 13 + total_x]
    of_y = [1 - 2 + total_y, 1 - 2 + total_y, 0 - 2 + total_y, 0 - 2 + total_y, 1 - 2 + total_y, 1 - 2 + total_y]
    square = np.dot(of_x, of_y) / math.sqrt(np.dot(of_x, of_x) * np.dot(of_y, of_y))
    assert square == pytest.approx(-0.5)
    assert distance_correlation(x, y) == 0.0, "below 0 is 0"
    assert distance_correlation(x, -3 * x + 1) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_its_definition_says(seed: int) -> None:
    x = drawn(12, 3, seed=seed)
    y = np.tanh(x[:, :2]) + 0.5 * drawn(12, 2, seed=seed + 100)
    assert distance_correlation(x, y) == pytest.approx(by_sums(x, y), abs=1e-9)
    assert distance_correlation(x.reshape(12, 3, 1, 1), y) == distance_correlation(x, y), "a sample's shape means nothing"


def test_independent_data_is_near_0_and_a_map_that_keeps_distances_is_1() -> None:
    """With 784 columns too, where the sample's own means make nearly 1 of independence."""
    for columns in (1, 30, 784):
        x = drawn(256, columns)
        assert distance_correlation(x, drawn(256, columns, seed=1)) < 0.2
        assert distance_correlation(x, 3 * x - 2) == pytest.approx(1.0, abs=1e-6)


def test_it_sees_what_is_not_linear() -> None:
    x = drawn(400, 1)
    y = x**2
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.2
    assert distance_correlation(x, y) > 0.4


def test_more_noise_is_less_of_it() -> None:
    x, noise = drawn(200, 10), drawn(200, 10, seed=1)
    found = [distance_correlation(x, x + level * noise) for level in (0.0, 0.5, 1.0, 2.0, 8.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.999
    assert found[-1] < 0.5


def test_what_is_constant_tells_nothing() -> None:
    assert distance_correlation(drawn(20, 4), np.ones((20, 7), np.float32)) == 0.0


def test_large_values_do_not_drown_small_differences() -> None:
    x = drawn(50, 5)
    assert distance_correlation(x, (x + 1e6).astype(np.float64)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("one", "other"), [(3, 3), (5, 6), (0, 0)])
def test_too_few_samples_are_refused(one: int, other: int) -> None:
    assert LEAST_SAMPLES == 4
    with pytest.raises(ValueError, match="samples"):
        distance_correlation(np.zeros((one, 2)), np.zeros((other, 2)))


@given(
    seed=st.integers(0, 10**6), rows=st.integers(4, 24), columns=st.integers(1, 6), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100)
)
def test_moves_turns_and_scale_change_nothing(seed: int, rows: int, columns: int, scale: float, shift: float) -> None:
    x = drawn(rows, columns, seed=seed)
    y = np.abs(x) + drawn(rows, columns, seed=seed + 1)
    turn, _ = np.linalg.qr(drawn(columns, columns, seed=seed + 2))
    order = np.random.default_rng(seed).permutation(rows)
    plain = distance_correlation(x, y)
    assert 0.0 <= plain <= 1.0
    # A square near 0 is 0 or not by rounding, and its root is much larger than that.
    for other in (
        distance_correlation(y, x),
        distance_correlation(scale * x + shift, y),
        distance_correlation(x @ turn, y @ turn * scale),
        distance_correlation(x[order], y[order]),
        distance_correlation(np.concatenate([x, np.zeros((rows, 3))], axis=1), y),
    ):
        assert other**2 == pytest.approx(plain**2, abs=1e-6)


@given(seed=st.integers(0, 10**6), rows=st.integers(4, 24), columns=st.integers(1, 6))
def test_nothing_is_as_near_as_the_data_itself(seed: int, rows: int, columns: int) -> None:
    x = drawn(rows, columns, seed=seed)
    assert distance_correlation(x, x) == pytest.approx(1.0)
    assert distance_correlation(x, drawn(rows, 3, seed=seed + 1)) <= 1.0
