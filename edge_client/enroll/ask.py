"""One question to the fleet's authority, over TLS that trusts the given certificate and nothing else."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from wire.enrolment import PATH, CertificateAnswer, CertificateRequest, dump_message, load_message
from wire.errors import LinkError, UsageError
from wire.limits import LIMITS

__all__ = ["AuthorityAddress", "ask"]

_HTTPS_PORT = 443


@dataclass(frozen=True, slots=True)
class AuthorityAddress:
    """``url``: ``https://host:port``. Raises UsageError."""

    url: str

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
            raise UsageError(f"{self.url!r} is no address of an authority; write it like https://ca.example:8884")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or _HTTPS_PORT


def ask(
    address: AuthorityAddress, request: CertificateRequest, *, ca: Path, shown: tuple[Path, Path] | None, timeout_s: float
) -> CertificateAnswer:
    """``shown``: the present certificate and its key. ``timeout_s``: between two signs of life.

    Raises LinkError where it cannot be reached, UsageError where it is not the fleet's authority, or does not take what was shown.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        if shown is not None:
            context.load_cert_chain(*shown)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(f"{ca if shown is None else shown[0]} does not hold what it should: {_said(exc)}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    link = http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=context)
    try:
        link.request("POST", PATH, dump_message(request), {"Content-Type": "application/json"})
        data = link.getresponse().read(LIMITS.enrolment_bytes + 1)
    except ssl.SSLCertVerificationError as exc:
        raise UsageError(
            f"{address.url} is not trusted ({exc.verify_message}); check the address, the ca.pem and this computer's clock"
        ) from exc
    except ssl.SSLError as exc:
        if shown is not None and "ALERT" in (exc.reason or ""):
            raise UsageError(f"{address.url} does not take our certificate ({_said(exc)}); enrol with a new token") from exc
        raise LinkError(f"{address.url}: TLS failed ({_said(exc)})") from exc
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        raise LinkError(f"{address.url} cannot be reached: {_said(exc)}") from exc
    finally:
        link.close()
    try:
        return load_message(CertificateAnswer, data)
    except UsageError as exc:
        raise UsageError(f"{address.url} answers what an authority would not ({exc}); check the address") from exc


def _said(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return exc.reason.replace("_", " ").lower()
    return str(getattr(exc, "strerror", None) or str(exc) or type(exc).__name__).lower()
