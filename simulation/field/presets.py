"""Links and devices by name, from presets.toml, or from a file of one's own; with where each constant comes from.

A link is written ``gprs``, or ``gprs,loss=0.05,up_bps=12000`` with constants of one's own, or ``field/mast.toml`` for a file with the keys
of ``Link``; ``weather=FILE`` names a weather's TOML file or a trace's CSV file. A device likewise: ``pi-4``, ``pi-4,battery_wh=50``,
``boards/mine.toml``; ``this`` and ``this-server`` are this computer, measured when asked.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from simulation.field.device import Device
from simulation.field.link import CLEAR, Link, Weather
from simulation.field.weather import Markov, OutagesSpec, Steps, TraceSpec, WeatherSpec, outages, read_trace
from wire.errors import UsageError
from wire.limits import LIMITS
from wire.parse import parse, plain

__all__ = ["MEASURED", "THIS", "THIS_SERVER", "constants_of", "load_device", "load_link", "names", "refusal", "sources"]

Kind = Literal["link", "device"]
P = TypeVar("P")

THIS, THIS_SERVER = "this", "this-server"
MEASURED = (THIS, THIS_SERVER)  # this computer, as a client and as a server
_GIVEN = "given by the user"
_MEASURED = "measured on this computer"
_RULES = {
    "flops": "cores x clock_hz x flop_per_cycle x efficiency",
    "step_s": "call_s x (call_clock_hz x call_width) / (clock_hz x width)",
    "flop_j": "(load_w - idle_w) / flops",
}


def names(kind: Kind) -> list[str]:
    """All that have a name, those that are refused included."""
    return [*_table(kind), *(MEASURED if kind == "device" else ())]


def refusal(name: str) -> str | None:
    """Why a link of this name cannot carry a training; None: it can, or has no name."""
    reason = _table("link").get(name, {}).get("refused")
    return None if reason is None else str(reason)


def load_link(text: str) -> Link:
    """The link's name is ``text``. Raises UsageError: no such name (with those there are), a link that is refused (with the reason), a file
    or a constant at fault."""
    base, given = _split(text)
    if _is_path(base):
        folder, data = Path(base).parent, _read(Path(base))
    else:
        folder, data = Path(), _preset("link", base)
        reason = refusal(base)
        if reason is not None:
            raise UsageError(f"link `{base}` cannot carry a training: {reason}")
    if "weather" in given:
        folder, table = _weather_file(given.pop("weather"))
        data["weather"] = table
    link = _link(_merged(data, given), text=text, folder=folder)
    if min(link.up_bps, link.down_bps) <= 0:
        raise UsageError(f"link `{text}` has no usable {'up' if link.up_bps <= 0 else 'down'}link: training needs both ways")
    return link


def load_device(text: str, *, this: Device | None = None) -> Device:
    """The device's name is ``text``; ``this``: what this computer was measured to be (as that name says), else it is measured now.

    Raises UsageError: no such name (with those there are), a file or a constant at fault.
    """
    base, given = _split(text)
    if base in MEASURED:
        from simulation.field.measure import measure_device

        data = dataclasses.asdict(this or measure_device(server=base == THIS_SERVER))
    else:
        data = _read(Path(base)) if _is_path(base) else _computed(_preset("device", base))
    return _parsed(Device, _merged(data, given) | {"name": text}, where=f"device `{text}`")


def sources(kind: Kind, name: str) -> dict[str, str]:
    """Where each constant of ``Link`` (with ``radio.…``) or ``Device`` comes from. Raises UsageError: no such name."""
    if kind == "device" and name in MEASURED:
        return {field.name: _MEASURED for field in dataclasses.fields(Device) if field.name != "name"}
    told = _told(_preset(kind, name, key="sources"))
    if kind == "device":
        return _device_sources(told)
    rest = told.pop("*", "default")
    return {key: told.get(key, rest) for key in _flat(plain(_bare_link(name)))}


def constants_of(thing: Link | Device) -> dict[str, Any]:
    """Each constant as {"value", "source"}, JSON-ready; what differs from the preset that the name begins with was given by the user."""
    kind: Kind = "link" if isinstance(thing, Link) else "device"
    base, _ = _split(thing.name)
    values = _flat(plain(thing))
    if isinstance(thing, Link) and thing.weather is not CLEAR:
        values["weather"] = _in_words(thing.weather)
    if base not in names(kind):
        return {key: {"value": value, "source": base if _is_path(base) else _GIVEN} for key, value in values.items()}
    told = sources(kind, base)
    usual = values if base in MEASURED else _flat(plain(_bare_link(base) if isinstance(thing, Link) else load_device(base)))
    return {
        key: {"value": value, "source": told[key] if usual.get(key) == value else _GIVEN} for key, value in values.items() if key in told
    }


# ------------------------------------------------------------ the data file


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads(resources.files("simulation.field").joinpath("presets.toml").read_text(encoding="utf-8"))


def _table(kind: Kind) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = _data()[f"{kind}s"]
    return found


def _preset(kind: Kind, name: str, *, key: str | None = None) -> dict[str, Any]:
    table = _table(kind)
    if name not in table:
        raise UsageError(f"there is no {kind} `{name}`; there are {', '.join(names(kind))}, or name a file that ends in .toml")
    preset = {each: value for each, value in table[name].items() if each not in ("sources", "refused")}
    return dict(table[name][key]) if key else preset


def _told(texts: Mapping[str, str]) -> dict[str, str]:
    """Sources with their works' names in full."""
    return {key: text.format_map(_data()["works"]) for key, text in texts.items()}


def _bare_link(name: str) -> Link:
    return _link(_preset("link", name), text=name, folder=Path())


def _computed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A device's constants from what its board is, by the rule of the data file."""
    rule = _data()["rule"]
    flops = data["cores"] * data["clock_hz"] * data["flop_per_cycle"] * rule["efficiency"]
    return {
        "flops": flops,
        "step_s": rule["call_s"] * rule["call_clock_hz"] * rule["call_width"] / (data["clock_hz"] * data["width"]),
        "idle_w": data["idle_w"],
        "flop_j": (data["load_w"] - data["idle_w"]) / flops,
        "memory_bytes": data["memory_bytes"],
    }


def _device_sources(told: Mapping[str, str]) -> dict[str, str]:
    parts = {**told, **_told(_data()["rule"]["sources"])}
    by_rule = {
        key: "; ".join([rule, *(f"{part}: {parts[part]}" for part in re.findall(r"[a-z_]+", rule) if part in parts)])
        for key, rule in _RULES.items()
    }
    return by_rule | {"idle_w": told["idle_w"], "memory_bytes": told["memory_bytes"], "battery_wh": "none: on the mains"}


# ------------------------------------------------------------ what a user writes


def _split(text: str) -> tuple[str, dict[str, str]]:
    """A name or path, and what is given after it."""
    base, *pairs = (part.strip() for part in text.split(","))
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise UsageError(f"`{text}`: {pair!r} is not of the form key=value")
        given[key] = value
    return base, given


def _is_path(base: str) -> bool:
    return base.endswith(".toml") or "/" in base


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LIMITS.run_file_bytes:
            raise UsageError(f"{path} is larger than {LIMITS.run_file_bytes} bytes; this is not such a file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} is not valid TOML: {exc}") from exc


def _merged(data: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """``data`` with what a user has given in its place; ``radio.tail_s`` is the key ``tail_s`` of the table ``radio``."""
    merged = dict(data)
    for key, text in given.items():
        table, dot, inner = key.partition(".")
        held = merged.get(table)
        merged |= {table: dict(held if isinstance(held, Mapping) else {}) | {inner: _value(text)}} if dot else {key: _value(text)}
    return merged


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for made in (int, float):
        try:
            return made(text)
        except ValueError:
            continue
    return text


def _link(data: Mapping[str, Any], *, text: str, folder: Path) -> Link:
    where = f"link `{text}`"
    bare = {key: value for key, value in data.items() if key != "weather"}
    link = _parsed(Link, bare | {"name": text}, where=where)
    return dataclasses.replace(link, weather=_weather(data["weather"], link, where, folder)) if "weather" in data else link


def _parsed(cls: type[P], data: Mapping[str, Any], *, where: str) -> P:
    """``data`` as ``cls``, all of its numbers finite; errors begin with ``where``."""
    try:
        found = parse(cls, data, where="", error=UsageError)
    except UsageError as exc:
        raise UsageError(str(exc) if str(exc).startswith(where) else f"{where}: {exc}") from exc
    for key, value in _flat(plain(found)).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}: `{key}` is {value}; it must be finite")
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _WithWeather:
    weather: WeatherSpec


def _weather(data: Any, link: Link, where: str, folder: Path) -> Weather:
    spec = _parsed(_WithWeather, {"weather": data}, where=where).weather
    if isinstance(spec, OutagesSpec):
        return outages(spec.outages, every_s=spec.every_s)
    if isinstance(spec, TraceSpec):
        return read_trace(folder / spec.file, up_bps=link.up_bps, down_bps=link.down_bps)
    return Markov(up_s=spec.up_s, down_s=spec.down_s)


def _weather_file(name: str) -> tuple[Path, dict[str, Any]]:
    """(folder, table) of a weather's own file: TOML, or a trace."""
    path = Path(name)
    return path.parent, _read(path) if path.suffix == ".toml" else {"kind": "trace", "file": path.name}


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Constants by key, those of the radio as ``radio.…``, without name and weather."""
    flat = {key: value for key, value in data.items() if key not in ("name", "radio", "weather")}
    return flat | {f"radio.{key}": value for key, value in data.get("radio", {}).items()}


def _in_words(weather: Weather) -> str:
    if isinstance(weather, Markov):
        return f"whole for {weather.up_s:g} s and dead for {weather.down_s:g} s on average"
    return f"a schedule of {len(weather.begins_s)} parts" if isinstance(weather, Steps) else type(weather).__name__
