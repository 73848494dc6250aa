"""Identities of who sits beside the authority: the operator, and the server of a run. They need no token; nobody else could make them."""

from __future__ import annotations

from pathlib import Path

from fleet.authority import fingerprint
from fleet.enrolment import sign
from fleet.registry import Registry
from fleet.state import Fleet
from wire.enrolment import due_s
from wire.private_key import bring_key
from wire.store import write_atomically

__all__ = ["bring_identity"]


def bring_identity(fleet: Fleet, registry: Registry, name: str, *, cert: Path, key: Path, device: bool) -> None:
    """Bring the files ``cert`` and ``key`` up to an identity of ``name`` that is good for weeks. ``device``: it is one of the registry's.

    Raises UsageError, StorageError.
    """
    public = bring_key(key, lost="remove it, and a new one is made").public_key()
    newest = registry.newest(name, fingerprint(public))
    if newest is None or newest.revoked_s is not None or not newest.begins_s <= fleet.clock() < due_s(newest.begins_s, newest.ends_s):
        with registry.changing():
            if device:
                registry.ensure(name)
            newest = sign(name, public, registry, fleet.authority())
        fleet.write_crl(registry)
    write_atomically(cert, newest.pem.encode())
