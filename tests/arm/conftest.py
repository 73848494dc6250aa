"""The client's ARM image for tests: built once, skipped with what is missing where it cannot be; and the page that the whole run writes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from benchmarks.common import hardware, write_page
from tests.arm.container import Container
from tools.arm_image import ArmImage, missing

_HEAD = """\
# The client on ARM, really executed

`make test-arm` builds the image of `Dockerfile.arm`, runs it under qemu-user and writes this page. Emulation shows that the image, the
instructions and the numbers are right; its times say nothing about a board.
"""


@pytest.fixture(scope="session")
def _lines() -> list[str]:
    return []


@pytest.fixture
def say(_lines: list[str]) -> Callable[[str], None]:
    """Puts a line on the page, and on the screen with ``-s``."""

    def add(line: str) -> None:
        _lines.append(line)
        print(line)

    return add


@pytest.fixture(scope="session")
def container(_lines: list[str]) -> Container:
    """The image of this work tree."""
    if (lacking := missing()) is not None:
        pytest.skip(lacking)
    begun_s, image = time.monotonic(), ArmImage()
    image.build()
    _lines.append(f"image built in {time.monotonic() - begun_s:.0f} s")
    return Container(image)


@pytest.fixture(scope="session", autouse=True)
def _page(request: pytest.FixtureRequest, _lines: list[str]) -> Iterator[None]:
    """Only of a run in which nothing failed."""
    begun_s = time.monotonic()
    yield
    if request.config.getoption("--write-page") and not request.session.testsfailed:
        tests = f"{request.session.testscollected} tests passed in {time.monotonic() - begun_s:.0f} s"
        write_page("test-arm", [_HEAD, *hardware("onnxruntime", "numpy", "torch"), *_versions(), "", "```", *_lines, tests, "```"])


def _versions() -> list[str]:
    def first(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]

    return [f"- emulation: {first('qemu-aarch64-static', '--version')}; {first('buildah', '--version')}"]
