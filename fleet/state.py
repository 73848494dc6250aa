"""The operator's folder: the authority's key and certificate below ``ca/``, the key that signs releases, and what is known of each device
in ``fleet.sqlite``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet.authority import Authority
from fleet.deploy.key import signing_key
from fleet.registry import Registry
from wire.errors import UsageError
from wire.fleet.release import DEPLOY_PUB
from wire.store import storage_errors, write_atomically

__all__ = ["Fleet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """``clock``: seconds since 1970, as ``time.time``."""

    folder: Path
    clock: Callable[[], float] = time.time

    @property
    def ca_pem(self) -> Path:
        return self.folder / "ca" / "ca.pem"

    @property
    def crl_pem(self) -> Path:
        return self.folder / "ca" / "crl.pem"

    @property
    def deploy_pub(self) -> Path:
        """The public key that every device is given; there once ``fleet.deploy.key.signing_key`` was called."""
        return self.folder / DEPLOY_PUB

    @property
    def is_here(self) -> bool:
        """Whether devices are registered here; a folder may also hold no more than ca.pem and tokens, as they were brought along."""
        return (self.folder / "fleet.sqlite").exists()

    def create(self, name: str) -> None:
        """Make the authority, and the key that signs releases. Raises UsageError where there are: new ones would shut every device out."""
        if (self.folder / "ca" / "ca.key").exists():
            raise UsageError(f"{self.folder} has an authority already; a new one would shut every device out. Choose another --fleet DIR")
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "ca").mkdir(mode=0o700, exist_ok=True)
        signing_key(self.folder)
        Authority.create(self.folder / "ca", name=name, clock=self.clock)
        with self.registry() as registry:
            self.write_crl(registry)

    def authority(self) -> Authority:
        """Raises UsageError where there is none."""
        if not self.ca_pem.exists():
            raise UsageError(f"{self.folder} has no authority yet; make one with `cutlayer ca init --fleet {self.folder}`")
        return Authority.open(self.folder / "ca", clock=self.clock)

    def registry(self) -> Registry:
        """Open it anew: each thread and process has its own. Raises StorageError."""
        return Registry(self.folder / "fleet.sqlite", clock=self.clock)

    def write_crl(self, registry: Registry) -> bytes:
        """Bring ``ca/crl.pem`` up to what the registry knows; returns it."""
        authority = self.authority()
        with registry.changing():  # or an older list could take the place of a newer one
            crl = authority.revocation_list(registry.revoked_serials())
            write_atomically(self.crl_pem, crl)
        return crl
