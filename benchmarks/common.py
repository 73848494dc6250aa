"""What benchmarks share: where they ran, medians with spread, and the page that results go to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PAGES", "hardware", "prose", "spread", "write_page"]

PAGES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def hardware(*packages: str) -> list[str]:
    """Lines that say on what and with which versions."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return [
        f"- machine: {model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- date: {datetime.date.today().isoformat()}",
    ]


def spread(values: Sequence[float], *, unit: str = "ms", scale: float = 1e3) -> str:
    """Median, and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle * scale:.2f} {unit} ({low * scale:.2f} to {high * scale:.2f})"


def prose(*parts: str) -> list[str]:
    """Sentences as the lines of a paragraph."""
    return textwrap.wrap(" ".join(parts), 140, break_long_words=False, break_on_hyphens=False)


def write_page(name: str, lines: Sequence[str]) -> Path:
    """Write ``docs/benchmarks/name.md`` and print it."""
    text = "\n".join(lines) + "\n"
    PAGES.mkdir(parents=True, exist_ok=True)
    path = PAGES / f"{name}.md"
    path.write_text(text)
    print(text)
    return path
