"""Data sources of a device: files in, batches with stable sample ids out. numpy only; Pillow where images are to be decoded."""

from __future__ import annotations

from edge_client.data.source import Batch, DataSource, open_source

__all__ = ["Batch", "DataSource", "open_source"]
