"""Writes docs/run-file.md from the dataclasses that read a run file: ``python docs/make_run_file.py``."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

from wire.alignment import AlignConfig
from wire.data_config import Augment, DataConfig, DataSplit, Normalize
from wire.lr import LrSchedule
from wire.optim import SGD, Adam, AdamW
from wire.runfile import ClientConfig, CodecConfig, CutCodec, EvaluateConfig, ModelConfig, Run, ServerConfig
from wire.segments import ReconstructConfig, SegmentConfig
from wire.spool import SpoolConfig
from wire.straggler import StragglerConfig
from wire.transport.broker_config import BrokerConfig

PAGE = Path(__file__).with_name("run-file.md")

TABLES: tuple[tuple[str, type], ...] = (
    ("the top of the file", Run),
    ("`[model]`", ModelConfig),
    ('`[optimizer]`, `kind = "sgd"`', SGD),
    ('`[optimizer]`, `kind = "adam"`', Adam),
    ('`[optimizer]`, `kind = "adamw"`', AdamW),
    ("`[lr_schedule]`", LrSchedule),
    ("`[codec]`", CodecConfig),
    ('`[codec.cuts."SOURCE>TARGET"]`', CutCodec),
    ("`[[clients]]`", ClientConfig),
    ("`[[segments]]`", SegmentConfig),
    ("`[server]`, `[[servers]]`", ServerConfig),
    ("`[reconstruct]`", ReconstructConfig),
    ("`[evaluate]`", EvaluateConfig),
    ("`[align]`", AlignConfig),
    ("`[broker]`", BrokerConfig),
    ("`[spool]`", SpoolConfig),
    ("`[straggler]`", StragglerConfig),
    ("`[data]`", DataConfig),
    ("`[data.validation]`, `[data.test]`", DataSplit),
    ("`[data.normalize]`", Normalize),
    ("`[data.augment]`", Augment),
)
_NOT_IN_THE_FILE = ("base", "slice")


def page() -> str:
    """The whole page."""
    parts = [
        "# The run file",
        "One TOML file says what is trained, by whom, on what, over which line. All parties read the same one; `broker`, `spool`, `data`, "
        "`clients.data` and paths may differ from party to party, everything else must agree, and a party whose file differs is refused.\n"
        "A key that is unknown or has a bad value is named, with exit code 2. Made from the code by `docs/make_run_file.py`.",
    ]
    for title, cls in TABLES:
        parts += [f"## {title}", _described(cls), _table(cls)]
    return "\n\n".join(parts) + "\n"


def _described(cls: type) -> str:
    text = inspect.cleandoc(cls.__doc__ or "").replace("``", "`")
    blocks = [_verbatim(block) if "===" in block else " ".join(block.split()) for block in text.split("\n\n")]
    return "\n\n".join(blocks)


def _verbatim(block: str) -> str:
    """A table of a docstring, as a table of the page."""
    rows: list[list[str]] = []
    edge = block.index(" ", block.index("="))
    width = edge + len(block[edge:]) - len(block[edge:].lstrip())
    for line in block.splitlines():
        if line.startswith("="):
            continue
        key, value = line[:width].strip(), line[width:].strip()
        if key:
            rows.append([key, value])
        else:
            rows[-1][1] += f" {value}"
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---", "---"], *rest))


def _table(cls: type) -> str:
    hints = typing.get_type_hints(cls)
    rows = ["| key | value | left out |", "|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name not in _NOT_IN_THE_FILE:
            rows.append(f"| `{field.name}` | {_type(hints[field.name])} | {_default(field)} |")
    return "\n".join(rows)


def _type(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f'`"{each}"`' if isinstance(each, str) else f"`{each}`" for each in args)
    if origin is tuple:
        inner = [each for each in args if each is not Ellipsis]
        return f"list of {_type(inner[0])}" if Ellipsis in args else f"[{', '.join(map(_type, inner))}]"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "table"
    if args:
        return " or ".join(dict.fromkeys(_type(each) for each in args if each is not type(None)))
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(hint, str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value: Any = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "must be given"
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value) or value == {}:
        return "as below" if value else "empty"
    shown = list(value) if isinstance(value, tuple) else value
    return f"`{str(shown).lower() if isinstance(shown, bool) else repr(shown)}`".replace("'", '"')


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
