"""The device: runs and trains the segments that see raw data. Needs numpy, onnxruntime, paho-mqtt and little else; never torch or onnx."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# onnxruntime would keep a device id below ~/.cache and report to its makers; a clinic's device talks to its broker and to nobody else.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from edge_client.engine import StockEngine, load_engine

__all__ = ["StockEngine", "load_engine"]


def __getattr__(name: str) -> Any:
    """The engine when it is asked for: a wheel that is wrong for a board kills who imports it, and `doctor` must live to tell."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge_client import engine

    return getattr(engine, name)
