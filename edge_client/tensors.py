"""Tensors that onnxruntime and numpy see as the same memory, and versions of them that steps in flight can hold on to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnxruntime import OrtValue

from wire.engine import Array

__all__ = ["Tensor", "TensorSet", "Versions", "tensor"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """``value`` is a view of ``array``'s memory, not a copy."""

    array: Array
    value: OrtValue


TensorSet = dict[str, Tensor]


def tensor(array: Array) -> Tensor:
    """Wrap an array; it is copied only where its memory is not contiguous."""
    array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    return Tensor(array, OrtValue.ortvalue_from_numpy(array))


class Versions:
    """A group of tensors (parameters, buffers or optimizer state), each update of which is a new version in spare memory.

    A graph must not read and write one buffer, so two versions take turns. A step in flight may hold an older one; that costs memory for
    one more version, which is used again later.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.current = _wrap({name: np.array(array) for name, array in arrays.items()})
        self._spares: list[TensorSet] = []
        self._held: list[TensorSet] = []  # once for each step that holds it

    def hold(self) -> TensorSet:
        """The current version, which stays as it is until it is released."""
        self._held.append(self.current)
        return self.current

    def release(self, version: TensorSet) -> None:
        at = next(at for at, held in enumerate(self._held) if held is version)
        del self._held[at]
        self._reclaim(version)

    def spare(self) -> TensorSet:
        """Memory for the next version; hand it to ``advance`` or to ``give_back``."""
        return self._spares.pop() if self._spares else _wrap({name: np.empty_like(one.array) for name, one in self.current.items()})

    def give_back(self, spare: TensorSet) -> None:
        self._spares.append(spare)

    def advance(self, new: TensorSet) -> None:
        """Make ``new`` the current version: one from ``spare``, or an older one that is still held (which undoes an update)."""
        old, self.current = self.current, new
        self._reclaim(old)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Overwrite the current version. Nothing may be held."""
        for name, one in self.current.items():
            one.array[...] = arrays[name]

    def copies(self) -> dict[str, Array]:
        return {name: np.array(one.array) for name, one in self.current.items()}

    def _reclaim(self, version: TensorSet) -> None:
        if version is not self.current and not any(held is version for held in self._held):
            self._spares.append(version)


def _wrap(arrays: Mapping[str, Array]) -> TensorSet:
    return {name: tensor(array) for name, array in arrays.items()}
