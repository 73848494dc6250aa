"""What ``cutlayer flash`` is told on the command line. Light: the command imports it before it knows its verb."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["ABOUT", "add_flash"]

ABOUT = "write a copy of an image (or a card) that becomes a training device at its first start"


def add_flash(flash: argparse.ArgumentParser) -> None:
    flash.add_argument(
        "act", nargs="?", choices=("fetch-wheels",), help="instead: download the client's wheels into --wheels, once for all devices"
    )
    flash.add_argument("--image", type=Path, metavar="FILE", help="Raspberry Pi OS, 64-bit, as published: .img or .img.xz")
    flash.add_argument("--device", metavar="NAME", help="the device's name: a client of the run")
    flash.add_argument("--run", type=Path, metavar="FILE", help="the run, or the device's part of it that `cutlayer slice` wrote")
    flash.add_argument("--bundle", type=Path, metavar="DIR", help="the device bundle that `cutlayer export` wrote (default: exported)")
    flash.add_argument("--wheels", type=Path, metavar="DIR", help="the client's wheels (default: wheels, fetched where they are missing)")
    flash.add_argument("--broker", metavar="URL", help="as the device reaches it, like mqtts://192.168.0.2:8883 (default: the run's)")
    flash.add_argument("--out", type=Path, metavar="FILE", help="where to write the copy; only you can read it")
    _add_identity(flash)
    _add_network(flash)
    flash.add_argument("--format", choices=("firstrun", "cloud-init", "preseed"), help="how the image is set up, where it does not show")
    flash.add_argument("--memory", default="75%", metavar="SIZE", help="most that the client may use, like 300M (default %(default)s)")
    flash.add_argument("--manifest", type=Path, metavar="FILE", help="write a list for Raspberry Pi Imager as well")
    _add_targets(flash)
    _add_fetch(flash)


def _add_targets(flash: argparse.ArgumentParser) -> None:
    flash.add_argument("--to", type=Path, metavar="/dev/…", help="write the card as well, after showing what it is; --out may be left out")
    flash.add_argument("--yes", action="store_true", help="--to: do not ask")
    flash.add_argument("--fixed-disk", action="store_true", help="--to: also a disk that does not count as removable")
    flash.add_argument("--ssh", metavar="USER@HOST", help="no image: install on a computer that runs, Debian for arm64 or amd64")
    flash.add_argument("--compose", type=Path, metavar="DIR", help="no image: write a compose project for arm64 here")


def _add_identity(flash: argparse.ArgumentParser) -> None:
    flash.add_argument("--fleet", type=Path, default=Path("fleet"), metavar="DIR", help="the fleet's folder (default %(default)s)")
    flash.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the enrolment token (default: that of --fleet, made anew where it is used or old)"
    )
    flash.add_argument("--replace", action="store_true", help="also where the device is enrolled and good: the new one takes its place")
    flash.add_argument("--enrol-at", metavar="HOST:PORT", help="where `cutlayer ca serve` answers (default: the broker's host, port 8884)")
    flash.add_argument("--user", metavar="NAME", help="who may log in over ssh with a key of --authorized-keys (default: nobody)")
    flash.add_argument("--authorized-keys", type=Path, metavar="FILE", help="public keys of --user, as in ~/.ssh/authorized_keys")


def _add_network(flash: argparse.ArgumentParser) -> None:
    flash.add_argument("--wifi", metavar="SSID[:country]", help="a wireless network, like Clinic:DE; its passphrase is asked for")
    flash.add_argument("--wifi-passphrase-file", type=Path, metavar="FILE", help="the passphrase, as the file's first line")
    flash.add_argument("--wifi-open", action="store_true", help="the network has no passphrase")


def _add_fetch(flash: argparse.ArgumentParser) -> None:
    flash.add_argument(
        "--python",
        action="append",
        choices=("3.11", "3.12", "3.13"),
        help="fetch-wheels: for this Python; may be repeated (default 3.11, 3.13)",
    )
    flash.add_argument("--arch", choices=("aarch64", "x86_64"), default="aarch64", help="fetch-wheels: processor (default %(default)s)")
    flash.add_argument("--client", type=Path, metavar="FILE", help="fetch-wheels: the client's own wheel (default: built, or downloaded)")
