"""docs/security.md claims nothing that no test shows: each that it names is there, is run, and asserts something."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
M = "tests/verbs/test_matrix.py"
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8").replace(f"`M` is `{M}`", "").replace("`M::", f"`{M}::")
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", PAGE)))
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


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part.rpartition("/")[2])
def test_each_test_that_the_page_names_is_run_and_asserts(path: str, name: str) -> None:
    assert _wrong(path, name) is None


@pytest.mark.parametrize("cell", _cells(), ids=lambda cell: cell[:40])
def test_no_cell_claims_what_no_test_shows(cell: str) -> None:
    assert "::test_" in cell or REASONING in cell
