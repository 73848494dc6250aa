"""Where segments may be placed, by what the schedule does with their weights."""

from __future__ import annotations

from typing import Any

import pytest

from wire.attendance import missed_steps
from wire.errors import CutlayerError, FrameError
from wire.limits import LIMITS
from wire.runfile import Run, parse_run


def run(bottom: list[str], middle: list[str], **changes: Any) -> Run:
    """Two lanes, with two replicated segments before the server."""
    table: dict[str, Any] = {
        "name": "placed",
        "epochs": 1,
        "batch_size": 4,
        "weights_leave": True,
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "segments": [
            {"name": "bottom", "on": bottom, "build": "x.py:bottom", "input_shape": [4]},
            {"name": "middle", "on": middle, "build": "x.py:middle", "inputs": ["bottom"]},
            {"name": "top", "on": ["server"], "build": "x.py:top", "inputs": ["middle"]},
        ],
        "data": {"kind": "csv", "path": "x.csv", "labels": "y"},
        "clients": [{"name": name} for name in dict.fromkeys([*bottom, *middle])],
    }
    return parse_run(table | changes, base=".")


@pytest.mark.parametrize("hand_over", ["server", "peer"])
def test_a_relay_hands_on_what_each_party_has_of_one_lane(hand_over: str) -> None:
    assert run(["a", "b"], ["a", "b"], hand_over=hand_over).lanes == 2
    with pytest.raises(CutlayerError, match="segment `middle` is on b, a, `bottom` on a, b; weights go on from party to party"):
        run(["a", "b"], ["b", "a"], hand_over=hand_over)


def test_from_client_to_client_all_segments_go_the_same_way() -> None:
    assert run(["a", "b"], ["c", "d"], hand_over="server").lanes == 2
    with pytest.raises(CutlayerError, match='same order, or use `hand_over = "server"`'):
        run(["a", "b"], ["c", "d"], hand_over="peer")


def test_with_other_schedules_parties_may_cross() -> None:
    for schedule in ("independent", "splitfed-v2"):
        assert run(["a", "b"], ["b", "a"], schedule=schedule).lanes == 2


def test_what_has_been_missed_is_counted_before_it_is_written_down() -> None:
    assert list(missed_steps(b'{"1": [[3, 2, 10, 4]]}', 1)) == [(3, 10), (4, 14)]
    for bad in ("[0, 4294967295, 0, 1]", f"[0, {LIMITS.missed_steps + 1}, 0, 1]", "[-5, 10, -3, 1]", "[0, -1, 0, 1]", "[0, 1, 0, true]"):
        with pytest.raises(FrameError, match="not readable"):
            list(missed_steps(f'{{"0": [{bad}]}}'.encode(), 0))
    half = LIMITS.missed_steps // 2 + 1
    with pytest.raises(FrameError, match="not readable"):
        list(missed_steps(f'{{"0": [[0, {half}, 0, 1], [{half}, {half}, {half}, 1]]}}'.encode(), 0))
