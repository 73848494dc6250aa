"""Is what the client shows to the broker good, ours alone, and renewed in time?"""

from __future__ import annotations

import datetime
from pathlib import Path

from edge_client.doctor.finding import Finding, failed, ok, skipped, warning
from wire.errors import CutlayerError
from wire.files import read_small
from wire.transport.broker_config import BrokerConfig

__all__ = ["check_identity"]

_LEFT = 0.25  # of its life; it is renewed when a third is left, each day
_RENEW = "see why it was not renewed: `journalctl -u cutlayer-enrol`, or `cutlayer enroll` by hand; is `cutlayer ca serve` in reach?"


def check_identity(broker: BrokerConfig, *, base_dir: Path, party: str | None, now_s: float) -> Finding:
    """The files that ``broker`` names. ``party``: whom the certificate must be for, where that is known."""
    if broker.cert is None or broker.key is None:
        return skipped("certificate", "the run file names none" if broker.tls else "the connection is not encrypted, and needs none")
    from edge_client.enroll.identity import check_certificate, load_certificate
    from wire.private_key import open_key

    cert, key = (base_dir / Path(name).expanduser() for name in (broker.cert, broker.key))
    try:
        found = load_certificate(read_small(cert), what=str(cert))
        if broker.ca is not None:
            ca = base_dir / Path(broker.ca).expanduser()
            check_certificate(found, name=party, ca=load_certificate(read_small(ca), what=str(ca)), now_s=now_s)
        private = open_key(key, lost=f"remove {key.parent}, and enrol with a new token", guarded=True)
    except CutlayerError as exc:
        fact, _, advice = str(exc).partition("; ")
        return failed("certificate", fact, advice or "enrol this device: `cutlayer enroll`, with a token of `cutlayer device add`")
    if private.public_key() != found.public_key():
        return failed("certificate", f"{cert} is for another key than {key}", f"remove {key.parent}, and enrol with a new token")
    begins_s, ends_s = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    fact = f"good until {datetime.datetime.fromtimestamp(ends_s, datetime.UTC):%Y-%m-%d}, for {(ends_s - now_s) / 86_400:.0f} days"
    if ends_s - now_s < _LEFT * (ends_s - begins_s):
        return warning("certificate", fact, _RENEW, until_s=round(ends_s))
    return ok("certificate", fact, until_s=round(ends_s))
