"""What Raspberry Pi Imager needs for an image of our own: its list of systems (``os_list``), and the line that writes a card without it."""

from __future__ import annotations

import json
import shlex
from datetime import date
from pathlib import Path

__all__ = ["imager_line", "imager_manifest"]

# Boards that run 64-bit systems, by Imager's names.
_BOARDS = ("pi3-64bit", "pi4-64bit", "pi5-64bit")
# Imager wants a picture with each system: a plain square of ours, within the list itself.
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='40' height='40'%3E"
    "%3Crect width='40' height='40' rx='6' fill='%23286'/%3E%3C/svg%3E"
)


def imager_manifest(copy: Path, *, device: str, size_bytes: int, sha256: str, day: date) -> str:
    """JSON for ``rpi-imager --repo FILE``. ``init_format`` is none: the image is set up already, and Imager would
    replace that."""
    entry = {
        "name": f"Cutlayer device {device}",
        "description": f"Raspberry Pi OS that becomes the training device {device} at its first start",
        "icon": _ICON,
        "url": copy.resolve().as_uri(),
        "release_date": day.isoformat(),
        "extract_size": size_bytes,
        "extract_sha256": sha256,
        "image_download_size": size_bytes,
        "image_download_sha256": sha256,
        "devices": list(_BOARDS),
        "init_format": "none",
        "architecture": "armv8",
    }
    return json.dumps({"os_list": [entry]}, indent=2) + "\n"


def imager_line(copy: Path, *, sha256: str) -> str:
    """The command that writes the card; the last word is the operator's."""
    return f"rpi-imager --cli --sha256 {sha256} {shlex.quote(str(copy.resolve()))} /dev/…"
