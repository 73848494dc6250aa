"""The device: runs and trains the segments that see raw data. Needs numpy, onnxruntime, paho-mqtt and little else; never torch or onnx."""

from edge_client.engine import StockEngine, load_engine

__all__ = ["StockEngine", "load_engine"]
