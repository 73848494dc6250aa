"""Finds and builds the network that a run names: a bundled one, or ``path.py:callable``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from export.models import BUNDLED
from wire.errors import CutlayerError, GraphError, RunFileError

__all__ = ["load_model", "load_seeded"]


def load_model(spec: str, args: Mapping[str, Any], base_dir: str | Path, *, key: str = "model.build") -> nn.Module:
    """Build ``spec`` with ``args``; a path begins at ``base_dir``; ``key``: of the run file, for messages.

    The user's file is executed: it is theirs, as any script they run.

    Raises RunFileError: no such model, file or callable, or arguments that it does not take; GraphError where it returns no module.
    """
    build = _builder(spec, base_dir, key)
    try:
        model = build(**args)
    except CutlayerError:
        raise
    except TypeError as exc:
        raise RunFileError(f"{key}: `{spec}` cannot be built with args {dict(args)}: {exc}") from exc
    except Exception as exc:
        raise RunFileError(f"{key}: `{spec}` failed: {type(exc).__name__}: {exc}{_where(exc)}") from exc
    if not isinstance(model, nn.Module):
        raise GraphError(f"{key}: `{spec}` returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def load_seeded(spec: str, args: Mapping[str, Any], base_dir: str | Path, *, key: str, seed: str) -> nn.Module:
    """As ``load_model``, with first weights that depend on the text ``seed`` alone: a party can build its own without others."""
    digest = hashlib.blake2b(seed.encode(), digest_size=7, person=b"cutlayer init").digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest, "little"))
        return load_model(spec, args, base_dir, key=key)


def _builder(spec: str, base_dir: str | Path, key: str) -> Callable[..., object]:
    if ".py:" not in spec:
        if spec not in BUNDLED:
            raise RunFileError(f"{key}: there is no bundled model {spec!r}; bundled are {', '.join(BUNDLED)}; or name my_model.py:build")
        return BUNDLED[spec].build
    file, _, name = spec.rpartition(":")
    path = Path(base_dir, Path(file).expanduser())
    found = getattr(_imported(path, spec, key), name, None)
    if not callable(found):
        raise RunFileError(f"{key}: {path} has no function `{name}`")
    return found  # type: ignore[no-any-return]


def _imported(path: Path, spec: str, key: str) -> ModuleType:
    name = f"cutlayer_model_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None or not path.is_file():
        raise RunFileError(f"{key}: {path} is not there; a path begins at the run file's folder")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except Exception as exc:
        raise RunFileError(f"{key}: `{spec}` cannot be imported: {type(exc).__name__}: {exc}{_where(exc)}") from exc
    return module


def _where(exc: Exception) -> str:
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
