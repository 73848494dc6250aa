"""`cutlayer doctor --device` on a device of a fleet: its certificate, its broker's limits, and whether the broker keeps devices apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.doctor.device import DeviceDoctor, Surroundings
from edge_client.doctor.finding import Finding
from tests.brokers import Broker
from tests.fleet.fleets import DAY_S, RUN, Served, secured, served
from tests.links import mqtt_link
from wire.store import Store


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("doctor")
    with served(folder / "fleet") as authority:
        authority.device("c0", folder)
        yield authority


@pytest.fixture(scope="module")
def broker(authority: Served) -> Iterator[Broker]:
    with secured(authority.fleet, authority.fleet.folder.parent / "broker") as broker:
        yield broker


def run_file(authority: Served, folder: Path, broker: Broker, *, keys: str = "c0") -> Path:
    identity = authority.fleet.folder.parent / keys
    files = "\n".join(f'{key} = "{identity}/{name}.pem"' for key, name in (("ca", "ca"), ("cert", "cert"), ("key", "key")))
    (folder / "run.toml").write_text(RUN.replace("PORT", str(broker.port)) + files + "\n")
    return folder / "run.toml"


def found(path: Path, *, now_s: float | None = None, party: str = "c0") -> dict[str, Finding]:
    here = Surroundings() if now_s is None else Surroundings(now_s=lambda: now_s)
    return {each.check: each for each in DeviceDoctor(run_file=path, party=party, surroundings=here, timeout_s=20.0).findings()}


def test_a_device_that_is_enrolled(authority: Served, broker: Broker, tmp_path: Path) -> None:
    told = found(run_file(authority, tmp_path, broker))
    assert [told[name].status for name in ("certificate", "broker", "access")] == ["ok"] * 3
    assert "for 90 days" in told["certificate"].fact
    assert told["broker"].values["packet_limit_bytes"] == 66_560
    assert told["access"].fact == "the broker refuses what we write to another device's topic"


@pytest.mark.parametrize(
    ("days", "status", "said"),
    [(50, "ok", "for 40 days"), (70, "warning", "for 20 days"), (91, "failed", "ended on"), (-1, "failed", "begins on")],
)
def test_a_certificate_by_its_date(days: int, status: str, said: str, authority: Served, broker: Broker, tmp_path: Path) -> None:
    told = found(run_file(authority, tmp_path, broker), now_s=authority.fleet.clock() + days * DAY_S)["certificate"]
    assert told.status == status
    assert said in told.fact
    assert told.advice if status != "ok" else not told.advice


def test_a_key_that_others_can_read(authority: Served, broker: Broker, tmp_path: Path) -> None:
    key = authority.fleet.folder.parent / "c0" / "key.pem"
    key.chmod(0o640)
    try:
        told = found(run_file(authority, tmp_path, broker))["certificate"]
    finally:
        key.chmod(0o600)
    assert (told.status, "mode 640" in told.fact, "chmod 600" in told.advice) == ("failed", True, True)


def test_the_certificate_of_another_device(authority: Served, broker: Broker, tmp_path: Path) -> None:
    told = found(run_file(authority, tmp_path, broker), party="c1")["certificate"]
    assert told.status == "failed"
    assert "made out to 'c0', not to 'c1'" in told.fact


def test_a_device_that_has_not_enrolled(authority: Served, broker: Broker, tmp_path: Path) -> None:
    told = found(run_file(authority, tmp_path, broker, keys="nowhere"))
    assert (told["certificate"].status, told["broker"].status, told["access"].status) == ("failed", "failed", "skipped")
    assert "cannot read" in told["certificate"].fact


def test_a_broker_that_keeps_nobody_apart(authority: Served, tmp_path: Path) -> None:
    with secured(authority.fleet, tmp_path / "broker", insider="c0") as lax:
        told = found(run_file(authority, tmp_path, lax))["access"]
    assert told.status == "failed"
    assert "lets us write to cl/1/d/doctor-nobody.agent/up/talk" in told.fact
    assert "cutlayer broker config" in told.advice


def test_a_client_at_work_is_not_thrown_out(authority: Served, broker: Broker, tmp_path: Path) -> None:
    path = run_file(authority, tmp_path, broker)
    identity = authority.fleet.folder.parent / "c0"
    keys = {"ca": str(identity / "ca.pem"), "cert": str(identity / "cert.pem"), "key": str(identity / "key.pem")}
    store = Store(tmp_path / "state" / "clinics" / "c0", digest="d")
    try:
        with mqtt_link(broker.config(**keys), client_id="c0") as link:
            told = found(path)
            assert link.nothing_for(0.5)
    finally:
        store.close()
    assert (told["broker"].status, told["access"].status) == ("skipped", "skipped")
    assert "the client is at work" in told["broker"].fact
