"""The command line: it parses, calls the public API and shows what that says. It computes nothing of its own."""

from __future__ import annotations

import sys
from importlib.util import find_spec

LIBRARIES = ("click", "rich")


def main() -> int:
    """Do what the command line says; the exit code is one of docs/cli.md's table."""
    try:
        if all(find_spec(library) is not None for library in LIBRARIES):
            from pharmabackup.cli.app import run

            return run(sys.argv[1:])
        return _without_libraries()
    except KeyboardInterrupt:  # before `run` could take care of it, or a third time
        return 130


def _without_libraries() -> int:
    """The library alone is installed: say in one line what to do."""
    import pharmabackup as pb
    from pharmabackup.cli.codes import exit_code
    from pharmabackup.cli.output import Output, form_of

    error = pb.Unsupported(
        "The command line needs more than the library.",
        kind="extra-missing",
        remedy='pip install "pharmabackup[cli]".',
    )
    Output(form_of(sys.argv[1:])).error(error)
    return exit_code(error)
