"""Who commands devices: the operator's own identity, in ``operator/`` of the fleet's folder, signed here by the fleet's authority.

To the broker an identity is one connection, so one command at a time speaks as the operator; a lock says which.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from fleet.identity import bring_identity
from fleet.registry import Registry
from fleet.state import Fleet
from wire.errors import UsageError
from wire.store import storage_errors
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
    bring_identity(fleet, registry, name, cert=folder / "cert.pem", key=folder / "key.pem", device=False)
    try:
        broker = BrokerConfig(
            url=url, ca=str(fleet.ca_pem.resolve()), cert=str((folder / "cert.pem").resolve()), key=str((folder / "key.pem").resolve())
        )
    except ValueError as exc:
        raise UsageError(f"the broker's address: {exc}; a fleet's begins with mqtts://") from exc
    return MqttTransport(broker, client_id=name)
