"""Many clients of a run in one process, a thread each: for runs with more clients than a computer has memory for processes.

Each thread does what ``python -m edge_client`` does: the same bundle, engine, data, store, and a connection of its own to the broker. Only
the interpreter and its modules are shared, which is what takes most of a client process's memory.

    python -m benchmarks.hosted RUN.toml --broker URL NAME NAME …
"""

from __future__ import annotations

import argparse
import os
import sys
import threading

from edge_client.process import run_client
from wire.errors import CutlayerError, exit_code

__all__ = ["main"]


def main() -> None:
    """Results are left where a client process leaves them. The first client that fails ends all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_file")
    parser.add_argument("clients", nargs="+")
    parser.add_argument("--broker", required=True)
    arguments = parser.parse_args()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - threads would write into each other's lines
    threading.excepthook = _end
    threads = [
        threading.Thread(target=_run, args=(arguments.run_file, name, arguments.broker), name=name, daemon=True)
        for name in arguments.clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run(run_file: str, name: str, broker: str) -> None:
    try:
        run_client(run_file, party=name, broker=broker, log="json")
    except CutlayerError as exc:
        print(f"cutlayer: error: {name}: {exc}", file=sys.stderr, flush=True)
        os._exit(exit_code(exc))


def _end(failed: threading.ExceptHookArgs) -> None:
    """What no user can cause: the others would wait for this client for ever."""
    sys.__excepthook__(failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback)
    os._exit(1)


if __name__ == "__main__":
    main()
