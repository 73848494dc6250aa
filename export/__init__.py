"""Turns torch modules into device bundles: cut a model, export its segments, put the trained ones together again."""

from export.segment import export_segment
from wire.optim import SGD, Adam, AdamW

__all__ = ["SGD", "Adam", "AdamW", "export_segment"]
