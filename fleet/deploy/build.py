"""What a release holds for each device, and the release itself: numbered, signed, written down before anybody hears of it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.deploy.files import ReleaseFiles
from fleet.deploy.releases import ReleaseRow, Releases
from fleet.flash.payload import check_fits, device_run, read_bundle_files
from fleet.registry import Registry
from wire.errors import UsageError
from wire.fleet.release import BUNDLE, FORMAT, RUN_FILE, WHEELS, Release, ReleaseFile, dump_release
from wire.parse import plain
from wire.runfile import load_run

__all__ = ["Made", "Slicer", "code_of", "contents", "kept_code", "release_of", "releases_for"]

Slicer = Callable[[str, Path], None]  # writes the slice of the run for this device there

_GRACE_S = 86_400.0  # a device may still be fetching when the operator has gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """``again``: also where it came to an end before. ``minimum``: once it has proved itself, devices take and go back to nothing below."""

    now_s: float
    until_s: float
    minimum: int = 0
    above: int = 0
    again: bool = False


def contents(
    devices: Sequence[str],
    *,
    bundle: Path,
    wheels: Iterable[Path],
    code: Mapping[str, Sequence[ReleaseFile]],
    slicer: Slicer,
    broker: str,
    home: str,
    keys: str,
    files: ReleaseFiles,
) -> dict[str, tuple[ReleaseFile, ...]]:
    """By device, what its release holds; all of it is in ``files`` then. ``wheels``: for all of them; ``code``: by device, of files that
    are there already. ``broker``: as devices reach it. ``home``: the client's folder on
    devices; ``keys``: that of their identity. Raises CutlayerError, as where the bundle is not of the run."""
    shared = [_kept(files, BUNDLE + path, data) for path, data in sorted(read_bundle_files(bundle).items())]
    shared += [_kept(files, WHEELS + wheel.name, wheel.read_bytes()) for wheel in wheels]
    found: dict[str, tuple[ReleaseFile, ...]] = {}
    with tempfile.TemporaryDirectory(prefix="cutlayer-deploy-") as folder:
        for device in devices:
            path = Path(folder, f"{device}.toml")
            slicer(device, path)
            check_fits(load_run(path), bundle)
            run = device_run(path, device=device, broker=broker, identity=True, keys=keys, home=home)
            found[device] = (_kept(files, RUN_FILE, run), *shared, *code.get(device, ()))
    return found


def kept_code(devices: Sequence[str], releases: Releases, files: ReleaseFiles) -> dict[str, tuple[ReleaseFile, ...]]:
    """By device, the wheels that its client runs from as far as is known; none: the card's. Raises UsageError where one is lost."""
    found: dict[str, tuple[ReleaseFile, ...]] = {}
    for device in devices:
        row = releases.standing(device)
        found[device] = () if row is None else code_of(release_of(row))
        lost = next((wheel for wheel in found[device] if not files.holds(wheel.sha256)), None)
        if row is not None and lost is not None:
            what = f"`{device}` runs {lost.path.removeprefix(WHEELS)} of release {row.version}, which is not in the fleet's folder any more"
            raise UsageError(f"{what}; give it with --code or --wheels, or say --card-code")
    return found


def code_of(release: Release) -> tuple[ReleaseFile, ...]:
    """The wheels that the client of this release runs from."""
    return tuple(file for file in release.files if file.path.startswith(WHEELS))


def _kept(files: ReleaseFiles, path: str, data: bytes) -> ReleaseFile:
    try:
        return ReleaseFile(path=path, sha256=files.put(data), size_bytes=len(data))
    except ValueError as exc:
        raise UsageError(f"{path.partition('/')[2]} cannot be deployed: {exc}") from exc


def releases_for(
    found: Mapping[str, tuple[ReleaseFile, ...]], registry: Registry, key: Ed25519PrivateKey, made: Made
) -> dict[str, ReleaseRow]:
    """By device: the release that it was given with the same contents, as long as it is its newest and has time left, or a new one.

    Raises UsageError, BundleError.
    """
    releases = Releases(registry)
    with registry.changing():
        version = max(releases.next_version(), made.above + 1)
        if made.minimum > version:
            raise UsageError(f"--minimum is {made.minimum}, and this release is {version}: a device could not take it")
        rows: dict[str, ReleaseRow] = {}
        for device, files in found.items():
            digest = _digest(files, made.minimum)
            row = releases.newest(device)
            if row is None or row.digest != digest or not _goes_on(row, made):
                row = _make(device, version, files, digest, key, made)
                releases.add(row)
            rows[device] = row
    return rows


def release_of(row: ReleaseRow) -> Release:
    """What its manifest, which is our own, says."""
    table = json.loads(row.manifest)
    return Release(**{**table, "files": tuple(ReleaseFile(**each) for each in table["files"])})


def _goes_on(row: ReleaseRow, made: Made) -> bool:
    if row.outcome == "void" or (row.outcome != "open" and made.again):
        return False
    return row.version > made.above and (row.outcome in ("healthy", "returned") or row.expires_s >= made.until_s)


def _make(device: str, version: int, files: tuple[ReleaseFile, ...], digest: str, key: Ed25519PrivateKey, made: Made) -> ReleaseRow:
    expires_s = made.until_s + _GRACE_S
    try:
        release = Release(format=FORMAT, version=version, device=device, minimum=made.minimum, expires_s=int(expires_s), files=files)
    except ValueError as exc:
        raise UsageError(f"no release can be made for `{device}`: {exc}") from exc
    manifest, signature = dump_release(release, key)
    return ReleaseRow(
        device=device, version=version, digest=digest, manifest=manifest, signature=signature, made_s=made.now_s, expires_s=int(expires_s)
    )


def _digest(files: tuple[ReleaseFile, ...], minimum: int) -> str:
    return hashlib.sha256(json.dumps([minimum, *(plain(file) for file in files)], sort_keys=True).encode()).hexdigest()
