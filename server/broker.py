"""Starts an MQTT broker as a child process: mosquitto where it is installed, else the one that the iotcore wheel brings.

Bound to 127.0.0.1 unless told otherwise, without passwords: for one computer or a trusted network. It keeps nothing on disk; what matters
is kept by the parties until their peers have acknowledged it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal

from wire.errors import StorageError, UsageError
from wire.limits import LIMITS

__all__ = ["BrokerEngine", "BrokerProcess", "run_broker", "start_broker"]

BrokerEngine = Literal["auto", "mosquitto", "embedded"]

_READY_S = 15.0
_PACKET_BYTES = LIMITS.frame_bytes + 1024  # a frame, its topic and its headers

# MQTT 3.1.1, section 3.1: CONNECT with a clean session and an empty client id; any broker answers it with CONNACK.
_CONNECT = bytes([0x10, 12, 0, 4]) + b"MQTT" + bytes([4, 2, 0, 5, 0, 0])
# MQTT 5.0, section 3.1: the same, with no properties.
_CONNECT_V5 = bytes([0x10, 13, 0, 4]) + b"MQTT" + bytes([5, 2, 0, 5, 0, 0, 0])


class BrokerProcess:
    """A broker as a child of this process; ends with it. A context manager that stops it."""

    def __init__(self, *, host: str, port: int, engine: Literal["mosquitto", "embedded"], folder: Path, owns_folder: bool = False) -> None:
        self.host, self.port, self.engine = host, port, engine
        self.folder = folder
        self._owns_folder = owns_folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"mqtt://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

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
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
        except OSError as exc:
            raise StorageError(f"cannot start the broker in {self.folder}: {exc.strerror or exc}") from exc
        self._wait_until_ready()

    def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        self._end(signal.SIGTERM)
        if self._owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End it as a power cut would; ``start`` brings it up again on the same port."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + _READY_S
        while time.monotonic() < deadline_s:
            if self._process is not None and self._process.poll() is not None:
                break
            if self._answers():
                return
            time.sleep(0.02)
        self._end(signal.SIGKILL)
        said = (self.folder / "broker.log").read_text(errors="replace").strip().splitlines()
        raise UsageError(f"the {self.engine} broker does not come up on {self.host}:{self.port}: {said[-1] if said else 'it says nothing'}")

    def _answers(self) -> bool:
        host = self.url.removeprefix("mqtt://").rpartition(":")[0].strip("[]")
        try:
            with socket.create_connection((host, self.port), timeout=1.0) as link:
                link.sendall(_CONNECT if self.engine == "mosquitto" else _CONNECT_V5)
                return link.recv(1)[:1] == b"\x20"
        except OSError:
            return False


def start_broker(
    *, host: str = "127.0.0.1", port: int = 0, engine: BrokerEngine = "auto", folder: str | Path | None = None
) -> BrokerProcess:
    """Start a broker; ``port`` 0: a free one. ``folder``: where its configuration and log go; None: a temporary one.

    Raises UsageError: the engine is not installed, the port is in use, the host is no address of this computer.
    """
    chosen = _choose(engine)
    port = _check_port(host, port)
    owns = folder is None
    path = Path(tempfile.mkdtemp(prefix="cutlayer-broker-")) if folder is None else Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc
    broker = BrokerProcess(host=host, port=port, engine=chosen, folder=path, owns_folder=owns)
    try:
        broker.start()
    except BaseException:
        broker.stop()
        raise
    return broker


def run_broker(*, host: str = "127.0.0.1", port: int = 1883, engine: BrokerEngine = "auto") -> None:
    """Run a broker in the foreground until it is interrupted, and print how to connect. Raises UsageError."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with start_broker(host=host, port=port, engine=engine) as broker:
        print(f"{broker.engine} broker is listening on {host}:{broker.port}")
        for address in _addresses(host):
            print(f'in the run file:  [broker]  url = "mqtt://{address}:{broker.port}"')
        if host != "127.0.0.1":
            print("no password, no encryption: for a trusted network only; docs/guide-machines.md says how to do better")
        print("stop it with Ctrl-C", flush=True)
        while not stop.wait(0.5):
            if broker._process is None or broker._process.poll() is not None:
                raise UsageError(f"the broker has ended by itself; see {broker.folder / 'broker.log'}")


def _choose(engine: BrokerEngine) -> Literal["mosquitto", "embedded"]:
    if engine != "embedded" and _mosquitto_path() is not None:
        return "mosquitto"
    if engine == "mosquitto":
        raise UsageError("mosquitto is not installed; install it (Debian: apt install mosquitto), or use the embedded broker")
    if importlib.util.find_spec("iotcore") is None:
        raise UsageError("no broker is installed; install mosquitto, or the embedded one with pip install 'cutlayer[server]'")
    return "embedded"


def _check_port(host: str, port: int) -> int:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as exc:
        raise UsageError(f"cannot listen on {host}:{port}: {(exc.strerror or str(exc)).lower()}; choose another --host or --port") from exc


def _addresses(host: str) -> list[str]:
    """Where other programs reach a broker that listens on ``host``."""
    if host != "0.0.0.0":
        return [host]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address would be used (RFC 5737: nobody has that one)
            return [probe.getsockname()[0], "127.0.0.1"]
        except OSError:
            return ["127.0.0.1"]


def _mosquitto_path() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def _mosquitto(broker: BrokerProcess) -> list[str]:
    path = _mosquitto_path()
    assert path is not None
    config = broker.folder / "mosquitto.conf"
    _write(
        config,
        f"listener {broker.port} {broker.host}\n"
        "allow_anonymous true\n"
        "persistence false\n"
        "set_tcp_nodelay true\n"  # or delayed acknowledgements cost 88 ms a step
        f"max_packet_size {_PACKET_BYTES}\n"
        "max_queued_messages 0\n"  # the parties bound what is on its way
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
        f"max_segment_size = {16 << 20}\nmax_segment_count = 4\n"
        f'[v5.1]\nname = "v5"\nlisten = "{host}:{broker.port}"\nnext_connection_delay_ms = 1\n'
        f"[v5.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = {_PACKET_BYTES}\nmax_inflight_count = 100\n",
    )
    return [sys.executable, "-m", "iotcore", "--config", str(config), "--log-level", "CRITICAL"]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as exc:
        raise StorageError(f"cannot write {path}: {exc.strerror or exc}") from exc


def _die_with_parent() -> None:
    """In the child, before it is executed: be killed when the parent dies, however it dies (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
