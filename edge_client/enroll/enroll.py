"""Enrol once, renew at two thirds of the certificate's life, and do nothing in between: the same command at each boot and each day.

Power may fail at any moment. Key and token stay the same until the certificate is on disk, and the authority gives the same key the same
answer; the token goes last. So a token that is there is shown, also where a certificate is: it may be left over, or be a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509

from edge_client.enroll.ask import AuthorityAddress, ask
from edge_client.enroll.identity import Identity, load_certificate, split_certificates
from wire.enrolment import CertificateAnswer, CertificateRequest, check_device_name, check_token, due_s
from wire.errors import LinkError, UsageError
from wire.files import read_small
from wire.fleet.talk import agent_identity
from wire.store import storage_errors, write_atomically

__all__ = ["Enrolment", "enroll", "install", "write_request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What ``enroll`` has done, and until when the certificate is good, in seconds since 1970."""

    done: Literal["enrolled", "renewed", "nothing"]
    until_s: float


def enroll(
    name: str,
    *,
    url: str,
    ca: Path,
    token: Path | None,
    folder: Path,
    timeout_s: float = 600.0,
    answer_s: float = 30.0,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = print,
) -> Enrolment:
    """Bring ``folder`` to a key and a certificate that is good, and remove the file ``token`` once it is.

    ``ca``: the authority's certificate, which alone is trusted. ``timeout_s``: longest wait for a person's approval; ``answer_s``: for an
    answer. Raises UsageError, with its reason, where a person has to do something, LinkError where trying again later will do.
    """
    identity, address = Identity(folder), AuthorityAddress(url)
    authority = _prepare(identity, name, ca, clock())
    secret = _secret(token) if token is not None and token.exists() else None
    if secret is None:
        present = _present(identity, name, authority, clock(), token)
        if clock() < _due_s(present) and identity.agent_pem.exists():
            return Enrolment(done="nothing", until_s=present.not_valid_after_utc.timestamp())
    request = CertificateRequest(name=name, csr=identity.request(name), token=secret)
    shown = (identity.cert_pem, identity.key_pem) if secret is None else None

    def question() -> CertificateAnswer:
        return ask(address, request, ca=ca, shown=shown, timeout_s=answer_s)

    found = _until_approved(question, name, end_s=clock() + timeout_s, clock=clock, sleep=sleep, say=say)
    certificate, new = _take(identity, found.certificate, found.agent, name=name, what=f"what {url} sent", ca=authority, now_s=clock())
    _forget(token)
    done: Literal["enrolled", "renewed", "nothing"] = "enrolled" if secret is not None else "renewed" if new else "nothing"
    return Enrolment(done=done, until_s=certificate.not_valid_after_utc.timestamp())


def write_request(name: str, *, folder: Path, csr: Path) -> None:
    """For an authority that is not in reach: the certificate request, into ``csr``. Raises UsageError."""
    write_atomically(csr, Identity(folder).request(_checked(name)).encode())


def install(name: str, *, ca: Path, folder: Path, cert: Path, clock: Callable[[], float] = time.time) -> Enrolment:
    """Take the certificates that the operator has signed by hand: the device's, then its agent's where it has one. Raises UsageError."""
    identity = Identity(folder)
    authority = _prepare(identity, name, ca, clock())
    own, *more = split_certificates(read_small(cert), what=str(cert))
    certificate, _ = _take(identity, own, more[0] if more else "", name=name, what=str(cert), ca=authority, now_s=clock())
    return Enrolment(done="enrolled", until_s=certificate.not_valid_after_utc.timestamp())


def _take(
    identity: Identity, own: str, agent: str, *, name: str, what: str, ca: x509.Certificate, now_s: float
) -> tuple[x509.Certificate, bool]:
    """Check both certificates, then keep them, the device's last; returns that, and whether anything is new. ``agent``: empty where none
    was given. Raises UsageError."""
    certificate = load_certificate(own.encode(), what=what)
    identity.check(certificate, name=name, ca=ca, now_s=now_s)
    if agent:
        identity.check(load_certificate(agent.encode(), what=what), name=agent_identity(name), ca=ca, now_s=now_s)
    agents_is_new = bool(agent) and _keep(identity.agent_pem, agent)
    return certificate, _keep(identity.cert_pem, own) or agents_is_new


def _keep(path: Path, pem: str) -> bool:
    """Whether it is new. What is the same is not written again: services are started anew where a certificate changes."""
    if path.exists() and read_small(path) == pem.encode():
        return False
    write_atomically(path, pem.encode())
    return True


def _prepare(identity: Identity, name: str, ca: Path, now_s: float) -> x509.Certificate:
    """The authority's certificate, of which the identity keeps a copy. Raises UsageError."""
    _checked(name)
    data = read_small(ca)
    authority = load_certificate(data, what=str(ca))
    _check_clock(now_s, authority)
    if not identity.ca_pem.exists() or read_small(identity.ca_pem) != data:
        write_atomically(identity.ca_pem, data)
    return authority


def _checked(name: str) -> str:
    try:
        return check_device_name(name)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def _check_clock(now_s: float, authority: x509.Certificate) -> None:
    """A board without a battery wakes up in the past, where no certificate is good; the authority's own date is one that has been."""
    made = authority.not_valid_before_utc
    if now_s < made.timestamp():
        now = datetime.fromtimestamp(now_s, UTC)
        raise UsageError(
            f"the clock says {now:%Y-%m-%d %H:%M} UTC, before the fleet's authority was made ({made:%Y-%m-%d}); "
            "set it (`sudo timedatectl set-ntp true`, or `sudo date -s …`) and start again"
        )


def _present(identity: Identity, name: str, authority: x509.Certificate, now_s: float, token: Path | None) -> x509.Certificate:
    """The certificate that is there and good. Raises UsageError."""
    found = identity.certificate()
    if found is None:
        where = "no token was given" if token is None else f"there is no {token}"
        raise UsageError(
            f"{identity.folder} holds no certificate and {where}; make a token with `cutlayer device add` and give it with --token FILE"
        )
    identity.check(found, name=name, ca=authority, now_s=now_s)
    return found


def _due_s(certificate: x509.Certificate) -> float:
    return due_s(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def _secret(token: Path) -> str:
    secret = read_small(token).decode("ascii", errors="replace").strip()
    try:
        return check_token(secret)
    except ValueError as exc:
        raise UsageError(f"{token} holds no token ({exc}); make a new one with `cutlayer device add`") from exc


def _until_approved(
    question: Callable[[], CertificateAnswer],
    name: str,
    *,
    end_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> CertificateAnswer:
    """Raises UsageError for a refusal, LinkError where approval takes too long."""
    told = False
    while True:
        found = question()
        if found.state == "refused":
            raise UsageError(f"the authority refuses `{name}`: {found.reason[:300]}")
        if found.state == "issued":
            return found
        wait_s = max(1.0, float(found.retry_after_s))
        if clock() + wait_s > end_s:
            raise LinkError(f"`{name}` still waits for `cutlayer device approve {name}`; start this again after that")
        if not told:
            say(f"`{name}` waits for `cutlayer device approve {name}`")
            told = True
        sleep(wait_s)


def _forget(token: Path | None) -> None:
    """Raises StorageError: it must not stay behind unnoticed."""
    if token is not None:
        with storage_errors(token):
            token.unlink(missing_ok=True)
