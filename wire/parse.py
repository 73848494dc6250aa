"""Strict reading of plain data (from TOML or JSON) into frozen dataclasses: unknown, missing and ill-typed keys are named."""

from __future__ import annotations

import base64
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from wire.errors import UsageError

__all__ = ["KEY_BYTES", "key_text", "parse", "plain", "read_key", "whole"]

KEY_BYTES = 32  # of an X25519 key, private or public

T = TypeVar("T")


def parse(cls: type[T], data: Any, *, where: str, error: type[UsageError]) -> T:
    """Build the dataclass ``cls`` from ``data``.

    ``where`` is the path of keys so far, for messages. Raises ``error`` naming the first key at fault. A ``ValueError`` from a
    dataclass's own ``__post_init__`` becomes the same error, with the key's path in front.
    """
    if not isinstance(data, Mapping):
        raise error(f"{where or 'top level'}: expected a table, got {_kind(data)}")
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known keys: {', '.join(fields)}"
            raise error(f"unknown key `{_join(where, str(key))}`{hint}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        path = _join(where, name)
        if name in data:
            values[name] = _value(hints[name], data[name], where=path, error=error)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"missing key `{path}`")
    try:
        return cls(**values)
    except ValueError as exc:
        raise error(f"{where + ': ' if where else ''}{exc}") from exc


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Found once: annotations are texts that have to be compiled, and a run may have thousands of clients."""
    return typing.get_type_hints(cls)


def _value(hint: Any, data: Any, *, where: str, error: type[UsageError]) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if data is None and len(options) < len(typing.get_args(hint)):
            return None
        if isinstance(data, Mapping) and len(options) > 1 and all(dataclasses.is_dataclass(option) for option in options):
            return _by_kind(options, data, where=where, error=error)
        for option in options[:-1]:
            try:
                return _value(option, data, where=where, error=error)
            except error:
                continue
        return _value(options[-1], data, where=where, error=error)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if data not in choices:
            raise error(f"`{where}` is {data!r}; it must be one of {', '.join(map(repr, choices))}")
        return data
    if origin is tuple:
        if isinstance(data, str) or not isinstance(data, (list, tuple)):
            raise error(f"`{where}` must be a list, got {_kind(data)}")
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_value(args[0], item, where=f"{where}[{i}]", error=error) for i, item in enumerate(data))
        if len(data) != len(args):
            raise error(f"`{where}` must have {len(args)} entries, got {len(data)}")
        return tuple(_value(arg, item, where=f"{where}[{i}]", error=error) for i, (arg, item) in enumerate(zip(args, data, strict=True)))
    if origin in (dict, Mapping):
        if not isinstance(data, Mapping):
            raise error(f"`{where}` must be a table, got {_kind(data)}")
        item_hint = typing.get_args(hint)[1]
        return {str(key): _value(item_hint, item, where=_join(where, str(key)), error=error) for key, item in data.items()}
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), data, where=where, error=error)
    if hint is typing.Any or hint is object:
        return data
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(data, bool) is not (hint is bool) or not isinstance(data, hint):
        raise error(f"`{where}` must be {_NAMES.get(hint, hint.__name__)}, got {_kind(data)}")
    return data


def _by_kind(options: list[Any], data: Mapping[Any, Any], *, where: str, error: type[UsageError]) -> Any:
    """One of several dataclasses, told apart by their literal ``kind``."""
    kinds = {typing.get_args(typing.get_type_hints(option)["kind"])[0]: option for option in options}
    if "kind" not in data:
        raise error(f"missing key `{_join(where, 'kind')}`; it must be one of {', '.join(map(repr, kinds))}")
    if data["kind"] not in kinds:
        raise error(f"`{_join(where, 'kind')}` is {data['kind']!r}; it must be one of {', '.join(map(repr, kinds))}")
    return parse(kinds[data["kind"]], data, where=where, error=error)


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _kind(data: Any) -> str:
    return f"{data!r}" if isinstance(data, (str, int, float, bool)) else type(data).__name__


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def whole(data: Any, *, below: int) -> int:
    """``data``, out of a peer's JSON, as a whole number, 0 or more and under ``below``. Raises ValueError for all else, as true or 1.0."""
    if type(data) is not int or not 0 <= data < below:
        raise ValueError(f"{_kind(data)[:40]} is not a whole number from 0 to {below - 1}")
    return data


def plain(value: Any) -> Any:
    """The inverse of ``parse``: dataclasses, tuples and mappings as JSON-ready dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def key_text(key: bytes) -> str:
    """A public key as run files and messages have it: base64."""
    return base64.b64encode(key).decode()


def read_key(text: Any) -> bytes:
    """The inverse of ``key_text``. Raises ValueError for all else than the base64 of ``KEY_BYTES``."""
    try:
        found = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as exc:
        raise ValueError(f"{_kind(text)[:60]} is no base64") from exc
    if len(found) != KEY_BYTES or key_text(found) != text:
        raise ValueError(f"{_kind(text)[:60]} is not the base64 of a key of {KEY_BYTES} bytes")
    return found
