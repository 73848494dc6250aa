"""Turns torch modules into device bundles: cut a model, export its segments, put the trained ones together again."""

import os

# Before onnxruntime is imported, which would keep a device id below ~/.cache and report to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from export.segment import export_segment
from wire.optim import SGD, Adam, AdamW

__all__ = ["SGD", "Adam", "AdamW", "export_segment"]
