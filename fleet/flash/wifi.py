"""A wireless network for the device: its name and country from the command line, its passphrase never: from a file or typed."""

from __future__ import annotations

import getpass
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from wire.errors import UsageError

__all__ = ["Wifi", "parse_wifi", "read_wifi"]

_MAX_SSID_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Wifi:
    """``psk``: 64 hex digits, from which the passphrase is not found; None: an open network. ``country``: two letters, or None."""

    ssid: str
    country: str | None
    psk: str | None


def parse_wifi(text: str) -> tuple[str, str | None]:
    """(network, country) of ``SSID[:country]``. Raises ValueError. A name that itself ends in a colon and two
    letters needs its country behind it."""
    ssid, _, country = text.rpartition(":")
    if not ssid or not re.fullmatch("[A-Za-z]{2}", country):
        ssid, country = text, ""
    if not 0 < len(ssid.encode()) <= _MAX_SSID_BYTES or not ssid.isprintable():
        raise ValueError(f"{ssid!r} is not the name of a wireless network: it has 1 to {_MAX_SSID_BYTES} printable bytes")
    return ssid, country.upper() or None


def read_wifi(network: tuple[str, str | None], *, passphrase_file: Path | None, open_network: bool) -> Wifi:
    """Ask for the passphrase, or read the file's first line. Raises UsageError where it is none of WPA's."""
    ssid, country = network
    if open_network:
        return Wifi(ssid=ssid, country=country, psk=None)
    return Wifi(ssid=ssid, country=country, psk=_psk(ssid, _passphrase(ssid, passphrase_file)))


def _passphrase(ssid: str, file: Path | None) -> str:
    if file is None:
        try:
            return getpass.getpass(f"passphrase of the wireless network {ssid}: ")
        except EOFError as exc:
            raise UsageError(
                "there is no terminal to type the passphrase at; name a file that holds it: --wifi-passphrase-file FILE"
            ) from exc
    try:
        with open(file, encoding="utf-8") as lines:
            return lines.readline(1024).rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file} is not text; write the passphrase into its first line") from exc


def _psk(ssid: str, passphrase: str) -> str:
    """IEEE 802.11i: PBKDF2 with HMAC-SHA1, 4096 rounds, 256 bits. 64 hex digits are such a key already."""
    if re.fullmatch("[0-9a-fA-F]{64}", passphrase):
        return passphrase.lower()
    if not 8 <= len(passphrase.encode()) <= 63 or not passphrase.isprintable():
        raise UsageError(f"the passphrase of {ssid} has to have 8 to 63 characters (or be the key itself, 64 hex digits)")
    return hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32).hex()
