"""``cutlayer ca serve``: the authority's own process, where devices fetch and renew their certificates over TLS.

Nothing is trusted before TLS and the registry have said so: sizes and times are bounded, and so is how many connections are open at once.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import signal
import socket
import ssl
import sys
import threading
import traceback
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from cryptography import x509

from fleet.enrolment import answer
from fleet.state import Fleet
from wire.enrolment import PATH, CertificateAnswer, CertificateRequest, due_s, dump_message, load_message
from wire.errors import CutlayerError, UsageError
from wire.limits import LIMITS
from wire.store import write_atomically

__all__ = ["AuthorityServer", "run_authority"]

_SILENCE_S = 10.0  # between two bytes
_WHOLE_S = 30.0  # of a connection, TLS handshake included
_LINGER_S = 1.0
_AT_ONCE = 32  # connections

_STATUS = {"issued": HTTPStatus.OK, "pending": HTTPStatus.ACCEPTED, "refused": HTTPStatus.FORBIDDEN}


class AuthorityServer(http.server.ThreadingHTTPServer):
    """Listens when it is made; ``serve_forever`` answers. ``log`` gets one line for each request and each refusal."""

    daemon_threads = True
    request_queue_size = 4 * _AT_ONCE

    def __init__(
        self,
        fleet: Fleet,
        *,
        host: str,
        port: int,
        names: tuple[str, ...],
        approve: bool = False,
        log: Callable[[str], None],
        whole_s: float = _WHOLE_S,
    ) -> None:
        """``names``: by which devices reach it. ``whole_s``: longest life of a connection.

        Raises CutlayerError: no authority, or the address cannot be used.
        """
        self.fleet, self.approve, self._log_line = fleet, approve, log
        self.authority = fleet.authority()
        self._names, self._whole_s = names, whole_s
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.verify_mode = ssl.CERT_OPTIONAL  # shown where a certificate is renewed
        self._tls.load_verify_locations(cadata=self.authority.pem)
        self._renew_s = 0.0
        self.service_actions()
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), _Handler)
        except OSError as exc:
            raise UsageError(f"cannot listen on {host} port {port}: {(exc.strerror or str(exc)).lower()}; choose another") from exc

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def say(self, text: str) -> None:
        when = datetime.datetime.fromtimestamp(self.fleet.clock(), datetime.UTC)
        self._log_line(f"{when:%Y-%m-%d %H:%M:%S} {text}")

    def service_actions(self) -> None:
        """Twice a second: a new certificate of our own, when it is time."""
        if self.fleet.clock() < self._renew_s:
            return
        certificate, key = self.authority.issue_host(self._names)
        folder = self.fleet.folder / "ca"
        write_atomically(folder / "serve.key", key, private=True)
        write_atomically(folder / "serve.pem", certificate.encode())
        self._tls.load_cert_chain(folder / "serve.pem", folder / "serve.key")
        self._renew_s = _renew_s(certificate)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()  # the standard library's looks our name up besides, which may take long

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.say(f"{client_address[0]} is turned away: {_AT_ONCE} connections are open")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_SILENCE_S)
        with self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secure:
            end = threading.Timer(self._whole_s, _cut, [secure])
            end.daemon = True
            end.start()
            try:
                self._shake_hands(secure)
                super().finish_request(secure, client_address)
            finally:
                end.cancel()

    def _shake_hands(self, secure: ssl.SSLSocket) -> None:
        """Where it fails, the other end reads why before the connection is gone: closed with bytes unread, it would be reset instead."""
        try:
            secure.do_handshake()
        except ssl.SSLError:
            secure.settimeout(_LINGER_S)
            secure.shutdown(socket.SHUT_WR)
            left_bytes = 2 * LIMITS.enrolment_bytes
            with contextlib.suppress(OSError):
                while left_bytes > 0 and (data := secure.recv(left_bytes)):
                    left_bytes -= len(data)
            raise

    def handle_error(self, request: Any, client_address: Any) -> None:
        exc = sys.exception()
        if isinstance(exc, (OSError, ValueError)):  # of the line: no TLS, another authority's certificate, gone in the middle
            said = exc.reason if isinstance(exc, ssl.SSLError) and exc.reason else str(exc)
            self.say(f"{client_address[0]} is cut off: {said.replace('_', ' ').lower()}")
            return
        self.say(f"a bug, please report it: {' '.join(traceback.format_exc().split())}")

    def answer(self, data: bytes, shown: bytes | None) -> tuple[HTTPStatus, CertificateAnswer, str]:
        """To a request of ``data`` over a connection that has ``shown`` a certificate (DER): status, answer, and a line for the log."""
        try:
            request = load_message(CertificateRequest, data)
        except UsageError as exc:
            return HTTPStatus.BAD_REQUEST, CertificateAnswer(state="refused", reason=f"the request: {exc}"), "a request that is none"
        serial = None if shown is None else x509.load_der_x509_certificate(shown).serial_number
        with self.fleet.registry() as registry:
            found = answer(request, registry, self.authority, now_s=self.fleet.clock(), shown_serial=serial, approve=self.approve)
            if found.state == "issued":  # where another key has taken over, what the earlier one had is revoked
                self.fleet.write_crl(registry)
        what = "a token" if request.token is not None else "its certificate" if serial is not None else "nothing"
        return _STATUS[found.state], found, f"`{request.name}` with {what}: {found.state}{found.reason and ', '}{found.reason}"


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request a connection."""

    server: AuthorityServer
    connection: ssl.SSLSocket
    server_version, sys_version = "cutlayer-ca", ""

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != PATH:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is {PATH} and nothing else")
        elif not length.isascii() or not length.isdigit() or len(length) > 9:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "say how long the request is")
        elif int(length) > LIMITS.enrolment_bytes:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {LIMITS.enrolment_bytes} bytes")
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, data: bytes) -> None:
        try:
            status, found, line = self.server.answer(data, self.connection.getpeercert(binary_form=True))
        except CutlayerError as exc:
            self.server.say(f"{self.client_address[0]} {exc}")
            return self._send(HTTPStatus.SERVICE_UNAVAILABLE, CertificateAnswer(state="refused", reason="the authority's disk refuses"))
        self.server.say(f"{self.client_address[0]} {line}")
        self._send(status, found)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.server.say(f"{self.client_address[0]} is refused: {reason}")
        self._send(status, CertificateAnswer(state="refused", reason=reason))

    def _send(self, status: HTTPStatus, found: CertificateAnswer) -> None:
        body = dump_message(found)
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Of the standard library: a bad request line. It may hold anything, so only that there was one is said."""
        self.server.say(f"{self.client_address[0]} sends what is no request")


def run_authority(fleet: Fleet, *, host: str, port: int, names: tuple[str, ...], approve: bool) -> None:
    """Serve until SIGINT or SIGTERM. Raises CutlayerError."""
    server = AuthorityServer(fleet, host=host, port=port, names=names, approve=approve, log=lambda line: print(line, flush=True))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    first = f"[{names[0]}]" if ":" in names[0] else names[0]
    print(f"devices enrol at  https://{first}:{server.port}  and need {fleet.ca_pem}", flush=True)
    if approve:
        print("each waits until you say `cutlayer device approve NAME`", flush=True)
    with server:
        server.serve_forever()


def _renew_s(pem: str) -> float:
    certificate = x509.load_pem_x509_certificate(pem.encode())
    return due_s(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def _cut(link: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended by itself
        link.shutdown(socket.SHUT_RDWR)
