"""Write what was measured: `results/latest.json`, and the marked section of docs/performance.md."""

import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goals import GOALS, LIMITS, MB, OURS, PEAK_MB
from scenarios import Figures, summary

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

Results = dict[str, Any]
"""runs (when and where each was measured), tools, data, conditions, figures (raw), measurements."""


def machine() -> dict[str, object]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine())


def load() -> Results:
    """The latest results, or empty ones."""
    path = RESULTS / "latest.json"
    return json.loads(path.read_text()) if path.exists() else {"figures": {}, "measurements": {}, "runs": {}}


def merge(before: Results, now: Results) -> Results:
    """New figures replace those of the same scenario; others stay, each with when and where it was measured."""
    merged = {**before, **now}
    for part in ("figures", "measurements", "runs", "data"):
        merged[part] = {**before.get(part, {}), **now.get(part, {})}
    return merged


def dated(results: Results) -> Results:
    """The same, saying that all of it was measured today on this machine."""
    run = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), **machine()}
    return {**results, "runs": dict.fromkeys([*results["figures"], *results["measurements"]], run)}


def publish(results: Results) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    page = PAGE.read_text() if PAGE.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(results)}\n{END}{after}")


def markdown(results: Results) -> str:
    parts = [
        *_conditions(results),
        "",
        *_as_markdown(comparison(results["figures"])),
        "",
        "Seconds and sizes are medians, with the least and the greatest in brackets. The ratio is ours against "
        "the better of the peers: for times, how many times as fast; for bytes, our share of theirs.",
        "",
        *_as_markdown(own_limits(results)),
        "",
        *_as_markdown(memory(results["figures"])),
        "",
        "The greatest memory of one process at any moment of each scenario, in MB.",
    ]
    for name, found in results["measurements"].items():
        if found.get("table"):
            parts += ["", f"### {found['title']}", "", *_as_markdown(found["table"])]
            parts += ["", found["remark"]] if found.get("remark") else []
        elif name not in {limit.measurement for limit in LIMITS}:
            parts += ["", f"- {found['title']}: {found['figures']}"]
    return "\n".join(parts)


Table = list[list[str]]
"""The first row is the head."""


def comparison(figures: Figures) -> Table:
    medians, names = summary(figures), _names(figures)
    table = [["", *names, "ratio", "goal", "met"]]
    for goal in GOALS:
        found = medians.get(goal.key)
        if not found:
            continue
        show = {"seconds": _seconds, "share": _share}.get(goal.quantity, _size)
        cells = [show(found[name][goal.quantity]) if name in found else "–" for name in names]
        verdict = goal.verdict(medians)
        ratio, met = (f"{verdict[0]:.2f}", _yes(verdict[1])) if verdict else ("–", "–")
        if verdict and goal.quantity == "bytes" and verdict[0] < 0.9:
            ratio = f"1/{1 / verdict[0]:.1f}"
        table.append([goal.text, *cells, ratio, goal.goal, met])
    return table


def own_limits(results: Results) -> Table:
    table = [["", "measured", "goal", "met"]]
    peak = max((max(tools.get(OURS, {}).get("rss", [0])) for tools in results["figures"].values()), default=0)
    if peak:
        table.append(
            [
                "peak memory, all scenarios above",
                f"{peak / MB:.0f} MB",
                f"at most {PEAK_MB} MB",
                _yes(peak <= PEAK_MB * MB),
            ]
        )
    for limit in LIMITS if results["measurements"] else ():
        value = results["measurements"].get(limit.measurement, {}).get("figures", {}).get(limit.figure)
        shown = "not measured" if value is None else f"{value:.3g} {limit.unit}"
        met = "–" if value is None else _yes(value <= limit.limit)
        table.append([limit.text, shown, str(limit), met])
    return table


def memory(figures: Figures) -> Table:
    """Peak memory of each tool in each scenario."""
    names = _names(figures)
    table = [["peak memory, MB", *names]]
    labels = {goal.key: goal.text for goal in GOALS}
    for key, tools in figures.items():
        if any("rss" in quantities for quantities in tools.values()):
            cells = [f"{max(tools[n]['rss']) / MB:.0f}" if n in tools else "–" for n in names]
            table.append([labels.get(key, key), *cells])
    return table


def _conditions(results: Results) -> list[str]:
    machines: dict[str, dict[str, str]] = {}  # what was measured on each, and when
    for name, run in results["runs"].items():
        on = (
            f"{run['processor']}, {run['cores']} cores, {run['memory_gib']} GiB of memory, "
            f"{run['system']}, Python {run['python']}"
        )
        machines.setdefault(on, {})[name] = run["date"]
    lines = ["*Written by `make bench`; do not edit between the marks.*", ""]
    most = max(machines, key=lambda on: len(machines[on]))
    for on, dates in machines.items():
        first, last = min(dates.values()), max(dates.values())
        when = first if first == last else f"{first} to {last}"
        what = "" if len(machines) == 1 else "what is not named below" if on == most else ", ".join(dates)
        lines.append(f"- Measured {when} on {on}{what and ': '}{what}.")
    lines += [f"- {name} {tool['version']}: {tool['settings']}." for name, tool in results["tools"].items()]
    for name, facts in results["data"].items():
        lines.append(f"- Data, {name}: {_facts(facts)}.")
    lines += [f"- {text}" for text in results["conditions"]]
    return lines


def _facts(facts: Mapping[str, Any]) -> str:
    parts = [f"{facts['files']:,} files, {facts['bytes'] / MB:,.0f} MB"]
    if "database" in facts:
        parts.append(f"{facts['database'] / MB:,.0f} MB of it the database; profile {facts['profile']}")
    parts += [f"{key} {facts[key]}" for key in ("seed", "day") if key in facts]
    if "from" in facts:
        parts.append("copied from this machine's Python, documentation and shared data")
    return ", ".join(parts)


def _names(figures: Figures) -> list[str]:
    names = {name: None for tools in figures.values() for name in tools}
    return sorted(names, key=lambda name: name != OURS)


def _seconds(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} s ({found['min']:.2f}–{found['max']:.2f})"


def _size(found: Mapping[str, float]) -> str:
    middle = f"{found['median'] / MB:,.1f} MB"
    if found["min"] == found["max"]:
        return middle
    return f"{middle} ({found['min'] / MB:,.1f}–{found['max'] / MB:,.1f})"


def _share(found: Mapping[str, float]) -> str:
    return f"{found['median']:.1%}"


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _as_markdown(table: Table) -> list[str]:
    head, *rows = table
    rule = ["---"] + ["---:" if head[i] not in ("goal", "met") else "---" for i in range(1, len(head))]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def show(tables: Sequence[Table]) -> None:
    """On the terminal: with rich where it is installed, else as plain text."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print("\n\n".join("\n".join(_as_markdown(table)) for table in tables))
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    for head, *rows in tables:
        if not rows:
            continue
        drawn = RichTable()
        for column, name in enumerate(head):
            figures = any("(" in row[column] for row in rows)
            drawn.add_column(name, justify="right" if figures else "left", no_wrap=figures)
        for row in rows:
            drawn.add_row(*[cell.replace("**", "[bold]", 1).replace("**", "[/bold]") for cell in row])
        console.print(drawn)
