"""The pictures in the guides are of the run files as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.make_pictures import EXAMPLES, FOLDER, drawn


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_a_guides_picture_is_of_its_run_file(example: Path) -> None:
    assert (FOLDER / f"{example.stem}.svg").read_text(encoding="utf-8") == drawn(example), "run `python -m docs.make_pictures`"


def test_no_picture_is_of_a_run_file_that_has_gone() -> None:
    assert EXAMPLES
    assert sorted(FOLDER.glob("*.svg")) == [FOLDER / f"{example.stem}.svg" for example in EXAMPLES]
