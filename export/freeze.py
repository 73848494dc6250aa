"""Submodules and parameters that stay as they are."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from wire.errors import GraphError

__all__ = ["freeze"]


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """``patterns`` as ``[model] freeze`` has them. Raises GraphError for one that means nothing."""
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in parameters if any(fnmatch.fnmatchcase(each, pattern) for each in _prefixes(name))]
        if not found:
            raise GraphError(f"model.freeze: no submodule or parameter is called `{pattern}`; parameters are {', '.join(parameters)}")
        for name in found:
            parameters[name].requires_grad_(False)


def _prefixes(name: str) -> list[str]:
    """A parameter's name and those of the submodules that it is in."""
    parts = name.split(".")
    return [".".join(parts[: at + 1]) for at in range(len(parts))]
