"""Settings of the whole suite: threads, seeds, hypothesis profile, the device fixture, and the rule that a skip has a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("battery", "layouts", "measure")
settings.register_profile(
    "nearlinear", derandomize=True, deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nearlinear")

_skip_reasons: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """Same random numbers in any test order; global switches of torch back to where they were."""
    torch.manual_seed(0)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Count skips by reason; a skip or an expected failure without a reason is a failure."""
    report = yield
    if report.skipped:
        reason = getattr(report, "wasxfail", None)
        if reason is None:
            reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        if reason in ("", "unconditional skip"):
            report.outcome, report.longrepr = "failed", f"{item.nodeid}: skipped without a reason"
        else:
            _skip_reasons[reason] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"skips: {sum(_skip_reasons.values())}")
    for reason, count in _skip_reasons.most_common():
        terminalreporter.write_line(f"  {count:5d}  {reason}")
