"""What an epoch takes of a client's time and energy: a formula, with the line at its best. `cutlayer simulate` finds it step by step.

A step is the client's forward, its message up, a round trip, the answer down, the client's backward. With one step in flight these
follow each other; with n, n steps overlap, and the slowest of computing, sending and receiving decides, or the n-th part of a whole step
where that is more. The server's computing takes no time here, nor do connecting, evaluation, weights that are handed on, and outages.

On the line, each PUBLISH takes whole packets with headers of TCP and IP; the other way come its PUBACK and an acknowledgement for every two
packets. A packet that is lost takes its bytes again, and a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.flops import Flops
from simulation.field.device import Device
from simulation.field.energy import Joules, joules_of
from simulation.field.link import Link
from simulation.plan.measure import Traffic
from wire.manifest import MemoryMode
from wire.transport.window import Goodput

__all__ = ["Epoch", "epoch_of", "part_bytes_on"]

_HEADERS = 20 + 20 + 12  # IPv4, TCP, TCP's timestamps
_PUBACK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """``line_bytes``: both ways, headers and repeats included. ``joules`` with and without idle power are its ``total`` and ``busy``."""

    seconds: float
    line_bytes: float
    flops: float
    joules: Joules


@dataclass(frozen=True, slots=True)
class _Way:
    """A step's messages one way: of them and of what answers them."""

    bytes: float
    answer_bytes: float
    packets: float


def part_bytes_on(link: Link, *, most_bytes: int) -> int:
    """How long parts of messages become on this line, once it has shown what it carries."""
    goodput = Goodput(rate=_rate_bps(link, link.up_bps) / 8)
    return goodput.part_bytes(keepalive_s=goodput.keepalive_s, most_bytes=most_bytes)


def epoch_of(link: Link, device: Device, *, traffic: Traffic, flops: Flops, memory: MemoryMode, samples: int, in_flight: int) -> Epoch:
    """An epoch of ``samples``. ``flops``: of the client's segment, a sample; a backward takes twice its forward's, and with low memory the
    forward's once more."""
    full, rest = divmod(samples, traffic.samples)
    up, down = _way(link, traffic.up), _way(link, traffic.down)
    seconds, spent, line_bytes = 0.0, dict.fromkeys(("compute", "up", "down", "server"), 0.0), 0.0
    for share, count in ((1.0, full), (rest / traffic.samples, 1 if rest else 0)):
        step = _step_s(link, device, up, down, flops=flops.forward * traffic.samples * share, share=share, memory=memory)
        took = _in_flight_s(step, in_flight, half_duplex=link.half_duplex)
        seconds += count * took
        line_bytes += count * share * (up.bytes + up.answer_bytes + down.bytes + down.answer_bytes)
        for kind, value in _shared(step, took).items():
            spent[kind] += count * value
    done = flops.forward * samples * (3 if memory == "fast" else 4)
    bursts = 2 * (full + bool(rest))
    joules = joules_of(device, link, spent_s=spent, flops=done, line_bytes=round(line_bytes), connections=0, bursts=bursts)
    return Epoch(seconds=seconds, line_bytes=line_bytes, flops=done, joules=joules)


def _way(link: Link, steps: Sequence[Sequence[int]]) -> _Way:
    """The mean over some steps."""
    room, header = link.mtu_bytes - _HEADERS, _HEADERS + link.frame_bytes
    publishes = sum(map(len, steps)) / len(steps)
    packets = sum(-(-size // room) for step in steps for size in step) / len(steps)
    bare = sum(map(sum, steps)) / len(steps)
    again = 1 / (1 - link.loss)
    answers = publishes * (header + _PUBACK) + (packets / 2) * header
    return _Way(bytes=(bare + packets * header) * again, answer_bytes=answers * again, packets=packets)


def _step_s(link: Link, device: Device, up: _Way, down: _Way, *, flops: float, share: float, memory: MemoryMode) -> dict[str, float]:
    """Seconds of one step, by what they are for."""
    lost = link.loss / (1 - link.loss) * (up.packets + down.packets) * share
    return {
        "compute": device.compute_s(flops) + device.compute_s((2 if memory == "fast" else 3) * flops),
        "up": (up.bytes + down.answer_bytes) * share * 8 / _rate_bps(link, link.up_bps),
        "down": (down.bytes + up.answer_bytes) * share * 8 / _rate_bps(link, link.down_bps),
        "server": link.round_trip_s * (1 + lost) + 2 * link.jitter_s,
    }


def _rate_bps(link: Link, bps: float) -> float:
    """What one client has of it, with all others of its cell at work."""
    return bps * link.duty_cycle / link.cell


def _in_flight_s(step: dict[str, float], in_flight: int, *, half_duplex: bool) -> float:
    whole = sum(step.values())
    if in_flight == 1:
        return whole
    line = step["up"] + step["down"] if half_duplex else max(step["up"], step["down"])
    return max(step["compute"], line, whole / in_flight)


def _shared(step: dict[str, float], took_s: float) -> dict[str, float]:
    """The step's seconds by kind so that they add up to what it took: where they overlap, each takes less."""
    less = took_s / sum(step.values()) if sum(step.values()) > 0 else 0.0
    return {kind: value * less for kind, value in step.items()}
