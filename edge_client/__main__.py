"""``python -m edge_client``: the client without the rest of the command line, for images that hold the device's rooms only."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_client.boundary import exit_code_of
from edge_client.heartbeat import ENVIRONMENT
from edge_client.process import check_client, run_client


def main(argv: Sequence[str] | None = None) -> int:
    """Run one client; the exit codes are those of ``cutlayer client``."""
    parser = argparse.ArgumentParser(prog="python -m edge_client", description="Run a client's part of a run.", allow_abbrev=False)
    parser.add_argument("run_file", metavar="RUN.toml")
    parser.add_argument("--party", required=True, metavar="NAME", help="which of the run's clients this is")
    parser.add_argument("--bundle", metavar="DIR", help="the device bundle that `cutlayer export` wrote")
    parser.add_argument("--broker", metavar="URL", help="instead of the run file's, like mqtt://192.168.0.2:1883")
    parser.add_argument("--engine", choices=("auto", "stock", "ort-training"), help="instead of the run file's for this client")
    parser.add_argument("--log", choices=("text", "json"), default="text", help="what to print while running (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="only say whether run file and bundle are whole and fit, and train nothing")
    args = parser.parse_args(argv)
    if args.check:
        return exit_code_of(lambda: check_client(args.run_file, party=args.party, bundle=args.bundle))
    beat = os.environ.get(ENVIRONMENT)  # no option: a client that does not know it yet must not refuse to start
    options = {"party": args.party, "bundle": args.bundle, "broker": args.broker, "engine": args.engine, "log": args.log}
    return exit_code_of(lambda: run_client(args.run_file, heartbeat=Path(beat) if beat else None, **options))


__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
