"""What all tests share: one thread a process, a calm Hypothesis, and ``--no-skips``."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# Before numpy or torch is imported, here and in every process that a test starts: several of them share two cores.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# A shell starts what runs in the background deaf to Ctrl-C, and so would be all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "cutlayer",
    deadline=None,  # time says nothing where cores are shared
    derandomize=bool(os.environ.get("CI")),  # CI tests the change and not the day's luck; people's machines search further
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("cutlayer")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure: on CI nothing may be missing")
    parser.addoption("--write-page", action="store_true", help="tests/arm, tests/boot: write their page of docs/benchmarks/")
    parser.addoption("--power-cuts", type=int, default=4, metavar="N", help="how many runs to cut the power of, each at random points")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skips"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and collector.config.getoption("--no-skips"):
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"skipped although --no-skips: {reason.removeprefix('Skipped: ')}"
