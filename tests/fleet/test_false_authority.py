"""A device whose authority is none: not trusted, or trusted and at fault. It keeps its token, and takes nothing that is not its own."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.enroll.enroll import enroll
from edge_client.enroll.identity import Identity
from fleet.authority import Authority, pem_of
from fleet.enrolment import new_token
from fleet.state import Fleet
from wire.enrolment import CertificateAnswer, dump_message
from wire.errors import CutlayerError, LinkError, UsageError
from wire.limits import LIMITS


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    found = Fleet(folder=tmp_path_factory.mktemp("false") / "fleet")
    found.create("test fleet")
    return found


@contextlib.contextmanager
def answering(fleet: Fleet, body: bytes) -> Iterator[str]:
    """A server with a certificate of the fleet that answers this to everything; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response_only(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    certificate, key = fleet.authority().issue_host(("127.0.0.1",))
    (fleet.folder / "false.pem").write_bytes(certificate.encode() + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(fleet.folder / "false.pem")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def refused(fleet: Fleet, folder: Path, body: bytes, *, ca: Path | None = None) -> CutlayerError:
    token = folder / "token"
    token.write_text(new_token())
    with answering(fleet, body) as url, pytest.raises(CutlayerError) as caught:
        enroll("pi-1", url=url, ca=ca or fleet.ca_pem, token=token, folder=folder / "identity", timeout_s=0.0, say=lambda text: None)
    assert token.exists()
    assert not (folder / "identity" / "cert.pem").exists()
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_authority_that_is_not_the_given_one_learns_no_token(fleet: Fleet, tmp_path: Path) -> None:
    other = Fleet(folder=tmp_path / "other")
    other.create("test fleet")
    found = refused(fleet, tmp_path, b"", ca=other.ca_pem)
    assert isinstance(found, UsageError)
    assert "is not trusted" in str(found)


@pytest.mark.parametrize(
    "body", [b"", b"not JSON", b"[]", b'{"state": "done"}', b'{"state": "issued", "more": 1}', b'{"state": "pending", "retry_after_s": -1}']
)
def test_answers_that_are_none(fleet: Fleet, tmp_path: Path, body: bytes) -> None:
    assert "answers what an authority would not" in str(refused(fleet, tmp_path, body))


def test_an_answer_without_end(fleet: Fleet, tmp_path: Path) -> None:
    assert "more than the limit" in str(refused(fleet, tmp_path, b" " * (4 * LIMITS.enrolment_bytes)))


def test_a_wait_without_end(fleet: Fleet, tmp_path: Path) -> None:
    assert isinstance(refused(fleet, tmp_path, dump_message(CertificateAnswer(state="pending", retry_after_s=86400))), LinkError)


@pytest.mark.parametrize(
    ("signer", "name", "own_key", "said"),
    [
        ("fleet", "pi-1", False, "is for another key"),
        ("fleet", "pi-2", True, "is made out to 'pi-2', not to 'pi-1'"),
        ("stranger", "pi-1", True, "is not signed by the authority"),
        (None, "", True, "is not a certificate in PEM form"),
    ],
)
def test_certificates_that_are_not_its_own(fleet: Fleet, tmp_path: Path, signer: str | None, name: str, own_key: bool, said: str) -> None:
    key = Identity(tmp_path / ("identity" if own_key else "other")).key().public_key()
    authority = fleet.authority() if signer == "fleet" else Authority.create(tmp_path / "stranger", name="test fleet", clock=fleet.clock)
    certificate = "" if signer is None else pem_of(authority.sign_device(name, key))
    assert said in str(refused(fleet, tmp_path, dump_message(CertificateAnswer(state="issued", certificate=certificate))))
