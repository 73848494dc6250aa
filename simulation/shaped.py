"""Slow lines as the kernel makes them: a hub, where server and broker run, and ends, each behind a line of its own.

    hub ──(tbf down →  ← tbf up)── end 0
     └────(tbf down →  ← tbf up)── end 1

Each is a network namespace; a line is a veth pair, or where it has a round trip time a cable of TAP devices. Rates are honoured by a token
bucket filter (tc-tbf(8)) at either end. Lost packets are dropped by iptables where they arrive, so they have used the line. A cut drops all
of them, silently: both ends have a connection that is half open.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from server.broker import BrokerProcess, start_broker
from simulation.cable import Cable
from simulation.namespaces import Namespace
from wire.errors import UsageError

__all__ = ["ETHERNET_BYTES", "LineBytes", "LineShape", "ShapedLines", "broker_at_hub"]

ETHERNET_BYTES = 14  # of header, which tbf counts with each IP packet
_BURST_SPARE_BYTES = 64
_CABLE_SPARE = 1.05  # tbf before a cable, which keeps the rate itself: at the same rate each packet that is late would leave it idle
_QUEUED_FRAMES = 4  # at least, or a slow line's queue would hold less than one packet
_ENDS = 200
_HUB = "198.18.0.1"  # RFC 2544: addresses for measurements
_PORT = 1883  # in a network of its own, every port is free


@dataclass(frozen=True, slots=True, kw_only=True)
class LineShape:
    """What a line can do. ``up`` is towards the hub.

    Rates are bits a second of IP packets, each with ``frame_bytes`` of the layer below (14: Ethernet's own header, as it really is here).
    ``loss``: share of the packets that is lost, in each direction. ``round_trip_s``: both ways, on an idle line, beside the time that the
    bits take. ``queue_s``: how long a packet may wait before the line; what would wait longer is dropped, but four packets may always wait.

    tbf is a line that gathers breath: after a pause its first packet passes at once. Not so where there is a round trip time, by a cable
    that gives each bit its time: measure there.
    """

    up_bps: int
    down_bps: int
    loss: float = 0.0
    round_trip_s: float = 0.0
    queue_s: float = 0.4
    mtu_bytes: int = 1500
    frame_bytes: int = ETHERNET_BYTES

    def __post_init__(self) -> None:
        if min(self.up_bps, self.down_bps) < 1000:
            raise ValueError("a line below 1,000 bit/s: tbf's clock is too coarse for it")
        if not 0 <= self.loss < 1:
            raise ValueError(f"`loss` is {self.loss}; it must be 0 or more and below 1")
        if min(self.round_trip_s, self.queue_s) < 0 or not 576 <= self.mtu_bytes <= 1500:
            raise ValueError("`round_trip_s` and `queue_s` must be 0 or more, `mtu_bytes` 576 to 1500")
        if not 0 <= self.frame_bytes <= 1000:
            raise ValueError("`frame_bytes` must be 0 to 1000")

    def queue_bytes(self, rate_bps: int) -> int:
        return max(int(rate_bps * self.queue_s / 8), _QUEUED_FRAMES * (self.mtu_bytes + self.frame_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class LineBytes:
    """Bytes that the line has carried since it was made, counted as its rate is, lost ones included."""

    up: int
    down: int


class ShapedLines:
    """A hub and one end for each shape. A context manager; nothing is left when it ends, nor when the process dies.

    Raises UsageError where lines cannot be shaped here: it needs root, iproute2 and iptables.
    """

    def __init__(self, *shapes: LineShape) -> None:
        if not 1 <= len(shapes) <= _ENDS:
            raise UsageError(f"{len(shapes)} lines; it must be 1 to {_ENDS}")
        self._shapes = shapes
        self._cut: set[int] = set()
        self._open = contextlib.ExitStack()
        try:
            self._hub = self._namespace()
            self._hub.run("ip", "address", "add", f"{_HUB}/32", "dev", "lo")
            self._ends = [self._namespace() for _ in shapes]
            for at in range(len(shapes)):
                self._lay(at)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ShapedLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Of the hub, from every end and from the hub itself."""
        return _HUB

    def at_hub(self) -> contextlib.AbstractContextManager[None]:
        """The calling thread is there meanwhile; what it connects or starts there stays there."""
        return self._hub.entered()

    def at_end(self, at: int) -> contextlib.AbstractContextManager[None]:
        """See ``at_hub``."""
        return self._ends[at].entered()

    def cut(self, *ends: int) -> None:
        """Nothing comes through these lines any more (none given: all of them), and nobody is told."""
        for at in self._named(ends) - self._cut:
            self._cut.add(at)
            for namespace, name in self._sides(at):
                namespace.run("iptables", "-w", "-I", "INPUT", "-i", name, "-j", "DROP")

    def restore(self, *ends: int) -> None:
        for at in self._named(ends) & self._cut:
            self._cut.discard(at)
            for namespace, name in self._sides(at):
                namespace.run("iptables", "-w", "-D", "INPUT", "-i", name, "-j", "DROP")

    @contextlib.contextmanager
    def being_cut(self, *ends: int) -> Iterator[None]:
        self.cut(*ends)
        try:
            yield
        finally:
            self.restore(*ends)

    def carried(self, at: int = 0) -> LineBytes:
        down, up = (_sent_bytes(namespace, name) for namespace, name in self._sides(at))
        return LineBytes(up=up, down=down)

    def close(self) -> None:
        self._open.close()

    # ------------------------------------------------------------ how it is made

    def _namespace(self) -> Namespace:
        made = Namespace()
        self._open.callback(made.close)
        # Neighbour discovery would take its share of a slow line.
        with made.entered(), contextlib.suppress(FileNotFoundError), open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as switch:
            switch.write("1")
        return made

    def _named(self, ends: tuple[int, ...]) -> set[int]:
        return set(ends or range(len(self._shapes)))

    def _sides(self, at: int) -> tuple[tuple[Namespace, str], tuple[Namespace, str]]:
        """(namespace, device) of the hub's side and of the end's."""
        return (self._hub, f"line{at}"), (self._ends[at], "line")

    def _lay(self, at: int) -> None:
        (hub, there), (end, here) = self._sides(at)
        shape = self._shapes[at]
        if shape.round_trip_s:
            rates = {"near_bps": shape.down_bps, "far_bps": shape.up_bps, "extra_bytes": shape.frame_bytes - ETHERNET_BYTES}
            cable = Cable(hub, end, near_name=there, far_name=here, delay_s=shape.round_trip_s / 2, **rates)
            self._open.callback(cable.close)
        else:
            hub.run("ip", "link", "add", there, "type", "veth", "peer", "name", here, "netns", end.path)
        for (namespace, name), rate_bps, last in zip(self._sides(at), (shape.down_bps, shape.up_bps), (1, 2), strict=True):
            held_bps = round(rate_bps * (_CABLE_SPARE if shape.round_trip_s else 1))
            _set_up(namespace, name, shape, held_bps, address=f"198.18.{at + 1}.{last}/30")
        end.run("ip", "route", "add", "default", "via", f"198.18.{at + 1}.1")


def broker_at_hub(lines: ShapedLines) -> BrokerProcess:
    """A broker at the hub, up and running: a context manager that stops it. Raises UsageError where it does not come up."""
    with lines.at_hub():
        return start_broker(host=lines.address, port=_PORT)


def _set_up(namespace: Namespace, name: str, shape: LineShape, rate_bps: int, *, address: str) -> None:
    # gso_max_segs 1: packets leave TCP as they go over the line; otherwise several at once would be lost, or counted with one header.
    namespace.run("ip", "link", "set", name, "mtu", str(shape.mtu_bytes), "gso_max_segs", "1", "up")
    namespace.run("ip", "address", "add", address, "dev", name)
    burst_bytes = shape.mtu_bytes + shape.frame_bytes + _BURST_SPARE_BYTES
    limit_bytes = shape.queue_bytes(rate_bps)
    extra_bytes = shape.frame_bytes - ETHERNET_BYTES
    counted = ("stab", "overhead", str(extra_bytes), "linklayer", "ethernet") if extra_bytes else ()  # tc-stab(8)
    namespace.run(
        *("tc", "qdisc", "add", "dev", name, "root", *counted, "tbf"),
        *("rate", f"{rate_bps}bit", "burst", f"{burst_bytes}b", "limit", f"{limit_bytes}b"),
    )
    if shape.loss:
        statistic = ("-m", "statistic", "--mode", "random", "--probability", f"{shape.loss:.6f}")
        namespace.run("iptables", "-w", "-A", "INPUT", "-i", name, *statistic, "-j", "DROP")


def _sent_bytes(namespace: Namespace, name: str) -> int:
    (row,) = json.loads(namespace.run("tc", "-s", "-j", "qdisc", "show", "dev", name))
    return int(row["bytes"])
