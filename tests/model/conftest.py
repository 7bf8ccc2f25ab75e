"""Says at the end of a test run how many states the model has seen."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = [
        (str(name), int(str(value)))
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for key, value in report.user_properties
        if key.startswith("model:")
        for name in [key.removeprefix("model:")]
    ]
    if found:
        terminalreporter.section("model of the protocol")
        terminalreporter.write_line(
            f"{sum(states for _, states in found):,} states of {len(found)} cases and mutants were checked; "
            f"the most, {max(found, key=lambda item: item[1])[1]:,}, of {max(found, key=lambda item: item[1])[0]}."
        )
