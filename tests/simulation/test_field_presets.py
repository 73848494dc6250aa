from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from simulation.field.device import Device
from simulation.field.link import CLEAR, Link
from simulation.field.presets import MEASURED, constants_of, load_device, load_link, names, refusal, sources
from simulation.field.weather import Markov, Steps
from wire.errors import UsageError

LINKS = [name for name in names("link") if refusal(name) is None]
DEVICES = [name for name in names("device") if name not in MEASURED]


def test_what_there_is() -> None:
    assert {"gsm-csd", "gprs", "edge", "3g", "nb-iot", "lte-m", "vsat-geo", "iridium-certus", "lan"} <= set(LINKS)
    assert set(names("link")) - set(LINKS) == {"iridium-sbd", "lorawan-sf7"}
    assert set(names("device")) == {"pi-zero-2w", "pi-3", "pi-4", "pi-5", "server", "this", "this-server"}


@pytest.mark.parametrize(
    ("name", "up_kbps", "down_kbps", "round_trip_s", "loss"),
    [
        ("gsm-csd", 9.6, 9.6, 0.6, 0.01),
        ("gprs", 25, 50, 1.0, 0.02),
        ("edge", 100, 250, 0.6, 0.015),
        ("3g", 350, 750, 0.5, 0.015),
        ("nb-iot", 62, 26, 1.6, 0.001),
        ("lte-m", 375, 300, 0.1, 0.001),
        ("vsat-geo", 256, 1000, 0.6, 0.002),
        ("iridium-certus", 22, 88, 1.0, 0.002),
    ],
)
def test_links_are_as_their_sources_say(name: str, up_kbps: float, down_kbps: float, round_trip_s: float, loss: float) -> None:
    link = load_link(name)
    assert (link.name, link.weather) == (name, CLEAR)
    assert (link.up_bps, link.down_bps, link.round_trip_s, link.loss) == (up_kbps * 1000, down_kbps * 1000, round_trip_s, loss)


@pytest.mark.parametrize("name", names("link"))
def test_every_constant_of_a_link_has_a_source(name: str) -> None:
    told = sources("link", name)
    fields = {field.name for field in dataclasses.fields(Link)} - {"name", "weather", "radio"}
    assert set(told) == fields | {f"radio.{part}" for part in ("session_j", "byte_j", "tail_w", "tail_s", "idle_w")}
    assert all(len(text) > 8 and "{" not in text for text in told.values())


def test_no_constant_that_is_set_is_called_a_default() -> None:
    for name in LINKS:
        link, bare = constants_of(load_link(name)), constants_of(Link(name=name, up_bps=0, down_bps=0))
        unexplained = [key for key, told in link.items() if told["value"] != bare[key]["value"] and told["source"].startswith("default")]
        assert unexplained == [], name


def test_lorawan_sends_48_bits_a_second_by_its_application_note() -> None:
    """Time on air, Semtech AN1200.13, of 222 bytes and 13 of header: SF7, 125 kHz, coding rate 4/5, a preamble of 8 symbols."""
    symbol_s = 2**7 / 125_000
    payload = 8 + math.ceil((8 * 235 - 4 * 7 + 28 + 16) / (4 * 7)) * 5
    air_s = (8 + 4.25 + payload) * symbol_s
    assert 222 * 8 / air_s == pytest.approx(4814, rel=1e-3)
    assert 222 * 8 / air_s * 0.01 == pytest.approx(48, rel=0.01)


@pytest.mark.parametrize(
    ("name", "why"), [("lorawan-sf7", "no usable downlink.*class A.*duty cycle"), ("iridium-sbd", "340 bytes.*no TCP")]
)
def test_links_that_cannot_train_say_why(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}`.*{why}"):
        load_link(name)
    with pytest.raises(UsageError, match=why):
        load_link(f"{name},down_bps=1000")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grps", "no link `grps`; there are gsm-csd, gprs.*"),
        ("", "no link ``; there are "),
        ("gprs,", "'' is not of the form key=value"),
        ("gprs,loss", "'loss' is not of the form key=value"),
        ("gprs,lss=1", "unknown key `lss`; did you mean `loss`"),
        ("gprs,loss=0.7", "`loss` is 0.7; it must be 0 or more and below 0.5"),
        ("gprs,loss=much", "`loss` must be a number, got 'much'"),
        ("gprs,up_bps=nan", "`up_bps` is nan; it must be finite"),
        ("gprs,down_bps=0", "no usable downlink"),
        ("gprs,up_bps=0", "no usable uplink"),
        ("gprs,cell=1.5", "`cell` must be a whole number"),
        ("gprs,radio.tail_s=inf", "`radio.tail_s` is inf"),
        ("gprs,radio.byte_j=-1", "what a radio takes must be 0 or more"),
        ("gprs,weather=not-there.csv", "cannot read the trace not-there.csv"),
        ("not/there.toml", "cannot read not/there.toml: No such file"),
    ],
)
def test_bad_links_are_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        load_link(text)
    assert "\n" not in str(caught.value)


def test_constants_of_ones_own() -> None:
    link = load_link("gprs,loss=0.05,up_bps=12000,half_duplex=true,radio.tail_s=3")
    assert link == dataclasses.replace(
        load_link("gprs"),
        name="gprs,loss=0.05,up_bps=12000,half_duplex=true,radio.tail_s=3",
        loss=0.05,
        up_bps=12000.0,
        half_duplex=True,
        radio=dataclasses.replace(load_link("gprs").radio, tail_s=3.0),
    )
    told = constants_of(link)
    assert json.loads(json.dumps(told)) == told
    assert told["loss"] == {"value": 0.05, "source": "given by the user"}
    assert told["radio.tail_s"] == {"value": 3.0, "source": "given by the user"}
    assert told["down_bps"]["source"] == sources("link", "gprs")["down_bps"]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mast.toml"
    path.write_text(
        'up_bps = 1e4\ndown_bps = 20000\nround_trip_s = 1\nradio = { tail_w = 0.5 }\nweather = { kind = "trace", file = "mast.csv" }\n'
    )
    (tmp_path / "mast.csv").write_text("time_s,up_bps,down_bps\n0,5000,20000\n60,0,0\n90,0,0\n")
    link = load_link(f"{path},loss=0.1")
    assert (link.up_bps, link.down_bps, link.loss, link.radio.tail_w) == (10000.0, 20000.0, 0.1, 0.5)
    assert link.weather == Steps(begins_s=(0.0, 60.0), up=(0.5, 0.0), down=(1.0, 0.0), every_s=90.0)
    assert constants_of(link)["weather"] == {"value": "a schedule of 2 parts", "source": str(path)}


def test_weather_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bad-nights.toml"
    path.write_text('kind = "markov"\nup_s = 3600\ndown_s = 60\n')
    assert load_link(f"gprs,weather={path}").weather == Markov(up_s=3600.0, down_s=60.0)
    path.write_text('kind = "outages"\noutages = [[3600, 120]]\nevery_s = 7200\n')
    assert load_link(f"gprs,weather={path}").weather.at(3600.0).up == 0
    path.write_text('kind = "outages"\noutages = [[3600, 120], [3700, 5]]\n')
    with pytest.raises(UsageError, match=r"\[3700, 5\] must begin after the one before"):
        load_link(f"gprs,weather={path}")
    path.write_text('kind = "fog"\n')
    with pytest.raises(UsageError, match="'fog'; it must be one of 'outages', 'markov', 'trace'"):
        load_link(f"gprs,weather={path}")


@pytest.mark.parametrize("name", DEVICES)
def test_devices_follow_the_rule(name: str) -> None:
    device, told = load_device(name), sources("device", name)
    assert set(told) == {field.name for field in dataclasses.fields(Device)} - {"name"}
    assert "clock_hz" in told["flops"]
    assert "engine.md" in told["flops"]
    assert "load_w" in told["flop_j"]
    assert 0 < device.flop_j < 1e-9 < device.step_s < 0.01
    assert device.memory_bytes > 300e6
    assert device.idle_w >= 0.6


def test_figures_of_a_board() -> None:
    """By hand: 4 cores at 1.5 GHz, 8 operations a cycle, a quarter reached; 4.5 W more under load; 0.25 ms, 15.6 / 4.5 as long."""
    pi4 = load_device("pi-4")
    assert pi4.flops == pytest.approx(12e9)
    assert pi4.flop_j == pytest.approx(0.375e-9)
    assert pi4.step_s == pytest.approx(0.25e-3 * 15.6 / 4.5)
    assert (pi4.idle_w, pi4.memory_bytes, pi4.battery_wh) == (2.7, 3 << 30, None)
    assert load_device("pi-zero-2w").flops == pytest.approx(8e9)


def test_devices_of_ones_own(tmp_path: Path) -> None:
    assert load_device("pi-4,battery_wh=50") == dataclasses.replace(load_device("pi-4"), name="pi-4,battery_wh=50", battery_wh=50.0)
    path = tmp_path / "board.toml"
    path.write_text("flops = 1e9\nstep_s = 0.01\nidle_w = 1\nflop_j = 1e-9\nmemory_bytes = 1000000\n")
    assert load_device(str(path)).flops == 1e9
    assert constants_of(load_device(str(path)))["flops"] == {"value": 1e9, "source": str(path)}
    path.write_text("flops = 1e9\n")
    with pytest.raises(UsageError, match="missing key `step_s`"):
        load_device(str(path))
    path.write_text("flops = \n")
    with pytest.raises(UsageError, match=r"board\.toml is not valid TOML"):
        load_device(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pi-9", "no device `pi-9`; there are pi-zero-2w, .*, this"),
        ("pi-4,flops=0", "`flops` must be above 0"),
        ("pi-4,battery_wh=-1", "`battery_wh` is -1.0; it must be above 0"),
        ("pi-4,cores=9", "unknown key `cores`"),
    ],
)
def test_bad_devices_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_device(text)


@pytest.mark.parametrize("name", MEASURED)
def test_this_computer_is_measured(name: str) -> None:
    device = load_device(f"{name},battery_wh=10")
    assert device.flops > 1e8
    assert device.step_s >= 0
    assert device.memory_bytes > 1 << 28
    assert device.battery_wh == 10
    told = constants_of(device)
    assert told["flops"] == {"value": device.flops, "source": "measured on this computer"}


# ------------------------------------------------------------ the guide

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guide-links.md").read_text(encoding="utf-8")


def rows_of_the_guide() -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in GUIDE.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_guide_tells_all_that_there_is() -> None:
    rows = rows_of_the_guide()
    assert set(rows) == {*names("link"), *DEVICES}
    for name in LINKS:
        link = load_link(name)
        rates = [f"{bps / 1000:g}" for bps in (link.up_bps, link.down_bps)]
        assert rows[name][:4] == [*rates, f"{link.round_trip_s * 1000:g} ms", f"{link.loss * 100:g} %"], name
    for name in DEVICES:
        device = load_device(name)
        assert rows[name][0] == f"{device.flops / 1e9:.3g}"
        assert rows[name][2:4] == [f"{device.idle_w:g} W", f"{device.flop_j * 1e9:.2g} nJ"]


def test_the_guides_link_is_accepted(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    (tmp_path / "mast.toml").write_text(text)
    link = load_link(str(tmp_path / "mast.toml"))
    assert (link.up_bps, link.radio.tail_s, link.weather.at(3650).up, link.weather.at(7200 + 3650).up) == (12000, 6.0, 0, 0)
