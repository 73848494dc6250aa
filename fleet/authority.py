"""A certificate authority of one level: a root that signs devices, the broker, its own server, and the list of revoked certificates.

ECDSA on P-256 with SHA-256: what every TLS library of the last ten years takes, mosquitto's and the boards' included. A device's
certificate is good for clients alone and a host's for servers alone, so that no device can pose as the broker.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wire.errors import StorageError, UsageError
from wire.limits import LIMITS
from wire.private_key import open_key, private_pem, write_key
from wire.store import write_atomically

__all__ = ["DEVICE_DAYS", "Authority", "check_hosts", "fingerprint", "load_csr", "pem_of"]

DEVICE_DAYS = 90
HOST_DAYS = 397
_ROOT_DAYS = 20 * 365
_HOST = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63}){0,9}")
_EARLIER_S = 3600  # a board's clock may be behind ours


@dataclass(frozen=True, slots=True)
class Authority:
    """``certificate`` signs; ``clock`` says when, in seconds since 1970."""

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey
    _clock: Callable[[], float]

    @classmethod
    def create(cls, folder: Path, *, name: str, clock: Callable[[], float]) -> Authority:
        """A new root in ``folder``: ca.key, for its owner alone, and ca.pem. Raises StorageError."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, key.public_key(), now_s=clock(), days=_ROOT_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        certificate = builder.sign(key, hashes.SHA256())
        write_key(folder / "ca.key", key)
        write_atomically(folder / "ca.pem", pem_of(certificate).encode())  # last: once it is there, the authority is whole
        return cls(certificate, key, clock)

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float]) -> Authority:
        """Raises StorageError: a file that is not there, or holds something else, or a key that others can read."""
        path = folder / "ca.key"
        try:
            certificate = x509.load_pem_x509_certificate(_read(folder / "ca.pem"))
        except (OSError, ValueError, TypeError) as exc:
            raise StorageError(f"{folder} holds no authority that can be read ({exc}); bring ca.key and ca.pem back") from exc
        key = open_key(path, lost="bring ca.key and ca.pem back", guarded=True)
        if key.public_key() != certificate.public_key():
            raise StorageError(f"{path} is not the key of {folder / 'ca.pem'}; bring both back from the same copy")
        return cls(certificate, key, clock)

    @property
    def pem(self) -> str:
        return pem_of(self.certificate)

    def has_signed(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def sign_device(self, name: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """For ``DEVICE_DAYS``, good for a TLS client."""
        return self._sign(name, key, days=DEVICE_DAYS, purpose=ExtendedKeyUsageOID.CLIENT_AUTH, hosts=())

    def issue_host(self, hosts: tuple[str, ...]) -> tuple[str, bytes]:
        """(certificate, private key), in PEM form, of a TLS server that is reached by these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH
        certificate = self._sign(hosts[0][:64], key.public_key(), days=HOST_DAYS, purpose=purpose, hosts=hosts)
        return pem_of(certificate), private_pem(key)

    def revocation_list(self, revoked: Iterable[tuple[int, float]]) -> bytes:
        """The list in PEM form, of (serial, when revoked). It ends with the authority: a list that has run out would shut everybody out."""
        now = _time(self._clock())
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now - datetime.timedelta(seconds=_EARLIER_S)).next_update(self.certificate.not_valid_after_utc)
        for serial, when_s in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(when_s)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _sign(
        self, name: str, key: ec.EllipticCurvePublicKey, *, days: int, purpose: x509.ObjectIdentifier, hosts: tuple[str, ...]
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self.certificate.subject, key, now_s=self._clock(), days=days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(each) for each in hosts]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """``hosts`` themselves, names and addresses that a certificate can be made out to. Raises UsageError."""
    for host in hosts:
        try:
            ipaddress.ip_address(host)
        except ValueError as exc:
            if not _HOST.fullmatch(host):
                raise UsageError(f"{host!r} is no name or address of a computer; write it like broker.example or 192.168.0.2") from exc
    return hosts


def load_csr(pem: bytes, *, name: str) -> ec.EllipticCurvePublicKey:
    """The public key for which ``name`` asks. Raises UsageError: no request, another name, another kind of key, or a wrong signature."""
    try:
        csr = x509.load_pem_x509_csr(pem)
        key, valid = csr.public_key(), csr.is_signature_valid
        names = [str(attribute.value) for attribute in csr.subject]
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as exc:
        raise UsageError("the certificate request is not one in PEM form") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError("the certificate request is for another kind of key than ECDSA on P-256")
    if not valid:
        raise UsageError("the certificate request is not signed by the key that it is for")
    if names != [name]:
        raise UsageError(f"the certificate request is made out to {', '.join(names)[:80]!r}, not to {name!r}")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Of a public key: SHA-256 of its SubjectPublicKeyInfo, in hex; a person compares the first digits."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, now_s: float, days: int) -> x509.CertificateBuilder:
    begin = _time(now_s)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin - datetime.timedelta(seconds=_EARLIER_S))
    builder = builder.not_valid_after(begin + datetime.timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _time(time_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(time_s), datetime.UTC)


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(LIMITS.enrolment_bytes)
