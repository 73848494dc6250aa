"""What ``cutlayer flash`` makes by itself where it is not given: the device's slice and bundle from a whole run, its token, its wheels.

With ``--run RUN.toml`` of the whole run, and the authority's folder at hand, a card needs one command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fleet.flash.given import FlashOptions
from fleet.flash.payload import check_fits
from fleet.state import Fleet
from fleet.verbs import add_device
from wire.errors import BundleError, UsageError
from wire.runfile import Run, load_run

__all__ = ["Maker", "check_place", "current_token", "made_ready"]

_TOKEN_HOURS = 72.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """What the rooms that know networks do for a card. ``slice_of``: write the slice of a party; ``export``: write a run's bundles."""

    slice_of: Callable[[Run, str, Path], None]
    export: Callable[[Run], None]


def made_ready(given: FlashOptions, maker: Maker, folder: Path) -> FlashOptions:
    """``given`` with a slice, a bundle and the broker's address where the run is a whole one. ``folder``: for what need not stay. Raises
    CutlayerError."""
    if given.run is None or given.device is None:
        return given
    run = load_run(given.run)
    if run.slice is not None:
        return given
    out = folder / f"{given.device}.toml"
    maker.slice_of(run, given.device, out)
    bundle = given.bundle
    if bundle is None:
        bundle = run.bundles
        try:
            check_fits(run, bundle)
        except BundleError:  # there is none, or it is of an earlier run file
            maker.export(run)
    return dataclasses.replace(given, run=out, bundle=bundle, broker=given.broker or run.broker.url)


def check_place(fleet: Fleet, device: str, *, replace: bool) -> None:
    """Raises UsageError where ``device`` is enrolled and its certificate good: another one would take its place. Devices that are
    registered on another computer are not known here."""
    if replace or not fleet.is_here:
        return
    with fleet.registry() as registry:
        row = next((row for row in registry.devices() if row.name == device), None)
    good = None if row is None or row.revoked_s is not None else row.certificate
    if good is not None and good.revoked_s is None and good.ends_s > fleet.clock():
        until = datetime.fromtimestamp(good.ends_s, UTC)
        who = f"`{device}` is enrolled, until {until:%Y-%m-%d}, with the key {good.key[:16]}"
        raise UsageError(f"{who}; what is flashed now takes its place, and shuts it out once it has enrolled: say --replace if it is to")


def current_token(fleet: Fleet, device: str) -> Path:
    """The file of a token of ``device`` that nobody has used and that is good; made where there is none. Where devices are registered on
    another computer, the file that was brought from there. Raises CutlayerError."""
    path = fleet.folder / "tokens" / f"{device}.token"
    if path.exists() and not fleet.is_here:
        return path
    fleet.authority()
    with fleet.registry() as registry:
        row = next((row for row in registry.devices() if row.name == device), None)
    if row is not None and row.revoked_s is not None:
        raise UsageError(f"`{device}` is revoked; `cutlayer device add {device}` lets it in again")
    token = None if row is None else row.token
    if token is None or token.key is not None or token.expires_s <= fleet.clock() or not path.exists():
        add_device(fleet, device, hours=_TOKEN_HOURS, group=None, out=None)
    return path
