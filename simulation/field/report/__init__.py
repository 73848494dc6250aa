"""The report of simulations: one HTML page that a person opens offline, its plots as PNG, and all results as JSON."""

from __future__ import annotations

from simulation.field.report.write import write_report

__all__ = ["write_report"]
