"""The lines of real-line mode: one for each client, in the kernel or as a proxy, with outages in real time; and what they cannot be."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from server.broker import start_broker
from simulation.field.link import CLEAR, Link
from simulation.field.path import HEADER_BYTES
from simulation.field.weather import Markov, Steps, weather_of
from simulation.proxy import TcpProxy
from simulation.shaped import LineBytes, LineShape, ShapedLines, broker_at_hub
from wire.errors import CutlayerError, UsageError

__all__ = ["LineKind", "Lines", "Outages", "lines_for", "shape_of"]

_QUEUE_S = 5.0  # modems hold seconds; the modelled line holds all that TCP gives it

LineKind = Literal["namespaces", "proxy"]
_LONGEST_WAIT_S = 3600.0


def shape_of(link: Link, lines: LineKind) -> LineShape:
    """Raises UsageError for a link that such lines cannot be, with the reason."""
    for wrong, reason in _REASONS:
        if wrong(link, lines):
            raise UsageError(f"link `{link.name}` cannot be made of a real line: {reason}; leave out --real, or change the link")
    try:
        return LineShape(
            up_bps=round(link.up_bps),
            down_bps=round(link.down_bps),
            loss=link.loss,
            round_trip_s=link.round_trip_s,
            mtu_bytes=link.mtu_bytes,
            frame_bytes=link.frame_bytes,
            queue_s=_QUEUE_S,
        )
    except ValueError as exc:
        raise UsageError(f"link `{link.name}` cannot be made of a real line: {exc}") from exc


def _unlike_outages(link: Link, lines: LineKind) -> bool:
    """Whether the weather is more than outages of both ways at once."""
    weather = link.weather
    if isinstance(weather, Steps):
        return any(up != down or up not in (0, 1) for up, down in zip(weather.up, weather.down, strict=True))
    return weather is not CLEAR and not isinstance(weather, Markov)


def _never_back(link: Link, lines: LineKind) -> bool:
    weather = link.weather
    return isinstance(weather, Steps) and (not any(weather.up) or (weather.every_s is None and not weather.up[-1]))


_REASONS: tuple[tuple[Callable[[Link, LineKind], bool], str], ...] = (
    (lambda link, lines: link.half_duplex, "it is half duplex, and each way of a shaped line has its own time"),
    (lambda link, lines: link.duty_cycle < 1, "it has a duty cycle, which no shaper keeps"),
    (lambda link, lines: link.cell > 1, "clients share a cell, and here each has a line of its own"),
    (lambda link, lines: link.jitter_s > 0, "it has jitter, and a shaped line's delay is always the same"),
    (_unlike_outages, "its rates change, and a shaped line is either whole or down both ways"),
    (_never_back, "it is down for good"),
    (
        lambda link, lines: link.setup_s > 0 and link.weather is not CLEAR,
        "a modem's `setup_s` after each outage cannot be shaped; set setup_s=0",
    ),
    (
        lambda link, lines: lines == "proxy" and link.loss > 0,
        "it loses packets, which takes lines of the kernel's, and those need root, and a proxy cannot; set loss=0",
    ),
)


# ------------------------------------------------------------ the lines


class Lines(Protocol):
    """Each client behind a line of its own, by its place in the run."""

    @property
    def server_url(self) -> str:
        """Where servers reach the broker."""
        ...

    def client_url(self, at: int) -> str:
        """Where this client does."""
        ...

    def at_client(self, at: int) -> contextlib.AbstractContextManager[None]:
        """The calling thread is where this client is to be started."""
        ...

    def at_server(self) -> contextlib.AbstractContextManager[None]:
        """See ``at_client``."""
        ...

    def set_whole(self, at: int, whole: bool) -> None:
        """False: nothing comes through any more, and nobody is told."""
        ...

    def carried(self, at: int) -> LineBytes:
        """Until now."""
        ...


@dataclass(frozen=True, slots=True)
class _Kernel:
    lines: ShapedLines
    server_url: str

    def client_url(self, at: int) -> str:
        return self.server_url

    def at_client(self, at: int) -> contextlib.AbstractContextManager[None]:
        return self.lines.at_end(at)

    def at_server(self) -> contextlib.AbstractContextManager[None]:
        return self.lines.at_hub()

    def set_whole(self, at: int, whole: bool) -> None:
        (self.lines.restore if whole else self.lines.cut)(at)

    def carried(self, at: int) -> LineBytes:
        return self.lines.carried(at)


@dataclass(frozen=True, slots=True)
class _Proxies:
    proxies: Sequence[TcpProxy]
    server_url: str

    def client_url(self, at: int) -> str:
        return f"mqtt://127.0.0.1:{self.proxies[at].port}"

    def at_client(self, at: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def at_server(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def set_whole(self, at: int, whole: bool) -> None:
        (self.proxies[at].go_on if whole else self.proxies[at].stall)()

    def carried(self, at: int) -> LineBytes:
        up, down = self.proxies[at].carried_bytes
        return LineBytes(up=up, down=down)


@contextlib.contextmanager
def lines_for(link: Link, clients: int, kind: LineKind) -> Iterator[Lines]:
    """A broker, and a line to it for each client; all of it ends with the context. Raises UsageError as ``shape_of`` does."""
    shape = shape_of(link, kind)
    with _shaped_lines(shape, clients) if kind == "namespaces" else _proxied_lines(link, clients) as lines:
        yield lines


@contextlib.contextmanager
def _shaped_lines(shape: LineShape, clients: int) -> Iterator[Lines]:
    with ShapedLines(*[shape] * clients) as lines, broker_at_hub(lines) as broker:
        yield _Kernel(lines, broker.url)


@contextlib.contextmanager
def _proxied_lines(link: Link, clients: int) -> Iterator[Lines]:
    shape = {
        "delay_s": link.round_trip_s / 2,
        "rate_bps": (link.up_bps, link.down_bps),
        "segment_bytes": link.mtu_bytes - HEADER_BYTES,
        "header_bytes": HEADER_BYTES + link.frame_bytes,
    }
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(start_broker())
        proxies = [stack.enter_context(TcpProxy((broker.host, broker.port), **shape)) for _ in range(clients)]  # type: ignore[arg-type]
        yield _Proxies(proxies, broker.url)


class Outages(threading.Thread):
    """Cuts lines and gives them back, as each client's weather has it, from the moment on at which the context is entered.

    ``fail`` is told of an error of the kernel's tools, on this thread.
    """

    def __init__(self, link: Link, lines: Lines, *, clients: int, seed: int, fail: Callable[[CutlayerError], None]) -> None:
        super().__init__(name="outages", daemon=True)
        self._lines = lines
        self._weathers = [weather_of(link, seed=seed, client=at).weather for at in range(clients)]
        self._whole = [True] * clients
        self._begun_s = time.monotonic()
        self._ended = threading.Event()
        self._fail = fail

    def __enter__(self) -> Outages:
        self._begun_s = time.monotonic()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        try:
            while not self._ended.wait(self._turn()):
                pass
        except CutlayerError as exc:
            self._fail(exc)

    def _turn(self) -> float:
        """Make the lines as they are to be now; how long that stays so."""
        now_s = time.monotonic() - self._begun_s
        changes_s = now_s + _LONGEST_WAIT_S
        for at, weather in enumerate(self._weathers):
            conditions = weather.at(now_s)
            changes_s = min(changes_s, conditions.until_s)
            whole = conditions.up > 0
            if whole != self._whole[at]:
                self._whole[at] = whole
                self._lines.set_whole(at, whole)
        return max(0.0, changes_s - (time.monotonic() - self._begun_s))
