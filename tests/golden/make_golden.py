"""Makes a golden repository again: `python -m tests.golden.make_golden v1-replica`. They are committed; later
versions must always open them, so they are made again only when the format has not been released yet.

v1.tar.gz holds the repository, v1.json what each of its snapshots must restore to; the same of v1-replica, which was
copied to and collected, and whose keys and passphrases have changed. v1 is of the format's first day, before there
was a second way to seal keyrings (docs/format.md, §8), and is not made again. v1-roles has a credential of every
role; its keys and shares are secrets of these tests alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import sqlite3
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from unittest import mock

import pharmabackup as pb
from pharmabackup import clock
from pharmabackup.engine import collection
from pharmabackup.engine.garbage import Garbage
from pharmabackup.format.keys import Role

HERE = Path(__file__).parent
PASSPHRASE = "correct horse battery staple"
TIME = 1_700_000_000_123_456_789
ROWS = {"patient": 200}
DAY_NS = 86400 * 10**9


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def documents(root: Path) -> None:
    """A bit of everything."""
    (root / "folder" / "deeper").mkdir(parents=True)
    (root / "folder" / "empty folder").mkdir()
    (root / "empty").write_bytes(b"")
    (root / "text").write_bytes(b"Take one tablet daily.\n" * 400)
    (root / "folder" / "scan").write_bytes(content(1, 40_000))
    (root / "folder" / "deeper" / "same").write_bytes(content(1, 40_000))
    (root / "folder" / "Rezept – ä.txt").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(root) + b"/not \xff\xfe utf-8")).write_bytes(b"y")
    os.symlink("folder/scan", root / "link")
    os.symlink("/nowhere/at all", root / "folder" / "dangling")
    os.link(root / "text", root / "folder" / "hard link")
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(content(2, 4096))
    os.setxattr(root / "text", "user.origin", b"golden")
    (root / "text").chmod(0o640)
    (root / "folder").chmod(0o750)
    _set_times(root)


def _set_times(root: Path) -> None:
    for folder, folders, files in os.walk(os.fsencode(root), topdown=False):
        for name in [*folders, *files, b"."]:
            os.utime(os.path.join(folder, name), ns=(TIME, TIME), follow_symlinks=False)


def second_day(root: Path, database: Path) -> None:
    (root / "new").write_bytes(content(3, 9000))
    (root / "empty").unlink()
    _set_times(root)
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("UPDATE patient SET name = 'changed' WHERE id = 7")


def make_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
        db.executemany("INSERT INTO patient (name) VALUES (?)", [(f"Test {i}" * 9,) for i in range(ROWS["patient"])])


def listing(root: Path) -> dict[str, dict[str, object]]:
    """Every path with what a restore brings back, JSON-ready. Owners are not compared: tests run as anybody."""
    top, found = os.fsencode(root), dict[str, dict[str, object]]()
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(top):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            key = os.path.relpath(path, top).decode("utf-8", "backslashreplace")
            facts: dict[str, object] = {"mtime": status.st_mtime_ns, "mode": oct(stat.S_IMODE(status.st_mode))}
            if stat.S_ISLNK(status.st_mode):
                facts = {"kind": "link", "target": os.readlink(path).decode()}
            elif stat.S_ISDIR(status.st_mode):
                facts["kind"] = "folder"
            else:
                data = Path(os.fsdecode(path)).read_bytes()
                facts |= {"kind": "file", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                facts["sparse"] = status.st_blocks * 512 < len(data) // 2
                if status.st_nlink > 1:
                    facts["same file as"] = first.setdefault(status.st_ino, key)
                names = [key for key in os.listxattr(path) if key.startswith("user.")]
                facts["attributes"] = {key: base64.b64encode(os.getxattr(path, key)).decode() for key in names}
            found[key] = facts
    return dict(sorted(found.items()))


def make() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.multiple("pharmabackup.crypto.passphrases", MEMORY_KIB=64, ITERATIONS=1),
    ):
        base = Path(name)
        root, database, path = base / "documents", base / "pmr.db", base / "v1"
        documents(root)
        make_database(database)
        expected: dict[str, object] = {"passphrase": PASSPHRASE}
        with pb.Repository.create(path, pb.Passphrase(PASSPHRASE), state_dir=base / "state") as repo:
            made: list[pb.Snapshot | None] = []
            sources = [pb.SQLite(database, tier=1, count=list(ROWS)), pb.Files(root)]
            made += [result.snapshot for result in repo.backup(sources).datasets.values()]
            second_day(root, database)
            made += [result.snapshot for result in repo.backup(sources, reason="second day").datasets.values()]
            made.append(_incomplete(repo, base))
            snapshots = []
            for number, snapshot in enumerate(made):
                assert snapshot is not None
                out = base / f"out-{number}"
                repo.restore(out, snapshots=[snapshot])
                facts = snapshot.to_dict()
                facts.pop("verified")
                facts["content"] = listing(out / snapshot.dataset)
                snapshots.append(facts)
            _compare(snapshots[3]["content"], listing(root))
            expected["snapshots"] = snapshots
        _keep(path, expected)


def _compare(restored: object, source: object) -> None:
    """The committed listing is the source's own, not merely what this version makes of it."""
    assert restored == source, (restored, source)


def _incomplete(repo: pb.Repository, base: Path) -> pb.Snapshot | None:
    """A snapshot with a file that could not be read."""
    root = base / "till"
    root.mkdir()
    (root / "journal").write_bytes(b"1 Ibuprofen\n")
    (root / "locked").write_bytes(b"z" * 5000)
    real = os.open

    def refuse(path: object, *args: object, **more: object) -> int:
        if os.fsencode(path).endswith(b"locked"):  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)  # type: ignore[arg-type]

    _set_times(root)
    with mock.patch("os.open", refuse):
        try:
            repo.backup([pb.Files(root)])
        except pb.Incomplete as error:
            return error.result.datasets["till"].snapshot
    raise AssertionError("the backup was not incomplete")


# ---------------------------------------------------------------- v1-replica

CHANGED, SECOND = "quite another passphrase", "the passphrase of a second owner"


def make_replica() -> None:
    """Snapshots of six days, in two replicas.

    One: days 1 to 4, with new keys on day 2. Day 1 is forgotten and collected, day 2 held, day 3 forgotten and called
    back. The owner's passphrase is changed, and all is copied to the other: day 1 without content. That one is kept:
    new keys again, days 5 and 6, and day 5 is forgotten and collected.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.multiple("pharmabackup.crypto.passphrases", MEMORY_KIB=64, ITERATIONS=1),
    ):
        base = Path(name)
        root, path = base / "documents", base / "v1-replica"
        root.mkdir()
        made: list[pb.Snapshot] = []
        sources: list[dict[str, dict[str, object]]] = []

        def back_up(repo: pb.Repository) -> pb.Snapshot:
            day = len(made) + 1
            (root / "anew").write_bytes(content(10 + day, 4000))
            if day == 2:
                (root / "from then on").write_bytes(content(3, 2000))
            _set_times(root)
            snapshot = repo.backup([pb.Files(root)], reason=f"day {day}").datasets["documents"].snapshot
            assert snapshot is not None
            made.append(snapshot)
            sources.append(listing(root))
            return snapshot

        owner = pb.Passphrase(PASSPHRASE)
        with pb.Repository.create(base / "one", owner, state_dir=base / "state-1") as one:
            one.enrol("owner", pb.Passphrase(SECOND), name="second")
            first = back_up(one)
            one.rotate(reason="a laptop was lost")
            second, third, _ = back_up(one), back_up(one), back_up(one)
            one.hold(second, reason="incident 7")
            _forget_and_collect(one, first)
            one.apply(one.propose_forget(snapshots=[third]))
            one.recall(third, reason="needed")
            one.change_passphrase(pb.Passphrase(CHANGED))
            owner = pb.Passphrase(CHANGED)
            with pb.Repository.create(path, owner, state_dir=base / "state-2", replica_of=one) as two:
                one.copy(two)
                two.rotate(reason="another laptop was lost")
                fifth = back_up(two)
                back_up(two)
                _forget_and_collect(two, fifth)
                said = {snapshot.id: snapshot for snapshot in two.snapshots()}
                snapshots = []
                for number, snapshot in enumerate(made):
                    facts = said[snapshot.id].to_dict()
                    for changing in ("verified", "forget_at"):
                        facts.pop(changing)
                    facts["content"] = None
                    if not facts["forgotten"]:
                        two.restore(base / f"out-{number}", snapshots=[said[snapshot.id]])
                        facts["content"] = listing(base / f"out-{number}" / "documents")
                        _compare(facts["content"], sources[number])
                    snapshots.append(facts)
        _compare([facts["forgotten"] for facts in snapshots], [True, False, False, False, True, False])
        expected = {"passphrases": [CHANGED, SECOND], "old passphrase": PASSPHRASE, "snapshots": snapshots}
        _keep(path, expected)


def _forget_and_collect(repo: pb.Repository, snapshot: pb.Snapshot) -> None:
    repo.apply(repo.propose_forget(snapshots=[snapshot]))
    with _two_weeks_later():
        repo.apply(repo.propose_prune())


@contextmanager
def _two_weeks_later() -> Iterator[None]:
    now, storage_now, ahead = clock.now_ns, collection.storage_now, 15 * DAY_NS
    with (
        mock.patch("pharmabackup.engine.history.now_ns", lambda: now() + ahead),
        mock.patch("pharmabackup.verbs.standing.now_ns", lambda: now() + ahead),
        mock.patch("pharmabackup.verbs.prune.storage_now", lambda unlocked: storage_now(unlocked) + ahead),
    ):
        yield


# ---------------------------------------------------------------- v1-roles

ENROLLED: tuple[tuple[Role, str, str | None], ...] = (
    ("restorer", "the desk", None),
    ("auditor", "the auditor", None),
    ("maintainer", "the supplier", None),
    ("device", "till-1", None),
    ("device", "till-2", None),
    ("device", "branch till", "branch"),  # the last: who came before is given this domain's key by a later keyring
)


def make_roles() -> None:
    """Three tills of two domains on three days, each role's key, and shares that were split twice.

    The maintainer forgets and collects the first till's first day, and moves all else into new packs. The second till
    is revoked after two days, which replaces the keys; its thief backs up once more, which does not count. The other
    two go on with new keys.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.multiple("pharmabackup.crypto.passphrases", MEMORY_KIB=64, ITERATIONS=1),
    ):
        base = Path(name)
        path = base / "v1-roles"
        with ExitStack() as stack:
            repo = stack.enter_context(
                pb.Repository.create(path, pb.Passphrase(PASSPHRASE), state_dir=base / "state of owner")
            )
            keys = {slot: pb.KeyFile.create(base / f"{slot}.key") for _, slot, _ in ENROLLED}
            old_shares = repo.split_recovery(threshold=3, shares=5)
            shares = repo.split_recovery(threshold=2, shares=3)
            for role, slot, domain in ENROLLED:
                repo.enrol(role, pb.Recipient(str(keys[slot].recipient)), name=slot, domain=domain)
            opened = {
                slot: stack.enter_context(pb.Repository.open(path, key, state_dir=base / f"state of {slot}"))
                for slot, key in keys.items()
            }
            made: list[pb.Snapshot] = []
            sources: list[dict[str, dict[str, object]]] = []

            def back_up(slot: str, day: int) -> pb.Snapshot:
                root = base / f"files of {slot}"
                root.mkdir(exist_ok=True)
                (root / "the same everywhere").write_bytes(content(30, 12_000))
                (root / slot).write_bytes(content(31 + [one for _, one, _ in ENROLLED].index(slot), 4000))
                (root / f"day {day}").write_bytes(content(40 + day, 2000))
                _set_times(root)
                done = opened[slot].backup([pb.Files(root)], reason=f"day {day}")
                snapshot = done.datasets[root.name].snapshot
                assert snapshot is not None
                made.append(snapshot)
                sources.append(listing(root))
                return snapshot

            tills = [slot for role, slot, _ in ENROLLED if role == "device"]
            for day in (1, 2):
                for slot in tills:
                    back_up(slot, day)
            with mock.patch("pharmabackup.engine.garbage.choose_sparse", _choose_all):
                _forget_and_collect(opened["the supplier"], made[0])
            opened["the auditor"].check()
            repo.revoke("till-2", reason="stolen from the counter")
            thief = type(opened["till-2"]._unlocked)
            with mock.patch.multiple(thief, renew=lambda _: None, renewed=lambda *_: False):
                later = back_up("till-2", 3)
            made.pop(), sources.pop()
            for slot in ("till-1", "branch till"):
                back_up(slot, 3)
            said = {snapshot.id: snapshot for snapshot in repo.snapshots()}
            _compare(sorted(said), sorted(snapshot.id for snapshot in made))
            snapshots = []
            for number, snapshot in enumerate(made):
                facts = said[snapshot.id].to_dict()
                for changing in ("verified", "forget_at"):
                    facts.pop(changing)
                facts["content"] = None
                if not facts["forgotten"]:
                    repo.restore(base / f"out-{number}", snapshots=[said[snapshot.id]])
                    facts["content"] = listing(base / f"out-{number}" / snapshot.dataset)
                    _compare(facts["content"], sources[number])
                snapshots.append(facts)
            _compare([facts["forgotten"] for facts in snapshots], [True] + [False] * 7)
            expected: dict[str, object] = {
                "passphrase": PASSPHRASE,
                "keys": {slot: (base / f"{slot}.key").read_text("ascii") for slot in keys},
                "recipients": {slot: (base / f"{slot}.key.pub").read_text("ascii") for slot in keys},
                "shares": shares,
                "old shares": old_shares,
                "slots": [[one.name, one.role, one.kind, one.revoked is not None] for one in repo.slots()],
                "does not count": later.id,
                "snapshots": snapshots,
            }
        _keep(path, expected)


def _choose_all(
    found: Garbage, unused: dict[bytes, int], content: dict[bytes, int], kept: dict[bytes, list[int]]
) -> None:
    found.sparse.update({pack: sorted(kept[pack]) for pack in unused})


def _keep(path: Path, expected: dict[str, object]) -> None:
    with tarfile.open(HERE / f"{path.name}.tar.gz", "w:gz", compresslevel=9) as archive:
        archive.add(path, path.name)
    (HERE / f"{path.name}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", "utf-8")


MAKERS: dict[str, Callable[[], None]] = {"v1": make, "v1-replica": make_replica, "v1-roles": make_roles}

if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        MAKERS[wanted]()
