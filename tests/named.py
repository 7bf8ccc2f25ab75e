"""The tests that docs/security.md names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
M = "tests/verbs/test_matrix.py"


@cache
def page() -> str:
    """Each test's path in full."""
    return (ROOT / "docs" / "security.md").read_text("utf-8").replace(f"`M` is `{M}`", "").replace("`M::", f"`{M}::")


@cache
def named() -> frozenset[tuple[str, str]]:
    """Path and name; of a file without a test, an empty name."""
    return frozenset(re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page()))
