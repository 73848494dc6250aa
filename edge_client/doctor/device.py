"""``cutlayer doctor --device``: is this board fit to be a client? All checks in order, those that others stand on first."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.doctor.broker import BrokerQuestion, is_at_work
from edge_client.doctor.certificate import check_identity
from edge_client.doctor.clock import check_clock, newest_s, synchronised
from edge_client.doctor.disk import check_disk, free_bytes, state_bytes
from edge_client.doctor.finding import Finding, failed, lines_of, ok, skipped, summary
from edge_client.doctor.machine import Machine, check_machine, check_python
from edge_client.doctor.memory import check_memory
from edge_client.doctor.packages import check_packages
from edge_client.doctor.step import check_step
from wire.errors import CheckFailed, CutlayerError
from wire.manifest import BundleManifest
from wire.transport.broker_config import BrokerConfig

if TYPE_CHECKING:
    from wire.runfile import Run

__all__ = ["DeviceDoctor", "Surroundings", "run_doctor"]

_BATCH = 32  # where neither a run file nor an option says


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the checks look at beside files and packages. ``root``: the folder that /proc and /sys are in."""

    machine: Machine = field(default_factory=Machine.this)
    root: Path = Path("/")
    now_s: Callable[[], float] = time.time
    synchronised: Callable[[], bool | None] = synchronised
    free_bytes: Callable[[Path], int] = free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A bundle that was read and is whole."""

    folder: Path
    manifest: BundleManifest


class DeviceDoctor:
    """``run_file``, ``bundle``, ``broker``, ``batch``: left out, checks that need them are skipped or take the run file's. ``timeout_s``
    bounds each check that waits. Nothing is left behind on disk."""

    def __init__(
        self,
        *,
        run_file: Path | None = None,
        party: str | None = None,
        bundle: Path | None = None,
        broker: str | None = None,
        batch: int | None = None,
        timeout_s: float = 60.0,
        surroundings: Surroundings | None = None,
    ) -> None:
        self._run_file, self._party, self._bundle, self._broker, self._batch = run_file, party, bundle, broker, batch
        self._timeout_s = timeout_s
        self._here = surroundings or Surroundings()
        self._run: Run | None = None
        self._bundles: list[_Found] = []

    def findings(self) -> Iterator[Finding]:
        """One after the other, as they come; a step of a large bundle takes its time."""
        yield check_machine(self._here.machine)
        yield check_python(self._here.machine)
        packages, loaded = check_packages(timeout_s=self._timeout_s)
        yield packages
        yield from self._check_files(loaded)
        memory = check_memory(self._manifests, batch=self._samples, in_flight=self._run.in_flight if self._run else 1, root=self._here.root)
        yield memory
        yield self._check_clock()
        yield self._check_certificate(loaded)
        yield from self._check_broker(loaded)
        yield self._check_disk()
        yield from self._check_steps(ready=packages.status == "ok" and memory.status != "failed")

    @property
    def _samples(self) -> int:
        return self._batch or (self._run.batch_size if self._run else _BATCH)

    @property
    def _manifests(self) -> list[BundleManifest]:
        return [found.manifest for found in self._bundles]

    def _lacking(self, option: str = "") -> str:
        if self._run_file is not None:
            return "needs the run file"
        return f"give {option}, or a run file" if option else "give a run file: it says where the state goes"

    # ------------------------------------------------------------ run file and bundles

    def _check_files(self, loaded: frozenset[str]) -> Iterator[Finding]:
        """Reading either needs numpy and safetensors."""
        for package in ("numpy", "safetensors"):
            if package not in loaded:
                if self._run_file is not None:
                    yield skipped("run file", f"cannot be read before {package} loads")
                yield skipped("bundle", f"cannot be read before {package} loads")
                return
        if self._run_file is not None:
            yield self._check_run(self._run_file)
        yield self._check_bundle()

    def _check_run(self, path: Path) -> Finding:
        from wire.runfile import load_run

        try:
            run = load_run(path)
            names = [client.name for client in run.clients]
            if self._party is not None and self._party not in names:
                return failed("run file", f"no client of {path} is called `{self._party}`", f"clients are {', '.join(names)}")
        except CutlayerError as exc:
            return _refused("run file", exc, advice="mend the run file")
        self._run = run
        return ok("run file", f"{path}: run {run.name}, {len(names)} clients, batch {run.batch_size}", batch=run.batch_size)

    def _check_bundle(self) -> Finding:
        if self._bundle is None and self._run is None:
            return skipped("bundle", self._lacking("--bundle"))
        try:
            self._bundles = [self._read(path, segment) for path, segment in self._bundle_paths()]
        except CutlayerError as exc:
            return _refused("bundle", exc, advice="copy the bundle here again, or export it again")
        if not self._bundles:
            return failed("bundle", f"{self._bundle} holds no bundle", "give the folder that `cutlayer export` wrote")
        size_bytes = sum(entry.size_bytes for each in self._manifests for entry in each.files)
        names = ", ".join(each.segment for each in self._manifests)
        return ok("bundle", f"segment {names}: {size_bytes / 2**20:.1f} MB, every checksum right", size_bytes=size_bytes)

    def _bundle_paths(self) -> Iterator[tuple[Path, str | None]]:
        """Folder and, where a run says it, which segment must be in it."""
        from edge_client.bundle import bundle_path

        if self._run is not None:
            folder = self._bundle or self._run.bundles
            # All clients of a run hold the same segments.
            yield from ((bundle_path(folder, slot.segment), slot.segment) for slot in self._run.slice_for(self._name).slots)
        elif self._bundle is not None:
            folders = [self._bundle] if (self._bundle / "manifest.json").exists() else sorted(self._bundle.glob("*/manifest.json"))
            yield from ((path.parent if path.name == "manifest.json" else path, None) for path in folders or [self._bundle])

    def _read(self, path: Path, segment: str | None) -> _Found:
        from edge_client.bundle import read_bundle
        from wire.bundle_fit import check_bundle

        manifest = read_bundle(path).manifest
        if self._run is not None and segment is not None:
            sinks = [slot.segment for slot in self._run.slice_for(self._name).slots if slot.is_sink]
            check_bundle(self._run, segment, manifest, path, has_loss=segment in sinks)
        return _Found(folder=path, manifest=manifest)

    # ------------------------------------------------------------ clock, broker, disk, step

    def _check_clock(self) -> Finding:
        files = [*Path(__file__).parent.glob("*.py"), *([self._run_file] if self._run_file else [])]
        files += [found.folder / "manifest.json" for found in self._bundles]
        return check_clock(self._here.now_s(), files_s=newest_s(files), synchronised=self._here.synchronised())

    def _check_certificate(self, loaded: frozenset[str]) -> Finding:
        if self._run is None:
            return skipped("certificate", self._lacking())
        if "cryptography" not in loaded:
            return skipped("certificate", "cannot be read before cryptography loads")
        run = self._run
        return check_identity(run.broker, base_dir=Path(run.base), party=self._party, now_s=self._here.now_s())

    def _check_broker(self, loaded: frozenset[str]) -> Iterator[Finding]:
        reason = self._lacking("--broker") if self._run is None and self._broker is None else ""
        if reason or "paho-mqtt" not in loaded:
            yield skipped("broker", reason or "cannot be asked before paho-mqtt loads")
            yield skipped("access", "needs a connection")
            return
        try:
            if self._run is not None:
                broker, base, name = self._run.with_broker(self._broker).broker, Path(self._run.base), f"{self._run.name}-"
            else:
                broker, base, name = BrokerConfig(url=self._broker or ""), Path(), ""
        except (CutlayerError, ValueError) as exc:
            yield _refused("broker", exc, advice="check --broker")
            yield skipped("access", "needs a connection")
            return
        client_id = f"{name}{self._party or socket.gethostname()}-doctor"
        question = BrokerQuestion(broker=broker, base_dir=base, client_id=client_id, timeout_s=self._timeout_s)
        yield from question.findings(at_work=self._run is not None and is_at_work(self._run.state_of(self._name)))

    @property
    def _name(self) -> str:
        """The party, where a run file is there; any client will do where none was named."""
        assert self._run is not None
        return self._party or self._run.clients[0].name

    def _check_disk(self) -> Finding:
        if self._run is None:
            return skipped("disk", self._lacking())
        folder = self._run.state_of(self._name)
        return check_disk(folder, needed_bytes=state_bytes(self._manifests), free_on=self._here.free_bytes)

    def _check_steps(self, *, ready: bool) -> Iterator[Finding]:
        if not self._bundles or not ready:
            yield skipped("step", "needs a whole bundle, packages that run, and memory")
            return
        clients = {client.name: client for client in self._run.clients} if self._run else {}
        for found in self._bundles:
            yield check_step(
                found.folder,
                found.manifest.segment,
                batch=max(self._samples, found.manifest.min_batch),
                threads=clients[self._party].threads if self._party in clients else None,
                patience_s=self._run.resend_after_s if self._run else None,
                timeout_s=self._timeout_s,
            )


def _refused(check: str, exc: Exception, *, advice: str) -> Finding:
    """Our errors say after a semicolon what to do."""
    fact, _, remedy = str(exc).partition("; ")
    return failed(check, fact, remedy or advice)


def run_doctor(doctor: DeviceDoctor, *, json: bool = False) -> None:
    """Print what is found; with ``json`` one JSON object as the last line. Raises CheckFailed, after all of it, where a check failed."""
    found: list[Finding] = []
    for finding in doctor.findings():
        found.append(finding)
        print("\n".join(lines_of(finding)), flush=True)
    if json:
        print(summary(found), flush=True)
    broken = [finding.check for finding in found if finding.status == "failed"]
    if broken:
        raise CheckFailed(f"{len(broken)} of {len(found)} checks failed: {', '.join(broken)}; what to do stands below each")
