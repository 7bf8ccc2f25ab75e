"""Which threads a test has left: others may have left some before it."""

from __future__ import annotations

import threading

before: set[threading.Thread] = set()  # those that were there when the test began: tests/conftest.py


def threads_left(prefix: str = "pharmabackup-") -> list[str]:
    """Names of those that this test started and that go on."""
    return [one.name for one in threading.enumerate() if one.name.startswith(prefix) and one not in before]
