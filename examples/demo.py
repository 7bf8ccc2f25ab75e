"""A sample pharmacy's worst week in half a minute: back it up, let a day pass, lose it, bring it back, compare.

    make demo                                      # or: python examples/demo.py [--folder DIR] [--profile XS]

Everybody in the sample pharmacy is made up. Ends with 0 only if every byte came back.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pharmabackup as pb
from pharmabackup.results import sized
from pharmabackup.testing import pharmacy

PASSPHRASE = "demo passphrase, not for real data"
OURS = ".pharmabackup-demo"
"""The file that says that a folder is this demo's, to be emptied without asking."""
FOLDERS = ("documents", "scans", "logs")
PIECE = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent.parent / "demo-pharmacy")
    parser.add_argument("--profile", choices=("XS", "S", "B"), default="S", help="how large the pharmacy is")
    options = parser.parse_args()
    try:
        return demo(options.folder, options.profile)
    except pb.Error as error:  # every message ends with what to do
        print(f"\nThe demo stopped: {error}", *error.findings, sep="\n  ", file=sys.stderr)
        return 1


def demo(folder: Path, profile: str) -> int:
    began = time.monotonic()
    empty(folder)
    shop, state = folder / "pharmacy", folder / "state"
    sources = [
        pb.SQLite(shop / "pmr.db", name="pmr", tier=1),
        *(pb.Files(shop / name, name=name, tier=2 if name == "documents" else 3) for name in FOLDERS),
    ]
    say(f"Making a sample pharmacy in {shop} (profile {profile}).")
    pharmacy.make(shop, profile=profile, seed=1)

    say(f"Creating an encrypted repository. Its passphrase, for this demo only: {PASSPHRASE!r}.")
    with pb.Repository.create(folder / "repository", pb.Passphrase(PASSPHRASE)):
        pass
    with pb.Repository.open(folder / "repository", pb.Passphrase(PASSPHRASE), state_dir=state) as repo:
        say("Backing up for the first time.")
        first = repo.backup(sources, reason="first backup")
        tell_backup(first)

        say("One trading day passes: prescriptions, deliveries, scans, corrections.")
        pharmacy.trade(shop)

        say("Backing up again.")
        second = repo.backup(sources, reason="end of the day")
        tell_backup(second)

        say(f"Restoring everything into {folder / 'restored'}.")
        restored = repo.restore(folder / "restored", progress=tell_usable)

        say("Comparing every byte of every file, and looking into the database.")
        wrong = compared(shop, folder / "restored")

        say("Checking all stored data.")
        checked = repo.check(read_data=1.0)
        wrong += [str(finding) for finding in checked.findings]
    summary(first, second, restored, checked, wrong, time.monotonic() - began)
    return 1 if wrong else 0


def empty(folder: Path) -> None:
    """An empty folder that is marked as ours; what somebody else put somewhere is never deleted."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / OURS).is_file():
            sys.exit(f"{folder} holds something that is not this demo's. Choose another folder with --folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OURS).write_text("Made by examples/demo.py, which empties this folder whenever it runs.\n")


# ------------------------------------------------------------ comparing


def compared(shop: Path, restored: Path) -> list[str]:
    """What differs between the pharmacy and what came back, in sentences; none if nothing does."""
    wrong = []
    for name in FOLDERS:
        wrong += tree_differences(shop / name, restored / name)
    database = restored / "pmr" / "pmr.db"
    if not database.is_file():
        return [*wrong, "The database pmr.db did not come back."]
    wrong += database_differences(shop / "pmr.db", database)
    wrong += invariants(restored)
    return wrong


def tree_differences(before: Path, after: Path) -> list[str]:
    """Files that are missing, that nobody had, or whose bytes differ."""
    names = {path.relative_to(before) for path in before.rglob("*")}
    found = {path.relative_to(after) for path in after.rglob("*")}
    wrong = [f"{before.name}/{name} did not come back." for name in sorted(names - found)]
    wrong += [f"{before.name}/{name} came back and was never there." for name in sorted(found - names)]
    for name in sorted(names & found):
        old, new = before / name, after / name
        if old.is_dir() != new.is_dir() or (old.is_file() and not same_bytes(old, new)):
            wrong.append(f"{before.name}/{name} differs.")
    return wrong


def same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        return all(a == b for a, b in zip(pieces(first), pieces(second), strict=True))


def pieces(file: object) -> Iterator[bytes]:
    return iter(lambda: file.read(PIECE), b"")  # type: ignore[attr-defined]


def database_differences(before: Path, after: Path) -> list[str]:
    """The restored database is sound, and holds the same tables with the same rows, in the same order."""
    wrong = []
    with closing(read_only(before)) as old, closing(read_only(after)) as new:
        verdict = new.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            wrong.append(f"The database is damaged: {verdict}.")
        if schema(old) != schema(new):
            return [*wrong, "The database's tables are not the same."]
        for (table,) in old.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '% VIRTUAL %'"
        ):
            query = f'SELECT * FROM "{table}"'
            rows = zip(old.execute(query), new.execute(query), strict=True)
            try:
                if not all(a == b for a, b in rows):
                    wrong.append(f"The database's table {table} differs.")
            except ValueError:
                wrong.append(f"The database's table {table} has more or fewer rows.")
    return wrong


def read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def schema(database: sqlite3.Connection) -> list[tuple[str, ...]]:
    return database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def invariants(restored: Path) -> list[str]:
    """The pharmacy's own rules, on a pharmacy put together from the restored datasets: balances, claims, chains."""
    site = restored.with_name("opened")
    site.mkdir()
    shutil.copyfile(restored / "pmr" / "pmr.db", site / "pmr.db")
    for name in FOLDERS:
        (site / name).symlink_to(restored / name, target_is_directory=True)
    try:
        return pharmacy.check(site)
    finally:
        shutil.rmtree(site)


# ------------------------------------------------------------ telling


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def added(report: pb.Report) -> int:
    return sum(result.added for result in report.datasets.values())


def tell_backup(report: pb.Report) -> None:
    size = sum(result.bytes for result in report.datasets.values())
    say(
        f"  Safe: {sized(size)} in {report.files:,} files, in {report.duration.total_seconds():.1f} s. "
        f"The repository grew by {sized(added(report))}, {added(report) / size:.1%} of that."
    )
    for finding in report.findings:
        if finding.code != "same-device":  # a demo has one disk
            say(f"  {finding}")


def tell_usable(event: pb.Event) -> None:
    if event.kind == "usable":
        say(f"  {event.text}")


def summary(
    first: pb.Report, second: pb.Report, restored: pb.Report, checked: pb.Report, wrong: list[str], seconds: float
) -> None:
    ready = restored.datasets["pmr"].usable_after
    print("\n" + "=" * 78)
    if wrong:
        print("SOMETHING IS WRONG. Do not rely on this version; please report this:")
        print(*(f"  {text}" for text in wrong[:20]), sep="\n")
        return
    print("ALL IS WELL. The whole pharmacy was lost on purpose, and all of it came back.\n")
    print(f"  What is safe      the patient records, documents, scans and logs: {restored.files:,} files,")
    print(f"                    {sized(restored.bytes)}, as they were at the end of the day.")
    print(f"  Room on the disk  the first backup took {sized(added(first))}; a whole day's work added")
    print(f"                    {sized(added(second))}. Nobody can read either without the passphrase.")
    if ready is not None:
        print(f"  Getting it back   the patient records were ready after {ready.total_seconds():.1f} s,")
        print(f"                    everything after {restored.duration.total_seconds():.1f} s.")
    print("  What was compared every byte of every file, every row of the records, and the sums:")
    print("                    stock balances, claims, the controlled drugs register.")
    print(f"  Checked           all {sized(checked.bytes)} that are stored; nothing is damaged.\n")
    print("  What to do next   Here the backup lies on the same disk as the pharmacy: enough for a demo,")
    print("                    not for you. Choose a disk that is kept elsewhere, choose a passphrase of")
    print("                    your own, write it down in two safe places, and try a restore every month.")
    print(f"\n  The demo took {seconds:.0f} s. Look around in the folder; it is emptied by the next run.")


if __name__ == "__main__":
    sys.exit(main())
