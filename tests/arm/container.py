"""Programs in the client's ARM image, as tests start them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tests.arm.replay
from tools.arm_image import ArmImage

__all__ = ["CPUS", "UID", "Container", "give_away"]

UID = 10001  # the image's user
CPUS = ("cortex-a53", "cortex-a72")  # Pi 3 and Zero 2 W; Pi 4


def give_away(folder: Path) -> None:
    """All below ``folder`` becomes the image's user's, as the guide asks of whoever sets a device up."""
    for each in (folder, *folder.rglob("*")):
        os.chown(each, UID, UID)


@dataclass(frozen=True, slots=True)
class Container:
    image: ArmImage

    def run(
        self, *args: str, data: Path, keys: Path | None = None, cpu: str | None = None, entrypoint: Sequence[str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The image's entry point, or another, until it ends."""
        command, env = self.image.command(args, data=data, keys=keys, cpu=cpu, entrypoint=entrypoint)
        return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)

    def replay(self, data: Path, *args: str, cpu: str | None = None) -> list[dict[str, Any]]:
        """What ``replay.py`` says of the folders below ``data`` that ``args`` names, first of all on what it ran."""
        shutil.copy(tests.arm.replay.__file__, data / "replay.py")
        give_away(data)
        done = self.run("/data/replay.py", *args, data=data, cpu=cpu, entrypoint=["python3"])
        assert done.returncode == 0, f"{cpu}: exit code {done.returncode}: {done.stderr[-2000:]}"
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert found[0]["machine"] == "aarch64"
        return found
