from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.field import weather as weather_module
from simulation.field.link import Link, Weather
from simulation.field.weather import Markov, Steps, outages, read_trace, weather_of
from wire.errors import UsageError

times = st.floats(0, 1e7)
durations = st.integers(1, 5000)  # whole seconds: their sums are exact


@st.composite
def schedules(draw: st.DrawFn) -> Steps:
    begin_s, spans = 0, []
    for pause_s, length_s in draw(st.lists(st.tuples(st.integers(0, 1000), durations), max_size=5)):
        spans.append((begin_s + pause_s, length_s))
        begin_s += pause_s + length_s
    every_s = draw(st.none() | st.just(begin_s) | st.integers(begin_s + 1, begin_s + 1000))
    return outages(spans, every_s=every_s or None)


chains = st.builds(Markov, up_s=durations, down_s=durations, seed=st.integers(0, 9), client=st.integers(0, 99))
weathers: st.SearchStrategy[Weather] = st.one_of(schedules(), chains)


@given(weathers, st.lists(times, min_size=1, max_size=20))
def test_what_was_asked_before_changes_nothing(weather: Weather, asked: list[float]) -> None:
    first = {time_s: weather.at(time_s) for time_s in asked}
    weather_module._moments.cache_clear()
    assert {time_s: weather.at(time_s) for time_s in reversed(asked)} == first


@given(weathers, times)
def test_conditions_last_until_later_and_hold_meanwhile(weather: Weather, time_s: float) -> None:
    found = weather.at(time_s)
    assert found.until_s > time_s
    if math.isfinite(found.until_s):
        between = weather.at(time_s + (found.until_s - time_s) / 2)
        assert (between.up, between.down) == (found.up, found.down)


def walked(weather: Weather, end_s: float) -> list[tuple[float, float]]:
    """(seconds, factor) up to ``end_s``, by going from each ``until_s`` to the next."""
    found, time_s = [], 0.0
    while time_s < end_s:
        here = weather.at(time_s)
        found.append((min(here.until_s, end_s) - time_s, here.up))
        time_s = here.until_s
    return found


@given(schedules())
def test_a_schedule_is_dead_as_long_as_it_says(weather: Steps) -> None:
    end_s = 3 * weather.every_s if weather.every_s else weather.begins_s[-1] + 1
    ends = itertools.pairwise((*weather.begins_s, weather.every_s or end_s))
    dead_s = sum(end - begin for (begin, end), up in zip(ends, weather.up, strict=True) if not up) * (3 if weather.every_s else 1)
    assert sum(seconds for seconds, up in walked(weather, end_s) if not up) == pytest.approx(dead_s, rel=1e-6, abs=1e-6)


def test_outages_by_hand() -> None:
    weather = outages([(10, 5), (20, 1)], every_s=60)
    assert [weather.at(time_s).up for time_s in (0, 9.9, 10, 14.9, 15, 20.5, 21, 59, 70, 75)] == [1, 1, 0, 0, 1, 0, 1, 1, 0, 1]
    assert [weather.at(time_s).until_s for time_s in (0, 10, 21, 60, 131)] == [10, 15, 60, 70, 135]
    assert outages([(0, 5)]).at(2).until_s == 5
    assert outages([(0, 5)]).at(5) == outages([]).at(0)


@pytest.mark.parametrize(
    ("spans", "every_s", "said"),
    [
        ([(10, 5), (14, 2)], None, "begin after the one before"),
        ([(10, 0)], None, "longer than 0 s"),
        ([(math.nan, 1)], None, "must begin after"),
        ([(10, 5)], 12, "ends after `every_s`"),
        ([], 0, "`every_s` is 0; it must be above 0"),
        ([(10, 5)], math.inf, "`every_s` is inf"),
    ],
)
def test_schedules_that_make_no_sense(spans: list[tuple[float, float]], every_s: float | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        outages(spans, every_s=every_s)


# ------------------------------------------------------------ by chance


@pytest.mark.parametrize(("up_s", "down_s"), [(300, 100), (50, 500), (3600, 10)])
def test_a_chain_has_its_share_and_its_stays(up_s: float, down_s: float) -> None:
    """Over 4,000 mean turns the standard deviations of share and means are below 2 %."""
    spans = walked(Markov(up_s=up_s, down_s=down_s, seed=7), 4000 * (up_s + down_s))
    stays = [(sum(seconds for seconds, _ in group), up) for up, group in itertools.groupby(spans, key=lambda span: span[1])]
    whole, dead = [seconds for seconds, up in stays if up], [seconds for seconds, up in stays if not up]
    assert sum(whole) / (sum(whole) + sum(dead)) == pytest.approx(up_s / (up_s + down_s), rel=0.1)
    assert sum(whole) / len(whole) == pytest.approx(up_s, rel=0.1)
    assert sum(dead) / len(dead) == pytest.approx(down_s, rel=0.1)
    # Without memory: e^-1 of the stays outlast their mean.
    assert sum(each > up_s for each in whole) / len(whole) == pytest.approx(math.exp(-1), abs=0.05)


def test_clients_have_weather_of_their_own_and_seeds_decide() -> None:
    link = Link(name="field", up_bps=1000, down_bps=1000, weather=Markov(up_s=100, down_s=100))
    own = [weather_of(link, seed=3, client=client).weather for client in (0, 1)]
    assert walked(own[0], 20_000) != walked(own[1], 20_000)
    assert walked(own[0], 20_000) == walked(weather_of(link, seed=3, client=0).weather, 20_000)
    assert walked(own[0], 20_000) != walked(weather_of(link, seed=4, client=0).weather, 20_000)
    plain = Link(name="field", up_bps=1000, down_bps=1000)
    assert weather_of(plain, seed=3, client=1) is plain


def test_golden_chain() -> None:
    """If this changes, old results can no longer be made again."""
    spans = [round(seconds, 3) for seconds, _ in walked(Markov(up_s=60, down_s=30, seed=1, client=2), 160)]
    assert spans == [11.987, 100.231, 33.518, 6.446, 1.208, 6.61]


# ------------------------------------------------------------ traces

HEADER = "time_s,up_bps,down_bps\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_trace_is_replayed_again_and_again(tmp_path: Path) -> None:
    weather = read_trace(written(tmp_path, HEADER + "100,500,2000\n110,0,0\n\n115,1000,1000\n120,7,7\n"), up_bps=1000, down_bps=2000)
    assert [(weather.at(t).up, weather.at(t).down) for t in (0, 10, 15, 19.9, 20, 30)] == [
        (0.5, 1),
        (0, 0),
        (1, 0.5),
        (1, 0.5),
        (0.5, 1),
        (0, 0),
    ]
    assert [weather.at(t).until_s for t in (0, 12, 15, 20)] == [10, 15, 20, 30]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; a trace begins with the line time_s,up_bps,down_bps"),
        ("0,1,2\n1,1,2\n", "line 1: the header must be time_s,up_bps,down_bps"),
        (HEADER, "has 0 rows"),
        (HEADER + "0,1,1\n", "has 1 rows"),
        (HEADER + "0,1,1\n2,1,1\n1,1,1\n", "line 4: time must go forward, and 1 comes after 2"),
        (HEADER + "0,1,1\n0,1,1\n", "line 3: time must go forward"),
        (HEADER + "0,1,1\n1,-1,1\n", "line 3: `up_bps` is '-1'; it must be a number, 0 or more"),
        (HEADER + "0,1,nan\n1,1,1\n", "line 2: `down_bps` is 'nan'"),
        (HEADER + "0,1,inf\n1,1,1\n", "line 2: `down_bps` is 'inf'"),
        (HEADER + "0,fast,1\n1,1,1\n", "line 2: `up_bps` is 'fast'"),
        (HEADER + "0,1\n1,1,1\n", "line 2: 2 values; it must be 3"),
        (HEADER.encode() + b"0,\xff,1\n", "is not text"),
        (HEADER + "0," + "1" * 200_000 + ",1\n", "line 2: field larger than field limit"),
        (HEADER + "0,1,1\n" + " " * (16 << 20), "is larger than 16777216 bytes"),
    ],
)
def test_bad_traces_are_refused_in_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=said) as caught:
        read_trace(path, up_bps=1, down_bps=1)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_trace(tmp_path / "none.csv", up_bps=1, down_bps=1)
    with pytest.raises(UsageError, match="rates above 0 of its own"):
        read_trace(written(tmp_path, HEADER + "0,1,1\n1,1,1\n"), up_bps=0, down_bps=1)


@pytest.mark.parametrize(
    "made",
    [lambda: Markov(up_s=0, down_s=1), lambda: Markov(up_s=1, down_s=math.nan), lambda: Steps(begins_s=(1.0,), up=(1.0,), down=(1.0,))],
)
def test_weather_that_makes_no_sense(made: Callable[[], Weather]) -> None:
    with pytest.raises(ValueError):
        made()
