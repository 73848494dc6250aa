"""What a device and the fleet's certificate authority say to each other: JSON over HTTPS (docs/guide-fleet.md, "The protocol").

No sockets here: text in, dataclasses out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal, TypeVar

from wire.errors import UsageError
from wire.limits import LIMITS
from wire.parse import parse, plain

__all__ = [
    "PATH",
    "CertificateAnswer",
    "CertificateRequest",
    "check_device_name",
    "check_token",
    "due_s",
    "dump_message",
    "load_message",
]

PATH = "/1/certificate"
_RENEW_AT = 2 / 3  # of a certificate's life

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")


def due_s(begins_s: float, ends_s: float) -> float:
    """When a certificate that is good from ``begins_s`` to ``ends_s`` is to be renewed."""
    return begins_s + _RENEW_AT * (ends_s - begins_s)


def check_device_name(name: str) -> str:
    """``name`` itself. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"`name` is {name[:80]!r}; use 1 to 64 letters, digits, `_` or `-`")
    return name


def check_token(token: str) -> str:
    """``token`` itself. Raises ValueError, which does not show it: it may be a slip of a real one."""
    if not _TOKEN.fullmatch(token):
        raise ValueError("a token is 16 to 128 letters, digits, `_` or `-`")
    return token


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRequest:
    """``csr``: PKCS #10 in PEM form. ``token``: of the first certificate; left out, the connection shows the present certificate."""

    name: str
    csr: str
    token: str | None = None

    def __post_init__(self) -> None:
        check_device_name(self.name)
        if self.token is not None:
            check_token(self.token)

    def __repr__(self) -> str:
        return f"CertificateRequest(name={self.name!r}, token={'none' if self.token is None else 'hidden'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAnswer:
    """``certificate``, ``agent`` (of the device's agent, for the same key) and ``chain`` (the authority's own), PEM, where ``state`` is
    issued; ``reason`` where it is refused; ``retry_after_s`` where a person has to approve first."""

    state: Literal["issued", "pending", "refused"]
    certificate: str = ""
    agent: str = ""
    chain: str = ""
    reason: str = ""
    retry_after_s: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.retry_after_s <= 86400:
            raise ValueError(f"`retry_after_s` is {self.retry_after_s}; it must be 0 to 86400")


M = TypeVar("M", CertificateRequest, CertificateAnswer)


def dump_message(message: CertificateRequest | CertificateAnswer) -> bytes:
    return json.dumps(plain(message)).encode()


def load_message(kind: type[M], data: bytes) -> M:
    """Raises UsageError for anything that is not such a message."""
    if len(data) > LIMITS.enrolment_bytes:
        raise UsageError(f"a message of {len(data)} bytes, more than the limit of {LIMITS.enrolment_bytes}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise UsageError("this is not JSON") from exc
    return parse(kind, found, where="", error=UsageError)
