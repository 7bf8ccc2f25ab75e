"""Databases' own programs: where they are, and what their error output means."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence

from pharmabackup.sources.program import NO_WINDOW

Signs = Sequence[tuple[bytes, str, str, str]]
"""What is in an error output: kind, what happened, remedy. English, as programs are told to speak."""


def trouble(signs: Signs, tool: str, code: int, errors: bytes) -> tuple[str, str, str] | None:
    """What a tool's error output means, by what these programs say; none of it is repeated."""
    for sign, kind, what, remedy in signs:
        if sign in errors:
            return kind, f"{tool} ended with code {code}: {what}.", remedy
    return None


def candidates(name: str, folder: str | os.PathLike[str] | None, well_known: Iterable[str]) -> list[str]:
    """Where a program is: in the folder that was given, or where installers put it, or on the path."""
    if folder is not None:
        folders = [os.path.abspath(folder)]
    else:
        on_path = os.environ.get("PATH", "").split(os.pathsep)
        folders = [*(found for pattern in well_known for found in sorted(glob.glob(pattern))), *on_path]
    file = f"{name}.exe" if sys.platform == "win32" else name
    # Not `which`: on Windows it finds what lies in the current folder first.
    paths = (os.path.join(folder, file) for folder in folders if os.path.isabs(folder))
    return [path for path in dict.fromkeys(paths) if os.path.isfile(path) and os.access(path, os.X_OK)]


def says(path: str) -> bytes:
    """What a program answers to --version; nothing where it does not run."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, timeout=60, check=True, creationflags=NO_WINDOW
        )
    except (OSError, subprocess.SubprocessError):
        return b""
    return answer.stdout or answer.stderr
