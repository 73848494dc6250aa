"""The folder of a device's identity, as ``[broker]`` of a run file names it.

key.pem     its private key, readable by its owner alone; made once, and it never leaves
ca.pem      the fleet's authority, which the device was given
agent.pem   the certificate of the device's agent, for the same key; from an authority that gives one
cert.pem    what the authority has signed; last to come, so a device that has it has all
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wire.errors import StorageError, UsageError
from wire.files import read_small
from wire.private_key import bring_key

__all__ = ["Identity", "check_certificate", "load_certificate", "split_certificates"]


@dataclass(frozen=True, slots=True)
class Identity:
    """``folder`` need not exist yet."""

    folder: Path

    @property
    def key_pem(self) -> Path:
        return self.folder / "key.pem"

    @property
    def ca_pem(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def cert_pem(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def agent_pem(self) -> Path:
        return self.folder / "agent.pem"

    def key(self) -> ec.EllipticCurvePrivateKey:
        """Made where there is none. Raises StorageError."""
        return bring_key(self.key_pem, lost=f"remove {self.folder}, and enrol with a new token")

    def certificate(self) -> x509.Certificate | None:
        """None: not there yet. Raises StorageError."""
        return load_certificate(read_small(self.cert_pem), what=str(self.cert_pem)) if self.cert_pem.exists() else None

    def request(self, name: str) -> str:
        """A certificate request for the key, in PEM form."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self.key(), hashes.SHA256())
        return csr.public_bytes(serialization.Encoding.PEM).decode()

    def check(self, certificate: x509.Certificate, *, name: str, ca: x509.Certificate, now_s: float) -> None:
        """Raises UsageError unless ``certificate`` is ours: signed by ``ca``, for this name and key, and good now."""
        check_certificate(certificate, name=name, ca=ca, now_s=now_s)
        if certificate.public_key() != self.key().public_key():
            raise UsageError(f"the certificate is for another key than {self.key_pem}; remove {self.folder}, and enrol with a new token")


def check_certificate(certificate: x509.Certificate, *, name: str | None, ca: x509.Certificate, now_s: float) -> None:
    """Raises UsageError unless it is signed by ``ca``, for this name (None: any), and good now."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as exc:
        raise UsageError("the certificate is not signed by the authority that this device was given; give it the right ca.pem") from exc
    names = [str(attribute.value) for attribute in certificate.subject]
    if name is not None and names != [name]:
        raise UsageError(f"the certificate is made out to {', '.join(names)[:80]!r}, not to {name!r}; give each device its own folder")
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    if now > certificate.not_valid_after_utc:
        ended = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        raise UsageError(f"the certificate ended on {ended}; enrol with a new token, or set this computer's clock right")
    if now < certificate.not_valid_before_utc:
        raise UsageError(f"the certificate begins on {certificate.not_valid_before_utc:%Y-%m-%d}; set this computer's clock right")


def load_certificate(data: bytes, *, what: str) -> x509.Certificate:
    """Raises StorageError; ``what`` names the source."""
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as exc:
        raise StorageError(f"{what} is not a certificate in PEM form") from exc


def split_certificates(data: bytes, *, what: str) -> list[str]:
    """One or several certificates in PEM form, each for itself. Raises StorageError."""
    try:
        return [each.public_bytes(serialization.Encoding.PEM).decode() for each in x509.load_pem_x509_certificates(data)]
    except ValueError as exc:
        raise StorageError(f"{what} is not a certificate in PEM form") from exc
