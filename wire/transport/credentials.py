"""What a party shows to the broker, and whom it trusts: the files that ``[broker]`` names."""

from __future__ import annotations

import ssl
from pathlib import Path

from wire.errors import UsageError
from wire.transport.broker_config import BrokerConfig

__all__ = ["Credentials"]


class Credentials:
    """Read anew for every connection: the files may be replaced while the run goes on."""

    def __init__(self, broker: BrokerConfig, *, base_dir: str | Path) -> None:
        """Raises UsageError: a file that cannot be read or holds something else."""
        self._base_dir = Path(base_dir)
        self.username = broker.username
        self.password = None if broker.password_file is None else self._password(broker.password_file)
        self.tls = self._context(broker) if broker.tls else None

    def _path(self, key: str, name: str) -> Path:
        path = self._base_dir / Path(name).expanduser()
        try:
            path.open("rb").close()
        except OSError as exc:
            raise UsageError(f"[broker] `{key}`: cannot read {path}: {(exc.strerror or str(exc)).lower()}") from exc
        return path

    def _password(self, name: str) -> str:
        path = self._path("password_file", name)
        try:
            with path.open(encoding="utf-8") as file:
                password = file.read(1 << 16).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"[broker] `password_file`: {path} is not a text file with one line") from exc
        if not password or "\n" in password or len(password.encode()) > 65535:
            raise UsageError(f"[broker] `password_file`: {path} must hold the password and nothing else, in one line")
        return password

    def _context(self, broker: BrokerConfig) -> ssl.SSLContext:
        ca = None if broker.ca is None else self._path("ca", broker.ca)
        try:
            context = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError) as exc:
            raise UsageError(f"[broker] `ca`: {ca} is not a certificate in PEM form") from exc
        if broker.cert is not None and broker.key is not None:
            cert, key = self._path("cert", broker.cert), self._path("key", broker.key)
            try:
                context.load_cert_chain(cert, key, password=lambda: b"")  # without it, OpenSSL would ask at the terminal
            except (OSError, ssl.SSLError, ValueError) as exc:
                raise UsageError(
                    f"[broker] `cert`, `key`: {cert} and {key} are not a certificate and its key, in PEM form and without passphrase"
                ) from exc
        return context
