"""Power is cut at each deed of an update: after every cut the device starts, with the old release or the new one, and takes the update."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edge_client.agent.shelf import Shelf
from edge_client.agent.updates import Updates
from tests.fleet import cut_update

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cut_update.py")
IN_MEMORY = Path("/dev/shm")  # where there is one; syncing a disk some ten thousand times takes its time


@pytest.mark.parametrize(("story", "deeds"), [("keep", 200), ("return", 140)])
def test_an_update_that_is_cut_anywhere_leaves_a_device_that_starts(story: str, deeds: int) -> None:
    """``deeds``: at least what there are."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None) as folder:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), folder, story],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["cuts"] >= deeds


def test_books_that_are_lost_bring_back_the_newest_release_on_trial(tmp_path: Path) -> None:
    cut_update.prepare(tmp_path)
    (tmp_path / "releases/state.json").write_bytes(b"\0" * 100)
    updates = cut_update.device(tmp_path)
    assert updates.begin_launch().version == 1
    assert (updates.books.trial, updates.books.highest) == (True, 1)
    updates.give_back("a test")
    assert updates.begin_launch().version == 0


def test_nothing_to_start_is_said_and_mended_by_the_operator(tmp_path: Path) -> None:
    """The release that runs is damaged, and none below it may run any more."""
    cut_update.prepare(tmp_path)
    updates = cut_update.device(tmp_path)
    updates.books = cut_update.replace(updates.books, floor=1, previous=0)
    Shelf(tmp_path / "releases", name="pi-1", keys=()).save(updates.books)
    (tmp_path / "releases/1/run.toml").write_text("rot")
    with pytest.raises(cut_update.BundleError, match="none to go back to; deploy it again"):
        updates.begin_launch()
    cut_update.fetched(updates, 1)
    assert isinstance(updates, Updates)
    assert updates.begin_launch().version == 1
