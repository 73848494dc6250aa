"""The field simulator's report: what stands in it, that nothing else can, and how it looks in a real browser."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from simulation.field.report import write_report
from simulation.field.report.charts import FILLS, STYLES, curves_of
from simulation.field.report.facts import answer_of, answer_of_all, best_of, labels_of, measure_of, shares_of
from simulation.field.report.page import page_of
from simulation.field.report.png import plots
from simulation.field.report.timeline import shares_by_column, shortened, timelines_of
from simulation.field.report.view import view_of
from simulation.field.report.words import alike, duration, energy, exact, score, size
from simulation.field.result import KINDS, FieldResult
from tests.simulation.browser import Seen, Shown, driven, look, texts
from tests.simulation.field_worlds import broken, cost, result, sweep
from wire.errors import UsageError

ROOT = Path(__file__).parent.parent.parent
BOXES = """const boxes = {}; for (const each of document.querySelectorAll('.chart, .timeline > svg, table.shares .bar')) {
  const name = each.classList.contains('chart') ? each.querySelector('title').id : each.closest('.timeline') ? 'timeline' : 'bar';
  boxes[name] ??= each.getBoundingClientRect().toJSON(); } return boxes;"""


def _report(results: list[FieldResult], folder: Path, **options: Any) -> Path:
    write_report(results, folder, **options)
    return folder / "report.html"


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.0004, "400 µs"), (0.25, "250 ms"), (1.5, "1.50 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min 1 s"),
        (3_599.6, "1 h"), (11_520, "3 h 12 min"), (86_399, "1 d"), (90_000, "1 d 1 h"), (40_000_000, "462 d 23 h"),
        (math.inf, "\N{EN DASH}"), (math.nan, "\N{EN DASH}"),
    ],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_quantities_have_three_digits_and_the_unit_that_fits() -> None:
    assert [size(value) for value in (0, 1, 999, 1_000, 999_700, 12_345_678)] == ["0 B", "1 B", "999 B", "1 kB", "1.00 MB", "12.3 MB"]
    assert [energy(value) for value in (0, 0.002, 812.5, 3_590)] == ["0 J", "2 mJ", "812 J", "3.59 kJ"]
    assert alike([0, 500, 1_500], (("kJ", 1e3), ("J", 1.0))) == ["0 kJ", "0.5 kJ", "1.5 kJ"]
    assert [exact(value) for value in (25_000, 25_000.0, 0.02, 1.5e-8, True, None, (1, 2))] == [
        "25,000", "25,000", "0.02", "1.5e-08", "yes", "none", "1, 2",
    ]  # fmt: skip
    assert [score(0.8612, is_share=True), score(0.412345, is_share=False), score(math.nan, is_share=True)] == [
        "86.1 %", "0.4123", "not a number",
    ]  # fmt: skip


@given(st.floats(min_value=0, max_value=1e9))
def test_a_duration_read_back_is_nearly_the_same(seconds: float) -> None:
    units = {"d": 86_400, "h": 3_600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
    words = duration(seconds).replace(",", "").split()
    back = sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert back == pytest.approx(seconds, rel=0.05, abs=1e-5)


# ---------------------------------------------------------------- what results say


def test_the_answer_says_whether_how_well_and_how_long() -> None:
    one = result(metrics={"test": {"accuracy": 0.861}}, time_s=11_520.0)
    answer = answer_of(one, measure_of([one]))
    assert answer.kind == "yes"
    assert "over gprs, 4 clients on pi-zero-2w, codec lowbit: it trains to 86.1 % accuracy on the test split in 3 h 12 min" in answer.text


def test_an_answer_claims_no_training_that_was_not() -> None:
    worse = result(metrics={"test": {"accuracy": 0.31}})
    measure = measure_of([worse])
    assert answer_of(worse, measure).kind == "but"
    assert "has not gained" in answer_of(worse, measure).text
    assert answer_of(result(applied=0), measure).kind == "but"
    assert answer_of(broken(), measure) == dataclasses.replace(answer_of(broken(), measure), kind="no", word="No")
    assert "no usable downlink" in answer_of(broken(), measure).text
    assert "accuracy was not simulated" in answer_of(cost(), None).text
    stopped = result(finished=False, why="every battery is empty")
    assert "it does not finish: every battery is empty. It stopped after" in answer_of(stopped, measure).text


def test_the_best_cell_is_the_quickest_of_those_nearly_as_good_as_the_best() -> None:
    cells = [
        result(metrics={"test": {"accuracy": accuracy}}, time_s=time_s, finished=finished, seed=at)
        for at, (accuracy, time_s, finished) in enumerate([(0.87, 900.0, True), (0.862, 600.0, True), (0.8, 60.0, True), (0.9, 1.0, False)])
    ]
    assert best_of(cells, measure_of(cells)) == 1
    assert best_of([broken(), broken()], None) is None
    assert "3 of 4 cells finish" in answer_of_all(cells, measure_of(cells)).text
    errors = [result(metrics={"test": {"mae": value}}, history=[], seed=at) for at, value in enumerate([2.0, 1.0, 3.0])]
    assert best_of(errors, measure_of(errors)) == 1  # less is better


def test_cells_are_called_by_what_tells_them_apart() -> None:
    cells = sweep()
    labels = labels_of(cells)
    assert labels[0] == "gprs, int8, 4 clients"
    assert len(set(labels)) == len(cells)
    assert labels_of([result(varied={"in_flight": at}) for at in (1, 2)]) == ["in flight 1", "in flight 2"]
    several = result(metrics={"test": {"a.accuracy": 0.5, "b.accuracy": 0.7}}, history=[])
    measure = measure_of([several])
    assert measure is not None
    assert measure.last(several) == (pytest.approx(0.6), "test")


def test_columns_of_a_timeline_share_out_each_kinds_time() -> None:
    one = result(clients=2, steps=30)
    timeline = timelines_of([one])[0]
    assert timeline is not None
    assert timeline.whole
    for row, party in enumerate(one.parties):
        for columns in (7, 500):
            shares = shares_by_column(timeline, row, columns)
            assert shares.sum(axis=0) * timeline.end_s / columns == pytest.approx([party.spent_s[kind] for kind in KINDS])
            assert shares.sum(axis=1).max() <= 1 + 1e-9


def test_many_results_show_shorter_beginnings_and_say_so() -> None:
    many = [result(steps=400, clients=1, seed=seed) for seed in range(11)]
    found = timelines_of(many)
    assert all(each is not None and not each.whole and len(each.rows[0]) < 2_000 for each in found)


def test_a_shortened_result_is_drawn_alike() -> None:
    many = [result(steps=300, clients=25, seed=seed) for seed in range(6)]
    short = [shortened(each, len(many)) for each in many]
    assert timelines_of(short) == timelines_of(many)
    assert sum(len(party.timeline) for each in short for party in each.parties) <= 200_000
    assert [dataclasses.replace(party, timeline=[]) for party in short[0].parties] == [
        dataclasses.replace(party, timeline=[]) for party in many[0].parties
    ]


def test_axes_hold_every_point() -> None:
    cells = sweep()
    measure = measure_of(cells)
    assert measure is not None
    charts = curves_of(cells, labels_of(cells), measure, best_of(cells, measure))
    assert [chart.name for chart in charts] == ["accuracy-time", "accuracy-bytes", "accuracy-joules", "accuracy-busy-joules"]
    for chart in charts:
        assert len(chart.curves) == 12
        assert sum(curve.style is not None for curve in chart.curves) == len(STYLES)
        for axis in (chart.x, chart.y):
            assert 2 <= len(axis.ticks) <= 9
            assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value, _ in axis.ticks)
        assert all(
            -1e-9 <= chart.x.place(x) <= 1 + 1e-9 and -1e-9 <= chart.y.place(y) <= 1 + 1e-9 for c in chart.curves for x, y, _ in c.points
        )


def test_lines_of_very_different_speed_get_a_logarithmic_axis() -> None:
    slow, quick = result(seed=1), result(seed=2)
    slow = dataclasses.replace(slow, history=[dataclasses.replace(each, time_s=each.time_s * 1_000) for each in slow.history])
    measure = measure_of([slow, quick])
    assert measure is not None
    time, size_, *_ = curves_of([slow, quick], ["slow", "quick"], measure, 1)
    assert (time.x.log, size_.x.log) == (True, False)
    assert "logarithmic" in time.x.title


# ---------------------------------------------------------------- the files


def test_the_files_hold_all_results_and_plots(tmp_path: Path) -> None:
    cells = [*sweep()[:2], broken()]
    cells[0].history[0].metrics["loss"] = math.nan
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "timeline-999-old.png").write_bytes(b"of an earlier report")
    page = texts(_report(cells, tmp_path).read_text())
    kept = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert kept[0]["history"][0]["metrics"]["loss"] is None
    assert kept[1] == json.loads(json.dumps(cells[1].plain()))
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {
        "accuracy-time.png", "accuracy-bytes.png", "accuracy-joules.png", "accuracy-busy-joules.png", "time-by-kind.png",
        "timeline-001-gprs-int8-4-clients.png", "timeline-002-gprs-int8-10-clients.png",
    }  # fmt: skip
    for each in cells[:2]:
        assert duration(each.time_s) in page
        assert size(each.line_bytes_up + each.line_bytes_down) in page
    for expected in (
        "tylertreat/comcast",
        "the same <table>",
        "measured by benchmarks/engine.py",
        "25,000",
        "clinic-10",
        "link `lorawan` has no",
    ):
        assert expected in page


def test_pngs_show_what_they_should(tmp_path: Path) -> None:
    one = result(clients=3)
    write_report([one], tmp_path)
    (timeline,) = (tmp_path / "plots").glob("timeline-*.png")
    painted = _painted(np.asarray(Image.open(io.BytesIO(timeline.read_bytes())).convert("RGB")), dark=False)
    assert painted == pytest.approx(shares_of(one.parties), abs=0.06)
    curve = np.asarray(Image.open(tmp_path / "plots" / "accuracy-time.png").convert("RGB"))
    assert _count(curve, STYLES[0].light) > 500


def test_no_results_are_no_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no result"):
        write_report([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_was_ended_says_what_is_missing(tmp_path: Path) -> None:
    page = texts(_report(sweep()[:2], tmp_path, missing=11).read_text())
    assert "Not the whole sweep: 11 more cells have not been run." in page


def test_what_is_no_code_is_in_the_wheel() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = ROOT / "simulation" / "field" / "report"
    data = {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert data == {path.name for glob in table["simulation.field.report"] for path in folder.glob(glob) if path.suffix != ".py"}


_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
_HOSTILE = st.sampled_from(
    ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "\" onload='x'", "{{ 7*7 }}", "$\\frac$ & <b>", "]]>", "<!--"]
)
_VALUES = st.one_of(st.floats(), st.floats(min_value=0, max_value=1))


def _hostile(data: st.DataObject) -> FieldResult:
    """Any text and any metric, where a run file, a name or a reason can bring them."""
    text = st.one_of(_HOSTILE, _TEXT)
    names = {key: data.draw(text) for key in ("run", "link", "device", "codec", "schedule", "why", "version")}
    made = result(clients=1, steps=3, finished=data.draw(st.booleans()), **names)
    for moment in made.history:
        moment.metrics["accuracy"] = data.draw(_VALUES)
    party = dataclasses.replace(made.parties[0], name=data.draw(text))
    constants = {"link": {data.draw(text): {"value": data.draw(text), "source": data.draw(text)}}}
    return dataclasses.replace(made, parties=[party], constants=constants, metrics={data.draw(text): {data.draw(text): data.draw(_VALUES)}})


@settings(max_examples=40)
@given(st.data())
def test_text_stays_text_and_any_number_can_be_shown(data: st.DataObject) -> None:
    made = _hostile(data)
    shown = Shown(page_of(view_of([made, broken(data.draw(_TEXT))]), missing=0))
    assert [tag for tag, _ in shown.elements].count("script") == 2
    assert {tag for tag, _ in shown.elements} <= _ELEMENTS
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on") or name in ("src", "style")]
    read = " ".join(shown.text.split())
    for value in (made.run, made.link, made.parties[0].name, *itertools.chain(*made.constants["link"].items())):
        for each in value.values() if isinstance(value, dict) else [value]:
            assert " ".join(each.split()) in read


@settings(max_examples=4)
@given(st.data())
def test_any_text_and_number_can_be_plotted(data: st.DataObject) -> None:
    for name, drawn in plots(view_of([_hostile(data), result(clients=1, steps=2, link="_hidden")])):
        assert "/" not in name
        assert Image.open(io.BytesIO(drawn)).format == "PNG"


_ELEMENTS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "section",
        "details",
        "summary",
        "div",
        "span",
        "p",
        "a",
    ),
    *(
        "h1",
        "h2",
        "h3",
        "dl",
        "dt",
        "dd",
        "ul",
        "li",
        "strong",
        "label",
        "input",
        "table",
        "caption",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
    ),
    *("td", "figure", "figcaption", "svg", "g", "path", "line", "text", "rect", "script"),
}


def test_everything_has_a_title(tmp_path: Path) -> None:
    shown = Shown(_report([*sweep()[:2], broken()], tmp_path).read_text())
    count = {tag: sum(each == tag for each, _ in shown.elements) for tag in ("table", "caption")}
    assert count["table"] == count["caption"] >= 10
    images = [attributes for tag, attributes in shown.elements if attributes.get("role") == "img"]
    assert images
    assert all(each.get("aria-label") or each.get("aria-labelledby") for each in images)
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {each.get("aria-labelledby") for each in images} - {None} <= set(ids)


# ---------------------------------------------------------------- colours

# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency", 2009, severity 1.0.
_SIGHT = {
    "all": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def _linear(colour: str) -> NDArray[np.float64]:
    value = np.array(_rgb(colour)) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(colour: str, sight: str) -> NDArray[np.float64]:
    """CIE L*a*b* of how the colour is seen."""
    xyz = _XYZ @ np.clip(np.array(_SIGHT[sight]) @ _linear(colour), 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", _SIGHT)
@pytest.mark.parametrize("paper", ["light", "dark"])
def test_colours_differ_for_readers_who_see_fewer(paper: str, sight: str) -> None:
    for colours, least in (([getattr(each, paper) for each in FILLS.values()], 25), ([getattr(each, paper) for each in STYLES], 15)):
        for one, other in itertools.combinations(colours, 2):
            assert np.linalg.norm(_lab(one, sight) - _lab(other, sight)) >= least, (one, other)


@pytest.mark.parametrize(("paper", "ground"), [("light", "#ffffff"), ("dark", "#13171c")])
def test_curves_stand_out_from_the_paper(paper: str, ground: str) -> None:
    for style in STYLES:
        lights = sorted(float(_XYZ[1] @ _linear(colour)) + 0.05 for colour in (getattr(style, paper), ground))
        assert lights[1] / lights[0] >= 3, style  # WCAG 2.1, 1.4.11


# ---------------------------------------------------------------- in a real browser


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _count(pixels: NDArray[np.uint8], colour: str) -> int:
    return int((np.abs(pixels.astype(int) - _rgb(colour)).max(axis=-1) <= 2).sum())


def _painted(pixels: NDArray[np.uint8], *, dark: bool) -> dict[str, float]:
    """Of the pixels in the colour of a kind, the share of each."""
    found = {kind: _count(pixels, fill.dark if dark else fill.light) for kind, fill in FILLS.items()}
    return {kind: value / sum(found.values()) for kind, value in found.items()}


def _clean(seen: Seen) -> None:
    assert seen.complaints == []
    assert seen.requests == []


def test_the_browser_would_tell_of_errors_and_of_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><img src='http://example.invalid/x.png'><p id=a></p><script>a.textContent = 'ran'; nowhere()</script>")
    seen = look(page)
    assert '<p id="a">ran</p>' in seen.dom
    assert any("nowhere is not defined" in each for each in seen.complaints)
    assert seen.requests == ["http://example.invalid/x.png"]
    assert len(np.unique(seen.pixels[200:].reshape(-1, 3), axis=0)) == 1  # blank


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_one_result_in_a_browser(tmp_path: Path, dark: bool) -> None:
    one = result()
    seen = look(driven(_report([one], tmp_path), BOXES), height=3_000, dark=dark)
    _clean(seen)
    boxes = seen.noted()
    assert set(boxes) == {*(f"chart-accuracy-{name}" for name in ("time", "bytes", "joules", "busy-joules")), "timeline", "bar"}
    assert tuple(seen.pixels[2, 2]) == _rgb("#13171c" if dark else "#ffffff")
    for name, box in boxes.items():
        part = seen.part(box)
        if name.startswith("chart"):
            assert _count(part, STYLES[0].dark if dark else STYLES[0].light) > 300, name
            assert len(np.unique(part.reshape(-1, 3), axis=0)) > 20, name  # text and lines, smoothed
    assert _painted(seen.part(boxes["timeline"]), dark=dark) == pytest.approx(shares_of(one.parties), abs=0.05)
    assert _painted(seen.part(boxes["bar"]), dark=dark) == pytest.approx(shares_of(one.parties[:1]), abs=0.05)
    read = texts(seen.dom)
    for party in one.parties:
        assert party.name in read


def test_a_sweep_in_a_browser(tmp_path: Path) -> None:
    cells = sweep()
    best = best_of(cells, measure_of(cells))
    script = """
      const numbers = [...document.querySelectorAll('table:not(.facts) td')].filter((each) => /^[0-9][0-9.,]*( |$)/.test(each.textContent));
      const cells = [...document.querySelectorAll('details')], ragged = (each) => getComputedStyle(each).textAlign !== 'right';
      return { cells: cells.map((each) => [each.id, each.open, each.querySelectorAll('.timeline path').length]),
        numbers: numbers.length, ragged: numbers.filter(ragged).map((each) => each.textContent) };"""
    seen = look(driven(_report(cells, tmp_path), script), height=3_000, part="#cell-3")
    _clean(seen)
    noted = seen.noted()
    assert noted["numbers"] > 100
    assert noted["ragged"] == []
    opened = {name: paths for name, is_open, paths in noted["cells"] if is_open}
    assert set(opened) == {f"cell-{best}", "cell-3"}
    assert all(paths > 10 for paths in opened.values())
    assert "no: link `lorawan` has no usable downlink: gradients cannot come back" in texts(seen.dom)


def test_narrow_and_hostile_pages_stay_within_the_window(tmp_path: Path) -> None:
    cells = sweep()
    cells[0] = dataclasses.replace(cells[0], run="<script>alert(1)</script>" + "x" * 80, parties=[*cells[0].parties])
    script = "return [document.documentElement.scrollWidth, innerWidth, document.querySelectorAll('script').length]"
    seen = look(driven(_report([cells[0]], tmp_path), script), width=420, height=2_000)
    _clean(seen)
    wide, window, scripts = seen.noted()
    assert wide <= window
    assert scripts == 3  # data, the page's, the test's
    assert "<script>alert(1)</script>" in texts(seen.dom)


@pytest.mark.parametrize("made", [cost(), broken(), result(history=[], parties=[], constants={})], ids=["cost", "broken", "bare"])
def test_results_without_history_in_a_browser(tmp_path: Path, made: FieldResult) -> None:
    seen = look(_report([made], tmp_path), height=2_400)
    _clean(seen)
    assert 'class="chart"' not in seen.dom
    assert "There is no curve: nothing was evaluated along the way." in texts(seen.dom)
    assert seen.dom.count('class="kind') == 0 or made.parties
    if made.parties:
        assert "20 of 1,000 clients" in texts(seen.dom)
        assert _count(seen.pixels, FILLS["server"].light) > 10_000


def _seconds(words: str) -> float:
    numbers = words.split()
    return sum(float(number) * {"min": 60, "s": 1}[unit] for number, unit in zip(numbers[::2], numbers[1::2], strict=True))


def test_a_person_zooms_moves_and_asks(tmp_path: Path) -> None:
    one = result()
    script = """
      const words = (all) => [...all].map((each) => each.textContent);
      const svg = document.querySelector('.timeline > svg'), ticks = () => words(svg.querySelectorAll('.tick'));
      const press = (name) => [...document.querySelectorAll('.timeline button')].find((each) => each.textContent === name).click();
      const found = { whole: ticks() };
      press('first steps'); found.first = ticks();
      press('whole'); press('+'); press('+'); press('+'); press('+'); found.zoomed = ticks();
      press('→'); found.later = ticks();
      svg.dispatchEvent(new KeyboardEvent('keydown', { key: 'Home' })); found.home = ticks();
      for (let times = 0; times < 60; times += 1) svg.dispatchEvent(new KeyboardEvent('keydown', { key: '+' }));
      found.deep = ticks();
      press('whole');
      const box = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + box.width / 2, clientY: box.top + 10 }));
      found.says = document.querySelector('.says').textContent;
      const target = document.getElementById('target'), row = () => words(document.querySelector('#reach tbody').rows[0].cells);
      target.value = '50'; target.dispatchEvent(new Event('input')); found.low = row();
      target.value = '99.5'; target.dispatchEvent(new Event('input')); found.high = row();
      return found;"""
    seen = look(driven(_report([one], tmp_path), script), height=2_400)
    _clean(seen)
    found = seen.noted()
    assert found["whole"][0] == "0 s"
    assert found["home"] == found["whole"]
    end_s = max(party.timeline[29].end_s for party in one.parties)
    assert found["first"][0] == "0 s"
    assert 0.7 * end_s <= _seconds(found["first"][-1]) <= end_s
    assert set(found["zoomed"]) != set(found["whole"])
    assert found["later"] != found["zoomed"]
    assert len(found["deep"]) >= 2
    assert len(set(found["deep"])) == len(found["deep"])  # however deep, ticks differ
    assert found["says"].startswith("clinic-1: ")
    first = next(each for each in one.history if each.metrics["accuracy"] >= 0.5)
    assert found["low"][2:5] == [duration(first.time_s), size(first.bytes_up + first.bytes_down), energy(first.joules)]
    assert found["high"][1:] == ["not reached"]
