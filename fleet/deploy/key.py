"""The key that signs releases: ``deploy.key`` in the fleet's folder, for its owner alone; devices are given ``deploy.pub``.

It is another key than the authority's, which says who somebody is and not what they are to run.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wire.errors import StorageError
from wire.limits import LIMITS
from wire.store import storage_errors, write_atomically

__all__ = ["DEPLOY_KEY", "DEPLOY_PUB", "signing_key"]

DEPLOY_KEY, DEPLOY_PUB = "deploy.key", "deploy.pub"


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The fleet's, made where there is none yet; deploy.pub is beside it then. Raises StorageError: one that cannot be read, or that others
    can read, or that is gone while deploy.pub is there: devices would take nothing from another."""
    private, public = folder / DEPLOY_KEY, folder / DEPLOY_PUB
    if not private.exists():
        if public.exists():
            raise StorageError(f"{private} is gone, and devices trust that key alone; bring it back from a copy")
        _make(private)
    key = _open(private)
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not public.exists():
        write_atomically(public, pem)
    elif pem not in _read(public):
        raise StorageError(f"{public} is not of {private}; bring both back from the same copy")
    return key


def _make(path: Path) -> None:
    form = serialization.PrivateFormat.PKCS8
    pem = Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_atomically(path, pem, private=True)


def _open(path: Path) -> Ed25519PrivateKey:
    with storage_errors(path):
        mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise StorageError(f"{path} can be read by others (mode {mode:o}); `chmod 600 {path}`, and consider whether anybody has")
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise StorageError(f"{path} is no private key; bring it back from a copy") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"{path} is another kind of key than Ed25519; bring the right one back from a copy")
    return key


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(LIMITS.enrolment_bytes)
    except OSError as exc:
        raise StorageError(f"cannot read {path}: {(exc.strerror or str(exc)).lower()}") from exc
