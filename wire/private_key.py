"""Private keys in files, in PEM form and for their owner alone."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from wire.errors import StorageError
from wire.files import write_atomically
from wire.limits import LIMITS

__all__ = ["bring_key", "open_key", "open_signing_key", "private_pem", "write_key"]


def bring_key(path: Path, *, lost: str) -> ec.EllipticCurvePrivateKey:
    """The key of an identity, made where there is none. Raises StorageError as ``open_key`` does."""
    if not path.exists():
        write_key(path, ec.generate_private_key(ec.SECP256R1()))
    return open_key(path, lost=lost)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
    """Raises StorageError."""
    write_atomically(path, private_pem(key), private=True)


def private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def open_key(path: Path, *, lost: str, guarded: bool = False) -> ec.EllipticCurvePrivateKey:
    """Of an identity or an authority. Raises StorageError, which ends in ``lost``: what to do where the file is not there or holds
    something else. ``guarded``: also where others can read it."""
    key = _open(path, lost=lost, guarded=guarded)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError(f"{path} is another kind of key; {lost}")
    return key


def open_signing_key(path: Path, *, lost: str) -> Ed25519PrivateKey:
    """Of releases, and guarded. Raises StorageError as ``open_key`` does."""
    key = _open(path, lost=lost, guarded=True)
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"{path} is another kind of key than Ed25519; {lost}")
    return key


def _open(path: Path, *, lost: str, guarded: bool) -> PrivateKeyTypes:
    try:
        with open(path, "rb") as file:
            data = file.read(LIMITS.enrolment_bytes)
        mode = path.stat().st_mode & 0o777
    except OSError as exc:
        raise StorageError(f"cannot read {path}: {(exc.strerror or str(exc)).lower()}; {lost}") from exc
    if guarded and mode & 0o077:
        raise StorageError(f"{path} can be read by others (mode {mode:o}); `chmod 600 {path}`, and consider whether anybody has")
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise StorageError(f"{path} is no private key; {lost}") from exc
