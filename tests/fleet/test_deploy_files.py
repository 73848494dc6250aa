"""What the operator keeps of releases: the key that signs them, their files, their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.deploy.build import Made, kept_code, release_of, releases_for
from fleet.deploy.files import ReleaseFiles
from fleet.deploy.key import signing_key
from fleet.deploy.operator import acting, operator_transport
from fleet.deploy.releases import Outcome, Releases, SeenRow
from fleet.deploy.targets import chosen
from fleet.registry import Registry
from fleet.state import Fleet
from tests.fleet.fleets import DAY_S, Clock
from wire.errors import StorageError, UsageError
from wire.fleet.release import ReleaseFile, load_release
from wire.fleet.talk import State

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "fleet.sqlite", clock=Clock()) as found:
        yield found


def holding(text: str) -> tuple[ReleaseFile, ...]:
    return (ReleaseFile(path="run.toml", sha256=text * 64, size_bytes=3),)


# ------------------------------------------------------------ the key


def test_the_key_is_made_with_the_authority_and_kept(tmp_path: Path) -> None:
    fleet = Fleet(folder=tmp_path / "fleet")
    fleet.create("test")
    path = fleet.folder / "deploy.key"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes(), fleet.deploy_pub.read_bytes()
    assert b"PUBLIC KEY" in before[1]
    signing_key(fleet.folder)
    assert (path.read_bytes(), fleet.deploy_pub.read_bytes()) == before
    fleet.deploy_pub.unlink()  # power was cut between the two, or it is a fleet of before
    signing_key(fleet.folder)
    assert fleet.deploy_pub.read_bytes() == before[1]


def test_a_key_that_cannot_be_right(tmp_path: Path) -> None:
    signing_key(tmp_path)
    path, pem = tmp_path / "deploy.key", (tmp_path / "deploy.key").read_bytes()
    path.chmod(0o640)
    with pytest.raises(StorageError, match=r"can be read by others \(mode 640\)"):
        signing_key(tmp_path)
    path.chmod(0o600)
    path.write_bytes(b"nonsense")
    with pytest.raises(StorageError, match="is no private key"):
        signing_key(tmp_path)
    path.unlink()
    with pytest.raises(StorageError, match=r"is gone, and devices trust that key alone"):
        signing_key(tmp_path)
    signing_key(tmp_path / "other")
    (tmp_path / "deploy.key").write_bytes((tmp_path / "other/deploy.key").read_bytes())
    (tmp_path / "deploy.key").chmod(0o600)
    with pytest.raises(StorageError, match=r"deploy\.pub is not of"):
        signing_key(tmp_path)
    assert pem not in (tmp_path / "deploy.key").read_bytes()


# ------------------------------------------------------------ who commands


def test_the_operator_signs_a_certificate_for_itself(tmp_path: Path) -> None:
    clock = Clock()
    fleet = Fleet(folder=tmp_path / "fleet", clock=clock)
    fleet.create("test")
    path = fleet.folder / "operator"
    with fleet.registry() as registry, acting(fleet) as ours, acting(fleet) as others:
        assert (ours, others) == (True, False)
        operator_transport(fleet, registry, "mqtts://broker.example")
        first = x509.load_pem_x509_certificate((path / "cert.pem").read_bytes())
        assert first.subject.rfc4514_string() == "CN=operator"
        assert (path / "key.pem").stat().st_mode & 0o777 == 0o600
        operator_transport(fleet, registry, "mqtts://broker.example")
        assert x509.load_pem_x509_certificate((path / "cert.pem").read_bytes()) == first
        clock.now_s += 61 * DAY_S
        operator_transport(fleet, registry, "mqtts://broker.example")
        second = x509.load_pem_x509_certificate((path / "cert.pem").read_bytes())
        assert second != first
        assert registry.revoked_serials() == []
        (path / "key.pem").unlink()  # as somebody has it who should not
        operator_transport(fleet, registry, "mqtts://broker.example")
        assert {serial for serial, _ in registry.revoked_serials()} == {first.serial_number, second.serial_number}
        assert registry.devices() == []
        with pytest.raises(UsageError, match="a fleet's begins with mqtts://"):
            operator_transport(fleet, registry, "mqtt://broker.example")
        registry.set_setting("operator", "c0")
        registry.db.execute("INSERT INTO devices (name) VALUES ('c0')")
        with pytest.raises(UsageError, match="`c0` is a device and the operator's name as well"):
            operator_transport(fleet, registry, "mqtts://broker.example")


# ------------------------------------------------------------ files


def test_files_are_kept_once_and_read_by_the_piece(tmp_path: Path) -> None:
    files = ReleaseFiles(tmp_path / "releases")
    digest = files.put(b"0123456789")
    assert files.put(b"0123456789") == digest
    assert files.piece(digest, 3, 4) == b"3456"
    with pytest.raises(StorageError, match="is cut off"):
        files.piece(digest, 8, 3)
    with pytest.raises(StorageError, match="cannot read"):
        files.piece("f" * 64, 0, 1)
    (tmp_path / "releases" / digest).write_bytes(b"damaged")
    assert files.put(b"0123456789") == digest
    assert files.piece(digest, 0, 10) == b"0123456789"
    other = files.put(b"x")
    files.keep_only([other])
    assert [path.name for path in (tmp_path / "releases").iterdir()] == [other]


def test_a_device_keeps_its_code_until_told_otherwise(registry: Registry, tmp_path: Path) -> None:
    files, releases, made = ReleaseFiles(tmp_path / "releases"), Releases(registry), Made(now_s=0.0, until_s=3600.0)

    def wheel(name: str) -> ReleaseFile:
        return ReleaseFile(path=f"wheels/{name}.whl", sha256=files.put(name.encode()), size_bytes=len(name))

    def deployed(text: str, outcome: Outcome, *code: ReleaseFile) -> None:
        row = releases_for({"c0": (*holding(text), *code)}, registry, KEY, made)["c0"]
        with registry.changing():
            releases.settle("c0", row.version, outcome, "")
        files.keep_only(each["sha256"] for manifest in releases.manifests() for each in json.loads(manifest)["files"])

    assert kept_code(["c0"], releases, files) == {"c0": ()}
    good, bad = wheel("good"), wheel("bad")
    deployed("a", "healthy", good)
    deployed("b", "returned", bad)
    assert kept_code(["c0"], releases, files) == {"c0": (good,)}
    deployed("c", "healthy", good)
    (tmp_path / "releases" / good.sha256).unlink()
    with pytest.raises(UsageError, match=r"`c0` runs good\.whl of release 3, .*; give it with --code or --wheels, or say --card-code"):
        kept_code(["c0"], releases, files)
    registry.add("c0", token_digest=b"anew", expires_s=0.0)
    assert kept_code(["c0"], releases, files) == {"c0": ()}


# ------------------------------------------------------------ numbers


def test_the_same_contents_are_the_same_release_until_its_time_is_over(registry: Registry) -> None:
    made = Made(now_s=0.0, until_s=3600.0)
    first = releases_for({"c0": holding("a"), "c1": holding("b")}, registry, KEY, made)
    assert {row.version for row in first.values()} == {1}
    release = load_release(first["c0"].manifest, first["c0"].signature, [KEY.public_key()])
    assert (release.device, release.expires_s) == ("c0", 3600 + 86_400)
    assert release_of(first["c0"]) == release
    again = releases_for({"c0": holding("a"), "c2": holding("c")}, registry, KEY, made)
    assert (again["c0"], again["c2"].version) == (first["c0"], 2)
    late = Made(now_s=2e5, until_s=3e5)
    assert releases_for({"c0": holding("a")}, registry, KEY, late)["c0"].version == 3


def test_going_back_to_what_was_before_is_a_new_release(registry: Registry) -> None:
    """For a device takes nothing below what it has had."""
    made = Made(now_s=0.0, until_s=3600.0)
    versions = [releases_for({"c0": holding(text)}, registry, KEY, made)["c0"].version for text in "aba"]
    assert versions == [1, 2, 3]


def test_what_has_failed_is_made_anew_only_where_asked_to(registry: Registry) -> None:
    made, again = Made(now_s=0.0, until_s=3600.0), Made(now_s=0.0, until_s=3600.0, again=True)
    row = releases_for({"c0": holding("a")}, registry, KEY, made)["c0"]
    with registry.changing():
        Releases(registry).settle("c0", row.version, "returned", "it does not load")
    found = releases_for({"c0": holding("a")}, registry, KEY, Made(now_s=1e9, until_s=1e9 + 1))["c0"]
    assert (found.version, found.outcome, found.reason) == (1, "returned", "it does not load")
    assert releases_for({"c0": holding("a")}, registry, KEY, again)["c0"].version == 2


def test_a_reason_that_no_file_takes_is_written_down_all_the_same(registry: Registry) -> None:
    """Half a character, as JSON may hold it: what one device says must not end the deploy of all."""
    row = releases_for({"c0": holding("a")}, registry, KEY, Made(now_s=0.0, until_s=3600.0))["c0"]
    with registry.changing():
        Releases(registry).settle("c0", row.version, "refused", "no \ud800room")
    newest = Releases(registry).newest("c0")
    assert newest is not None
    assert newest.reason == "no \\ud800room"


def test_a_device_that_is_added_anew_gets_a_new_number(registry: Registry) -> None:
    made = Made(now_s=0.0, until_s=3600.0)
    for expected in (1, 2):
        registry.add("c0", token_digest=b"%d" % expected, expires_s=0.0)
        assert releases_for({"c0": holding("a")}, registry, KEY, made)["c0"].version == expected


def test_above_and_minimum(registry: Registry) -> None:
    found = releases_for({"c0": holding("a")}, registry, KEY, Made(now_s=0.0, until_s=1.0, above=40, minimum=41))["c0"]
    assert (found.version, release_of(found).minimum) == (41, 41)
    with pytest.raises(UsageError, match="--minimum is 43, and this release is 42"):
        releases_for({"c0": holding("b")}, registry, KEY, Made(now_s=0.0, until_s=1.0, minimum=43))
    newest = Releases(registry).newest("c0")
    assert newest is not None
    assert newest.version == 41


def test_the_registry_forgets_the_oldest(registry: Registry) -> None:
    for number in range(15):
        releases_for({"c0": holding(f"{number:x}")}, registry, KEY, Made(now_s=0.0, until_s=1e6))
    assert registry.db.execute("SELECT min(version), max(version), count(*) FROM releases").fetchone() == (6, 15, 10)
    (newest,) = Releases(registry).manifests()
    assert json.loads(newest)["version"] == 15


def test_when_a_device_was_seen(registry: Registry) -> None:
    state = State(
        boot=1,
        release=2,
        highest=3,
        client="over",
        code="1",
        agent="1",
        uptime_s=4.5,
        connections=2,
        disk_free_bytes=5,
        memory_free_bytes=6,
    )
    row = SeenRow(device="c0", at_s=7.0, round_trip_s=None, state=state)
    with registry.changing():
        Releases(registry).note([row])
        registry.db.execute("INSERT INTO seen VALUES ('c1', 1.0, NULL, '{\"old\": 1}')")
    assert Releases(registry).seen() == {"c0": row}


# ------------------------------------------------------------ whom


def test_whom_a_name_means(registry: Registry) -> None:
    for name in ("c0", "c1", "c2", "server"):
        registry.add(name, token_digest=name.encode(), expires_s=0.0)
    registry.put_into("west", ["c0", "c1"])
    rows, clients, run = registry.devices(), {"c0", "c1", "c2"}, Path("run.toml")
    assert chosen(["all"], rows, clients=clients, run=run) == ["c0", "c1", "c2"]
    assert chosen(["west", "c2", "c0"], rows, clients=clients, run=run) == ["c0", "c1", "c2"]
    with pytest.raises(UsageError, match=r"`c1` \(of group `west`\) is no client of run\.toml"):
        chosen(["west"], rows, clients={"c0"}, run=run)
    registry.revoke("c1")
    rows = registry.devices()
    assert chosen(["west"], rows, clients=clients, run=run) == ["c0"]
    with pytest.raises(UsageError, match="`c1` is revoked"):
        chosen(["c1"], rows, clients=clients, run=run)
    with pytest.raises(UsageError, match="no device of the fleet is a client of"):
        chosen(["all"], rows, clients={"x"}, run=run)
