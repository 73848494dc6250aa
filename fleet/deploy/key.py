"""The key that signs releases: ``deploy.key`` in the fleet's folder, for its owner alone; devices are given ``deploy.pub``.

It is another key than the authority's, which says who somebody is and not what they are to run.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wire.errors import StorageError
from wire.files import read_small
from wire.fleet.release import DEPLOY_PUB
from wire.private_key import open_signing_key, write_key
from wire.store import write_atomically

__all__ = ["DEPLOY_KEY", "signing_key"]

DEPLOY_KEY = "deploy.key"


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The fleet's, made where there is none yet; deploy.pub is beside it then. Raises StorageError: one that cannot be read, or that others
    can read, or that is gone while deploy.pub is there: devices would take nothing from another."""
    private, public = folder / DEPLOY_KEY, folder / DEPLOY_PUB
    if not private.exists():
        if public.exists():
            raise StorageError(f"{private} is gone, and devices trust that key alone; bring it back from a copy")
        write_key(private, Ed25519PrivateKey.generate())
    key = open_signing_key(private, lost="bring it back from a copy")
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not public.exists():
        write_atomically(public, pem)
    elif pem not in read_small(public):
        raise StorageError(f"{public} is not of {private}; bring both back from the same copy")
    return key
