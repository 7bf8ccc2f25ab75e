"""Two simulated years of daily backups, and what takes that long to show: pruning, and checking many snapshots.

Making the repositories takes most of an hour. They are made once, stay in the work folder, and are copied for each
run that changes them. The pharmacy is small, and trades on every other day: of a normal one that trades on every day
a peer's repository of two years would take some 70 GB.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Any

from data import Pharmacy
from measure import Failed, warm
from scenarios import Lab
from tools import RULES, Source, Tool, date_of

from pharmabackup.clock import to_ns
from pharmabackup.retention import Dated, Keep, kept

DAYS, QUICK_DAYS = 730, 40
PROFILE = "XS"
KEEP = Keep(daily=RULES["daily"], weekly=RULES["weekly"], monthly=RULES["monthly"], yearly=RULES["yearly"])


def kept_days(days: int) -> dict[int, str]:
    """Which of so many days stay by `RULES`, each with the first rule that keeps it."""
    found = (
        Dated(
            day.to_bytes(4, "big"),
            to_ns(date_of(day).replace(tzinfo=UTC)),
            day,
            complete=True,
            verified=False,
            held=False,
        )
        for day in range(1, days + 1)
    )
    reasons = kept(found, [KEEP], UTC, to_ns(date_of(days + 1).replace(tzinfo=UTC)))
    return {int.from_bytes(day, "big"): reason.replace("newest", "daily") for day, reason in reasons.items()}


class Years:
    """The repositories of all tools after all days, and what the site was like."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder = folder
        self.days = QUICK_DAYS if quick else DAYS
        self.keep = kept_days(self.days)
        self.pharmacy = Pharmacy(folder, profile=PROFILE, given=None)

    def make(self, kinds: list[type[Tool]]) -> dict[str, Any]:
        """Back up every day with every tool, unless that was done; the facts about it."""
        done = self.folder / "facts.json"
        if not done.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self._make(kinds)
        facts: dict[str, Any] = json.loads(done.read_text())
        if not {kind.name for kind in kinds} <= set(facts["tools"]):
            raise Failed(f"{self.folder} was made with other tools: remove it to make it anew")
        return facts

    def _make(self, kinds: list[type[Tool]]) -> None:
        self.pharmacy.make()
        tools = [kind(self._home(kind)) for kind in kinds]
        for tool in tools:
            tool.init()
        for day in range(1, self.days + 1):
            if day % 2:
                self.pharmacy.trade()
            for tool in tools:
                tool.backup(self.pharmacy.source, day)
            if day % 10 == 0:
                sizes = ", ".join(f"{tool.name} {tool.size() / 1e6:,.0f} MB" for tool in tools)
                print(f"day {day}: {sizes}", flush=True)
            if day == min(self.keep):
                copy(self.pharmacy.site, self.folder / "oldest")
        facts = {**self.pharmacy.facts(), "tools": [kind.name for kind in kinds]}
        (self.folder / "after").rename(self.folder / "made")
        (self.folder / "facts.json").write_text(json.dumps(facts))

    def _home(self, kind: type[Tool]) -> Path:
        return self.folder / "after" / kind.name

    @contextmanager
    def copied(self, kind: type[Tool]) -> Iterator[Tool]:
        """A tool with a copy of its repository where it was made, since caches know where; it is gone afterwards."""
        place = self._home(kind)
        shutil.rmtree(place, ignore_errors=True)
        copy(self.folder / "made" / kind.name, place)
        try:
            yield kind(place)
        finally:
            shutil.rmtree(place)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "--archive", "--reflink=auto", source, target], check=True)


def prune(lab: Lab, years: Years) -> None:
    """Forget and prune two years of daily backups. What is left is what the rules say, is whole and is restored."""
    lab.facts["two years"] = years.make(list(lab.tools))
    for number in range(lab.rounds):
        for kind in lab.tools:
            with years.copied(kind) as tool:
                warm([tool.repository])
                before = tool.size()
                lab.measure("prune", tool, partial(tool.prune, years.keep))
                freed = before - tool.size()
                lab.note("prune-left", tool.name, "bytes", tool.size())
                lab.note("prune-freed", tool.name, "freed", freed)
                lab.note("prune-share", tool.name, "share", freed / before)
                if number == 0:
                    _prove(lab, years, tool)


def _prove(lab: Lab, years: Years, tool: Tool) -> None:
    """The days that were to stay are there, the last and the oldest of them are right, and nothing is damaged."""
    if tool.days() != set(years.keep):
        raise Failed(f"{tool.name} keeps other days: {sorted(tool.days())}")
    tool.check_all_data()
    newest = years.pharmacy.source
    lab.restore_and_compare("", tool, newest)
    lab.restore_and_compare("", tool, Source(years.folder / "oldest", newest.items), min(years.keep))


def condition(years: Years) -> str:
    """What a reader has to know about these figures."""
    rules = ", ".join(f"{number} {rule}" for rule, number in RULES.items())
    return (
        f"Two years: {years.days} daily backups of a small pharmacy that trades on every other day, dated by "
        f"simulated days where a tool can do that; what is kept: {rules}. Borg's rules take turns, so that each was "
        "given what the ones before it left. Ours are dated by the storage, so that what goes is named, the same "
        "days; the 14 days until a forget counts are skipped by the clock of its own process. Prune is forget and "
        "prune for restic, prune and compact for Borg. Afterwards the days that are left are the same for all tools, "
        "all data is checked, and the newest and the oldest are restored and compared. A check of structure is "
        "restic check, which reads all trees; borg check --archives-only, which reads all archives' metadata; ours, "
        "which reads every record, segment, recipe and manifest and verifies all signatures."
    )


def check_many(lab: Lab, years: Years) -> None:
    """A check of structure on all days' backups, none of the data being read."""
    lab.facts["two years"] = years.make(list(lab.tools))
    with ExitStack() as copies:
        tools = {kind.name: copies.enter_context(years.copied(kind)) for kind in lab.tools}
        warm([tool.repository for tool in tools.values()])
        lab.turns("check-years", tools, lambda tool: tool.check_structure())
