"""``cutlayer enroll`` and ``python -m edge_client.enroll``: the same options. Light: the command imports it before it knows its verb."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["ABOUT", "add_enroll", "run_enroll"]

ABOUT = "fetch this device's certificate, or renew it when it is time; for each boot and each day"


def add_enroll(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, metavar="NAME", help="as in `cutlayer device add NAME`; its party in the run file")
    parser.add_argument("--url", required=True, metavar="URL", help="where `cutlayer ca serve` is, like https://ca.example:8884")
    parser.add_argument("--ca", required=True, type=Path, metavar="FILE", help="the authority's ca.pem, which alone is trusted")
    parser.add_argument("--token", type=Path, metavar="FILE", help="the enrolment token; the file is removed once the certificate is there")
    parser.add_argument(
        "--out", type=Path, default=Path("identity"), metavar="DIR", help="folder of key.pem, cert.pem and ca.pem (default %(default)s)"
    )


def run_enroll(args: argparse.Namespace) -> None:
    """Raises CutlayerError."""
    from datetime import UTC, datetime

    from edge_client.enroll.enroll import enroll  # loads a cryptographic library

    found = enroll(args.name, url=args.url, ca=args.ca, token=args.token, folder=args.out)
    what = {"enrolled": "is enrolled", "renewed": "has a new certificate", "nothing": "has its certificate; nothing to do"}[found.done]
    print(f"`{args.name}` {what}, until {datetime.fromtimestamp(found.until_s, UTC):%Y-%m-%d %H:%M} UTC")
