"""One verb of pharmabackup as a whole process, over the public API: import and opening the repository included.

    python driver.py create|backup|restore|restore-dataset|check|snapshots|prune|days|many|enrol|audit|audit-verify
        URL [ARGUMENT ...]

The passphrase comes from PHARMABACKUP_PASSPHRASE, that of who is enrolled from PHARMABACKUP_NEW, the folder for
caches from PHARMABACKUP_STATE, storage_options from PHARMABACKUP_STORAGE, as JSON. A backup takes a path that ends in
.db as a live SQLite database, postgresql:// or mariadb:// as a server's, others as trees of files. Days are counted
by backups: the first was of day 1.
"""

import json
import os
import sys
from pathlib import Path

import pharmabackup as pb

DELAY_DAYS = 15  # an owner's forgetting counts after 14


def main(verb: str, url: str, *arguments: str) -> None:
    who = pb.Passphrase(os.environ["PHARMABACKUP_PASSPHRASE"])
    where = {
        "storage_options": json.loads(os.environ.get("PHARMABACKUP_STORAGE", "null")),
        "state_dir": os.environ["PHARMABACKUP_STATE"],
    }
    if verb == "create":
        pb.Repository.create(url, who, **where).close()
        return
    with pb.Repository.open(url, who, **where) as repository:
        if verb == "backup":
            print(repository.backup([source_of(path) for path in arguments]))
        elif verb == "restore":
            target, *days = arguments
            chosen = by_day(repository)[int(days[0])] if days else []
            print(repository.restore(target, snapshots=chosen))
        elif verb == "restore-dataset":
            target, dataset = arguments
            print(repository.restore(target, snapshots=[repository.snapshot(dataset)]))
        elif verb == "many":
            for number in range(int(arguments[1])):
                change(Path(arguments[0]), number)
                repository.backup([source_of(arguments[0])])
        elif verb == "snapshots":
            print(*repository.snapshots(), sep="\n")
        elif verb == "check":
            report = repository.check(read_data=float(arguments[0]))
            print(report)
            if report.state in ("critical", "unknown"):
                raise SystemExit(2)
        elif verb == "enrol":
            role, name = arguments
            repository.enrol(role, pb.Passphrase(os.environ["PHARMABACKUP_NEW"]), name=name)  # type: ignore[arg-type]
        elif verb == "audit":
            for record in repository.audit():
                print(record)
        elif verb == "audit-verify":
            report = repository.audit_verify()
            print(report)
            if report.findings:
                raise SystemExit(2)
        elif verb == "prune":
            prune(repository, {int(day) for day in arguments})
        elif verb == "days":
            pass_days(DELAY_DAYS)
            there = {day for day, found in by_day(repository).items() if not all(item.forgotten for item in found)}
            print(*sorted(there))
        else:
            raise SystemExit(f"no such verb: {verb}")


def source_of(path: str) -> pb.Source:
    if path.startswith("postgresql://"):
        return pb.PostgreSQL(path)
    if path.startswith("mariadb://"):
        return pb.MySQL(path)
    return pb.SQLite(path) if path.endswith(".db") else pb.Files(path)


def change(folder: Path, number: int) -> None:
    """Write one of the first half of the files anew."""
    files = sorted(folder.iterdir())
    path = files[number % (len(files) // 2)]
    path.write_bytes(os.urandom(path.stat().st_size))


def by_day(repository: pb.Repository) -> dict[int, list[pb.Snapshot]]:
    """The snapshots that each backup made, by its number. Those that are gone are still listed."""
    runs: dict[str, list[pb.Snapshot]] = {}
    for snapshot in reversed(repository.snapshots()):
        runs.setdefault(snapshot.run, []).append(snapshot)
    return dict(enumerate(runs.values(), 1))


def prune(repository: pb.Repository, keep: set[int]) -> None:
    """Forget all other days, let the time pass until that counts, and delete what nothing needs."""
    going = [item for day, found in by_day(repository).items() if day not in keep for item in found]
    repository.apply(repository.propose_forget(snapshots=going))
    pass_days(DELAY_DAYS)
    print(repository.apply(repository.propose_prune()))  # peers are told to be quiet: no list of what goes


def pass_days(days: int) -> None:
    """This process takes the time to be so much later, by the storage's clock and by its own."""
    from pharmabackup import clock
    from pharmabackup.engine import collection, history
    from pharmabackup.verbs import prune, standing

    ahead, now, storage_now = days * 86_400 * 10**9, clock.now_ns, collection.storage_now
    for module in (history, standing):
        module.now_ns = lambda: now() + ahead  # type: ignore[attr-defined]
    prune.storage_now = lambda unlocked: storage_now(unlocked) + ahead  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(*sys.argv[1:])
