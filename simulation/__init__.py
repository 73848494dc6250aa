"""The whole system on one computer: real broker, real processes, and the unsplit twin to compare with."""
