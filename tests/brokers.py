"""Real brokers for tests, each a context manager: mosquitto plain, with TLS, passwords or an access list; and the embedded one.

What they yield can be killed and started again on the same port. Import it as ``from tests.brokers import mosquitto``: pytest's
``pythonpath = ["."]`` makes ``tests`` a namespace package.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.broker import BrokerProcess, start_broker
from wire.transport.broker_config import BrokerConfig

__all__ = [
    "Authority",
    "Broker",
    "embedded",
    "free_port",
    "mosquitto",
    "mosquitto_acl",
    "mosquitto_as_written",
    "mosquitto_dropping",
    "mosquitto_limited",
    "mosquitto_password",
    "mosquitto_tls",
]

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin") or "mosquitto"
MOSQUITTO_PASSWD = shutil.which("mosquitto_passwd") or "mosquitto_passwd"
READY_S = 15.0


class _Process(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(kw_only=True)
class Broker:
    """A running broker. ``keys``: of ``BrokerConfig``, by which it is reached; ``folder`` holds the files that they name."""

    process: _Process
    port: int
    folder: Path
    keys: dict[str, Any]

    def config(self, **changes: Any) -> BrokerConfig:
        return BrokerConfig(**{**self.keys, **changes})

    def kill(self) -> None:
        """Kill -9, and gone when this returns."""
        self.process.kill()

    def start(self) -> None:
        """Again, after ``kill``, on the same port, and ready when this returns."""
        self.process.start()

    def restart(self) -> None:
        self.kill()
        self.start()


@contextlib.contextmanager
def mosquitto() -> Iterator[Broker]:
    with start_broker(engine="mosquitto") as process:
        yield _plain(process)


@contextlib.contextmanager
def embedded() -> Iterator[Broker]:
    with start_broker(engine="embedded") as process:
        yield _plain(process)


def _plain(process: BrokerProcess) -> Broker:
    return Broker(process=process, port=process.port, folder=process.folder, keys={"url": process.url})


@contextlib.contextmanager
def mosquitto_tls(
    *, names: tuple[str, ...] = ("127.0.0.1", "localhost"), client_certificates: bool = False, days: int = 1
) -> Iterator[Broker]:
    """``names``: in the server's certificate, which is good for ``days`` (below 0: expired). ``client_certificates``: wanted.

    In ``folder``: ca.pem, client.pem and client.key (which ``keys`` names where they are wanted), and stranger.pem, another authority.
    """
    with _folder() as folder:
        authority = Authority.make("test authority")
        authority.write(folder / "ca.pem")
        Authority.make("stranger").write(folder / "stranger.pem")
        authority.issue(folder, "server", names=names, days=days)
        authority.issue(folder, "client", names=("client",))
        Authority.make("stranger").issue(folder, "rogue", names=("client",))
        lines = [f"cafile {folder}/ca.pem", f"certfile {folder}/server.pem", f"keyfile {folder}/server.key", "allow_anonymous true"]
        keys = {"ca": "ca.pem"}
        if client_certificates:
            lines.append("require_certificate true")
            keys |= {"cert": "client.pem", "key": "client.key"}
        with _mosquitto(folder, lines, scheme="mqtts", **keys) as broker:
            yield broker


@contextlib.contextmanager
def mosquitto_password(*, username: str = "alice", password: str = "correct horse") -> Iterator[Broker]:
    """In ``folder``: password.txt, which ``keys`` names, and wrong.txt."""
    with _folder() as folder:
        lines = ["allow_anonymous false", _password_file(folder, username, password)]
        with _mosquitto(folder, lines, username=username, password_file="password.txt") as broker:
            yield broker


@contextlib.contextmanager
def mosquitto_acl(*rules: str, username: str = "alice") -> Iterator[Broker]:
    """``rules``: of mosquitto's access list, such as ``topic write lab/up``; they hold for ``username``."""
    with _folder() as folder:
        (folder / "acl").write_text("\n".join([f"user {username}", *rules, ""]))
        lines = ["allow_anonymous false", f"acl_file {folder}/acl", _password_file(folder, username, "secret")]
        with _mosquitto(folder, lines, username=username, password_file="password.txt") as broker:
            yield broker


@contextlib.contextmanager
def mosquitto_limited(packet_bytes: int) -> Iterator[Broker]:
    """It takes packets of at most ``packet_bytes``."""
    with _folder() as folder, _mosquitto(folder, ["allow_anonymous true", f"max_packet_size {packet_bytes}"]) as broker:
        yield broker


@contextlib.contextmanager
def mosquitto_dropping(payload_bytes: int) -> Iterator[Broker]:
    """It drops payloads over ``payload_bytes``; who speaks MQTT 3.1.1 is not told."""
    with _folder() as folder, _mosquitto(folder, ["allow_anonymous true", f"message_size_limit {payload_bytes}"]) as broker:
        yield broker


@contextlib.contextmanager
def mosquitto_as_written(folder: Path, *, port: int, program: str = MOSQUITTO) -> Iterator[Broker]:
    """With the mosquitto.conf that is in ``folder``; ``keys`` name no certificate."""
    config = folder / "mosquitto.conf"
    if os.getuid() == 0:  # as in _mosquitto
        config.write_text(config.read_text() + "user root\n")
    process = _Mosquitto(config, port, program)
    process.start()
    try:
        yield Broker(process=process, port=port, folder=folder, keys={"url": f"mqtts://127.0.0.1:{port}", "ca": "ca.pem"})
    finally:
        process.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _password_file(folder: Path, username: str, password: str) -> str:
    (folder / "password.txt").write_text(password + "\n")
    (folder / "wrong.txt").write_text("not it\n")
    done = subprocess.run([MOSQUITTO_PASSWD, "-b", "-c", str(folder / "passwd"), username, password], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return f"password_file {folder}/passwd"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cutlayer-test-broker-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _mosquitto(folder: Path, lines: list[str], *, scheme: str = "mqtt", **keys: str) -> Iterator[Broker]:
    port = free_port()
    # `user root` counts only where the tests run as root: mosquitto would become someone who cannot read the files.
    rows = ["user root", f"listener {port} 127.0.0.1", "set_tcp_nodelay true", *lines]
    (folder / "mosquitto.conf").write_text("\n".join(rows) + "\n")
    process = _Mosquitto(folder / "mosquitto.conf", port)
    process.start()
    try:
        yield Broker(process=process, port=port, folder=folder, keys={"url": f"{scheme}://127.0.0.1:{port}", **keys})
    finally:
        process.stop()


@dataclass
class _Mosquitto:
    config: Path
    port: int
    program: str = MOSQUITTO
    running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        with open(self.config.with_name("log"), "ab") as log:
            self.running = subprocess.Popen([self.program, "-c", str(self.config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s and self.running.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.01)
        self.stop()
        raise AssertionError(f"mosquitto does not come up: {self.config.with_name('log').read_text()}")

    def reload(self) -> None:
        assert self.running is not None
        self.running.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self.running is not None:
            self.running.terminate()
            self.running.wait()
            self.running = None

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
        self.stop()


@dataclass(frozen=True)
class Authority:
    """Issues certificates. Elliptic curves, because their keys are made in no time."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        basics = x509.BasicConstraints(ca=True, path_length=None)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates
        builder = _certificate(subject, subject, key, days=1).add_extension(basics, critical=True).add_extension(usage, critical=True)
        return cls(builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()), key)

    def write(self, path: Path) -> None:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, folder: Path, stem: str, *, names: tuple[str, ...], days: int = 1) -> None:
        """Write ``stem``.pem and ``stem``.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        builder = _certificate(subject, self.certificate.subject, key, days=days)
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = builder.add_extension(identifier, critical=False).sign(self.key, hashes.SHA256())
        (folder / f"{stem}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{stem}.key").write_bytes(secret)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=30))
    return builder.not_valid_after(now + datetime.timedelta(days=days))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
