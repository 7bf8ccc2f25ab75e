"""What a storage learns without a key: a pharmacy is backed up after days of different activity.

python benchmarks/leaks.py FOLDER [--profile XS] [--backups 16]

Prints what the storage sees of each backup (objects, bytes), what really happened, and how well the one tells the
other: r of a straight line through both, and by how much a guess from the bytes errs. FOLDER is emptied.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pharmabackup as pb
from pharmabackup.testing import pharmacy

DAYS = (1, 0, 2, 1, 4, 1, 3, 0)  # trading days between one backup and the next, over and over
WHO = pb.Passphrase("four random words here")
SECRETS = ("pmr.db", "documents", "nightly", "prescription")


@dataclass(frozen=True)
class Seen:
    """One backup: what the storage sees of it, and what was so. Sizes in bytes."""

    days: int
    prescriptions: int
    objects: dict[str, int]  # new ones, by folder
    packs: int
    others: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", default="XS", choices=sorted(pharmacy.PROFILES))
    parser.add_argument("--backups", type=int, default=16, help="after the first (16)")
    chosen = parser.parse_args()
    seen = measure(chosen.folder, chosen.profile, chosen.backups)
    print(f"{'days':>4} {'prescriptions':>13} {'packs, bytes':>12} {'other, bytes':>12}  new objects")
    for one in seen:
        objects = " ".join(f"{folder} {count}" for folder, count in sorted(one.objects.items()))
        print(f"{one.days:>4} {one.prescriptions:>13,} {one.packs:>12,} {one.others:>12,}  {objects}")
    later = seen[1:]
    for line in told(later):
        print(line)
    for line in in_clear(chosen.folder / "repository"):
        print(line)


def measure(folder: Path, profile: str, backups: int) -> list[Seen]:
    """The first backup, and those after `DAYS` of trading."""
    shutil.rmtree(folder, ignore_errors=True)
    shop = folder / "shop"
    folder.mkdir(parents=True)
    pharmacy.make(shop, profile=profile, seed=1)
    repository, found = folder / "repository", list[Seen]()
    with pb.Repository.create(repository, WHO, state_dir=folder / "state") as repo:
        known: dict[str, int] = sizes(repository)
        before = 0
        for number in range(backups + 1):
            days = DAYS[(number - 1) % len(DAYS)] if number else 0
            if days:
                pharmacy.trade(shop, days)
            repo.backup([pb.SQLite(shop / "pmr.db", tier=1), pb.Files(shop / "documents")], reason="nightly")
            new = {name: size for name, size in sizes(repository).items() if name not in known}
            known |= new
            objects: dict[str, int] = {}
            for name in new:
                objects[name.partition("/")[0]] = objects.get(name.partition("/")[0], 0) + 1
            packs = sum(size for name, size in new.items() if name.startswith("packs/"))
            count = prescriptions(shop)
            found.append(Seen(days, count - before, objects, packs, sum(new.values()) - packs))
            before = count
    return found


def sizes(repository: Path) -> dict[str, int]:
    """Every object's, by name, but for the adapter's own files."""
    return {
        path.relative_to(repository).as_posix(): path.stat().st_size
        for path in repository.rglob("*")
        if path.is_file() and ".uploads" not in path.parts
    }


def prescriptions(shop: Path) -> int:
    with closing(sqlite3.connect(shop / "pmr.db")) as db:
        return int(db.execute("SELECT count(*) FROM prescription").fetchone()[0])


def told(seen: Sequence[Seen]) -> list[str]:
    """How well the packs' bytes tell how much was dispensed."""
    sold, packs = [one.prescriptions for one in seen], [one.packs for one in seen]
    slope, base = statistics.linear_regression(packs, sold)
    errors = [abs(base + slope * size - count) for size, count in zip(packs, sold, strict=True)]
    open_days = [count / one.days for one, count in zip(seen, sold, strict=True) if one.days]
    idle = [one.packs for one in seen if not one.days]
    busy = [one.packs for one in seen if one.days]
    return [
        f"packs' bytes and prescriptions: r = {statistics.correlation(packs, sold):.3f}",
        f"a guess from the bytes errs by {statistics.mean(errors):.0f} prescriptions on average, "
        f"{max(errors):.0f} at most; a day has {statistics.mean(open_days):.0f}",
        f"nothing happened: {min(idle, default=0):,}-{max(idle, default=0):,} bytes of packs; "
        f"something did: {min(busy):,}-{max(busy):,}",
    ]


def in_clear(repository: Path) -> list[str]:
    """What of a few words stands in the objects' bytes or names."""
    found = list[str]()
    objects = {name: (repository / name).read_bytes() for name in sizes(repository)}
    for word in SECRETS:
        where = sorted(
            {name.partition("/")[0] for name, data in objects.items() if word.encode() in data + name.encode()}
        )
        found.append(f"{word!r} stands in: {', '.join(where) or 'no object'}")
    return found


if __name__ == "__main__":
    main()
