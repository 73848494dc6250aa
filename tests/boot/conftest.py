"""An operator's desk and a published image for boards that really boot; and the page that tells what happened when."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.common import hardware, prose, write_page
from tests.boot.card import published
from tests.boot.desk import Desk
from tests.boot.story import Story
from tests.brokers import MOSQUITTO
from tools.arm_disk import make_disk, missing
from tools.arm_machine import CPU, MEMORY_MB


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it would be downloaded."""
    if (lacking := missing(also={MOSQUITTO: "mosquitto"})) is not None:
        pytest.skip(lacking)
    return published(make_disk(), tmp_path_factory.mktemp("published") / "raspios.img")


@pytest.fixture(scope="session")
def stories() -> list[Story]:
    """One for each board; the first one's times say when the power of the next one goes."""
    return []


@pytest.fixture(scope="session", autouse=True)
def _page(request: pytest.FixtureRequest, stories: list[Story]) -> Iterator[None]:
    """Only of a run that came to its end, and in which nothing failed."""
    begun_s = time.monotonic()
    yield
    if request.config.getoption("--write-page") and len(stories) == 2 and all(story.done for story in stories):
        took = f"All of it took {(time.monotonic() - begun_s) / 60:.0f} minutes."
        told = [line for story in stories for line in story.page()]
        write_page("boot", [*_head(), "", *prose(_WHAT, took), "", *prose(_CUT), *told])


_WHAT = f"""\
`make test-boot` flashes two cards with `cutlayer flash` and lets a whole machine start from each: Debian 12's own kernel and root file
system for arm64 under `qemu-system-aarch64 -M virt -cpu {CPU} -m {MEMORY_MB}`, with kernel, RAM disk and command line read from the card's
boot partition at each start, as a board's firmware reads them. The machine provisions itself, enrols at a real authority, connects to a
real mosquitto with mutual TLS and trains against the server on this computer. Emulation shows that it works, and in which order; a board's
times are others."""
_CUT = """\
A power cut is `kill -9` of the machine, whose disk is `cache=writethrough`: what its system was told to be on the card is there, the rest
is not. Times are seconds since the card was first put in."""


def _head() -> list[str]:
    def first(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]

    kernel = re.search(rb"Linux version (\S+) .*SMP (Debian \S+)", make_disk().kernel.read_bytes())
    emulation = f"- emulation: {first('qemu-system-aarch64', '--version')}"
    booted = f"- booted: Linux {b', '.join(kernel.groups()).decode() if kernel else ''}"
    broker = f"- broker: {first(MOSQUITTO, '-h')}"
    title = "# A board boots, enrols, trains, and loses its power"
    return [title, "", *hardware("onnxruntime", "numpy", "torch"), emulation, booted, broker]
