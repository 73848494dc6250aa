"""A run whose line is cut for a minute in every phase, silently: it ends with the parameters of the run that was not cut.

Needs root, iproute2 and iptables. Writes docs/benchmarks/line-cuts.md; takes about a quarter of an hour, nearly all of it waiting.

    python -m benchmarks.line_cuts [SECONDS]
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import hardware, write_page
from server.broker import start_broker
from tests.e2e.field import Field, field
from tests.e2e.shaped import CUT_LINE, Cut, cut_in_each_phase, lines_run, shaped_field
from wire.errors import CutlayerError

CUT_S = 60.0
KEEPALIVES_S = (5, 60)


@dataclass(frozen=True)
class Left:
    """What a run leaves behind: parameters, every loss, and the ledgers of all parties."""

    weights: dict[str, bytes]
    losses: list[tuple[int, float]]
    ledgers: dict[str, list[tuple[Any, ...]]]

    @classmethod
    def by(cls, run: Field) -> Left:
        return cls(run.weights(), run.losses(), {name: run.ledger(name) for name in run.names})


@dataclass(frozen=True)
class Story:
    cuts: list[Cut]
    seen: list[dict[str, Any]]
    left: Left


def undisturbed(path: Path) -> Left:
    """Over loopback."""
    with start_broker() as broker, field(path, broker) as run:
        run.finish()
        return Left.by(run)


def disturbed(path: Path, cut_s: float) -> Story:
    with shaped_field(path, CUT_LINE) as (run, lines):
        cuts = cut_in_each_phase(run, lines, cut_s)
        run.finish(timeout_s=300)
        return Story(cuts, run.seen, Left.by(run))


def run_file(folder: Path, keepalive_s: int) -> Path:
    folder.mkdir()
    return lines_run(folder, broker={"keepalive_s": keepalive_s, "part_bytes": 4096})


def rows(stories: dict[int, Story]) -> list[str]:
    made = []
    for cut in stories[KEEPALIVES_S[0]].cuts:
        cells = [cut.phase.name]
        for story in stories.values():
            mine = next(each for each in story.cuts if each.phase == cut.phase)
            after_s = mine.recovery_s(story.seen)
            cells += ["nothing had waited" if after_s is None else f"{after_s:.1f} s", "yes" if mine.noticed(story.seen) else "no"]
        made.append(f"| {' | '.join(cells)} |")
    return made


def verdict(stories: dict[int, Story], wanted: Left) -> list[str]:
    said = []
    for keepalive_s, story in stories.items():
        same = {what: getattr(story.left, what) == getattr(wanted, what) for what in ("weights", "losses", "ledgers")}
        words = ", ".join(f"{what}: {'the same' if equal else 'DIFFERENT'}" for what, equal in same.items())
        said.append(f"- keepalive {keepalive_s} s, {len(story.cuts)} cuts in one run; against the run over loopback, bit for bit: {words}")
    return said


def main(cut_s: float) -> None:
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(KEEPALIVES_S)) as pool:
        wanted = undisturbed(run_file(Path(name, "loopback"), KEEPALIVES_S[0]))
        paths = [run_file(Path(name, str(keepalive_s)), keepalive_s) for keepalive_s in KEEPALIVES_S]
        stories = dict(zip(KEEPALIVES_S, pool.map(lambda path: disturbed(path, cut_s), paths), strict=True))
    head = " | ".join(f"keepalive {keepalive_s} s: goes on after | noticed" for keepalive_s in KEEPALIVES_S)
    write_page(
        "line-cuts",
        [
            "# The line cut in every phase",
            "",
            f"Two clients on digits, relay, int8 both ways, each behind a line of {CUT_LINE.up_bps / 1000:g} kbit/s and"
            f" {CUT_LINE.round_trip_s:g} s there and back, shaped in the",
            f"kernel; server and mosquitto at its other end. In each phase the line is cut for {cut_s:.0f} s at the moment at which the",
            "message of that phase leaves: packets vanish and nobody is told. *Goes on after*: from the line's return to the next sign",
            "of progress. *Noticed*: the client's transport gave the connection up, within the cut or right after it, and made another;",
            "otherwise TCP repeated what was missing. All cuts of a column fell on one and the same run.",
            "",
            *hardware("torch", "onnxruntime", "paho-mqtt"),
            "- script: `make bench-link-cuts` (root)",
            *verdict(stories, wanted),
            "",
            f"| phase | {head} |",
            "|---|" + "---|" * (2 * len(KEEPALIVES_S)),
            *rows(stories),
            "",
            "The end: a client whose last acknowledgement was lost with the server gone leaves by itself a minute after its part is safe.",
        ],
    )
    if any(story.left != wanted for story in stories.values()):
        raise SystemExit("benchmarks.line_cuts: a run that was cut did not end as the other did")


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else CUT_S)
    except CutlayerError as exc:
        raise SystemExit(f"benchmarks.line_cuts: error: {exc}") from exc
