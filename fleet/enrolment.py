"""Decides on requests for certificates: the first one for a token, later ones for the present certificate. No sockets here.

    token     not known, of another device, run out, or shown before by another key   → refused
              good, and a person has to approve                                       → pending until ``cutlayer device approve``
              good                                                                    → issued; the token is that key's from now on
    renewal   revoked, of another device, or of another key                           → refused
              too early                                                               → the newest certificate there is, again
              else                                                                    → issued

The same request by the same key is answered the same way however often it comes: a device may lose power before it has the answer.

With a device's certificate goes that of its agent, for the same key: to the broker an identity is one connection, and the agent has one of
its own. It ends and is revoked with the device's.
"""

from __future__ import annotations

import hashlib
import secrets

from cryptography.hazmat.primitives.asymmetric import ec

from fleet.authority import Authority, fingerprint, load_csr, pem_of
from fleet.registry import CertificateRow, Registry
from wire.enrolment import CertificateAnswer, CertificateRequest, due_s
from wire.errors import UsageError
from wire.fleet.talk import agent_identity

__all__ = ["RETRY_AFTER_S", "answer", "new_token", "sign", "sign_pair", "token_digest"]

RETRY_AFTER_S = 10  # of a device that waits for a person
_TOKEN_BYTES = 24


def new_token() -> str:
    """192 bits, so nobody guesses one."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_digest(token: str) -> bytes:
    """What is kept of a token. It has the bits of a key, so one round of a plain hash does."""
    return hashlib.sha256(token.encode()).digest()


def answer(
    request: CertificateRequest, registry: Registry, authority: Authority, *, now_s: float, shown_serial: int | None, approve: bool
) -> CertificateAnswer:
    """``shown_serial``: of the certificate that the connection has shown and TLS has checked. ``approve``: a person has to.

    A refusal is an answer with its reason; raises StorageError only.
    """
    try:
        key = load_csr(request.csr.encode(), name=request.name)
        with registry.changing():
            if request.token is not None:
                return _first(request, request.token, key, registry, authority, now_s=now_s, approve=approve)
            return _renewed(request, key, registry, authority, now_s=now_s, shown_serial=shown_serial)
    except _Refused as exc:
        return CertificateAnswer(state="refused", reason=str(exc))
    except UsageError as exc:
        if exc.__class__ is not UsageError:  # the disk's
            raise
        return CertificateAnswer(state="refused", reason=str(exc))


def sign_pair(name: str, key: ec.EllipticCurvePublicKey, registry: Registry, authority: Authority) -> tuple[CertificateRow, CertificateRow]:
    """New certificates of a device and of its agent. Within ``registry.changing``."""
    return sign(name, key, registry, authority), sign(agent_identity(name), key, registry, authority)


def sign(name: str, key: ec.EllipticCurvePublicKey, registry: Registry, authority: Authority) -> CertificateRow:
    """A new certificate, written down. Within ``registry.changing``."""
    certificate = authority.sign_device(name, key)
    row = CertificateRow(
        serial=certificate.serial_number,
        name=name,
        key=fingerprint(key),
        begins_s=certificate.not_valid_before_utc.timestamp(),
        ends_s=certificate.not_valid_after_utc.timestamp(),
        pem=pem_of(certificate),
    )
    registry.record(row)
    return row


class _Refused(Exception):
    """The reason, for the device and for the log."""


def _first(
    request: CertificateRequest,
    token: str,
    key: ec.EllipticCurvePublicKey,
    registry: Registry,
    authority: Authority,
    *,
    now_s: float,
    approve: bool,
) -> CertificateAnswer:
    digest, mark = token_digest(token), fingerprint(key)
    found = registry.token(digest)
    if found is None:
        raise _Refused("this token is not known, or a newer one has taken its place; make one with `cutlayer device add`")
    if found.name != request.name:
        raise _Refused("this token is for another device")
    if found.key not in (None, mark):
        raise _Refused("this token has been used by another key; if that was not you, revoke the device, then make a new token")
    known = registry.newest(request.name, mark)
    if found.key == mark and known is not None and known.revoked_s is None and known.ends_s > now_s:
        return _issued(known, key, registry, authority)
    if found.expires_s <= now_s:
        raise _Refused("this token has run out; make a new one with `cutlayer device add`")
    registry.claim(digest, mark)
    if approve and not found.approved:
        return CertificateAnswer(state="pending", retry_after_s=RETRY_AFTER_S)
    return _issued(sign(request.name, key, registry, authority), key, registry, authority)


def _renewed(
    request: CertificateRequest,
    key: ec.EllipticCurvePublicKey,
    registry: Registry,
    authority: Authority,
    *,
    now_s: float,
    shown_serial: int | None,
) -> CertificateAnswer:
    if shown_serial is None:
        raise _Refused("neither a token nor a certificate was shown")
    shown, mark = registry.certificate(shown_serial), fingerprint(key)
    if shown is None:
        raise _Refused("the certificate that was shown is not in the registry")
    if shown.name != request.name:
        raise _Refused(f"the certificate that was shown is that of `{shown.name}`")
    if shown.revoked_s is not None:
        raise _Refused("the certificate that was shown is revoked")
    if shown.key != mark:
        raise _Refused("the request is for another key than the certificate that was shown")
    newest = registry.newest(request.name, mark) or shown
    if now_s < due_s(newest.begins_s, newest.ends_s):
        return _issued(newest, key, registry, authority)
    return _issued(sign(request.name, key, registry, authority), key, registry, authority)


def _issued(row: CertificateRow, key: ec.EllipticCurvePublicKey, registry: Registry, authority: Authority) -> CertificateAnswer:
    """With the agent's certificate, made where there is none that lasts as long: the device may have enrolled before agents had any."""
    name = agent_identity(row.name)
    agent = registry.newest(name, row.key)
    if agent is None or agent.revoked_s is not None or agent.ends_s < row.ends_s:
        agent = sign(name, key, registry, authority)
    return CertificateAnswer(state="issued", certificate=row.pem, agent=agent.pem, chain=authority.pem)
