"""The page of ``benchmarks.field``, from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cells import stored
from benchmarks.common import PAGES, hardware, prose, write_page
from simulation.field.presets import load_link, names, refusal
from simulation.field.report.words import duration, size

__all__ = ["LINKS", "TARGET", "to_target", "write_field_page"]

TARGET = 0.85
LINKS = tuple(name for name in names("link") if refusal(name) is None)
BARS_S = {"bar": 7200.0, "stretch": 3600.0}
_SLOWEST = "gsm-csd"


def to_target(cell: Mapping[str, Any], link: str) -> float | None:
    """Seconds of line time until the first evaluation of ``TARGET`` or more; None: it was never there."""
    times = zip(cell["history"], cell["trained_s"][link], strict=True)
    return next((time_s for accuracy, time_s in times if accuracy >= TARGET), None)


def write_field_page(results: Mapping[str, Any], methods: Sequence[str], *, about: Sequence[str]) -> None:
    """``results``: cells by their keys, and what ``raw`` found; ``about``: what was trained."""
    lines = ["# Field: how long to 85 % on Fashion-MNIST, over which line", "", *about, ""]
    lines += [*hardware("torch", "onnxruntime", "paho-mqtt", "numpy"), "- script: `make bench-field`", ""]
    lines += _times(results, methods)
    lines += _bar(results, methods)
    lines += _refused()
    lines += _against_real(stored(PAGES / "field-real.json"))
    lines += _many(stored(PAGES / "field-many.json"))
    write_page("field", lines)


# ------------------------------------------------------------ the table


def _raw_s(results: Mapping[str, Any], link: str) -> float:
    """The bytes at the line's rate, with what headers take, and one round trip."""
    found = load_link(link)
    payload = found.mtu_bytes - 52
    return float(found.setup_s + found.round_trip_s + results["raw"]["bytes"] * 8 * (1 + (52 + found.frame_bytes) / payload) / found.up_bps)


def _seconds(results: Mapping[str, Any], method: str, link: str) -> float | None:
    return to_target(results[method], link) if method in results else None


def _times(results: Mapping[str, Any], methods: Sequence[str]) -> list[str]:
    head = ["link", "kbit/s up / down", *methods, "raw data once"]
    lines = ["## Time to 85 %", "", f"| {' | '.join(head)} |", "|---|---|" + "---|" * (len(methods) + 1)]
    for link in LINKS:
        found = load_link(link)
        times = [_seconds(results, method, link) for method in methods]
        raw_s = _raw_s(results, link) if results["raw"]["reached"] else None
        best = min((each for each in (*times, raw_s) if each is not None), default=None)
        cells = [_cell(each, best) for each in (*times, raw_s)]
        lines.append(f"| {link} | {found.up_bps / 1000:g} / {found.down_bps / 1000:g} | {' | '.join(cells)} |")
    raw = results["raw"]
    tried = ", ".join(f"{int(count):,}: {100 * accuracy:.1f} %" for count, accuracy in raw["accuracies"].items())
    return [
        *lines,
        "",
        *prose(
            f"**Raw data once**: {raw['samples']:,} images with their labels are enough for a server that trains the whole network",
            "on them for",
            f"20 epochs ({tried}); as one compressed stream (zlib, level 9) they are {size(raw['bytes'])}. It is what leaves the",
            "clinic that split",
            "learning is there to prevent, and the time to beat: where it is the fastest, split learning is paid for privacy, not",
            "for speed.",
        ),
        "",
        *_accuracies(results, methods),
    ]


def _cell(seconds: float | None, best: float | None) -> str:
    if seconds is None:
        return "not reached"
    return f"**{duration(seconds)}**" if seconds == best else duration(seconds)


def _accuracies(results: Mapping[str, Any], methods: Sequence[str]) -> list[str]:
    """Of each method, which are the same over every line."""
    lines = ["| method | accuracy after each epoch, % | bytes of all clients, all epochs |", "|---|---|---|"]
    for method in methods:
        cell = results.get(method)
        if cell is not None:
            lines.append(f"| {method} | {', '.join(f'{100 * value:.1f}' for value in cell['history'])} | {size(cell['bytes'])} |")
    return [*lines, ""]


def _bar(results: Mapping[str, Any], methods: Sequence[str]) -> list[str]:
    times = {method: seconds for method in methods if (seconds := _seconds(results, method, _SLOWEST)) is not None}
    if not times:
        return []
    best = min(times, key=lambda method: times[method])
    said = ", ".join(f"{name} {duration(limit_s)}: {'met' if times[best] <= limit_s else 'missed'}" for name, limit_s in BARS_S.items())
    line = f"At 9.6 kbit/s ({_SLOWEST}) the fastest that trains is *{best}*, in {duration(times[best])} of line time ({said})."
    return ["## The bar", "", *prose(line), ""]


def _refused() -> list[str]:
    lines = ["## Lines that cannot do it", ""]
    return [*lines, *(f"- `{name}`: {refusal(name)}" for name in names("link") if refusal(name) is not None), ""]


# ------------------------------------------------------------ against real processes, and many clients


def _against_real(rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Virtual time against real processes",
        "",
        *prose(
            "The same run file once simulated and once on real processes, each client behind a line of its own that the kernel",
            "shapes (network",
            "namespaces, tbf, a cable of TAP devices for the round trip). Time from the first client's connection to the last",
            "client's goodbye;",
            "bytes of MQTT PUBLISH packets of all clients, up + down. Messages are cut at 4,096 bytes: left to themselves, connections",
            "cut them small until they know the rate, which at the hub is a race of milliseconds that 283 bytes more in one message",
            "shows. Client and server are charged what `--device this` and `this-server` measure. Written by `python -m",
            "benchmarks.field_real` (root).",
        ),
        "",
        "| kbit/s | clients | codec | virtual, s | real, s | difference | MQTT bytes, virtual | real | IP bytes, virtual | real |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        virtual, real = row["virtual"], row["real"]
        lines.append(
            f"| {row['rate_bps'] / 1000:g} | {row['clients']} | {row['codec']} | {virtual['time_s']:.1f} | {real['time_s']:.1f} | "
            f"{100 * (virtual['time_s'] / real['time_s'] - 1):+.1f} % | {virtual['mqtt_bytes']:,} | {real['mqtt_bytes']:,} | "
            f"{virtual['line_bytes']:,} | {real['line_bytes']:,} |"
        )
    worst = max(abs(row["virtual"]["time_s"] / row["real"]["time_s"] - 1) for row in rows.values())
    same = all(row["virtual"]["mqtt_bytes"] == row["real"]["mqtt_bytes"] for row in rows.values())
    return [
        *lines,
        "",
        f"Largest difference in time {100 * worst:.1f} % (bar 5 %); MQTT bytes {'equal' if same else 'NOT equal'} in all.",
        "",
    ]


def _many(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    text = (
        f"{found['clients']} clients in turn (relay), all of Fashion-MNIST shared out, lowbit over `{found['link']}` on a "
        f"{found['device']}: "
        f"{100 * found['accuracy']:.1f} % after {found['epochs']} epochs and {duration(found['time_s'])} of line time, simulated in "
        f"{found['wall_s']:.0f} s of this computer's time, {found['peak_rss_mb']:.0f} MB (bar: 85 % in 15 minutes). Written by "
        "`python -m benchmarks.field_many`; `make bench-field_scale` does it for thousands of clients in cost mode."
    )
    return ["## A hundred clients that really train", "", *prose(text), ""]
