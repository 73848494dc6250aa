"""Data sources: what people have on disk, as batches with stable sample ids.

Formats: IDX, NPZ, CIFAR binary, a folder of images by class, CSV and TSV. ``wire.data_config.DataConfig`` says what can be asked for.
"""

from edge_client.data.source import DataSource, count_batches, open_source

__all__ = ["DataSource", "count_batches", "open_source"]
