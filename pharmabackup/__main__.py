"""`python -m pharmabackup` and the installed command."""

import sys

from pharmabackup.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
