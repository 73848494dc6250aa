"""Is this a machine that the client's packages are built for? Told without importing any of them."""

from __future__ import annotations

import os
import platform
import struct
import sys
from dataclasses import dataclass

from edge_client.doctor.finding import Finding, Value, failed, ok, warning

__all__ = ["Machine", "check_machine", "check_python"]

_SUPPORTED = ("aarch64", "x86_64")
_GLIBC = (2, 28)  # onnxruntime's and numpy's wheels are manylinux_2_28 or older
_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """``machine``: what the kernel calls the processor. ``pointer_bits``: of this Python, which a 64-bit kernel can run in 32 bits.
    ``glibc`` None: another C library."""

    system: str
    machine: str
    pointer_bits: int
    glibc: tuple[int, ...] | None
    python: tuple[int, ...]

    @classmethod
    def this(cls) -> Machine:
        return cls(
            system=platform.system(),
            machine=platform.machine(),
            pointer_bits=8 * struct.calcsize("P"),
            glibc=_glibc(),
            python=sys.version_info[:3],
        )


def _glibc() -> tuple[int, ...] | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return tuple(int(part) for part in version.split(".")) if name == "glibc" else None
    except (ValueError, OSError, AttributeError):  # musl, macOS
        return None


def check_machine(machine: Machine) -> Finding:
    """64-bit Linux on a processor and a C library that onnxruntime has wheels for."""
    name = machine.machine
    values: dict[str, Value] = {"machine": name, "pointer_bits": machine.pointer_bits, "glibc": _dotted(machine.glibc or ())}
    fact = f"{machine.system} {name}, {machine.pointer_bits}-bit, " + (f"glibc {values['glibc']}" if machine.glibc else "no glibc")
    if machine.system != "Linux":
        advice = "Cutlayer's devices are 64-bit Linux; elsewhere it is not tested"
        return warning("machine", fact, advice, **values)
    if machine.pointer_bits < 64 and name.startswith(("arm", "aarch64")):
        advice = (
            "there is no onnxruntime wheel for 32-bit ARM: install the 64-bit edition of the system (Raspberry Pi OS: from Pi 3 and "
            "Zero 2 on); a processor with ARMv6 or ARMv7 only cannot run it"
        )
        return failed("machine", fact, advice, **values)
    if machine.pointer_bits < 64 or name not in _SUPPORTED:
        advice = f"there is no onnxruntime wheel for it; use a machine with 64-bit Linux on {' or '.join(_SUPPORTED)}"
        return failed("machine", fact, advice, **values)
    if machine.glibc is None:
        advice = "onnxruntime's wheels need glibc; Alpine's musl will not do: use Debian, Ubuntu, Fedora or Raspberry Pi OS"
        return failed("machine", fact, advice, **values)
    if machine.glibc < _GLIBC:
        advice = f"onnxruntime's wheels need glibc {_dotted(_GLIBC)} or newer: update the system (Debian 10, Ubuntu 20.04 or later)"
        return failed("machine", fact, advice, **values)
    return ok("machine", fact, **values)


def check_python(machine: Machine) -> Finding:
    version = _dotted(machine.python)
    if machine.python < _PYTHON:
        advice = f"Cutlayer needs {_dotted(_PYTHON)} or newer: make the virtual environment with one, or update the system"
        return failed("python", version, advice, python=version)
    return ok("python", version, python=version)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
