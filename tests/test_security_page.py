"""docs/security.md claims nothing that no test shows: each that it names is there, is run, and asserts something."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from tests.named import ROOT, named, page

PAGE, NAMED = page(), sorted(named())
LEFT_OUT = {"skip", "skipif", "xfail", "importorskip"}
JUDGES = {"raises", "fail"}
REASONING = "by reasoning"  # what a cell says that no test can show


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def _words(tree: ast.AST) -> set[str]:
    """Names and attributes that occur in it."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _asserts(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree)) or bool(JUDGES & _words(tree))


@cache
def _asserting(path: str) -> frozenset[str]:
    """Functions of that file that assert something, by name."""
    functions = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef))
    return frozenset(node.name for node in functions if _asserts(node))


def _helpers(path: str) -> Iterator[str]:
    """Those of that file, and of those of the tests that it imports from."""
    imported = (node.module or "" for node in _tree(path).body if isinstance(node, ast.ImportFrom))
    files = [name.replace(".", "/") + ".py" for name in imported if name.startswith("tests.")]
    for file in (path, *(file for file in files if (ROOT / file).exists())):
        yield from _asserting(file)


def _wrong(path: str, name: str) -> str | None:
    """Why a test shows nothing."""
    if not name:
        return "a file is named, and no test in it"
    if not (ROOT / path).exists():
        return "there is no such file"
    body = _tree(path).body
    found = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if found is None:
        return "there is no such test"
    marks = [node for node in body if isinstance(node, ast.Assign) and "pytestmark" in _words(node)]
    if LEFT_OUT & _words(found) or any(LEFT_OUT & _words(node) and "platform" not in _words(node) for node in marks):
        return "it may be left out, or is expected to fail"
    if not (_asserts(found) or _words(found) & {*_helpers(path)}):
        return "it asserts nothing"
    return None


def _cells() -> list[str]:
    """Of the table of who can do what: all but the first column and what is empty."""
    section = PAGE.partition("## What a compromise permits")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| **")]
    return [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:] if cell.strip()]


def test_there_is_much_to_look_at() -> None:
    assert len(NAMED) > 50 and len(_cells()) > 15


def test_each_is_named_in_full() -> None:
    """Whatever looks like a test's name is one of those that are looked at."""
    assert PAGE.count("::test_") == sum(PAGE.count(f"{path}::{name}`") for path, name in NAMED)


SKIPPING = """
import sys, pytest
class Skipping:
    def pytest_runtest_setup(self, item):
        pytest.skip("there is no such server here")
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Skipping()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere some servers do not run")
def test_one_that_is_left_out_by_its_fixtures_fails() -> None:
    """As where a server is missing. One that the page does not name is skipped."""
    name = "test_what_is_locked_is_not_let_go_before_its_time"
    assert ("tests/storage/test_s3_locks.py", name) in NAMED
    for test, code in ((f"tests/storage/test_s3_locks.py::{name}", 1), ("tests/test_ids.py", 0)):
        done = subprocess.run([sys.executable, "-c", SKIPPING, test], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code and (code == 0 or "docs/security.md names it" in done.stdout), done.stdout


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part.rpartition("/")[2])
def test_each_test_that_the_page_names_is_run_and_asserts(path: str, name: str) -> None:
    assert _wrong(path, name) is None


@pytest.mark.parametrize("cell", _cells(), ids=lambda cell: cell[:40])
def test_no_cell_claims_what_no_test_shows(cell: str) -> None:
    assert "::test_" in cell or REASONING in cell
