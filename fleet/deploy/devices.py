"""``cutlayer devices``: everybody is asked how it is; who does not answer is shown as it was when it was last heard from."""

from __future__ import annotations

import datetime
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from fleet.deploy.line import Cut, Heard, OperatorLine, Up
from fleet.deploy.operator import acting, operator_transport
from fleet.deploy.peer import Pace
from fleet.deploy.releases import Releases, SeenRow
from fleet.deploy.screen import Screen, printable
from fleet.deploy.targets import named
from fleet.registry import ALL, DeviceRow, Registry
from fleet.state import Fleet
from wire.errors import BrokerUnreachable, UsageError
from wire.fleet.talk import Ask, State
from wire.transport.base import Transport

__all__ = ["ask_devices", "run_devices"]

_TURN_S = 0.1
_HEAD = ("device", "group", "seen", "release", "code", "client", "run", "step", "answer", "connections", "certificate", "update")


def run_devices(fleet: Fleet, names: Sequence[str], *, broker: str | None, wait_s: float, as_json: bool) -> None:
    """Raises BrokerUnreachable after what is remembered has been shown, and other CutlayerErrors."""
    fleet.authority()
    with fleet.registry() as registry, acting(fleet) as ours:
        rows = [row for row in named(names or [ALL], registry.devices()) if row.revoked_s is None]
        unreachable = ""
        fresh_s = Pace().away_s  # as who is speaking to them writes down
        if ours:
            unreachable = _ask(fleet, registry, [row.name for row in rows], broker, wait_s)
            fresh_s = wait_s + 1.0
        else:
            Screen().say("`cutlayer deploy` is speaking to devices; this is what it has heard")
        seen, now_s = Releases(registry).seen(), fleet.clock()
    facts = [_facts(row, seen.get(row.name), now_s=now_s, fresh_s=fresh_s) for row in rows]
    if as_json:
        print(json.dumps({"devices": facts}))
    else:
        _show(facts)
    if unreachable:
        raise BrokerUnreachable(f"the broker is out of reach ({unreachable}); shown is what was last known")


def _ask(fleet: Fleet, registry: Registry, names: list[str], broker: str | None, wait_s: float) -> str:
    """Who answers is written down; returns why the broker cannot be reached, or nothing."""
    url = broker or registry.setting("broker")
    if url is None:
        raise UsageError("no broker is known here yet; give --broker mqtts://HOST:8883")
    transport = operator_transport(fleet, registry, url)
    found, unreachable = ask_devices(transport, names, wait_s=wait_s)
    if not unreachable:
        registry.set_setting("broker", url)
    at_s = fleet.clock()
    with registry.changing():
        Releases(registry).note(
            SeenRow(device=name, at_s=at_s, round_trip_s=round_trip_s, state=state) for name, (state, round_trip_s) in found.items()
        )
    return unreachable


def ask_devices(transport: Transport, names: Sequence[str], *, wait_s: float) -> tuple[dict[str, tuple[State, float]], str]:
    """By device that has answered within ``wait_s``: how it is, and after how long it answered. And why the broker cannot be reached.

    Raises BrokerRefused.
    """
    found: dict[str, tuple[State, float]] = {}
    token, asked_s, unreachable = secrets.randbits(60) + 1, 0.0, "no answer in time"
    end_s = time.monotonic() + wait_s
    with OperatorLine(transport, names) as line:
        while len(found) < len(names) and time.monotonic() < end_s:
            for event in line.events(_TURN_S):
                match event:
                    case Up():
                        asked_s, unreachable = time.monotonic(), ""
                        for name in names:
                            line.send(name, Ask(token=token))
                    case Cut():
                        unreachable = event.reason
                    case Heard(message=State() as state) if state.token == token:
                        found[event.device] = (state, time.monotonic() - asked_s)
                    case _:
                        pass
    return found, unreachable


# ------------------------------------------------------------ what is shown


def _facts(row: DeviceRow, seen: SeenRow | None, *, now_s: float, fresh_s: float) -> dict[str, Any]:
    if seen is None:
        return {"name": row.name, "group": row.group, "online": False, "seen_s": None}
    state = seen.state
    return {
        "name": row.name,
        "group": row.group,
        "online": now_s - seen.at_s <= fresh_s,
        "seen_s": seen.at_s,
        "answer_s": seen.round_trip_s,
        **{key: getattr(state, key) for key in _OF_STATE},
    }


_OF_STATE = (
    "release",
    "highest",
    "offered",
    "stage",
    "have_bytes",
    "of_bytes",
    "reason",
    "client",
    "run",
    "step",
    "code",
    "agent",
    "uptime_s",
    "connections",
    "disk_free_bytes",
    "memory_free_bytes",
    "certificate_until_s",
)


def _show(facts: Sequence[dict[str, Any]]) -> None:
    if not facts:
        print("no devices yet; `cutlayer device add NAME` adds one")
        return
    cells = [_HEAD, *(_cells(each) for each in facts)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(_HEAD))]
    for row in cells:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True) if width).rstrip())


def _cells(each: dict[str, Any]) -> tuple[str, ...]:
    name, group = each["name"], each["group"] or "-"
    if each["seen_s"] is None:
        return (name, group, "never", *("" for _ in _HEAD[3:]))
    return (
        name,
        group,
        "online" if each["online"] else f"last {_date(each['seen_s'])}",
        str(each["release"]),
        printable(each["code"], limit=20),
        each["client"],
        printable(each["run"], limit=30) or "-",
        str(each["step"]) if each["step"] >= 0 else "-",
        f"{each['answer_s'] * 1000:.0f} ms" if each["answer_s"] is not None else "-",
        str(each["connections"]),
        f"until {_date(each['certificate_until_s'])[:10]}" if each["certificate_until_s"] else "-",
        _update(each),
    )


def _update(each: dict[str, Any]) -> str:
    if each["stage"] == "none":
        return printable(each["reason"]) or "-"
    share = f" {100 * each['have_bytes'] / each['of_bytes']:.0f} %" if each["stage"] == "fetching" and each["of_bytes"] else ""
    return f"{each['offered']} {each['stage']}{share}{each['reason'] and ': '}{printable(each['reason'])}"


def _date(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime("%Y-%m-%d %H:%M")
