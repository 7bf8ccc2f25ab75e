"""At the end it is said how much of the simulation was explored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.reached import calls, reached, steps

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    done = {name: count for name, count in steps.most_common() if name != "calls"}
    if done:
        terminalreporter.section("simulation")
        terminalreporter.write_line(
            f"{sum(done.values()):,} steps; {steps['calls']:,} storage calls in turns, trace {calls.hexdigest()[:16]}"
        )
        terminalreporter.write_line(", ".join(f"{count:,} {name}" for name, count in done.items()))
        terminalreporter.write_line(
            "reached: " + ", ".join(f"{count:,} {name}" for name, count in sorted(reached.items()))
        )
