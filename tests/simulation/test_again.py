"""A seed gives the same machine in every process, whatever else is loaded there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _machine(*paths: str) -> str:
    """The digest of all calls that the clients of a short machine made; `paths` are collected beside it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "keeps_its_promises"]
    done = subprocess.run(
        [*command, "tests/simulation/test_machine.py", *paths],
        cwd=ROOT,
        env=os.environ | {"PHARMABACKUP_PROFILE": "short", "PHARMABACKUP_SEED": "1", "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    found = re.search(r"([0-9,]+) storage calls in turns, trace ([0-9a-f]{16})", done.stdout)
    assert found is not None and found[1] != "0", done.stdout
    return found[2]


def test_a_machine_is_the_same_beside_other_modules() -> None:
    assert _machine() == _machine("tests/cli", "tests/sources", "tests/testing")
