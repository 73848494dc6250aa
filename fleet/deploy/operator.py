"""Who commands devices: the operator's own identity, in ``operator/`` of the fleet's folder, signed here by the fleet's authority.

To the broker an identity is one connection, so one command at a time speaks as the operator; a lock says which.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.authority import fingerprint
from fleet.enrolment import RENEW_AT, sign
from fleet.registry import Registry
from fleet.state import Fleet
from wire.errors import StorageError, UsageError
from wire.limits import LIMITS
from wire.store import storage_errors, write_atomically
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

__all__ = ["acting", "operator_transport"]


@contextlib.contextmanager
def acting(fleet: Fleet) -> Iterator[bool]:
    """Whether we are the operator, for as long as this lasts; False: another command is."""
    folder = fleet.folder / "operator"
    with storage_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(folder / "lock", "wb")  # noqa: SIM115 - closed below, which is what gives it back
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def operator_transport(fleet: Fleet, registry: Registry, url: str) -> MqttTransport:
    """To the broker at ``url``, with a certificate that is good for weeks. Raises UsageError, StorageError."""
    folder, name = fleet.folder / "operator", registry.operator
    if name in {row.name for row in registry.devices()}:
        raise UsageError(f"`{name}` is a device and the operator's name as well; write the broker's folder with another --operator NAME")
    key = _key(folder / "key.pem")
    public = key.public_key()
    newest = registry.newest(name, fingerprint(public))
    if newest is None or newest.revoked_s is not None or not _is_young(newest.begins_s, newest.ends_s, fleet.clock()):
        with registry.changing():
            newest = sign(name, public, registry, fleet.authority())
        fleet.write_crl(registry)
    write_atomically(folder / "cert.pem", newest.pem.encode())
    try:
        broker = BrokerConfig(
            url=url, ca=str(fleet.ca_pem.resolve()), cert=str((folder / "cert.pem").resolve()), key=str((folder / "key.pem").resolve())
        )
    except ValueError as exc:
        raise UsageError(f"the broker's address: {exc}; a fleet's begins with mqtts://") from exc
    return MqttTransport(broker, client_id=name)


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
