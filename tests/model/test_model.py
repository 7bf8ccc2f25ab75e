"""The protocol is safe in every case, and each shortcut that the design forbids is not.

`python -m tests.model` lists cases and mutants; `python -m tests.model CODE` runs one and prints the shortest way to
what goes wrong. The environment variable PHARMABACKUP_PROFILE=nightly adds the large cases.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import pytest

from tests.model.everything import CASES, MUTANTS, build
from tests.model.explore import explore
from tests.model.rules import Rules

NIGHTLY = os.environ.get("PHARMABACKUP_PROFILE") == "nightly"
STORAGE = {"paged", "torn_packs", "torn_records"}  # not shortcuts but what a case's storage does


@pytest.mark.parametrize("code", [code for code, item in CASES.items() if NIGHTLY or not item.nightly])
def test_nothing_goes_wrong(code: str, record_property: Callable[[str, object], None]) -> None:
    case = build(code)
    found = explore(case)
    record_property(f"model:{code}", found.states)
    print(f"{code}: {found.states:,} states, {found.stores:,} stores, {found.quiet:,} of them left alone")
    assert not found.wrong, "\n".join([found.wrong, *found.trace])
    # a protocol that does nothing is safe too
    assert bool(found.deleted) == case.deletes
    assert bool(found.committed) == case.commits
    assert bool(found.quiet) == bool(case.afterwards)


@pytest.mark.parametrize("code", MUTANTS)
def test_shortcuts_are_found_out(code: str, record_property: Callable[[str, object], None]) -> None:
    case = build(code)
    found = explore(case)
    record_property(f"model:{code}", found.states)
    print(f"{code}: {found.wrong} after {len(found.trace)} moves, {found.states:,} states")
    assert found.wrong.startswith(case.expects), found.wrong or "nothing was found"
    assert found.trace


def test_every_rule_has_a_mutant() -> None:
    changed = {name for item in MUTANTS.values() for name in item.changes}
    assert {field.name for field in dataclasses.fields(Rules)} - changed - STORAGE == set()
