"""``cutlayer ca`` and ``cutlayer device`` as a person meets them: lines, exit codes, files and their modes."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

import cutlayer
from edge_client.enroll.identity import Identity


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with a fleet in ``fleet``, where one stands."""
    monkeypatch.chdir(tmp_path)
    assert cutlayer.main(["ca", "init"]) == 0
    capsys.readouterr()
    return tmp_path


def done(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cutlayer.main(list(words)) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal."""
    assert cutlayer.main(list(words)) == 2
    line = capsys.readouterr().err
    assert line.startswith("cutlayer: error: ")
    assert line.count("\n") == 1
    return line


def test_a_fleet_is_made_once_and_its_key_is_its_owners(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (home / "fleet/ca/ca.key").stat().st_mode & 0o777 == 0o600
    assert (home / "fleet/ca").stat().st_mode & 0o777 == 0o700
    assert (home / "fleet/fleet.sqlite").stat().st_mode & 0o777 == 0o600
    key = (home / "fleet/ca/ca.key").read_bytes()
    assert "has an authority already" in refused(capsys, "ca", "init")
    assert (home / "fleet/ca/ca.key").read_bytes() == key


def test_a_device_from_added_to_revoked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no devices yet" in done(capsys, "device", "list")
    said = done(capsys, "device", "add", "pi-1")
    token = home / "fleet/tokens/pi-1.token"
    assert str(token.relative_to(home)) in said
    assert token.stat().st_mode & 0o777 == 0o600
    said += done(capsys, "device", "list") + done(capsys, "device", "list", "--json")
    assert json.loads(said.splitlines()[-1])["devices"][0]["state"] == "added"
    assert token.read_text().strip() not in said
    assert (
        done(capsys, "enroll", "--name", "pi-1", "--write-csr", "pi-1.csr") == "pi-1.csr: to be signed with `cutlayer device issue pi-1`\n"
    )
    issued = done(capsys, "device", "issue", "pi-1", "--csr", "pi-1.csr", "--out", "pi-1.pem")
    assert "the certificates of `pi-1` and its agent" in issued
    assert "`pi-1` is enrolled" in done(capsys, "enroll", "--name", "pi-1", "--install", "pi-1.pem", "--ca", "fleet/ca/ca.pem")
    row = json.loads(done(capsys, "device", "list", "--json"))["devices"][0]
    assert row["state"] == "enrolled"
    assert row["key"][:16] in issued
    assert "with 2 certificates;" in done(capsys, "device", "revoke", "pi-1")
    assert "revoked" in done(capsys, "device", "list")
    assert (home / "identity/key.pem").read_text().splitlines()[1] not in said + issued


def test_groups(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pi-1", "pi-2", "pi-3"):
        done(capsys, "device", "add", name, *(("--group", "west") if name == "pi-1" else ()))
    assert done(capsys, "device", "group", "pi-2", "pi-3", "--group", "east") == "`pi-2`, `pi-3`: in group `east`\n"
    done(capsys, "device", "group", "pi-3", "--no-group")
    rows = json.loads(done(capsys, "device", "list", "--json"))["devices"]
    assert {row["name"]: row["group"] for row in rows} == {"pi-1": "west", "pi-2": "east", "pi-3": None}
    assert "pi-2  east  added" in done(capsys, "device", "list")
    assert "no device is called `pi-9`" in refused(capsys, "device", "group", "pi-1", "pi-9", "--group", "east")
    assert "pi-1  west  added" in done(capsys, "device", "list")
    assert "`pi-1` is a device" in refused(capsys, "device", "group", "pi-2", "--group", "pi-1")
    assert "a group is called `west`" in refused(capsys, "device", "add", "west")


def test_a_registry_from_before_there_were_groups(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, "device", "add", "pi-1")
    path = home / "fleet/fleet.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as registry:
        registry.execute("ALTER TABLE devices DROP COLUMN grp")
        registry.execute("DROP TABLE settings")
        registry.commit()
    assert "pi-1  added" in done(capsys, "device", "list")
    done(capsys, "device", "group", "pi-1", "--group", "west")
    assert "pi-1  west  added" in done(capsys, "device", "list")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("device add pi-1 --group a/b", "letters, digits"),
        ("device add pi-1 --group pi-1", "`pi-1` is a device; choose another name for the group"),
        ("device add all", "`all` stands for every device"),
        ("device add operator", "`operator` is the operator's name, who may command every device"),
        ("device group pi-1", "one of the arguments --group --no-group is required"),
        ("device group pi-1 --group all", "`all` stands for every device"),
        ("device group pi-1 --group a.b", "letters, digits"),
        ("device add a/b", "letters, digits, `_` or `-`"),
        ("device add pi-1 --fleet nowhere", "has no authority yet; make one with `cutlayer ca init --fleet nowhere`"),
        ("device add pi-1 --hours 0", "is not a number of seconds above 0"),
        ("device list --fleet nowhere", "has no authority yet"),
        ("device revoke nobody", "no device is called `nobody`"),
        ("device approve nobody", "no device is called `nobody`"),
        ("device revoke nobody --broker nowhere", "is no folder that `cutlayer broker config` has written"),
        ("device issue pi-1 --csr nowhere.csr --out x", "cannot read nowhere.csr"),
        ("device issue pi-1 --csr fleet/ca/ca.pem --out x", "is not one in PEM form"),
        ("ca serve --fleet nowhere", "has no authority yet"),
        ("ca serve --port 70000", "is not a port"),
        ("ca", "ACT"),
        ("broker config nowhere.toml --out x", "cannot read the run file"),
        ("enroll --name pi-1", "give one of --url URL, --write-csr FILE and --install FILE"),
        ("enroll --name pi-1 --url https://x", "--ca FILE is missing"),
        ("enroll --name pi-1 --url http://x --ca fleet/ca/ca.pem", "is no address of an authority"),
        ("enroll --name pi-1 --url https://x --ca nowhere.pem", "cannot read nowhere.pem"),
        ("enroll --name pi-1 --url https://x --ca fleet/ca/ca.key", "is not a certificate in PEM form"),
        ("enroll --name pi-1 --url https://x --ca fleet/ca/ca.pem", "holds no certificate and no token was given"),
        ("enroll --name pi-1 --url https://x --ca fleet/ca/ca.pem --token nowhere", "holds no certificate and there is no nowhere"),
        ("enroll --name pi-1 --url https://x --ca fleet/ca/ca.pem --token fleet/ca/ca.pem", "holds no token"),
        ("enroll --name ../x --url https://x --ca fleet/ca/ca.pem", "letters, digits"),
    ],
)
def test_a_mistake_gets_one_line(home: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *words.split())


def test_an_authority_that_does_not_answer_is_tried_again_later(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, "device", "add", "pi-1")
    words = "enroll --name pi-1 --url https://127.0.0.1:1 --ca fleet/ca/ca.pem --token fleet/tokens/pi-1.token"
    assert cutlayer.main(words.split()) == 1
    assert "cannot be reached: connection refused" in capsys.readouterr().err
    assert (home / "fleet/tokens/pi-1.token").exists()


def test_a_key_that_others_can_read_is_not_used(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "fleet/ca/ca.key").chmod(0o644)
    assert "can be read by others (mode 644)" in refused(capsys, "device", "add", "pi-1")


def test_a_device_whose_clock_is_in_the_past(home: Path) -> None:
    from edge_client.enroll.enroll import enroll
    from wire.errors import UsageError

    with pytest.raises(UsageError, match="the clock says 1970-01-01 00:00 UTC, before the fleet's authority was made"):
        enroll("pi-1", url="https://x", ca=home / "fleet/ca/ca.pem", token=None, folder=home / "identity", clock=lambda: 0.0)
    assert not Identity(home / "identity").key_pem.exists()
