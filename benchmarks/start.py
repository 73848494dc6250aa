"""Seconds from the start of a client's process to its first forward done, each time in a fresh process.

python -m benchmarks.start [ROUNDS]        writes docs/benchmarks/start.md
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import hardware, spread, write_page

__all__ = ["start_seconds"]

BAR_S = 0.5
ROUNDS = 15
BATCH = 32
ROOT = Path(__file__).resolve().parents[1]

# All that `python -m edge_client` imports before it works, then the engine, as the client opens it. What follows on a device, the answers
# of broker and peer, is the line's time and not the start's.
_CLIENT = """
import time
import edge_client.__main__
import numpy
from edge_client.engine import load_engine
engine = load_engine({bundle!r})
engine.forward(0, *(numpy.zeros([{batch} if dim == "batch" else dim for dim in spec.shape], spec.dtype) for spec in engine.inputs))
print(time.monotonic_ns())
"""


def start_seconds(bundle: Path, *, rounds: int = ROUNDS, batch: int = BATCH) -> list[float]:
    """Seconds from process start to first forward done, of ``rounds`` processes one after the other, with the files in the page cache.

    The first one, left out, compiles our modules, as installing the client does.
    """
    code = _CLIENT.format(bundle=str(bundle), batch=batch)
    with tempfile.TemporaryDirectory(prefix="cutlayer-pycache-") as compiled:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled
        return [_once(code, environment) for _ in range(1 + rounds)][1:]


def _once(code: str, environment: dict[str, str]) -> float:
    began_ns = time.monotonic_ns()  # the same clock in all processes
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return (int(done.stdout) - began_ns) / 1e9


def main(rounds: int = ROUNDS) -> None:
    with tempfile.TemporaryDirectory(prefix="cutlayer-start-") as folder:
        times_s = start_seconds(_lenet(Path(folder) / "bundle"), rounds=rounds)
    verdict = "met" if statistics.median(times_s) <= BAR_S else "missed"
    write_page(
        "start",
        [
            "# Start of a client",
            "",
            "From the start of a fresh process to the first forward done: imports, a LeNet bundle opened and checked, one batch of "
            f"{BATCH}.",
            "",
            *hardware("onnxruntime", "numpy", "paho-mqtt"),
            f"- script: `make bench-start`; bar: {BAR_S} s",
            "",
            f"{spread(times_s, unit='s', scale=1)}, median and quartiles of {len(times_s)} processes: {verdict}.",
        ],
    )


def _lenet(folder: Path) -> Path:
    from export.prepare import prepare_model

    prepare_model("lenet", cut="pool2", out=folder, input_shape=None, optimizer=None)
    return folder


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
