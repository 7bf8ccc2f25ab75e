"""The till's journal, which only its own program can export and import: backed up, and restored into it.

python examples/14_any_program.py FOLDER     after 01_backup.py FOLDER
"""

import os
import sys
from pathlib import Path

import pharmabackup as pb

# Stand-ins for the till's programs: one writes to its standard output, the other reads its standard input.
EXPORT = "import os; print(*(f'{n};{os.environ[\"TILL_PASSWORD\"][0]};sale' for n in range(1000)), sep='\\n')"
IMPORT = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"


def main(shop: Path) -> None:
    restored = shop.with_name(f"{shop.name}-journal.csv")
    till = pb.Command(
        [sys.executable, "-c", EXPORT],
        name="till",
        tier=2,
        restore=[sys.executable, "-c", IMPORT, str(restored)],
        env={"TILL_PASSWORD": "secret"},  # never among the arguments, which everybody can see
    )
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    with pb.Repository.open(shop.with_name(f"{shop.name}-backup"), who) as repo:
        print(repo.backup([till]))
        print(repo.restore(into={"till": till}, only=["till"]))
    print(f"The till's journal has {len(restored.read_text().splitlines()):,} sales again.")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).resolve())
    except pb.Error as error:
        sys.exit(f"{error}")
