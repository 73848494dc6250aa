"""Starts an MQTT broker as a child process: mosquitto where it is installed, else the one that the iotcore wheel brings.

Bound to 127.0.0.1 unless told otherwise, without passwords: for one computer or a trusted network. It keeps nothing on disk; what matters
is kept by the parties until their peers have acknowledged it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from wire.errors import StorageError, UsageError
from wire.limits import LIMITS

__all__ = ["BrokerEngine", "BrokerProcess", "run_broker", "start_broker"]

BrokerEngine = Literal["auto", "mosquitto", "embedded"]
_Engine = Literal["mosquitto", "embedded"]

_READY_S = 15.0
_STOP_S = 5.0
_PORT_TRIES = 5
_PACKET_BYTES = LIMITS.frame_bytes + 1024  # a frame, its topic and its headers
_QUEUE_BYTES = 256 << 20  # for one client that does not read
_SEGMENT_BYTES, _SEGMENTS = 16 << 20, 4  # what the embedded broker keeps in memory of each topic

# MQTT 3.1.1 and 5.0, section 3.1: CONNECT with a clean session, an empty client id and no properties; brokers answer with CONNACK.
_CONNECT = {
    "mosquitto": bytes([0x10, 12, 0, 4]) + b"MQTT" + bytes([4, 2, 0, 5, 0, 0]),
    "embedded": bytes([0x10, 13, 0, 4]) + b"MQTT" + bytes([5, 2, 0, 5, 0, 0, 0]),
}
_CONNACK = b"\x20"


class BrokerProcess:
    """A broker as a child of this process. A context manager that stops it.

    Under Linux it ends with its parent, however that ends; strictly, with the thread that started it: start it on one that stays.
    """

    def __init__(self, *, host: str, port: int, engine: _Engine, folder: Path, owns_folder: bool = False) -> None:
        """``host`` is numeric. ``owns_folder``: ``stop`` removes it. Nothing is started yet."""
        self.host, self.port, self.engine = host, port, engine
        self.folder = folder
        self._owns_folder = owns_folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where this computer reaches it."""
        return _url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)

    @property
    def pid(self) -> int:
        """Raises RuntimeError while it is not running."""
        if self._process is None:
            raise RuntimeError("the broker is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> BrokerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers a CONNECT. Raises UsageError where it does not come up."""
        command = _mosquitto(self) if self.engine == "mosquitto" else _embedded(self)
        try:
            with open(self.folder / "broker.log", "ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us: the broker must outlast the parties' goodbyes
                    preexec_fn=_die_with(os.getpid()) if sys.platform == "linux" else None,
                )
        except OSError as exc:
            raise StorageError(f"cannot start the broker in {self.folder}: {exc.strerror or exc}") from exc
        self._wait_until_ready()

    def stop(self) -> None:
        """End it. Any number of times."""
        self._end(signal.SIGTERM)
        if self._owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End it as a power cut would; ``start`` brings it up again on the same port, and empty."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """``kill`` and ``start``."""
        self.kill()
        self.start()

    def last_words(self) -> str:
        """The last line of its log."""
        try:
            said = (self.folder / "broker.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            said = []
        return said[-1] if said else "it says nothing"

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + _READY_S
        while time.monotonic() < deadline_s and self.running:
            if self._answers() and self.running:
                return
            time.sleep(0.02)
        self._end(signal.SIGKILL)
        raise UsageError(f"the {self.engine} broker does not come up on {self.host} port {self.port}: {self.last_words()}")

    def _answers(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        try:
            with socket.create_connection((host, self.port), timeout=1.0) as link:
                link.sendall(_CONNECT[self.engine])
                return link.recv(1) == _CONNACK
        except OSError:
            return False


def start_broker(
    *, host: str = "127.0.0.1", port: int = 0, engine: BrokerEngine = "auto", folder: str | Path | None = None
) -> BrokerProcess:
    """Start a broker and wait until it is ready. ``port`` 0: a free one. ``folder``: for its configuration and log; None: a temporary one.

    Raises UsageError: the engine is not installed, the port is in use, the host is no address of this computer. StorageError: the folder.
    """
    chosen = _choose(engine)
    for tries in range(_PORT_TRIES, 0, -1):
        address, found_port = _check_port(host, port)
        broker = BrokerProcess(host=address, port=found_port, engine=chosen, folder=_folder(folder), owns_folder=folder is None)
        try:
            broker.start()
        except UsageError:
            broker.stop()
            if port or tries == 1:
                raise
            continue  # someone else may have taken the free port in the meantime
        except BaseException:
            broker.stop()
            raise
        return broker
    raise AssertionError  # the last try has returned or raised


def run_broker(*, host: str = "127.0.0.1", port: int = 1883, engine: BrokerEngine = "auto") -> None:
    """Run a broker in the foreground until SIGINT or SIGTERM, and print how to connect. Raises UsageError."""
    stop = threading.Event()
    with _on_signals(stop), start_broker(host=host, port=port, engine=engine) as broker:
        print(f"{broker.engine} broker is listening on {broker.host} port {broker.port}")
        for address in _addresses(broker.host):
            print(f'in the run file:  [broker]  url = "{_url(address, broker.port)}"')
        if broker.host not in ("127.0.0.1", "::1"):
            print("no password, no encryption: for a trusted network only; docs/guide-machines.md says how to do better")
        print("stop it with Ctrl-C", flush=True)
        while not stop.wait(0.5):
            if not broker.running:
                raise UsageError(f"the {broker.engine} broker has ended by itself: {broker.last_words()}")


@contextlib.contextmanager
def _on_signals(stop: threading.Event) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _choose(engine: BrokerEngine) -> _Engine:
    if engine != "embedded" and _mosquitto_path() is not None:
        return "mosquitto"
    if engine == "mosquitto":
        raise UsageError("mosquitto is not installed; install it (Debian: apt install mosquitto), or use the embedded broker")
    if importlib.util.find_spec("iotcore") is None:
        raise UsageError("no broker is installed; install mosquitto, or the embedded one with pip install 'cutlayer[server]'")
    return "embedded"


def _folder(folder: str | Path | None) -> Path:
    path = Path(tempfile.mkdtemp(prefix="cutlayer-broker-")) if folder is None else Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc
    return path


def _check_port(host: str, port: int) -> tuple[str, int]:
    """The numeric address and the port, if one can listen there. Raises UsageError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            found = probe.getsockname()
            return str(found[0]), int(found[1])
    except OSError as exc:
        raise UsageError(f"cannot listen on {host} port {port}: {(exc.strerror or str(exc)).lower()}; choose another") from exc


def _url(address: str, port: int) -> str:
    return f"mqtt://[{address}]:{port}" if ":" in address else f"mqtt://{address}:{port}"


def _addresses(host: str) -> list[str]:
    """Where programs reach a broker that listens on ``host``: other computers first."""
    wildcards = {
        "0.0.0.0": (socket.AF_INET, "192.0.2.1", "127.0.0.1"),  # RFC 5737 and RFC 3849: addresses that nobody has
        "::": (socket.AF_INET6, "2001:db8::1", "::1"),
    }
    if host not in wildcards:
        return [host]
    family, far, near = wildcards[host]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))  # sends nothing; tells which address of ours would be used
            return [str(probe.getsockname()[0]), near]
    except OSError:
        return [near]


def _mosquitto_path() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def _mosquitto(broker: BrokerProcess) -> list[str]:
    path = _mosquitto_path()
    if path is None:
        raise UsageError("mosquitto is no longer installed")
    config = broker.folder / "mosquitto.conf"
    _write(
        config,
        f"listener {broker.port} {broker.host}\n"
        "allow_anonymous true\n"
        "persistence false\n"
        "set_tcp_nodelay true\n"  # or delayed acknowledgements cost 88 ms a step
        f"max_packet_size {_PACKET_BYTES}\n"
        "max_queued_messages 0\n"  # by bytes instead:
        f"max_queued_bytes {_QUEUE_BYTES}\n"
        # Counts only where root starts it: it would become another user, which undoes PR_SET_PDEATHSIG (prctl(2)).
        "user root\n"
        "log_dest stderr\n"
        "log_type error\nlog_type warning\n",
    )
    return [path, "-c", str(config)]


def _embedded(broker: BrokerProcess) -> list[str]:
    config = broker.folder / "rumqttd.toml"
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    _write(
        config,
        "id = 0\n"
        "[router]\nid = 0\nmax_connections = 1024\nmax_outgoing_packet_count = 200\n"
        f"max_segment_size = {_SEGMENT_BYTES}\nmax_segment_count = {_SEGMENTS}\n"
        f'[v5.1]\nname = "v5"\nlisten = "{host}:{broker.port}"\nnext_connection_delay_ms = 1\n'
        f"[v5.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = {_PACKET_BYTES}\nmax_inflight_count = 100\n",
    )
    # -P: a folder called iotcore where we were started must not stand in for the package.
    return [sys.executable, "-P", "-m", "iotcore", "--config", str(config), "--log-level", "CRITICAL"]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as exc:
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # not in the child, where an import may wait for a lock for ever


def _die_with(parent: int) -> Callable[[], None]:
    """To be called in the child, before it is executed: be killed when the parent dies, however it dies (prctl(2), PR_SET_PDEATHSIG)."""

    def ask() -> None:
        if _LIBC is not None:
            _LIBC.prctl(1, int(signal.SIGKILL))
        if os.getppid() != parent:  # it is dead already
            os._exit(1)

    return ask
