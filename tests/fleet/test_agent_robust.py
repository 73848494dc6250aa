"""The agent's parts by themselves, without a process: what a device must live through, whatever it is told or finds on its disk."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from edge_client.agent.shelf import NotNow, Shelf
from edge_client.heartbeat import read_beat
from tests.fleet import cut_update
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


# ------------------------------------------------------------ what may be on a disk


def test_long_work_says_that_it_lives(tmp_path: Path) -> None:
    """Each piece of a file, and each file of a wheel that is compared."""
    cut_update.prepare(tmp_path)
    release = cut_update.whole(2, version=2)
    folder = tmp_path / "releases/2"
    for path, data in release.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "manifest").write_bytes(release.manifest)
    (folder / "signature").write_bytes(release.signature)
    words: list[int] = []
    shelf = Shelf(tmp_path / "releases", name="pi-1", keys=[cut_update.KEY.public_key()], alive=lambda: words.append(1))
    assert shelf.check(2) is not None
    assert len(words) == len(release.files) + 3


def test_what_says_nothing_of_the_disk_is_no_damage(tmp_path: Path) -> None:
    """Too many open files, as one example."""
    cut_update.prepare(tmp_path)
    updates = cut_update.device(tmp_path)
    held, old = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, old[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(NotNow):
            updates.begin_launch()
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert updates.begin_launch().version == 1
