"""A simulated run is the run: the same weights and losses as of real processes, whatever the modelled line does."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cutlayer import main
from server.broker import start_broker
from simulation.field.configure import configured
from simulation.field.device import Device
from simulation.field.link import Conditions, Link
from simulation.field.presets import load_device, load_link
from simulation.field.result import KINDS, FieldResult
from simulation.field.simulate import Interrupted, Setting, simulate
from simulation.field.weather import Markov, outages
from tests.e2e.field import Field, field, small_run
from wire.runfile import Run, load_run

STEPS = 2 * 2 * 3  # epochs, clients, batches of each


def setting(link: str | Link = "gprs", **changes: Any) -> Setting:
    found = load_link(link) if isinstance(link, str) else link
    return dataclasses.replace(Setting(link=found, device=load_device("pi-4"), server_device=load_device("server")), **changes)


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("field"), samples=48, test_samples=32, checkpoint_every=4)


def run_in(run_file: Path, folder: Path, **changes: Any) -> Run:
    return configured(load_run(run_file), changes, state=folder)


def left(run_file: Path, run: Run) -> tuple[dict[str, bytes], list[tuple[int, float]]]:
    """Weights of all parties and every loss."""
    found = Field(run_file, "mqtt://127.0.0.1:1")
    found.run = run
    return found.weights(), found.losses()


def told(result: FieldResult) -> dict[str, Any]:
    return {key: value for key, value in result.plain().items() if key != "wall_s"}


@pytest.fixture(scope="module")
def real(run_file: Path) -> tuple[dict[str, bytes], list[tuple[int, float]]]:
    with start_broker() as broker, field(run_file, broker) as run:
        run.finish()
        return run.weights(), run.losses()


@pytest.mark.parametrize(
    "link",
    [
        load_link("gprs"),
        load_link("nb-iot,loss=0.1"),
        dataclasses.replace(load_link("gprs"), weather=outages([(5.0, 7.0)], every_s=20.0)),
        dataclasses.replace(load_link("edge"), weather=outages([(12.0, 400.0)])),  # longer than a connection lives
        dataclasses.replace(load_link("3g,cell=2,half_duplex=true"), weather=Markov(up_s=20.0, down_s=5.0)),
    ],
    ids=["gprs", "losses", "outages", "a long outage", "a shared cell in bad weather"],
)
def test_weights_and_losses_are_those_of_real_processes(link: Link, run_file: Path, real: Any, tmp_path: Path) -> None:
    run = run_in(run_file, tmp_path / "state")
    result = simulate(run, setting(link))
    assert result.finished, result.why
    assert result.applied == STEPS
    assert left(run_file, run) == real
    assert result.metrics["test"]["accuracy"] == result.history[-1].metrics["accuracy"]
    for party in result.parties:
        assert sum(party.spent_s.values()) == pytest.approx(party.timeline[-1].end_s, abs=1e-6)
        assert set(party.spent_s) == set(KINDS)
        assert party.line_bytes_up > party.bytes_up > 0
    if link.weather.at(13.0).up == 0:
        assert all(party.spent_s["outage"] > 0 for party in result.parties)
    if link.weather.at(13.0).until_s == 412.0:
        assert 412 < result.time_s < 500, "clients are back half a minute after the line"
        assert all(party.connections == 2 for party in result.parties)


def test_the_same_seed_gives_the_same_result_and_another_line_other_times(run_file: Path, tmp_path: Path) -> None:
    first, second, other = (
        simulate(run_in(run_file, tmp_path / name), setting(link)) for name, link in (("a", "gprs"), ("b", "gprs"), ("c", "edge"))
    )
    assert told(first) == told(second)
    assert other.time_s < first.time_s
    assert other.metrics == first.metrics


def test_an_interrupted_simulation_goes_on_from_its_last_checkpoint(run_file: Path, tmp_path: Path) -> None:
    whole_run, run = run_in(run_file, tmp_path / "whole"), run_in(run_file, tmp_path / "cut")
    whole = simulate(whole_run, setting())

    def interrupt(done: int, total: int) -> None:
        if done == STEPS - 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as told_so_far:
        simulate(run, setting(), progress=interrupt)
    partial = told_so_far.value.result
    assert not partial.finished
    assert "goes on" in partial.why
    assert len(partial.history) == 1
    result = simulate(run, setting())
    assert result.finished
    assert left(run_file, run) == left(run_file, whole_run)
    assert [moment.metrics for moment in result.history] == [moment.metrics for moment in whole.history]
    assert result.history[0] == whole.history[0], "it was not simulated again"
    assert partial.history[0].time_s < result.time_s
    assert result.time_s == pytest.approx(whole.time_s, abs=30), "its clients join once more"
    with pytest.raises(Exception, match="holds a simulation of another link"):
        simulate(run_in(run_file, tmp_path / "cut"), setting("edge"))


def test_a_battery_that_is_empty_ends_the_run_with_a_reason(run_file: Path, tmp_path: Path) -> None:
    weak = dataclasses.replace(load_device("pi-zero-2w"), battery_wh=0.005)
    result = simulate(run_in(run_file, tmp_path), setting(device=weak))
    assert not result.finished
    assert "was empty after" in result.why
    assert "before the first epoch was over" in result.why
    (empty,) = [party for party in result.parties if party.battery_empty_s is not None]
    assert f"the battery of `{empty.name}`" in result.why
    assert 0.005 * 3600 <= empty.joules <= 1.2 * 0.005 * 3600, "it was looked at in time"


@dataclass(frozen=True)
class Failing:
    """Up for ten seconds."""

    def at(self, time_s: float) -> Conditions:
        return Conditions(until_s=10.0) if time_s < 10 else Conditions(up=0.0, down=0.0)


def test_a_run_that_cannot_end_says_so_and_does_not_hang(run_file: Path, tmp_path: Path) -> None:
    dead = dataclasses.replace(load_link("gprs"), weather=Failing())
    result = simulate(run_in(run_file, tmp_path / "dead"), setting(dead, limit_s=86400.0))
    assert not result.finished
    assert "down for good" in result.why or "not over after 1 days" in result.why
    short = simulate(run_in(run_file, tmp_path / "short"), setting(limit_s=20.0))
    assert not short.finished
    assert "not over" in short.why


def test_more_clients_share_the_data_of_the_first(run_file: Path, tmp_path: Path) -> None:
    result = simulate(run_in(run_file, tmp_path, clients=5, schedule="independent", codec="fp32/int8"), setting("lan"))
    assert (result.clients, result.finished, result.codec) == (5, True, "fp32/int8")
    assert len({party.name for party in result.parties}) == 5


def test_what_clients_measure_for_themselves_is_told_as_their_mean(tmp_path: Path) -> None:
    model = {"build": "digits-cnn", "cut": ["pool1", "pool2"]}
    path = small_run(tmp_path, samples=48, test_samples=32, model=model, schedule="independent", weights_leave=False)
    run = run_in(path, tmp_path / "simulated")
    result = simulate(run, setting("lan"))
    assert result.finished
    assert [moment.epoch for moment in result.history] == [0, 1]
    own = [json.loads((run.state_of(client.name) / "metrics.json").read_text())["test"]["accuracy"] for client in run.clients]
    assert result.metrics["test"]["accuracy"] == pytest.approx(sum(own) / 2)


def test_faster_boards_and_lines_end_sooner(run_file: Path, tmp_path: Path) -> None:
    slow = Device(name="slow", flops=1e6, step_s=0.1, idle_w=1.0, flop_j=0.0, memory_bytes=1 << 29)
    times = [
        simulate(run_in(run_file, tmp_path / str(at)), setting(link, device=device)).time_s
        for at, (link, device) in enumerate([("gsm-csd", slow), ("gsm-csd", load_device("pi-4")), ("3g", load_device("pi-4"))])
    ]
    assert times == sorted(times, reverse=True)


# ------------------------------------------------------------ the command


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_reports_a_grid_and_what_cannot_be(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--sweep", "link=lan,lorawan-sf7", "codec=int8,lowbit"]
    code, out, err = said(capsys, "simulate", run_file, *grid, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    cells = json.loads(out.splitlines()[-1])["cells"]
    assert [cell["finished"] for cell in cells] == [True, True, False, False]
    assert "no usable downlink" in cells[-1]["why"]
    assert (tmp_path / "out" / "report.html").is_file()
    again_code, again_out, again_err = said(capsys, "simulate", run_file, *grid, "--out", tmp_path / "out", "--json")
    assert again_code == 0
    assert json.loads(again_out.splitlines()[-1])["cells"] == cells
    assert "2 of 4 cells are in" in again_err


def test_this_computer_is_measured_once(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("simulate", run_file, "--link", "lan", "--device", "this", "--out", tmp_path / "out", "--json")
    code, out, err = said(capsys, *arguments)
    assert code == 0, err
    again_code, again, again_err = said(capsys, *arguments)
    assert again_code == 0
    assert again == out
    assert "1 of 1 cells are in" in again_err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--link", "lorawan-sf7"], "no usable downlink"),
        (["--link", "gprss"], "there is no link `gprss`; there are"),
        (["--link", "gprs,up_bps=100"], "lower `part_bytes` or raise `keepalive_s`"),
        (["--device", "pi-9"], "there is no device `pi-9`; there are"),
        (["--clients", "900"], "the test share is empty"),
        (["--sweep", "links=gprs"], "there is no key 'links'"),
        (["--link", "gprs,weather=back.csv"], "back.csv"),
    ],
)
def test_what_a_person_mistypes_is_one_line(
    arguments: list[str], words: str, run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "back.csv").write_text("time_s,up_bps,down_bps\n0,1000,1000\n5,1000,1000\n4,1000,1000\n")
    code, out, err = said(capsys, "simulate", run_file, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "report.html").exists()
