"""What ``cutlayer deploy`` and ``devices`` are told on the command line. Light: the command imports it before it knows its verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fleet.deploy.stages import Stages, parse_share, parse_stages

__all__ = ["DEPLOY", "DEVICES", "add_deploy", "add_devices"]

DEPLOY = "give devices a new run, bundle or client code, stage by stage, and stop where too many of them fail"
DEVICES = "show which devices are there, what each runs, and how an update goes"


def add_deploy(deploy: argparse.ArgumentParser, *, hours: Callable[[str], float], count: Callable[[str], int]) -> None:
    """``hours`` and ``count`` read an option's text."""
    deploy.add_argument("bundle", type=Path, metavar="BUNDLE", help="the devices' bundle that `cutlayer export` wrote")
    deploy.add_argument(
        "--to", action="append", required=True, metavar="NAME", help="a device, a group, or `all`: every device of the run; may be repeated"
    )
    deploy.add_argument(
        "--run", type=Path, required=True, metavar="RUN.toml", help="the run; or a device's slice of it, or a folder of slices NAME.toml"
    )
    _add_code(deploy)
    _add_pace(deploy, hours=hours)
    deploy.add_argument("--broker", metavar="URL", help="as devices reach it (default: the run file's)")
    deploy.add_argument("--via", metavar="URL", help="as this computer reaches the broker, where that is another address")
    deploy.add_argument("--home", default="/var/lib/cutlayer", metavar="PATH", help="the client's folder on devices (default %(default)s)")
    deploy.add_argument("--keys", metavar="PATH", help="the folder of its identity there (default: identity below --home)")
    deploy.add_argument("--minimum", type=count, default=0, metavar="N", help="devices go back to no release below this one any more")
    deploy.add_argument("--above", type=count, default=0, metavar="N", help="number the release above N, where the registry was lost")
    deploy.add_argument("--again", action="store_true", help="make it anew where just this has come to an end before, as by failing")
    deploy.add_argument("--fleet", type=Path, default=Path("fleet"), metavar="DIR", help="the fleet's folder (default %(default)s)")
    deploy.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _add_code(deploy: argparse.ArgumentParser) -> None:
    deploy.add_argument(
        "--code",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a wheel that the client is to run from, as of a new Cutlayer; may be repeated",
    )
    deploy.add_argument(
        "--wheels", type=Path, metavar="DIR", help="the client's code and all that it needs, from `cutlayer flash fetch-wheels`"
    )
    deploy.add_argument(
        "--card-code", action="store_true", help="back to the code that the card was written with (default: what each runs)"
    )
    deploy.add_argument("--python", choices=("3.11", "3.12", "3.13"), help="--wheels: for devices with this Python")
    deploy.add_argument("--arch", choices=("aarch64", "x86_64"), default="aarch64", help="--wheels: processor (default %(default)s)")


def _add_pace(deploy: argparse.ArgumentParser, *, hours: Callable[[str], float]) -> None:
    deploy.add_argument(
        "--stages",
        type=_stages,
        default=parse_stages("1,10%,100%"),
        metavar="LIST",
        help="how many devices have it after each stage (default 1,10%%,100%%)",
    )
    deploy.add_argument(
        "--stop-at", type=_share, default=0.1, metavar="SHARE", help="stop where more of those tried have failed than this (default 10%%)"
    )
    deploy.add_argument("--hours", type=hours, default=24.0, metavar="H", help="how long to wait for devices (default 24)")


def add_devices(devices: argparse.ArgumentParser, *, seconds: Callable[[str], float]) -> None:
    """``seconds`` reads an option's text."""
    devices.add_argument("names", nargs="*", metavar="NAME", help="devices or groups (default: all)")
    devices.add_argument("--broker", metavar="URL", help="as this computer reaches it (default: as at the last time)")
    devices.add_argument("--wait-s", type=seconds, default=5.0, metavar="S", help="longest wait for answers (default 5)")
    devices.add_argument("--fleet", type=Path, default=Path("fleet"), metavar="DIR", help="the fleet's folder (default %(default)s)")
    devices.add_argument("--json", action="store_true", help="print one JSON object instead")


def _stages(text: str) -> Stages:
    try:
        return parse_stages(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _share(text: str) -> float:
    try:
        return parse_share(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
