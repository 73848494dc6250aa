"""What the fleet's verbs are told on the command line. Light: the command imports it before it knows its verb."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add_broker_config", "add_ca", "add_device"]


def add_ca(ca: argparse.ArgumentParser, *, port: Callable[[str], int]) -> None:
    """``port`` reads an option's text, as for other verbs."""
    acts = _acts(ca)
    init = _act(acts, "init", "make the fleet's certificate authority")
    init.add_argument("--name", default="Cutlayer fleet", metavar="TEXT", help="what its certificate calls it (default %(default)s)")
    serve = _act(acts, "serve", "answer devices that enrol and renew, over TLS")
    serve.add_argument("--host", default="0.0.0.0", help="address to listen on (default %(default)s)")
    serve.add_argument("--port", type=port, default=8884, help="default %(default)s")
    serve.add_argument(
        "--name",
        action="append",
        metavar="HOST",
        help="name or address by which devices reach it; repeat it for several (default: this host's)",
    )
    serve.add_argument("--approve", action="store_true", help="let each device wait until you say `cutlayer device approve NAME`")


def add_device(device: argparse.ArgumentParser, *, hours: Callable[[str], float]) -> None:
    """``hours`` reads an option's text."""
    acts = _acts(device)
    add = _act(acts, "add", "add a device and make its enrolment token", name=True)
    add.add_argument("--hours", type=hours, default=72.0, metavar="H", help="how long the token is good (default 72)")
    add.add_argument("--group", metavar="NAME", help="put it into this group, for `cutlayer deploy --to NAME`")
    add.add_argument("--out", type=Path, metavar="FILE", help="where to write the token (default: tokens/NAME.token in the fleet's folder)")
    show = _act(acts, "list", "list devices: who waits, who is enrolled and until when, who is revoked")
    show.add_argument("--json", action="store_true", help="print one JSON object instead")
    revoke = _act(acts, "revoke", "take a device out: its certificates and its token", name=True)
    revoke.add_argument(
        "--broker", type=Path, metavar="DIR", help="bring the revocation list of `cutlayer broker config --out DIR` up to date"
    )
    group = _act(acts, "group", "put devices into a group, as of one clinic; a device is in one at most")
    group.add_argument("devices", nargs="+", metavar="NAME", help="devices of the fleet")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--group", metavar="NAME", help="the group, a name as devices have them")
    which.add_argument("--no-group", action="store_true", help="take them out of theirs")
    _act(acts, "approve", "say yes to a device that waits for it", name=True)
    issue = _act(acts, "issue", "sign a device's request by hand, without a server and without a token", name=True)
    issue.add_argument("--csr", type=Path, required=True, metavar="FILE", help="the request that the device made, in PEM form")
    issue.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write the certificate")


def add_broker_config(config: argparse.ArgumentParser) -> None:
    config.add_argument("run_files", type=Path, nargs="+", metavar="RUN.toml", help="one run, or several that share the broker")
    config.add_argument("--fleet", type=Path, default=Path("fleet"), metavar="DIR", help="the fleet's folder (default %(default)s)")
    config.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write it; written again, it is brought up to date")
    config.add_argument("--at", metavar="PATH", help="where that folder will lie on the broker's computer (default: where it lies here)")
    config.add_argument("--name", action="append", default=[], metavar="HOST", help="a further name or address of the broker")
    config.add_argument("--bind", metavar="ADDRESS", help="listen on this address alone")
    config.add_argument("--mosquitto", choices=("2.0", "2.1"), help="for this version (default: the one that is installed here)")
    config.add_argument(
        "--acl-plugin", default="mosquitto_acl_file.so", metavar="FILE", help="mosquitto 2.1's access list plugin (default %(default)s)"
    )
    config.add_argument("--operator", default="operator", metavar="NAME", help="who may command devices (default %(default)s)")
    config.add_argument("--audit", action="store_true", help="let mosquitto log each packet, and so each publish that it denies")


def _acts(parser: argparse.ArgumentParser) -> Any:
    return parser.add_subparsers(dest="act", metavar="ACT", required=True, title="acts")


def _act(acts: Any, act: str, summary: str, *, name: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = acts.add_parser(act, help=summary, description=summary[0].upper() + summary[1:] + ".")
    if name:
        parser.add_argument("device", metavar="NAME", help="1 to 64 letters, digits, `_` or `-`; a party's name in the run file")
    parser.add_argument("--fleet", type=Path, default=Path("fleet"), metavar="DIR", help="the fleet's folder (default %(default)s)")
    return parser
