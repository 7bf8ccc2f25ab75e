"""A repository that something happens to: what it holds, and ways to damage it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import PackWriter, directory_range, read_directory
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.format.wire import Kind
from pharmabackup.results import Proposal

PASSPHRASE = pb.Passphrase("correct horse battery staple")
QUIET = {"same-device"}


class Ward:
    """Two datasets, a few snapshots, and what each of them holds."""

    def __init__(self, root: Path) -> None:
        self._place(root)
        self.states: dict[str, dict[str, bytes]] = {}
        self._outs = 0
        self.documents.mkdir(parents=True)
        for name in "abcdef":
            (self.documents / name).write_bytes(os.urandom(200_000))
        (self.documents / "large").write_bytes(os.urandom(2_500_000))
        with closing(sqlite3.connect(self.database)) as db, db:
            db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
            db.executemany("INSERT INTO patient (name) VALUES (?)", [(f"Test {i}" * 20,) for i in range(3000)])
        self.repo = pb.Repository.create(self.path, PASSPHRASE, state_dir=root / "state")

    def _place(self, root: Path) -> None:
        self.root = root
        self.documents, self.database = root / "documents", root / "pmr.db"
        self.path = root / "repository"

    @classmethod
    def copy(cls, other: Ward, root: Path) -> Ward:
        """Another one like it, to be damaged."""
        made = cls.__new__(cls)
        shutil.copytree(other.root, root)
        made._place(root)
        made.states, made._outs = dict(other.states), 0
        made.repo = pb.Repository.open(made.path, PASSPHRASE, state_dir=root / "state")
        return made

    def sources(self) -> list[pb.Source]:
        return [pb.SQLite(self.database, tier=1), pb.Files(self.documents)]

    def back_up(self, *sources: pb.Source) -> None:
        if not self.states:
            shutil.copyfile(self.database, self.root / "first.db")
        for name, result in self.repo.backup(list(sources) or self.sources()).datasets.items():
            assert result.snapshot is not None
            self.states[result.snapshot.id] = (
                {path.name: path.read_bytes() for path in self.documents.iterdir()}
                if name == "documents"
                else {self.database.name: pages(self.database)}
            )

    def change(self, day: int) -> None:
        (self.documents / f"day-{day}").write_bytes(os.urandom(150_000))
        (self.documents / "abcdef"[day % 6]).write_bytes(os.urandom(150_000))
        with closing(sqlite3.connect(self.database)) as db, db:
            db.execute("UPDATE patient SET name = ? WHERE id % 1000 = ?", (f"changed {day}" * 17, day))

    def replica(self) -> pb.Repository:
        """A copy of the repository's folder as it is now."""
        shutil.copytree(self.path, self.root / "replica")
        return pb.Repository.open(self.root / "replica", PASSPHRASE, state_dir=self.root / "state")

    def reopen(self) -> None:
        """Without anything that this machine remembers."""
        self.repo.close()
        shutil.rmtree(self.root / "state")
        self.repo = pb.Repository.open(self.path, PASSPHRASE, state_dir=self.root / "state")

    # ------------------------------------------------------------ what becomes of it

    def whole(self, repo: pb.Repository | None = None) -> set[str]:
        """The snapshots that come back byte for byte. What comes back under its name is never wrong."""
        repo = repo or self.repo
        found: set[str] = set()
        for snapshot in repo.snapshots():
            self._outs += 1
            out = self.root / f"out-{self._outs}"
            try:
                repo.restore(out, snapshots=[snapshot])
                found.add(snapshot.id)
            except (pb.Incomplete, pb.Damaged):
                pass
            folder = out / snapshot.dataset
            for path in folder.iterdir() if folder.is_dir() else ():
                if not path.name.endswith(".salvaged"):
                    content = pages(path) if snapshot.dataset == "pmr" else path.read_bytes()
                    assert content == self.states[snapshot.id][path.name]
            if snapshot.id in found:
                assert {path.name for path in folder.iterdir()} == set(self.states[snapshot.id])
            shutil.rmtree(out, ignore_errors=True)
        return found

    def all_is_well(self) -> None:
        """Every snapshot comes back, and nothing is wrong, also without what this machine remembers."""
        self.reopen()
        assert self.whole() == set(self.states)
        codes = self.codes()
        assert codes <= {"index-stale"}, codes

    def codes(self) -> set[str]:
        return {finding.code for finding in self.repo.check(read_data=1.0).findings} - QUIET

    def mend(self, **given: object) -> Proposal:
        proposal = self.repo.propose_repair(**given)  # type: ignore[arg-type]
        self.repo.apply(proposal)
        return proposal

    # ------------------------------------------------------------ what happens to it

    def names(self, prefix: str) -> list[str]:
        """Of "", all but the audit log, which grows whatever is done."""
        names = sorted(info.name for info in self.repo._unlocked.storage.list(prefix))
        return names if prefix else [name for name in names if not name.startswith("audit/")]

    def pack_of(self, kind: Kind, *, part: str = "") -> str:
        """The pack with the most blocks of this kind; `part`: the first one of the folder or of the database."""
        index = Index(self.repo._unlocked, chunks=False)
        index.load()
        table = index.blocks
        mine = set(range(len(table)))
        if part:
            dataset = "pmr" if part == "database" else "documents"
            first = self.repo.snapshots(dataset)[-1]
            needed = SnapshotReader(BlockReader(self.repo._unlocked, index), first._committed.snapshot).relied()
            mine = {number for number, block in enumerate(table.ids) if block in needed}
        counts: dict[int, int] = {}
        for number in mine:
            place = table.pack[number]
            counts[place] = counts.get(place, 0) + (table.kind[number] == kind)
        return ids.pack_name(table.packs[max(counts, key=lambda place: counts[place])])

    def block_of(self, snapshot: pb.Snapshot, path: str) -> tuple[str, int]:
        """The block with the middle of that file: its pack, and an offset in it.

        Which block lies where in a pack depends on which of two threads was faster.
        """
        index = Index(self.repo._unlocked, chunks=False)
        index.load()
        reader = SnapshotReader(BlockReader(self.repo._unlocked, index), snapshot._committed.snapshot)
        entry = reader.find(path.encode())
        assert entry is not None
        if entry.same_file is not None:
            entry = reader.find(entry.same_file)
            assert entry is not None
        runs, blocks = reader.recipe()
        at = bisect_right(reader.run_starts, entry.start + entry.stored // 2) - 1
        table = index.blocks
        number = table.find(blocks[runs.block[at]], snapshot._committed.snapshot.domain)
        assert number is not None
        return ids.pack_name(table.packs[table.pack[number]]), table.offset[number] + 100

    def regions(self, name: str) -> dict[str, int]:
        """An offset in each region of a pack."""
        digest, size = bytes.fromhex(name.rpartition("/")[2]), (self.path / name).stat().st_size
        _, directory = read_directory(self.repo._unlocked, digest, size)
        start, length = directory_range(partial(self.repo._unlocked.storage.get_range, name), size)
        found = {
            "names": directory.region_size + 100,
            "filler": directory.region_size + directory.names_size,
            "directory": start + length // 2,
            "trailer": size - 6,
        }
        for block in directory.blocks:
            found[Kind(block.kind).name.lower().replace("_", " ")] = block.offset + block.length // 2
        return found

    def flip(self, name: str, at: int) -> None:
        path = self.path / name
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    def cut(self, name: str, size: int) -> None:
        path = self.path / name
        path.write_bytes(path.read_bytes()[:size])

    def lose(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink()


def pages(path: Path) -> bytes:
    """A database's bytes, without SQLite's own counters of its changes: copying it counts as one."""
    data = bytearray(path.read_bytes())
    data[24:28] = data[92:96] = bytes(4)
    return bytes(data)


@contextmanager
def a_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In one block, before it comes into its pack."""
    real, hit = PackWriter.add, list[bool]()

    def add(self: PackWriter, *, kind: int, sealed: memoryview, **rest: Any) -> None:
        if kind == Kind.DATA_BLOCK and not hit and len(sealed) > 500_000:
            hit.append(True)
            changed = bytearray(sealed)
            changed[1000] ^= 1
            sealed = memoryview(changed)
        real(self, kind=kind, sealed=sealed, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "add", add)
        yield
    assert hit
