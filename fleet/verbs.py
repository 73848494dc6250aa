"""``cutlayer ca``, ``cutlayer device`` and ``cutlayer broker config``: options in, the registry and the authority do it, lines out."""

from __future__ import annotations

import datetime
import json
import socket
from pathlib import Path
from typing import Any

from fleet.authority import check_hosts, fingerprint, load_csr
from fleet.deploy.key import DEPLOY_KEY
from fleet.enrolment import new_token, sign_pair, token_digest
from fleet.registry import DeviceRow
from fleet.serve import run_authority
from fleet.state import Fleet
from wire.enrolment import check_device_name
from wire.errors import UsageError
from wire.files import read_small
from wire.store import write_atomically

__all__ = [
    "add_device",
    "approve_device",
    "group_devices",
    "init_authority",
    "issue_device",
    "list_devices",
    "revoke_device",
    "serve_authority",
    "state_of",
]

_SHOWN_DIGITS = 16  # of a key's fingerprint


def init_authority(fleet: Fleet, *, name: str) -> None:
    """Raises CutlayerError."""
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise UsageError(f"--name is {name!r}; use 1 to 64 characters")
    fleet.create(name)
    print(f"{fleet.ca_pem}: the authority's certificate, which every device is given")
    print(f"{fleet.ca_pem.with_suffix('.key')}: its key; whoever has it can let anybody in. Keep a copy in a safe place")
    print(f"{fleet.folder / DEPLOY_KEY}: the key that signs releases; whoever has it can change what devices run. Keep a copy of it too")


def serve_authority(fleet: Fleet, *, host: str, port: int, names: list[str] | None, approve: bool) -> None:
    """Until SIGINT or SIGTERM. ``names``: by which devices reach it; None: this computer's. Raises CutlayerError."""
    known = [socket.gethostname(), "localhost", "127.0.0.1", *([host] if host not in ("0.0.0.0", "::") else [])]
    run_authority(fleet, host=host, port=port, names=check_hosts(tuple(dict.fromkeys(names or known))), approve=approve)


def add_device(fleet: Fleet, name: str, *, hours: float, out: Path | None, group: str | None) -> None:
    """Raises CutlayerError. The token goes into a file alone: a screen is copied and scrolled back."""
    _check(name)
    fleet.authority()
    token, path = new_token(), out or fleet.folder / "tokens" / f"{name}.token"
    expires_s = fleet.clock() + hours * 3600
    with fleet.registry() as registry:
        registry.check_free(name)
        if group is not None:
            registry.check_group(_check(group))
        write_atomically(path, f"{token}\n".encode(), private=True)  # first: a token that nobody has is better than one that is not known
        registry.add(name, token_digest=token_digest(token), expires_s=expires_s)
        if group is not None:
            registry.put_into(group, [name])
    print(f"{path}: the token with which `{name}` enrols, once, until {_date(expires_s)}")


def group_devices(fleet: Fleet, names: list[str], *, group: str | None) -> None:
    """``group``: None takes them out of theirs. Raises CutlayerError."""
    fleet.authority()
    with fleet.registry() as registry:
        registry.put_into(None if group is None else _check(group), names)
    where = "no group" if group is None else f"group `{group}`"
    print(f"{', '.join(f'`{name}`' for name in names)}: in {where}")


def approve_device(fleet: Fleet, name: str) -> None:
    """Raises CutlayerError."""
    with fleet.registry() as registry:
        key = registry.approve(name)
    print(f"`{name}` with the key {key[:_SHOWN_DIGITS]} gets its certificate when it asks again")


def revoke_device(fleet: Fleet, name: str, *, broker: Path | None) -> None:
    """``broker``: a folder that ``broker config`` wrote. Raises CutlayerError."""
    if broker is not None and not (broker / "crl.pem").exists():
        raise UsageError(f"{broker} is no folder that `cutlayer broker config` has written: it has no crl.pem")
    with fleet.registry() as registry:
        good = registry.revoke(name)
        crl = fleet.write_crl(registry)
    if broker is not None:
        write_atomically(broker / "crl.pem", crl)
    print(f"`{name}` is revoked, with {good} certificate{'' if good == 1 else 's'}; it can enrol again after `cutlayer device add {name}`")
    where = fleet.crl_pem if broker is None else broker / "crl.pem"
    print(f"the broker refuses it once it has read {where} (`systemctl restart cutlayer-broker` also ends a connection that is open)")


def issue_device(fleet: Fleet, name: str, *, csr: Path, out: Path) -> None:
    """Raises CutlayerError."""
    _check(name)
    key, authority = load_csr(read_small(csr), name=name), fleet.authority()
    with fleet.registry() as registry:
        with registry.changing():
            registry.ensure(name)
            row, agent = sign_pair(name, key, registry, authority)
        fleet.write_crl(registry)
    write_atomically(out, (row.pem + agent.pem).encode())
    print(f"{out}: the certificates of `{name}` and its agent with the key {fingerprint(key)[:_SHOWN_DIGITS]}, until {_date(row.ends_s)}")


def list_devices(fleet: Fleet, *, as_json: bool) -> None:
    """Raises CutlayerError. Neither form shows a secret."""
    fleet.authority()
    with fleet.registry() as registry:
        rows = [_facts(row, fleet.clock()) for row in registry.devices()]
    if as_json:
        print(json.dumps({"devices": rows}))
        return
    if not rows:
        print("no devices yet; `cutlayer device add NAME` adds one")
        return
    width, groups = max(len(row["name"]) for row in rows), max(len(row["group"] or "") for row in rows)
    for row in rows:
        until = "" if row["until_s"] is None else f"until {_date(row['until_s'])}"
        key = "" if row["key"] is None else f"key {row['key'][:_SHOWN_DIGITS]}"
        print(f"{row['name']:{width}}  {row['group'] or '':{groups}}{'  ' if groups else ''}{row['state']:9}  {until:28}  {key}".rstrip())


def state_of(row: DeviceRow, now_s: float) -> str:
    """``revoked``; ``waits``: for approval; ``approved``: and has not asked since; ``enrolled``: its certificate is good; ``added``: its
    token is good; ``expired``."""
    if row.revoked_s is not None:
        return "revoked"
    if row.token is not None and row.token.key is not None and _lacks(row):
        return "approved" if row.token.approved else "waits"
    certificate = row.certificate
    if certificate is not None and certificate.revoked_s is None and certificate.ends_s > now_s:
        return "enrolled"
    return "added" if row.token is not None and row.token.expires_s > now_s else "expired"


def _lacks(row: DeviceRow) -> bool:
    """Whether the key that holds the token has no certificate yet."""
    has = row.certificate
    return row.token is not None and (has is None or has.key != row.token.key or has.revoked_s is not None)


def _facts(row: DeviceRow, now_s: float) -> dict[str, Any]:
    state = state_of(row, now_s)
    token, certificate = row.token, row.certificate
    until_s = None if state == "revoked" else token.expires_s if state in ("added", "waits", "approved") and token else None
    key = token.key if state in ("waits", "approved") and token else None
    if state in ("enrolled", "expired") and certificate is not None:
        until_s, key = certificate.ends_s, certificate.key
    return {"name": row.name, "group": row.group, "state": state, "until_s": until_s, "key": key}


def _check(name: str) -> str:
    try:
        return check_device_name(name)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def _date(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
