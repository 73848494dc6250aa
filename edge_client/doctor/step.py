"""How long does a training step take here, and does it run at all? In a process of its own, so that a crash is a finding too."""

from __future__ import annotations

import statistics
from pathlib import Path

from edge_client.doctor.child import run_probe
from edge_client.doctor.finding import Finding, Value, failed, ok, warning
from edge_client.doctor.packages import remedy

__all__ = ["check_step"]

_BUDGET = 0.25  # of the time-out: the rest is for starting, and for a step that takes longer than thought


def check_step(folder: Path, segment: str, *, batch: int, threads: int | None, patience_s: float | None, timeout_s: float) -> Finding:
    """Forward, backward and update of one bundle on random data, several times. ``patience_s``: the run's ``resend_after_s``."""
    outcome = run_probe("step", str(folder), str(batch), str(threads or 0), str(_BUDGET * timeout_s), timeout_s=timeout_s)
    if outcome.failure:
        return failed("step", f"segment {segment}, {outcome.doing}: {outcome.failure}", remedy(outcome))
    if "error" in outcome.told:
        fact, _, advice = str(outcome.told["error"]).partition("; ")
        return failed("step", fact, advice or "export the bundle again")
    times_s = [float(time_s) for time_s in outcome.told["steps_s"]]
    step_s, peak_bytes = statistics.median(times_s), int(outcome.told["peak_rss_bytes"])
    fact = (
        f"segment {segment}: {step_s * 1e3:.1f} ms a training step of {batch} samples "
        f"(median of {len(times_s)}), {peak_bytes / 2**20:.0f} MB at its peak"
    )
    values: dict[str, Value] = {"segment": segment, "step_s": step_s, "batch": batch, "steps": len(times_s), "peak_rss_bytes": peak_bytes}
    if patience_s is not None and step_s > patience_s:
        advice = f"peers would send everything again after {patience_s:g} s: raise `resend_after_s` above twice this, or lower `batch_size`"
        return warning("step", fact, advice, **values)
    return ok("step", fact, **values)
