"""How a party reaches the broker: the ``[broker]`` table of the run file."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from wire.limits import LIMITS

__all__ = ["BrokerConfig"]

_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """``url``: ``mqtt://host:port`` or ``mqtts://host:port`` (TLS).

    ``ca``: PEM file of the authority that signed the broker's certificate; left out: the system's. ``cert`` and ``key``: PEM files that
    this party shows. ``password_file`` holds the password of ``username``, one line. Paths are relative to the run file.
    ``keepalive_s``: left out, 60, and 180 where less than 64 kbit/s were measured. ``part_bytes``: the longest MQTT payload; on slow
    lines they are shorter, as measured. ``connect_timeout_s`` covers the TLS handshake.
    """

    url: str = "mqtt://127.0.0.1:1883"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    username: str | None = None
    password_file: str | None = None
    keepalive_s: int | None = None
    part_bytes: int = 1 << 16
    connect_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if parts.scheme not in _PORTS:
            raise ValueError(f"`url` is {self.url!r}; it must begin with mqtt:// or mqtts://")
        if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"`url` is {self.url!r}; write it like mqtt://192.168.0.2:1883")
        if parts.username is not None or parts.password is not None:
            raise ValueError("`url` holds a user or a password; use `username` and `password_file`")
        if parts.scheme == "mqtt" and (self.ca or self.cert or self.key):
            raise ValueError("`ca`, `cert` and `key` need TLS: begin `url` with mqtts://")
        if (self.cert is None) != (self.key is None):
            raise ValueError("`cert` and `key` belong together: give both or neither")
        if self.password_file is not None and self.username is None:
            raise ValueError("`password_file` needs a `username`")
        if self.keepalive_s is not None and not 5 <= self.keepalive_s <= 65535:
            raise ValueError(f"`keepalive_s` is {self.keepalive_s}; it must be 5 to 65535")
        if not 256 <= self.part_bytes <= LIMITS.frame_bytes:
            raise ValueError(f"`part_bytes` is {self.part_bytes}; it must be 256 to {LIMITS.frame_bytes}")
        if not 0 < self.connect_timeout_s <= 600:
            raise ValueError(f"`connect_timeout_s` is {self.connect_timeout_s}; it must be above 0 and at most 600")

    @property
    def host(self) -> str:
        return _split(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = _split(self.url)
        return parts.port or _PORTS[parts.scheme]

    @property
    def tls(self) -> bool:
        return _split(self.url).scheme == "mqtts"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError("port 0")
    except ValueError as exc:
        raise ValueError(f"`url` is {url!r}, which is not an address ({exc}); write it like mqtt://192.168.0.2:1883") from exc
    return parts
