"""``--no-skips`` turns each way of skipping into a failure, and leaves expected failures alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip(reason='why-not')\ndef test_it(): pass\n",
    "call": "import pytest\ndef test_it(): pytest.skip('why-not')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('why-not')\ndef test_it(f): pass\n",
    "module": "import pytest\npytest.skip('why-not', allow_module_level=True)\n",
}


def _run(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    (folder / "test_sample.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), *options, str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("how", SKIPS)
def test_a_skip_is_a_failure_with_its_reason(tmp_path: Path, how: str) -> None:
    done = _run(tmp_path, SKIPS[how], "--no-skips")
    assert done.returncode != 0, done.stdout
    assert "skipped although --no-skips: why-not" in done.stdout


def test_without_the_option_skips_stay_skips(tmp_path: Path) -> None:
    done = _run(tmp_path, SKIPS["call"])
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    done = _run(tmp_path, "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_it(): assert 0\n", "--no-skips")
    assert done.returncode == 0, done.stdout
    assert "1 xfailed" in done.stdout
