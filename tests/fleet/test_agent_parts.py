"""The agent's parts by themselves, without a process: what a device must live through, whatever it is told or finds on its disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_client.heartbeat import read_beat
from tests.fleet.operator_peer import frame
from wire.errors import FrameError
from wire.fleet.talk import decode_message

STATE = {
    "boot": 1,
    "release": 0,
    "highest": 0,
    "client": "running",
    "code": "1",
    "agent": "1",
    "uptime_s": 1.0,
    "connections": 1,
    "disk_free_bytes": 1,
    "memory_free_bytes": 1,
}


# ------------------------------------------------------------ what a process or a peer may say


@pytest.mark.parametrize("lie", [{"step": -7}, {"step": 2**70}, {"number": -1}, {"run": "\ud800"}, {"pid": 2**70}, {"code": "\udfff"}])
def test_a_heartbeat_that_lies_is_none(tmp_path: Path, lie: dict[str, Any]) -> None:
    beat = {"pid": 3, "number": 1, "run": "r", "code": "1"}
    (tmp_path / "beat").write_text(json.dumps(beat))
    assert read_beat(tmp_path / "beat") is not None
    (tmp_path / "beat").write_text(json.dumps(beat | lie))
    assert read_beat(tmp_path / "beat") is None


@pytest.mark.parametrize(
    "lie",
    [
        {"reason": "\ud800"},
        {"run": "\udfff"},
        {"code": "\ud800"},
        {"agent": "\ud800"},
        {"digest": "x" * 64},
        {"digest": "0" * 65},
        {"step": 2**70},
        {"uptime_s": float("nan")},
    ],
)
def test_a_state_that_could_not_be_kept_is_passed_over(lie: dict[str, Any]) -> None:
    assert decode_message(frame(1, json.dumps(STATE | {"digest": "0" * 64}).encode()))
    with pytest.raises(FrameError):
        decode_message(frame(1, json.dumps(STATE | lie).encode()))
