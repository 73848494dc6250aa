"""Identities of who sits beside the authority: the operator, and the server of a run. They need no token; nobody else could make them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.authority import fingerprint
from fleet.enrolment import RENEW_AT, sign
from fleet.registry import Registry
from fleet.state import Fleet
from wire.errors import StorageError
from wire.limits import LIMITS
from wire.store import write_atomically

__all__ = ["bring_identity"]


def bring_identity(fleet: Fleet, registry: Registry, name: str, *, cert: Path, key: Path, device: bool) -> None:
    """Bring the files ``cert`` and ``key`` up to an identity of ``name`` that is good for weeks. ``device``: it is one of the registry's.

    Raises UsageError, StorageError.
    """
    public = _key(key).public_key()
    newest = registry.newest(name, fingerprint(public))
    if newest is None or newest.revoked_s is not None or not _is_young(newest.begins_s, newest.ends_s, fleet.clock()):
        with registry.changing():
            if device:
                registry.ensure(name)
            newest = sign(name, public, registry, fleet.authority())
        fleet.write_crl(registry)
    write_atomically(cert, newest.pem.encode())


def _is_young(begins_s: float, ends_s: float, now_s: float) -> bool:
    return begins_s <= now_s < begins_s + RENEW_AT * (ends_s - begins_s)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Made where there is none. Raises StorageError."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.PKCS8
        write_atomically(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()), private=True)
    try:
        with open(path, "rb") as file:
            found = serialization.load_pem_private_key(file.read(LIMITS.enrolment_bytes), password=None)
    except (OSError, ValueError, TypeError) as exc:
        raise StorageError(f"{path} is no private key ({exc}); remove it, and a new one is made") from exc
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise StorageError(f"{path} is another kind of key; remove it, and a new one is made")
    return found
