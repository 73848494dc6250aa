"""What travels to a device, as one archive: wheels, the party's slice of the run, its bundle, the authority's certificate, the key of
those whose releases it takes, the services."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
import tarfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fleet.flash.boot_files import INSTALL, PAYLOAD, TOKEN
from wire.bundle_fit import check_bundle
from wire.errors import BundleError, RunFileError, UsageError
from wire.fleet.release import DEPLOY_PUB
from wire.limits import LIMITS
from wire.manifest import load_manifest
from wire.runfile import Run, load_run, parse_run

__all__ = ["Payload", "carried", "check_fits", "device_file", "device_run", "first_state", "read_bundle_files"]

_HOME = "/var/lib/cutlayer"
_DEVICE_FILES = (
    "cutlayer.service",
    "cutlayer-enrol.service",
    "cutlayer-enrol.timer",
    "cutlayer-renewed.path",
    "cutlayer-renewed.service",
    "enrol.sh",
    "watchdog.conf",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """``bundle``: files by path below ``bundle/``. ``ca``: PEM, where the broker speaks TLS. ``enrol``: host:port of the authority, or None
    where the device has no identity. ``memory``: systemd's MemoryMax. ``deploy``: PEM, whose releases the device takes; None: nobody's.
    ``floor``: releases up to this one are not for this card, whoever keeps them and offers them again."""

    device: str
    run: bytes
    bundle: Mapping[str, bytes]
    wheels: Sequence[Path]
    ca: bytes | None
    enrol: str | None
    memory: str = "75%"
    deploy: bytes | None = None
    floor: int = 0


def device_file(name: str) -> str:
    """One of the files below fleet/flash/device/, as it is."""
    return importlib.resources.files("fleet.flash").joinpath("device", name).read_text(encoding="utf-8")


def carried(payload: Payload, token: bytes | None) -> dict[str, bytes]:
    """The files that travel, by name: the archive, its sum, the script that installs it, and the token apart from them: it goes first."""
    packed = _archive(payload)
    summed = f"{hashlib.sha256(packed).hexdigest()}  {PAYLOAD}\n".encode()
    found = {PAYLOAD: packed, "cutlayer-payload.sha256": summed, INSTALL: device_file(INSTALL).encode()}
    return found | ({TOKEN: token} if token is not None else {})


def _archive(payload: Payload) -> bytes:
    """The archive; the same input gives the same bytes. All files are root's, and readable by root alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in _members(payload):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600 if name == "run.toml" else 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _members(payload: Payload) -> Iterator[tuple[str, bytes]]:
    yield "run.toml", payload.run
    if payload.ca is not None:
        yield "ca.pem", payload.ca
    if payload.deploy is not None:
        yield DEPLOY_PUB, payload.deploy
    yield "state.json", first_state(payload.floor)
    for name in _DEVICE_FILES:
        text = device_file(name).replace("@DEVICE@", payload.device).replace("@MEMORY@", payload.memory)
        yield name, text.replace("@ENROL@", payload.enrol or "").encode()
    for path, data in sorted(payload.bundle.items()):
        yield f"bundle/{path}", data
    for wheel in payload.wheels:
        yield f"wheels/{wheel.name}", wheel.read_bytes()


def first_state(floor: int) -> bytes:
    """releases/state.json of a device that has just been set up."""
    return json.dumps({"highest": floor, "settled": floor}).encode()


def device_run(run_file: Path, *, device: str, broker: str, identity: bool, keys: str = f"{_HOME}/identity", home: str = _HOME) -> bytes:
    """``device``'s slice with its broker and, where it has an ``identity``, with the paths of its certificates in the folder ``keys``.
    ``home``: where its other paths begin, whatever release it runs. Raises RunFileError where it is no slice, or another party's."""
    run = load_run(run_file)
    if run.slice is None:
        raise RunFileError(
            f"{run_file} is the whole run, and a device gets its own part: cutlayer slice {run_file} --party {device} --out slice.toml"
        )
    if run.slice.party != device:
        raise RunFileError(f"{run_file} is the part of `{run.slice.party}`; give --device {run.slice.party}, or the slice of `{device}`")
    if not run.clients:
        raise RunFileError(f"{run_file} is the part of a server, which runs on no device; give a client's slice")
    table = tomllib.loads(run_file.read_text(encoding="utf-8"))
    table["slice"]["base"] = home
    kept = {key: value for key, value in table.get("broker", {}).items() if key in ("keepalive_s", "part_bytes", "connect_timeout_s")}
    paths = {name: f"{keys}/{name}.pem" for name in ("ca", "cert", "key")}
    table["broker"] = kept | {"url": broker} | (paths if identity else {})
    parse_run(table, base=home)
    return tomli_w.dumps(table).encode()


def check_fits(run: Run, bundle: Path) -> None:
    """``run``: a device's slice, or the whole. Raises BundleError where ``bundle`` was exported for something else, as before the run was
    changed."""
    segments = run.client_segments if run.slice is None else tuple(slot.segment for slot in run.slice.slots)
    for segment in segments:
        folder = bundle / segment if (bundle / segment).is_dir() else bundle
        path = folder / "manifest.json"
        if not path.is_file():
            raise BundleError(f"{folder} holds no device bundle; make one with `cutlayer export`")
        manifest = load_manifest(_read(path, LIMITS.manifest_bytes).decode(errors="replace"), where=str(path))
        check_bundle(run, segment, manifest, folder, has_loss=segment in run.sinks)


def read_bundle_files(folder: Path) -> dict[str, bytes]:
    """A device bundle, or a folder of several, one a segment; only what their manifests list, and only if its checksum holds. Raises
    BundleError."""
    manifests = sorted(folder.glob("manifest.json")) or sorted(folder.glob("*/manifest.json"))
    if not manifests:
        raise BundleError(f"{folder} holds no device bundle; make one with `cutlayer export`")
    return {name: data for path in manifests for name, data in _bundle_files(folder, path)}


def _bundle_files(folder: Path, path: Path) -> Iterator[tuple[str, bytes]]:
    text = _read(path, LIMITS.manifest_bytes)
    manifest = load_manifest(text.decode(errors="replace"), where=str(path))
    yield str(path.relative_to(folder)), text
    for entry in manifest.files:
        if Path(entry.file).name != entry.file:
            raise BundleError(f"{path} names the file {entry.file}, which is not in its folder; export the bundle again")
        file = path.parent / entry.file
        data = _read(file, LIMITS.graph_bytes)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{file} does not have the checksum of its manifest; export the bundle again")
        yield str(file.relative_to(folder)), data


def _read(path: Path, limit_bytes: int) -> bytes:
    size = path.stat().st_size
    if size > limit_bytes:
        raise UsageError(f"{path} has {size} bytes, more than the {limit_bytes} that it may have")
    return path.read_bytes()
