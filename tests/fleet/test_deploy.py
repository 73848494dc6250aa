"""Releases from the operator to devices, through a real mosquitto with the generated configuration; the devices are others' code."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

import cutlayer
from fleet.deploy.key import signing_key
from tests.fleet.conftest import write_wheel
from tests.fleet.deploys import DEVICES, FAST, Field
from tests.fleet.fleets import PATIENCE_S, until
from wire.fleet.release import load_release
from wire.runfile import load_run

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------ what devices get


def test_three_devices_by_stages(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as stack:
        agents = [stack.enter_context(field.agent(name, hold_at=1)) for name in DEVICES]
        under_way = field.deploy("--stages", "1,100%", "--json")
        first = until(lambda: next((agent for agent in agents if agent.pieces), None), "a device that fetches")
        time.sleep(4 * FAST.ask_s)  # in which others would be offered it
        assert [agent.name for agent in agents if agent.offers] == [first.name]
        for agent in agents:
            agent.go_on()
        assert under_way.end() == ""
    assert [agent.release for agent in agents] == [1, 1, 1]
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["end"] == "done"
    assert said["healthy"] == 3
    assert {row["phase"] for row in said["devices"]} == {"healthy"}
    assert field.newest("c0").outcome == "healthy"


def test_what_a_release_holds_is_what_flash_would_have_written(field: Field) -> None:
    """The device's own slice with the broker and its keys, the bundle, and the wheels."""
    wheel = write_wheel(field.folder, "cutlayer", "0.2.0", "py3-none-any")
    with field.agent("c1") as agent:
        assert field.deploy("--to", "c1", "--code", str(wheel), "--home", "/srv/cutlayer").end() == ""
    names = {path.relative_to(field.bundle).as_posix() for path in field.bundle.rglob("*") if path.is_file()}
    assert set(agent.paths) == {"run.toml", f"wheels/{wheel.name}", *(f"bundle/{name}" for name in names)}
    for name in names:
        assert agent.files[agent.paths[f"bundle/{name}"]] == (field.bundle / name).read_bytes()
    assert agent.files[agent.paths[f"wheels/{wheel.name}"]] == wheel.read_bytes()
    (field.folder / "got.toml").write_bytes(agent.files[agent.paths["run.toml"]])
    run = load_run(field.folder / "got.toml")
    assert run.slice is not None
    assert (run.slice.party, run.slice.digest) == ("c1", load_run(field.run).digest)
    assert run.broker.cert == "/srv/cutlayer/identity/cert.pem"
    assert run.broker.url == f"mqtts://127.0.0.1:{field.broker.port}"
    assert run.base == "/srv/cutlayer"
    row = field.newest("c1")
    release = load_release(row.manifest, row.signature, [signing_key(field.authority.fleet.folder).public_key()])
    assert release.size_bytes == sum(len(data) for data in agent.files.values())


def test_a_device_keeps_its_code_until_it_is_told_otherwise(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = write_wheel(field.folder, "cutlayer", "0.2.0", "py3-none-any")
    with field.agent("c1") as agent:
        for words, code in ((["--code", str(wheel)], wheel.name), (["--minimum", "1"], wheel.name), (["--card-code"], "the card's code")):
            assert field.deploy("--to", "c1", *words).end() == ""
            assert f"with {code}\n" in capsys.readouterr().err
            assert (f"wheels/{wheel.name}" in agent.paths) is (code == wheel.name)
    assert agent.release == 3


def test_from_slices_as_an_operator_without_torch_has_them(field: Field) -> None:
    slices = field.folder / "slices"
    for name in ("c0", "c1", "server"):
        assert cutlayer.main(["slice", str(field.run), "--party", name, "--out", str(slices / f"{name}.toml")]) == 0
    field.authority.token("server", field.folder / "server.token")
    with field.agent("c0") as first, field.agent("c1") as second:
        assert field.deploy("--run", str(slices)).end() == ""
    assert (first.release, second.release) == (1, 1)
    assert tomllib.loads(first.files[first.paths["run.toml"]].decode())["slice"]["party"] == "c0"


# ------------------------------------------------------------ devices that fail, or come later


def test_it_stops_where_the_first_device_refuses(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as stack:
        agents = [stack.enter_context(field.agent(name, verdict="refused", reason="\x1b[31mno room")) for name in DEVICES]
        assert "stopped: 1 of 1 devices that were tried have failed" in field.deploy("--stages", "1,100%").end()
    assert sum(bool(agent.offers) for agent in agents) == 1
    said = capsys.readouterr()
    assert "refused, \\x1b[31mno room" in said.out
    assert "\x1b" not in said.out + said.err


def test_one_that_returns_is_named_and_not_tried_again(field: Field) -> None:
    with field.agent("c0", verdict="returned", reason="the bundle does not load") as bad, field.agent("c1") as good:
        assert (
            field.deploy("--to", "c0", "--to", "c1", "--stages", "100%", "--stop-at", "50%").end()
            == "`c0` did not take it; --again tries anew"
        )
        assert good.release == 1
        assert field.newest("c0").reason == "the bundle does not load"
        assert "`c0` did not take it" in field.deploy("--to", "c0", "--to", "c1", "--stages", "100%", "--stop-at", "50%").end()
        assert len(bad.offers) == len(good.offers) == 1
        bad.verdict = "healthy"
        assert field.deploy("--to", "c0", "--again").end() == ""
        assert [offer["version"] for offer in bad.offers] == [1, 2]


def test_what_was_said_of_an_earlier_offer_does_not_count(field: Field) -> None:
    """It refused for want of room, and has some now."""
    with field.agent("c0", verdict="refused", reason="no room") as agent:
        assert "stopped" in field.deploy("--to", "c0").end()
        agent.verdict = "healthy"
        assert field.deploy("--to", "c0").end() == ""
    assert [offer["version"] for offer in agent.offers] == [1, 1]


def test_a_device_that_comes_later(field: Field) -> None:
    with field.agent("c0"), field.agent("c1"):
        under_way = field.deploy()
        field.ends("c1", "healthy")
        with field.agent("c2") as late:
            assert under_way.end() == ""
    assert late.release == 1


def test_who_does_not_come_in_time_is_named(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    with field.agent("c0"):
        assert "`c1`, `c2` did not come to an end in time" in field.deploy("--hours", "0.0025").end()
    assert "  c1: not there" in capsys.readouterr().out
    with field.agent("c0") as first, field.agent("c1"), field.agent("c2"):
        first.release = first.highest = 1
        first.signed = bytes(64) + field.newest("c0").manifest
        assert field.deploy("--hours", "1").end() == ""
    assert first.offers == []


def test_a_device_that_is_cut_off_goes_on_where_it_was(field: Field) -> None:
    agent = field.agent("c0", hold_at=2)
    with agent:
        under_way = field.deploy("--to", "c0")
        until(lambda: len(agent.pieces) >= 2 or None, "two pieces")
    agent.hold_at = None
    with agent:
        assert under_way.end() == ""
    assert agent.release == 1
    assert len(agent.pieces) == len(set(agent.pieces))


def test_a_registry_that_was_lost(field: Field) -> None:
    """The devices run a release 1 of before; what is made now has that number, and something else in it."""
    with field.agent("c0", release=1, highest=1, signed=bytes(64) + b"of before") as agent, field.agent("c1"):
        assert "up to 1 (`c0`): it was lost, or is an old copy; deploy with --above 1" in field.deploy("--to", "c0").end()
        assert agent.offers == []
        assert field.deploy("--to", "c0", "--above", "1").end() == ""
    assert agent.release == 2


def test_a_broker_that_is_started_anew(field: Field) -> None:
    with field.agent("c0", hold_at=1) as agent:
        under_way = field.deploy("--to", "c0")
        until(lambda: agent.pieces or None, "a piece")
        field.broker.restart()
        agent.finish()
        assert under_way.end() == ""


# ------------------------------------------------------------ the operator


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_operator_is_ended_in_the_middle_and_started_again(field: Field, how: signal.Signals) -> None:
    with field.agent("c0", hold_at=3) as agent:
        process = subprocess.Popen(
            [sys.executable, "-m", "cutlayer", *field.words("--to", "c0")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: len(agent.pieces) >= 3 or None, "three pieces")
        process.send_signal(how)
        _, said = process.communicate(timeout=PATIENCE_S)
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert "the same command goes on with it" in said
        under_way = field.deploy("--to", "c0")
        agent.finish()
        assert under_way.end() == ""
        assert field.newest("c0").version == agent.release == 1
        assert {offer["version"] for offer in agent.offers} == {1}


def test_one_command_speaks_at_a_time(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    with field.agent("c0", hold_at=1) as agent:
        under_way = field.deploy("--to", "c0")
        until(lambda: agent.pieces or None, "a piece")
        assert "another `cutlayer deploy` or `cutlayer devices` is speaking" in field.deploy("--to", "c1").end()
        capsys.readouterr()
        until(lambda: seen(field, capsys)["c0"]["online"] or None, "c0 in what the deploy has heard")
        agent.go_on()
        assert under_way.end() == ""


def test_the_broker_does_not_know_the_operator(field: Field) -> None:
    acl = field.broker.folder / "acl"
    acl.write_text(acl.read_text().replace("user operator", "user somebody"))
    field.broker.restart()
    with field.agent("c0"):
        assert "`cutlayer broker config` lets the operator in" in field.deploy("--to", "c0").end()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "nobody"], "`nobody` is no device and no group"),
        (["--to", "server"], "`server` is no client of"),
        (["--run", "nowhere.toml"], "cannot read the run file nowhere.toml"),
        (["--broker", "mqtt://127.0.0.1:1883"], "devices take releases over TLS alone"),
        (["--code", "nowhere.whl"], "nowhere.whl"),
        (["--wheels", "nowhere"], "--wheels needs --python"),
        (["--wheels", "nowhere", "--card-code"], "--card-code is for no other code"),
        (["--minimum", "7"], "--minimum is 7, and this release is 1"),
    ],
)
def test_a_mistake_gets_one_line(field: Field, words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    field.authority.token("server", tmp_path / "server.token")
    assert cutlayer.main(field.words(*words)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("cutlayer: error: ")
    assert said in line


# ------------------------------------------------------------ `cutlayer devices`


def seen(field: Field, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """By name, what `cutlayer devices --json` says."""
    assert cutlayer.main(["devices", "--json", "--fleet", str(field.authority.fleet.folder), "--wait-s", "3", *words]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["devices"]}


def test_devices_shows_who_is_there_and_when_others_were(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    with field.agent("c0", release=4, highest=6), field.agent("c1", stage="refused", offered=3, reason="\x1b[2Jno"):
        found = seen(field, capsys)
    assert [found[name]["online"] for name in DEVICES] == [True, True, False]
    assert (found["c0"]["release"], found["c0"]["highest"]) == (4, 6)
    assert found["c0"]["step"] == 12
    assert 0 < found["c0"]["answer_s"] < PATIENCE_S
    assert found["c2"]["seen_s"] is None
    time.sleep(1.5)
    with field.agent("c2"):
        found = seen(field, capsys)
        assert [found[name]["online"] for name in DEVICES] == [False, False, True]
        assert found["c0"]["seen_s"] > time.time() - PATIENCE_S
        assert cutlayer.main(["devices", "--fleet", str(field.authority.fleet.folder), "--wait-s", "3"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    rows = {row.split()[0]: row for row in text.splitlines()}
    assert " last 20" in rows["c0"]
    assert " online " in rows["c2"]
    assert "3 refused: \\x1b[2Jno" in rows["c1"]


def test_devices_of_a_group_and_a_broker_that_is_out_of_reach(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    with field.authority.fleet.registry() as registry:
        registry.put_into("west", ["c1"])
    with field.agent("c1"):
        assert set(seen(field, capsys, "west")) == {"c1"}
    field.broker.kill()
    words = ["devices", "west", "--fleet", str(field.authority.fleet.folder), "--wait-s", "3"]
    assert cutlayer.main(words) == 1
    said = capsys.readouterr()
    assert "c1" in said.out
    assert "the broker is out of reach" in said.err
