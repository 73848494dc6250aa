"""Do the client's packages load and run here? Asked in a process of its own."""

from __future__ import annotations

from edge_client.doctor.child import Outcome, run_probe
from edge_client.doctor.finding import Finding, failed, ok

__all__ = ["check_packages", "remedy"]

_RUN = ("numpy", "safetensors", "paho-mqtt", "cryptography", "onnxruntime")


def check_packages(*, timeout_s: float) -> tuple[Finding, frozenset[str]]:
    """The finding, and which packages have loaded: the others must not be imported by us."""
    outcome = run_probe("packages", timeout_s=timeout_s)
    versions = {name: str(outcome.told[name]) for name in _RUN if name in outcome.told}
    named = ", ".join(f"{name} {version}" for name, version in reversed(versions.items()))
    if outcome.failure:
        fact = f"{outcome.doing}: {outcome.failure}"
        return failed("packages", fact, remedy(outcome), **versions), frozenset(versions)
    return ok("packages", f"{named}; a model runs", **versions), frozenset(versions)


def remedy(outcome: Outcome) -> str:
    """What to do about a probe that did not come to its end."""
    package = outcome.doing.rpartition(" ")[2] if outcome.doing.startswith("import ") else "onnxruntime"
    if outcome.killed_by == "SIGILL":
        return (
            f"this wheel of {package} uses instructions that the processor lacks (onnxruntime 1.21.0 on a Raspberry Pi 4 is one): "
            f"take another version, `pip install -U {package}`"
        )
    if outcome.killed_by == "SIGKILL":
        return "it was most likely out of memory: see `dmesg`, end other programs or raise the limit"
    if outcome.killed_by:
        return (
            f"install it anew, `pip install --force-reinstall --no-cache-dir {package}`, or take another version; check the card for errors"
        )
    if "No module named" in outcome.failure:
        return "it is not installed for this Python: `pip install cutlayer` in a virtual environment, and start that one's `cutlayer`"
    if outcome.failure.startswith("did not end"):
        return "give it longer, `--timeout-s 300`; a card that is failing can be that slow as well"
    return f"install it anew: `pip install --force-reinstall {package}`"
