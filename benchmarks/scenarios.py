"""The scenarios. In each, the tools run in turn (A B C A B C ...) over the same data, several rounds."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path

from data import Pharmacy, SmallFiles
from measure import Run, drop_caches, give_memory, run, settle, spread, usage_of, warm
from targets import Targets
from tools import Source, Tool

COMPARE = Path(__file__).with_name("compare.py")

Figures = dict[str, dict[str, dict[str, list[float]]]]
"""Scenario, tool, quantity (seconds, cpu, rss or bytes): one figure a round."""


class Lab:
    """The tools, the data, and what was measured so far."""

    def __init__(
        self,
        work: Path,
        tools: Sequence[type[Tool]],
        pharmacy: Pharmacy,
        small: SmallFiles,
        *,
        rounds: int,
        days: int,
        pause: float,
    ) -> None:
        self.tools = tools
        self.pharmacy, self.small = pharmacy, small
        self.rounds, self.days, self.pause = rounds, days, pause
        self.homes = work / "tools"
        self.targets = Targets(work)
        self.figures: Figures = {}
        self.facts: dict[str, Mapping[str, object]] = {}
        self.site: dict[str, Tool] = {}
        self.tree: dict[str, Tool] = {}
        self.opened = 0

    # What is measured, by the names that --only takes.

    def first_pharmacy(self) -> None:
        self.pharmacy.make()
        self.facts["pharmacy"] = self.pharmacy.facts()
        self.site = self._first("first-pharmacy", self.pharmacy.source)
        for name, tool in self.site.items():
            self.note("size-first", name, "bytes", tool.size())

    def first_tree(self) -> None:
        self._make_tree()
        self.tree = self._first("first-tree", self.small.source)

    def first_tree_cold(self) -> None:
        self._make_tree()
        if not drop_caches():
            print("first-tree-cold is left out: this machine does not let us empty its caches")
            return
        self.tree = self._first("first-tree-cold", self.small.source, cold=True)

    def nothing_changed(self) -> None:
        self._need_tree()
        for tool in self.tree.values():  # once unmeasured: the first look after a first backup is not typical
            tool.backup(self.small.source)
        self.turns("nothing-changed", self.tree, lambda tool: tool.backup(self.small.source))

    def trading_days(self) -> None:
        """Thirty days, all tools on each day; what a day adds is measured along the way."""
        if not self.site or self.pharmacy.days:
            self._quietly(self.first_pharmacy)
        for _ in range(self.days):
            self.pharmacy.trade()
            source = self.pharmacy.source
            for name, tool in self.site.items():
                warm(source.paths)
                before = tool.size()
                self.measure("day", tool, partial(tool.backup, source))
                self.note("added", name, "bytes", tool.size() - before)
        for name, tool in self.site.items():
            self.note("size-after", name, "bytes", tool.size())
        self.facts["pharmacy after"] = self.pharmacy.facts()

    def restore_pharmacy(self) -> None:
        self._need_days()
        self._restore("restore-pharmacy", self.site, self.pharmacy.source)

    def restore_tree(self) -> None:
        self._need_tree()
        self._restore("restore-tree", self.tree, self.small.source)

    def check(self) -> None:
        self._need_days()
        warm([tool.repository for tool in self.site.values()])
        self.turns("check", self.site, lambda tool: tool.check_all_data())

    def add_keys(self) -> None:
        """One more passphrase, into a new repository. Of the peers one has such a thing."""
        tools = {kind.name: self.open(kind) for kind in self.tools if kind.adds_keys}
        for tool in tools.values():
            tool.init()
        numbers = count()
        self.turns("add-key", tools, lambda tool: tool.add_key(next(numbers)))

    def rehearse(self) -> None:
        """Every tool does everything once on a few files, so that nothing is cold and nothing is wrong."""
        folder = self.homes / "rehearsal"
        for number in range(40):
            place = folder / "sample" / str(number % 4)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.txt").write_text(f"prescription {number}\n" * 200)
        source = Source(folder, ("sample",))

        def whole() -> None:
            tools = self._first("rehearsal", source)
            self.turns("rehearsal", tools, lambda tool: tool.backup(source))
            self.turns("rehearsal", tools, lambda tool: tool.check_all_data())
            self._restore("rehearsal", tools, source)

        self._quietly(whole)

    def clear(self) -> None:
        """Remove repositories and restored files; the data is kept for the next time."""
        shutil.rmtree(self.homes, ignore_errors=True)
        self.targets.clear()

    # How it is measured.

    def _first(self, key: str, source: Source, *, cold: bool = False) -> dict[str, Tool]:
        """First backups, each into a new repository; the last round's repositories are kept."""
        newest: dict[str, Tool] = {}
        for _ in range(self.rounds):
            for kind in self.tools:
                tool = newest[kind.name] = self.open(kind)
                tool.init()
                if not cold:
                    warm(source.paths)  # each time: Borg takes what it has read out of the page cache
                self.measure(key, tool, partial(tool.backup, source), cold=cold)
        if cold:
            warm(source.paths)
        return newest

    def turns(self, key: str, tools: Mapping[str, Tool], job: Callable[[Tool], Run]) -> None:
        for _ in range(self.rounds):
            for tool in tools.values():
                self.measure(key, tool, partial(job, tool))

    def _restore(self, key: str, tools: Mapping[str, Tool], source: Source) -> None:
        for _ in range(self.rounds):
            for tool in tools.values():
                self.restore_and_compare(key, tool, source)

    def restore_and_compare(self, key: str, tool: Tool, source: Source, day: int | None = None) -> None:
        """Restore, and note the cost under `key` unless that is empty; `Failed` when a byte differs."""
        warm([tool.repository])
        with self.targets.fresh(usage_of(source.paths)[0]) as target:
            if key:
                self.measure(key, tool, partial(tool.restore, target, day))
            else:
                tool.restore(target, day)
            pairs = [(source.folder / item, tool.restored(target, item)) for item in source.items]
            compare: list[str | Path] = [sys.executable, COMPARE, *(path for pair in pairs for path in pair)]
            run(compare, log=tool.home / "compare.log")

    def measure(self, key: str, tool: Tool, job: Callable[[], Run], *, cold: bool = False) -> None:
        settle(self.pause)
        give_memory()
        if cold:
            drop_caches()
        cost = job()
        for quantity, figure in cost.to_dict().items():
            self.note(key, tool.name, quantity, figure)
        print(f"{key:18} {tool.name:14} {cost.seconds:8.2f} s {cost.rss / 1e6:6.0f} MB", flush=True)

    def note(self, key: str, name: str, quantity: str, figure: float) -> None:
        self.figures.setdefault(key, {}).setdefault(name, {}).setdefault(quantity, []).append(figure)

    def open(self, kind: type[Tool]) -> Tool:
        self.opened += 1
        return kind(self.homes / f"{self.opened}-{kind.name}")

    # What a scenario needs before it, when it was not asked for itself.

    def _make_tree(self) -> None:
        self.small.make()
        self.facts["small files"] = self.small.facts()

    def _need_tree(self) -> None:
        if not self.tree:
            self._quietly(self.first_tree)

    def _need_days(self) -> None:
        if not self.site or self.pharmacy.days < self.days:
            self._quietly(self.trading_days)

    def _quietly(self, job: Callable[[], None]) -> None:
        """Do a job in one round and forget its figures."""
        kept, rounds = self.figures, self.rounds
        self.figures, self.rounds = {}, 1
        try:
            job()
        finally:
            self.figures, self.rounds = kept, rounds


SCENARIOS: dict[str, Callable[[Lab], None]] = {
    "first-pharmacy": Lab.first_pharmacy,
    "day": Lab.trading_days,
    "restore-pharmacy": Lab.restore_pharmacy,
    "check": Lab.check,
    "first-tree": Lab.first_tree,
    "first-tree-cold": Lab.first_tree_cold,
    "nothing-changed": Lab.nothing_changed,
    "restore-tree": Lab.restore_tree,
    "add-key": Lab.add_keys,
}


def summary(figures: Figures) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Median, least and greatest of every quantity."""
    return {
        key: {name: {q: spread(values) for q, values in quantities.items()} for name, quantities in tools.items()}
        for key, tools in figures.items()
    }
