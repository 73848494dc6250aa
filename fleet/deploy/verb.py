"""``cutlayer deploy``: from a bundle and a run to devices that run it. The same command again goes on where it was."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.deploy.build import Made, Slicer, code_of, contents, kept_code, release_of, releases_for
from fleet.deploy.files import ReleaseFiles
from fleet.deploy.key import signing_key
from fleet.deploy.operator import acting, operator_transport
from fleet.deploy.peer import Pace, Peer
from fleet.deploy.releases import ReleaseRow, Releases
from fleet.deploy.rollout import End, Rollout
from fleet.deploy.screen import Screen, printable
from fleet.deploy.session import Session
from fleet.deploy.stages import Stages
from fleet.deploy.targets import chosen
from fleet.flash.wheels import choose_wheels
from fleet.registry import Registry
from fleet.state import Fleet
from wire.errors import DeployIncomplete, UsageError
from wire.fleet.release import WHEELS, Release
from wire.fleet.talk import Offer
from wire.runfile import Run, load_run

__all__ = ["DeployOptions", "run_deploy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployOptions:
    """The command line's, under their names; see ``fleet.deploy.options``."""

    bundle: Path
    to: Sequence[str]
    run: Path
    code: Sequence[Path]
    wheels: Path | None
    card_code: bool
    python: str | None
    arch: str
    stages: Stages
    stop_at: float
    hours: float
    broker: str | None
    via: str | None
    home: str
    keys: str | None
    minimum: int
    above: int
    again: bool
    fleet: Path
    json: bool


def run_deploy(
    options: DeployOptions,
    *,
    slicer_of: Callable[[Run], Slicer],
    pace: Pace | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """``slicer_of``: cuts a whole run into its parties' slices.

    Raises DeployIncomplete where not every device runs the release at the end, and what else there is of CutlayerError.
    """
    fleet = Fleet(folder=options.fleet, clock=clock)
    fleet.authority()
    with acting(fleet) as ours:
        if not ours:
            raise UsageError("another `cutlayer deploy` or `cutlayer devices` is speaking to devices; wait for it, or end it")
        with fleet.registry() as registry:
            rollout, end = _deploy(fleet, registry, options, slicer_of, pace or Pace())
    _report(rollout, end, as_json=options.json)


def _deploy(
    fleet: Fleet, registry: Registry, options: DeployOptions, slicer_of: Callable[[Run], Slicer], pace: Pace
) -> tuple[Rollout, End]:
    source = _Source.of(options.run, slicer_of)
    devices = chosen(options.to, registry.devices(), clients=source.clients, run=options.run)
    broker = options.broker or source.broker
    if not broker.startswith("mqtts://"):
        raise UsageError(f"the broker is {broker!r}; devices take releases over TLS alone: give --broker mqtts://…")
    files = ReleaseFiles(fleet.folder / "releases")
    wheels = _wheels(options)
    found = contents(
        devices,
        bundle=options.bundle,
        wheels=wheels,
        code={} if wheels or options.card_code else kept_code(devices, Releases(registry), files),
        slicer=source.slicer,
        broker=broker,
        home=options.home,
        keys=options.keys or f"{options.home}/identity",
        files=files,
    )
    now_s = fleet.clock()
    made = Made(now_s=now_s, until_s=now_s + options.hours * 3600, minimum=options.minimum, above=options.above, again=options.again)
    rows = releases_for(found, registry, signing_key(fleet.folder), made)
    files.keep_only(each["sha256"] for manifest in Releases(registry).manifests() for each in json.loads(manifest)["files"])
    registry.set_setting("broker", options.via or broker)
    screen = Screen()
    for text in _opening(rows):
        screen.say(text)
    newest = Releases(registry).next_version() - 1
    rollout = Rollout(
        [_peer(row, pace, newest=newest, fresh=row.made_s == now_s) for row in rows.values()],
        counts=options.stages.counts(len(rows)),
        stop_at=options.stop_at,
        until_s=time.monotonic() + options.hours * 3600,
    )
    transport = operator_transport(fleet, registry, options.via or broker)
    session = Session(rollout=rollout, transport=transport, files=files, registry=registry, screen=screen, clock=fleet.clock)
    try:
        return rollout, session.run()
    except KeyboardInterrupt:
        screen.say("interrupted: devices keep what they have, and the same command goes on with it")
        raise


def _peer(row: ReleaseRow, pace: Pace, *, newest: int, fresh: bool) -> Peer:
    offer = Offer(manifest=row.manifest, signature=row.signature)
    return Peer(release_of(row), offer, outcome=row.outcome, reason=row.reason, newest=newest, fresh=fresh, pace=pace)


# ------------------------------------------------------------ what the options name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What ``--run`` is: a whole run, one slice, or a folder of slices. ``clients``: whom it has a part for."""

    clients: frozenset[str]
    broker: str
    slicer: Slicer

    @classmethod
    def of(cls, path: Path, slicer_of: Callable[[Run], Slicer]) -> _Source:
        if path.is_dir():
            runs = [(each, load_run(each)) for each in sorted(path.glob("*.toml"))]
            slices = {run.slice.party: each for each, run in runs if run.slice is not None and run.clients}  # servers are not for devices
            if not slices:
                raise UsageError(f"{path} holds no slices; `cutlayer slice RUN.toml --party NAME --out {path}/NAME.toml` writes one")
            return cls(clients=frozenset(slices), broker=runs[0][1].broker.url, slicer=lambda name, out: _copy(slices[name], out))
        run = load_run(path)
        if run.slice is not None:
            return cls(clients=frozenset([run.slice.party]), broker=run.broker.url, slicer=lambda name, out: _copy(path, out))
        names = frozenset(client.name for client in run.clients)
        return cls(clients=names, broker=run.broker.url, slicer=_lazily(lambda: slicer_of(run)))


def _copy(source: Path, out: Path) -> None:
    shutil.copyfile(source, out)


def _lazily(make: Callable[[], Slicer]) -> Slicer:
    """The network is built when the first slice is asked for: who was asked for in vain is told at once."""
    made: list[Slicer] = []

    def slicer(name: str, out: Path) -> None:
        if not made:
            made.append(make())
        made[0](name, out)

    return slicer


def _wheels(options: DeployOptions) -> list[Path]:
    found = list(options.code)
    if options.card_code and (found or options.wheels is not None):
        raise UsageError("--card-code is for no other code; leave out --code and --wheels")
    for path in found:
        if path.suffix != ".whl" or not zipfile.is_zipfile(path):
            raise UsageError(f"--code {path} is no wheel; `pip wheel --no-deps` makes one")
    if options.wheels is None:
        return found
    if options.python is None:
        raise UsageError("--wheels needs --python: that of the devices, 3.11 on Bookworm and 3.13 on Trixie")
    all_of_them = choose_wheels(options.wheels, python=options.python, arch=options.arch)
    return found + [path for path in all_of_them if not path.name.startswith("pip-")]


# ------------------------------------------------------------ what is said


def _opening(rows: dict[str, ReleaseRow]) -> list[str]:
    found: dict[tuple[int, str], list[Release]] = {}
    for row in rows.values():
        release = release_of(row)
        found.setdefault((release.version, _code(release)), []).append(release)
    return [
        f"release {version} for {len(each)} device{'' if len(each) == 1 else 's'}, {_size(each[0].size_bytes)} each, {code}"
        for (version, code), each in sorted(found.items())
    ]


def _code(release: Release) -> str:
    names = [file.path.removeprefix(WHEELS) for file in code_of(release)]
    if not names:
        return "with the card's code"
    name = next((each for each in names if each.startswith("cutlayer-")), names[0])
    return f"with {name}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


def _report(rollout: Rollout, end: End, *, as_json: bool) -> None:
    """Raises DeployIncomplete."""
    peers = list(rollout.peers.values())
    healthy = [peer for peer in peers if peer.phase == "healthy"]
    if as_json:
        print(json.dumps({"end": end, "healthy": len(healthy), "devices": [_facts(peer) for peer in peers]}))
    else:
        print(f"{len(healthy)} of {len(peers)} devices run it")
        for peer in peers:
            if peer.phase != "healthy":
                print(f"  {peer.name}: {_fate(peer)}")
    if end == "stopped" and any(peer.misnumbered for peer in peers):
        raise DeployIncomplete(_misnumbered(peers))
    if end == "stopped":
        failed, tried = len(rollout.failed), len(rollout.tried)
        what = f"stopped: {failed} of {tried} devices that were tried have failed or did not come back from their trial"
        raise DeployIncomplete(f"{what}; mend it and deploy anew, or say --again or a higher --stop-at")
    missing = [peer for peer in rollout.tried if peer.phase != "healthy"] if end == "done" else [peer for peer in peers if not peer.done]
    if missing:
        names = ", ".join(f"`{peer.name}`" for peer in missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        why = "did not take it; --again tries anew" if end == "done" else "did not come to an end in time; the same command goes on"
        raise DeployIncomplete(f"{names} {why}")


def _misnumbered(peers: Sequence[Peer]) -> str:
    highest, name = max((peer.state.highest, peer.name) for peer in peers if peer.state is not None)
    what = f"devices have had releases of which the registry does not know, up to {highest} (`{name}`): it was lost, or is an old copy"
    return f"{what}; deploy with --above {highest}"


def _fate(peer: Peer) -> str:
    if peer.phase == "waits" or (not peer.done and peer.state is None):
        return "not there" if peer.state is None else "its turn has not come"
    aside = ", set aside: it did not get on" if peer.aside else ""
    return f"{peer.phase}{aside}{peer.reason and ', '}{printable(peer.reason)}"


def _facts(peer: Peer) -> dict[str, Any]:
    return {
        "name": peer.name,
        "release": peer.release.version,
        "phase": peer.phase,
        "reason": peer.reason,
        "aside": peer.aside,
        "have_bytes": peer.have_bytes,
        "of_bytes": peer.release.size_bytes,
    }
