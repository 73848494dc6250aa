"""What ``cutlayer flash`` was given on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["FlashOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashOptions:
    """The command line's, under their names; see ``fleet.flash.options``."""

    act: str | None
    image: Path | None
    device: str | None
    run: Path | None
    bundle: Path | None
    wheels: Path | None
    broker: str | None
    out: Path | None
    fleet: Path
    token_file: Path | None
    replace: bool
    enrol_at: str | None
    user: str | None
    authorized_keys: Path | None
    wifi: str | None
    wifi_passphrase_file: Path | None
    wifi_open: bool
    format: str | None
    memory: str
    manifest: Path | None
    to: Path | None
    yes: bool
    fixed_disk: bool
    ssh: str | None
    compose: Path | None
    python: list[str] | None
    arch: str
    client: Path | None
