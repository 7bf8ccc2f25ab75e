"""A site at work on a storage that fails: whatever was told to be safe is there in the end."""

from __future__ import annotations

import secrets
from collections import Counter

import pharmabackup as pb
from pharmabackup.errors import Conflict, Error, StorageFailed

WHO = pb.Passphrase("correct horse battery staple")
MAY_FAIL = {"unreachable", "timeout", "throttled", "lost-write"}  # of a line; anything else is a fault of ours


class Work:
    """A repository, its data, and what every snapshot that was told to be safe has to restore."""

    def __init__(self, url, options, folder, pick):
        self._open = (url, options)
        self._folder, self._pick = folder, pick
        self._data = folder / "data"
        self._data.mkdir()
        self.expected: dict[str, dict[str, bytes]] = {}
        self.may_go: set[str] = set()  # somebody tried to forget them
        self.done: Counter[str] = Counter()

    def opened(self):
        url, options = self._open
        return pb.Repository.open(url, WHO, storage_options=options, state_dir=self._folder / "state")

    def round(self):
        """One thing that a day brings. What a line may do to it is counted, and nothing else may happen."""
        verb = self._pick.choice(("back up", "back up", "back up", "restore", "check", "forget", "prune"))
        try:
            with self.opened() as repo:
                getattr(self, f"_{verb.replace(' ', '_')}")(repo)
            self.done[verb] += 1
        except (StorageFailed, Conflict) as error:
            told = error.kind in MAY_FAIL or (isinstance(error, Conflict) and error.kind == "already-running")
            assert told, f"{verb}: {error!r}"
            self.done[f"{verb}: {error.kind}"] += 1
        except Error as error:
            kinds = {finding.code for finding in error.findings}
            assert kinds == {"dataset-failed"}, f"{verb}: {error!r} {error.findings}"
            self.done[f"{verb}: incomplete"] += 1

    def _back_up(self, repo):
        for _ in range(3):
            size = self._pick.choice((100, 20_000, 700_000))
            (self._data / f"file-{self._pick.randrange(8)}").write_bytes(self._pick.randbytes(size))
        now = {path.name: path.read_bytes() for path in self._data.iterdir()}
        result = repo.backup([pb.Files(self._data, name="data")]).datasets["data"]
        assert result.snapshot is not None
        self.expected[result.snapshot.id] = now

    def _restore(self, repo):
        snapshots = [item for item in repo.snapshots() if item.id in self.expected.keys() - self.may_go]
        if snapshots:
            self.restored(repo, self._pick.choice(snapshots))

    def restored(self, repo, snapshot):
        target = self._folder / f"restored-{secrets.token_hex(4)}"
        repo.restore(target, snapshots=[snapshot])
        assert {path.name: path.read_bytes() for path in (target / "data").iterdir()} == self.expected[snapshot.id]

    def _check(self, repo):
        assert [each for each in repo.check().findings if each.severity == "critical"] == []

    def _forget(self, repo):
        if len(snapshots := repo.snapshots()) > 4:
            self.may_go.add(snapshots[-1].id)
            repo.apply(repo.propose_forget(snapshots=[snapshots[-1]]))

    def _prune(self, repo):
        repo.apply(repo.propose_prune())

    def all_is_there(self):
        """One more backup; then everything is checked, and whatever was told to be safe is restored and compared."""
        with self.opened() as repo:
            self._back_up(repo)
            assert repo.check(read_data=1.0).findings == ()
            there = {snapshot.id: snapshot for snapshot in repo.snapshots()}
            for told in self.expected.keys() - self.may_go:
                self.restored(repo, there[told])
