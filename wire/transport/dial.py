"""A connected stream to the broker: name, TCP and TLS under one deadline, and given up at once when the transport closes.

paho's own ``connect`` blocks for up to twice its timeout and cannot be ended; it gets the finished stream instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Callable

from wire.errors import BrokerRefused, BrokerUnreachable
from wire.transport.broker_config import BrokerConfig
from wire.transport.credentials import Credentials
from wire.transport.stream import Stream

__all__ = ["Cancelled", "Waker", "dial", "tls_error"]

# OpenSSL's names of the alerts by which a broker says that our certificate is missing or no good.
_WANTS_CERTIFICATE = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE", "PEER_DID_NOT_RETURN_A_CERTIFICATE"}
_BAD_CERTIFICATE = {
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "TLSV1_ALERT_ACCESS_DENIED",
    "TLSV1_ALERT_DECRYPT_ERROR",
    "TLSV1_ALERT_UNKNOWN_CA",
}
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"}
# X509_V_ERR_… of openssl/x509_vfy.h
_NOT_YET_VALID, _EXPIRED, _OTHER_HOST, _OTHER_ADDRESS = 9, 10, 62, 64


class Cancelled(Exception):
    """The transport was closed while it waited."""


class Waker:
    """Ends another thread's wait for the network. ``wake`` is safe from any thread, also after ``close``."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full, so it is awake anyway; or closed
            self._write.send(b"\0")

    def wait(self, fileno: int | None, events: int, timeout_s: float) -> int:
        """Wait for a wake-up, or ``events`` of select.poll on ``fileno``; returns those that came, 0 for none."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        if fileno is not None:
            poll.register(fileno, events)
        ready = dict(poll.poll(max(0.0, timeout_s) * 1000))
        if ready.pop(self._read.fileno(), 0):
            with contextlib.suppress(OSError):
                self._read.recv(4096)
        return next(iter(ready.values()), 0)

    def close(self) -> None:
        self._read.close()
        self._write.close()


def dial(broker: BrokerConfig, credentials: Credentials, *, waker: Waker, cancelled: Callable[[], bool]) -> Stream:
    """Connect. Raises BrokerUnreachable (worth trying again), BrokerRefused (it is not), Cancelled."""
    end_s = time.monotonic() + broker.connect_timeout_s
    attempt = _Attempt(waker, cancelled)
    link = attempt.connect(_addresses(broker), end_s)
    try:
        # Nagle's algorithm together with delayed acknowledgements would cost 88 ms a step.
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if credentials.tls is not None:
            link = attempt.shake_hands(credentials.tls, link, broker.host, end_s)
    except ssl.SSLCertVerificationError as exc:
        link.close()
        raise BrokerRefused(_untrusted(exc, broker)) from exc
    except OSError as exc:
        link.close()
        raise tls_error(exc) or BrokerUnreachable(_reason(exc)) from exc
    except BaseException:
        link.close()
        raise
    return Stream(link)


class _Attempt:
    def __init__(self, waker: Waker, cancelled: Callable[[], bool]) -> None:
        self._waker, self._cancelled = waker, cancelled

    def connect(self, addresses: list[tuple[int, object]], end_s: float) -> socket.socket:
        """The first address that answers; each gets its share of the time that is left."""
        failure: OSError | None = None
        for at, (family, address) in enumerate(addresses):
            now_s = time.monotonic()
            try:
                return self._connect_one(family, address, now_s + (end_s - now_s) / (len(addresses) - at))
            except OSError as exc:
                failure = exc
        raise BrokerUnreachable(_reason(failure or TimeoutError())) from failure

    def _connect_one(self, family: int, address: object, end_s: float) -> socket.socket:
        with contextlib.ExitStack() as stack:
            link = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            link.setblocking(False)
            code = link.connect_ex(address)  # type: ignore[arg-type]
            if code == errno.EINPROGRESS:
                self._wait(link, select.POLLOUT, end_s)
                code = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code and link.getsockname() == link.getpeername():
                code = errno.ECONNREFUSED  # nobody listens there: TCP has connected the socket to itself
            if code:
                raise OSError(code, os.strerror(code))
            stack.pop_all()
            return link

    def shake_hands(self, context: ssl.SSLContext, link: socket.socket, host: str, end_s: float) -> ssl.SSLSocket:
        secure = context.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
        try:
            while True:
                try:
                    secure.do_handshake()
                    return secure
                except ssl.SSLWantReadError:
                    self._wait(secure, select.POLLIN, end_s)
                except ssl.SSLWantWriteError:
                    self._wait(secure, select.POLLOUT, end_s)
        except BaseException:
            secure.close()  # it has taken the descriptor over from `link`
            raise

    def _wait(self, link: socket.socket, events: int, end_s: float) -> None:
        while not self._cancelled():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            if self._waker.wait(link.fileno(), events, left_s):
                return
        raise Cancelled


def _addresses(broker: BrokerConfig) -> list[tuple[int, object]]:
    try:
        found = socket.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        raise BrokerUnreachable(f"the name {broker.host} is not known ({(exc.strerror or str(exc)).lower()})") from exc
    except UnicodeError as exc:
        raise BrokerRefused(f"{broker.host} cannot be a computer's name; check `url` in [broker]") from exc
    return [(family, address) for family, _, _, _, address in found]


def tls_error(exc: OSError) -> BrokerRefused | BrokerUnreachable | None:
    """What the TLS end of the broker meant; None for other errors."""
    if not isinstance(exc, ssl.SSLError) or isinstance(exc, ssl.SSLEOFError):
        return None
    if exc.reason in _WANTS_CERTIFICATE:
        return BrokerRefused("it wants a certificate from us; set `cert` and `key` in [broker]")
    if exc.reason in _BAD_CERTIFICATE:
        said = exc.reason.split("ALERT_")[-1].replace("_", " ").lower()
        return BrokerRefused(f"it does not accept our certificate ({said}); check `cert` and `key` in [broker]")
    if exc.reason in _NO_TLS:
        return BrokerRefused("no common TLS there; if the broker has no TLS on this port, begin `url` with mqtt://")
    return BrokerUnreachable(f"TLS failed ({(exc.reason or str(exc)).replace('_', ' ').lower()})")


def _untrusted(exc: ssl.SSLCertVerificationError, broker: BrokerConfig) -> str:
    if exc.verify_code in (_OTHER_HOST, _OTHER_ADDRESS):
        return f"its certificate is not made out to {broker.host}; write the name that stands in it into `url`"
    if exc.verify_code in (_EXPIRED, _NOT_YET_VALID):
        said = "has expired" if exc.verify_code == _EXPIRED else "is not valid yet"
        return f"its certificate {said}; renew it, or set this computer's clock right"
    ca = "set `ca` in [broker] to the authority's certificate" if broker.ca is None else "`ca` in [broker] is not the one that signed it"
    return f"its certificate is not trusted ({exc.verify_message}); {ca}"


def _reason(exc: OSError) -> str:
    if isinstance(exc, TimeoutError) and exc.errno is None:
        return "no answer in time"
    if isinstance(exc, (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError)):
        return "the connection was closed in the middle of the TLS handshake; if this port has no TLS, begin `url` with mqtt://"
    return (exc.strerror or str(exc)).lower()
