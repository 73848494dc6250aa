"""The server: trains the heavy segments in PyTorch, holds loss, metrics and labels, and starts a broker."""
