"""The authority's server towards peers that do not keep to its protocol: bounded in size, time and number, and alive afterwards."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import serve
from tests.fleet.fleets import Served, served, until
from wire.enrolment import PATH
from wire.errors import UsageError
from wire.limits import LIMITS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("serve") / "fleet") as found:
        yield found


@contextlib.contextmanager
def tls(authority: Served) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=authority.fleet.ca_pem)
    link = socket.create_connection(("127.0.0.1", authority.server.port), timeout=15)
    with context.wrap_socket(link, server_hostname="127.0.0.1") as secure:
        yield secure


def said(authority: Served, data: bytes) -> bytes:
    """All that comes back."""
    with tls(authority) as link:
        link.sendall(data)
        found = b""
        with contextlib.suppress(OSError):
            while more := link.recv(65536):
                found += more
        return found


def post(body: bytes, *, length: object = None, path: str = PATH) -> bytes:
    return f"POST {path} HTTP/1.1\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (post(b"{}", path="/"), b"404", b"nothing else"),
        (post(b"{}", length="-1"), b"411", b"how long"),
        (post(b"{}", length="1e9"), b"411", b"how long"),
        (b"POST " + PATH.encode() + b" HTTP/1.1\r\n\r\n", b"411", b"how long"),
        (post(b"", length=LIMITS.enrolment_bytes + 1), b"413", b"at most"),
        (post(b"not JSON"), b"400", b"not JSON"),
        (post(b"[" * 20_000), b"400", b"not JSON"),
        (post(b"[]"), b"400", b"expected a table"),
        (post(b'{"name": "pi-1"}'), b"400", b"missing key"),
        (post(b'{"name": "../x", "csr": ""}'), b"400", b"letters, digits"),
        (post(b'{"name": "pi-1", "csr": "", "token": "short"}'), b"400", b"a token is 16"),
        (post(json.dumps({"name": "pi-1", "csr": "x", "token": "x" * 32}).encode()), b"403", b"not one in PEM form"),
    ],
)
def test_what_is_no_request_is_answered_so(authority: Served, request_: bytes, status: bytes, reason: bytes) -> None:
    found = said(authority, request_)
    assert found.startswith(b"HTTP/1.0 " + status)
    assert reason in found


def test_a_header_without_end(authority: Served) -> None:
    assert b"HTTP/1.0 200" not in said(authority, b"POST " + b"x" * 70_000)
    assert b"HTTP/1.0 200" not in said(authority, b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n")


def test_no_tls(authority: Served) -> None:
    before = len(authority.log)
    with socket.create_connection(("127.0.0.1", authority.server.port), timeout=15) as link:
        link.sendall(post(b"{}"))
        with contextlib.suppress(ConnectionError):
            assert link.recv(100)[:5] != b"HTTP/"
    until(lambda: next((line for line in authority.log[before:] if "is cut off" in line), None), "a line of the log")


def test_who_says_nothing_is_cut_off_and_others_are_served(tmp_path: Path) -> None:
    with served(tmp_path / "fleet", whole_s=0.3) as authority, tls(authority) as silent:
        silent.sendall(b"POST ")
        assert said(authority, post(b"[]")).startswith(b"HTTP/1.0 400")
        with contextlib.suppress(OSError):
            assert silent.recv(100) == b""


def test_more_connections_than_there_is_room_for(authority: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(serve._AT_ONCE):
            stack.enter_context(socket.create_connection(("127.0.0.1", authority.server.port), timeout=15))
        with socket.create_connection(("127.0.0.1", authority.server.port), timeout=15) as late:
            assert late.recv(1) == b""
    assert any("turned away" in line for line in authority.log)


def test_a_port_that_is_taken(authority: Served) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1 port"):
        serve.AuthorityServer(authority.fleet, host="127.0.0.1", port=authority.server.port, names=("x",), log=lambda line: None)


def test_no_line_of_the_log_is_broken_by_what_came(authority: Served) -> None:
    said(authority, b"\x1b[31m\nGET / HTTP/1.1\r\n\r\n")
    assert all(line.isprintable() for line in authority.log)
