"""``cutlayer flash``: reads what the options name, then hands it to the target that they name."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fleet.deploy.key import signing_key
from fleet.deploy.releases import Releases
from fleet.flash.boot_files import FirstBoot, host_name
from fleet.flash.compose import write_compose
from fleet.flash.detect import find_format, open_boot
from fleet.flash.disk import Disk, check_disk, look_at, write_disk
from fleet.flash.given import FlashOptions
from fleet.flash.image import card_copy, copy_image, provision
from fleet.flash.manifest import imager_line, imager_manifest
from fleet.flash.payload import Payload, carried, check_fits, device_run, read_bundle_files
from fleet.flash.ready import Maker, check_place, current_token, made_ready
from fleet.flash.ssh import install_over_ssh, look_over_ssh
from fleet.flash.wheels import choose_wheels, fetch_wheels
from fleet.flash.wifi import Wifi, parse_wifi, read_wifi
from fleet.state import Fleet
from wire.enrolment import check_device_name
from wire.errors import UsageError
from wire.runfile import load_run
from wire.store import write_atomically
from wire.transport.broker_config import BrokerConfig

__all__ = ["ENROL_PORT", "run_flash"]

ENROL_PORT = 8884
_T = TypeVar("_T")
_TOKEN_BYTES = 4096
_KEYS_BYTES = 1 << 16
_WHEELS = Path("wheels")
_MEMORY = re.compile(r"[1-9]\d?%|100%|[1-9]\d{0,5}[KMG]")  # as systemd and compose read it


def run_flash(options: FlashOptions, *, maker: Maker, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """Raises CutlayerError, in one line, for all that the operator can mend."""
    if options.act == "fetch-wheels":
        wheels = _given(options.wheels, "--wheels")
        fetch_wheels(wheels, pythons=options.python or ("3.11", "3.13"), arch=options.arch, client=options.client)
        return
    targets = [
        name for name, value in (("--image", options.image), ("--ssh", options.ssh), ("--compose", options.compose)) if value is not None
    ]
    if len(targets) > 1:
        raise UsageError(f"{' and '.join(targets)} are two targets; give one")
    with tempfile.TemporaryDirectory(prefix="cutlayer-flash-") as folder:
        _flash(made_ready(options, maker, Path(folder)), clock)


def _flash(options: FlashOptions, clock: Callable[[], datetime]) -> None:
    if not _MEMORY.fullmatch(options.memory):
        raise UsageError(f"--memory {options.memory!r} is no size; write it like 300M, or 75% of what the board has")
    if options.ssh is not None:
        _flash_host(options, options.ssh)
    elif options.compose is not None:
        _flash_compose(options, options.compose)
    elif options.to is not None:
        _flash_card(options, options.to, now=clock())
    else:
        _flash_image(options, _given(options.image, "--image"), _given(options.out, "--out"), now=clock())


def _flash_host(options: FlashOptions, target: str) -> None:
    device = _device(options)
    payload, token = _payload(options, device), _token(options, device)
    host = look_over_ssh(target)
    wheels = _wheels(options, python=host.python, arch=host.arch)
    print(install_over_ssh(target, carried(replace(payload, wheels=wheels), token)), end="")
    print(f"{target} is `{device}` now (Python {host.python}, {host.arch})")


def _flash_compose(options: FlashOptions, out: Path) -> None:
    device = _device(options)
    payload = _payload(options, device, keys="/keys", home="/data")
    memory = "512m" if options.memory.endswith("%") else options.memory.lower()
    token = _token(options, device)
    write_compose(out, payload=replace(payload, memory=memory), token=token)
    print(f"{out}: a compose project that is `{device}`; on the board: chown -R 10001:10001 data keys && docker compose up --build -d")


def _flash_card(options: FlashOptions, device: Path, *, now: datetime) -> None:
    """The copy, then the card. The disk is looked at before anything is made, and again before it is written."""
    image = _given(options.image, "--image")
    check_disk(look_at(device), image_bytes=0, fixed=options.fixed_disk)
    with card_copy(options.out, device=_device(options)) as out:
        _flash_image(options, image, out, now=now)
        disk = look_at(device)
        check_disk(disk, image_bytes=out.stat().st_size, fixed=options.fixed_disk)
        print(disk.describe())
        if not options.yes and not _agreed(disk):
            raise UsageError(f"nothing was written to {device}")
        written = write_disk(out, device)
        print(f"{device}: {written} bytes written and read back; take the card out")


def _agreed(disk: Disk) -> bool:
    try:
        return input(f"everything on it will be lost; type {disk.name} to write it: ").strip() == disk.name
    except EOFError as exc:
        raise UsageError("there is no terminal to ask at; say --yes") from exc


def _flash_image(options: FlashOptions, image: Path, out: Path, *, now: datetime) -> None:
    device = _device(options)
    first = FirstBoot(
        host=host_name(device),
        instance=f"cutlayer-{device}-{secrets.token_hex(8)}",
        wifi=_wifi(options),
        user=options.user,
        keys=_keys(options),
    )
    if out.exists() and out.samefile(image):
        raise UsageError(f"--out {out} is the image itself, which stays as it is; choose another name")
    payload, token = _payload(options, device), _token(options, device)
    beside = out.with_name(out.name + ".new")
    try:
        copy_image(image, beside)
        with open(beside, "rb") as copy:
            kind = find_format(open_boot(copy, name=str(image)), name=str(image), wanted=options.format)
        wheels = _wheels(options, python=kind.python, arch="aarch64")
        extra = carried(replace(payload, wheels=wheels), token)
        done = provision(image, beside, kind=kind, first=first, extra=extra, now=now)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
    print(f"{out}: {image.name} that becomes `{device}` at its first start ({kind.name}, Python {kind.python})")
    print(f"on its boot partition: {', '.join(done.files)}; read back, and all else as in {image.name}")
    if token is not None:
        print("it holds the device's enrolment token: write the card, then remove the file")
    if options.manifest is not None:
        text = imager_manifest(out, device=device, size_bytes=done.size_bytes, sha256=done.sha256, day=now.date())
        write_atomically(options.manifest, text.encode())
        print(f"{options.manifest}: for rpi-imager --repo {options.manifest}")
    if options.to is None:
        print(f"write it: {imager_line(out, sha256=done.sha256)}")


def _payload(options: FlashOptions, device: str, *, keys: str = "/var/lib/cutlayer/identity", home: str = "/var/lib/cutlayer") -> Payload:
    """Without wheels, which depend on the image."""
    url = _given(options.broker, "--broker")
    secure = _broker(url).url.startswith("mqtts:")
    run_file, bundle = _given(options.run, "--run"), _given(options.bundle, "--bundle")
    run = device_run(run_file, device=device, broker=url, identity=secure, keys=keys, home=home)
    check_fits(load_run(run_file), bundle)
    return Payload(
        device=device,
        run=run,
        bundle=read_bundle_files(bundle),
        wheels=(),
        ca=_authority(options) if secure else None,
        enrol=options.enrol_at or f"{urlsplit(url).hostname}:{ENROL_PORT}",
        memory=options.memory,
        **_updates(Fleet(folder=options.fleet)) if secure else {},
    )


# ------------------------------------------------------------------ what the options name


def _given(value: _T | None, option: str) -> _T:
    if value is None:
        raise UsageError(f"`cutlayer flash` needs {option}; `cutlayer flash --help` lists what there is")
    return value


def _device(options: FlashOptions) -> str:
    device = _given(options.device, "--device")
    try:
        return check_device_name(device)
    except ValueError as exc:
        raise UsageError(f"--device: {exc}") from exc


def _broker(url: str) -> BrokerConfig:
    try:
        return BrokerConfig(url=url)
    except ValueError as exc:
        raise UsageError(f"--broker: {exc}") from exc


def _authority(options: FlashOptions) -> bytes:
    path = options.fleet / "ca" / "ca.pem"
    if not path.exists():
        raise UsageError(
            f"{path} is not there, and {options.broker} speaks TLS; make the authority with `cutlayer ca init`, or give --fleet DIR"
        )
    return path.read_bytes()


def _updates(fleet: Fleet) -> dict[str, Any]:
    """``deploy`` and ``floor`` of the payload. Without deploy.pub, where it was not brought along, the device takes no releases."""
    floor = 0
    if fleet.is_here:
        signing_key(fleet.folder)  # makes it for a fleet of before
        with fleet.registry() as registry:
            floor = Releases(registry).next_version() - 1
    return {"deploy": fleet.deploy_pub.read_bytes() if fleet.deploy_pub.exists() else None, "floor": floor}


def _token(options: FlashOptions, device: str) -> bytes | None:
    """None: the broker speaks no TLS, so the device gets no identity."""
    if _broker(_given(options.broker, "--broker")).url.startswith("mqtt:"):
        return None
    check_place(Fleet(folder=options.fleet), device, replace=options.replace)
    path = options.token_file or current_token(Fleet(folder=options.fleet), device)
    if not path.exists():
        raise UsageError(f"{path} is not there; make the token with `cutlayer device add {device} --out {path}`")
    with open(path, "rb") as file:
        token = file.read(_TOKEN_BYTES + 1)
    if not token.strip() or len(token) > _TOKEN_BYTES:
        raise UsageError(f"{path} is no enrolment token; make one with `cutlayer device add {device}`")
    return token


def _wheels(options: FlashOptions, *, python: str, arch: str) -> list[Path]:
    """Fetched where no folder was named and the usual one lacks them."""
    if options.wheels is not None:
        return choose_wheels(options.wheels, python=python, arch=arch)
    try:
        return choose_wheels(_WHEELS, python=python, arch=arch)
    except UsageError:
        fetch_wheels(_WHEELS, pythons=(python,), arch=arch, client=options.client)
        return choose_wheels(_WHEELS, python=python, arch=arch)


def _wifi(options: FlashOptions) -> Wifi | None:
    if options.wifi is None:
        return None
    try:
        network = parse_wifi(options.wifi)
    except ValueError as exc:
        raise UsageError(f"--wifi: {exc}") from exc
    return read_wifi(network, passphrase_file=options.wifi_passphrase_file, open_network=options.wifi_open)


def _keys(options: FlashOptions) -> tuple[str, ...]:
    if (options.user is None) is not (options.authorized_keys is None):
        raise UsageError("--user and --authorized-keys go together: nobody logs in with a password")
    if options.user is None or options.authorized_keys is None:
        return ()
    if not options.user.isidentifier() or not options.user.islower() or options.user in ("root", "pi", "cutlayer"):
        raise UsageError(f"--user {options.user!r} cannot be used; take another name of small letters, digits and `_`")
    with open(options.authorized_keys, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file.read(_KEYS_BYTES).splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or not all(line.isprintable() for line in keys) or any("PRIVATE KEY" in line for line in lines):
        raise UsageError(f"{options.authorized_keys} holds no public keys, one a line, like ssh-ed25519 AAAA… name")
    return keys
