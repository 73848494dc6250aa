"""``cutlayer enroll`` and ``python -m edge_client.enroll``: the same options. Light: the command imports it before it knows its verb."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from wire.errors import UsageError

__all__ = ["ABOUT", "add_enroll", "run_enroll"]

ABOUT = "fetch this device's certificate, or renew it when it is time; for each boot and each day"


def add_enroll(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, metavar="NAME", help="as in `cutlayer device add NAME`; its party in the run file")
    parser.add_argument("--url", metavar="URL", help="where `cutlayer ca serve` is, like https://ca.example:8884; or by hand:")
    parser.add_argument("--write-csr", type=Path, metavar="FILE", help="write the request for `cutlayer device issue` here, and ask nobody")
    parser.add_argument("--install", type=Path, metavar="FILE", help="take the certificate that `cutlayer device issue` wrote")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="the authority's ca.pem, which alone is trusted")
    parser.add_argument("--token", type=Path, metavar="FILE", help="the enrolment token; the file is removed once the certificate is there")
    parser.add_argument(
        "--out", type=Path, default=Path("identity"), metavar="DIR", help="folder of key.pem, cert.pem and ca.pem (default %(default)s)"
    )


def run_enroll(args: argparse.Namespace) -> None:
    """Raises CutlayerError."""
    if sum(each is not None for each in (args.url, args.write_csr, args.install)) != 1:
        raise UsageError("give one of --url URL, --write-csr FILE and --install FILE")
    from edge_client.enroll.enroll import enroll, install, write_request  # loads a cryptographic library

    if args.write_csr is not None:
        write_request(args.name, folder=args.out, csr=args.write_csr)
        print(f"{args.write_csr}: to be signed with `cutlayer device issue {args.name}`")
        return
    if args.ca is None:
        raise UsageError("--ca FILE is missing: the authority's ca.pem, which alone is trusted")
    if args.install is not None:
        found = install(args.name, ca=args.ca, folder=args.out, cert=args.install)
    else:
        found = enroll(args.name, url=args.url, ca=args.ca, token=args.token, folder=args.out)
    what = {"enrolled": "is enrolled", "renewed": "has a new certificate", "nothing": "has its certificate; nothing to do"}[found.done]
    print(f"`{args.name}` {what}, until {datetime.fromtimestamp(found.until_s, UTC):%Y-%m-%d %H:%M} UTC")
