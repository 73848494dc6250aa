"""``python -m edge_client.agent``: what the device's service runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_client.agent.agent import Agent
from edge_client.agent.watch import Patience
from edge_client.boundary import exit_code_of
from wire.enrolment import check_device_name
from wire.errors import UsageError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Supervise the client until SIGTERM; the exit codes are those of ``cutlayer client``."""
    usual = Patience()
    parser = argparse.ArgumentParser(
        prog="python -m edge_client.agent", description="Run a device's client, and take releases from the operator.", allow_abbrev=False
    )
    parser.add_argument("--home", required=True, type=Path, metavar="DIR", help="the device's folder, with releases/ and deploy.pub")
    parser.add_argument("--name", required=True, metavar="NAME", help="the device's name: its party in the run file")
    for key, about in (
        ("steady-s", "how long a new release must live, once connected, to be kept"),
        ("health-s", "after how long it is given back otherwise"),
        ("hung-s", "without a sign of life, after which a client is started again"),
        ("pause-s", "before a client that failed is started again; twice as long each time, up to a minute"),
    ):
        usual_s = getattr(usual, key.replace("-", "_"))
        parser.add_argument(f"--{key}", type=float, default=usual_s, metavar="S", help=f"{about} (default %(default)s)")
    args = parser.parse_args(argv)
    patience = Patience(steady_s=args.steady_s, health_s=args.health_s, hung_s=args.hung_s, pause_s=args.pause_s)
    return exit_code_of(lambda: _run(args.home.resolve(), args.name, patience))


def _run(home: Path, name: str, patience: Patience) -> None:
    try:
        check_device_name(name)
    except ValueError as exc:
        raise UsageError(f"--name: {exc}") from exc
    run_dir = Path(os.environ.get("RUNTIME_DIRECTORY") or home / "run")  # systemd's, which is in memory
    agent = Agent(home, name=name, run_dir=run_dir, patience=patience, say=_say)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run()


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens: no reason to end
        print(f"agent: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
