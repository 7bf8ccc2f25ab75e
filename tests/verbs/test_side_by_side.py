"""Far away, a dataset is committed beside the reading of those after it: what waits, what fails, in which order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine import opening
from pharmabackup.engine.blocktable import LOST, BlockTable
from pharmabackup.engine.transaction import Attempt, Overtaken
from pharmabackup.errors import SourceFailed, StorageFailed
from pharmabackup.format.pack import Block, Directory, WrappedKey
from pharmabackup.sources import Sink, View
from pharmabackup.storage.base import Buffer, ObjectInfo, Upload
from pharmabackup.storage.memory import MemoryStorage
from tests.threads import threads_left
from tests.verbs.site import PASSPHRASE

PATIENCE_S = 20


class Watched(pb.Files):
    """Calls `meanwhile` while it is read, once something of it was stored; and notes which thread lets it go."""

    def __init__(self, root: Path, tier: int, meanwhile: Callable[[Sink], object] = lambda _: None) -> None:
        super().__init__(root, tier=tier)
        self.meanwhile = meanwhile
        self.ended_by: threading.Thread | None = None

    @contextmanager
    def view(self, *, scratch: Path) -> Iterator[View]:
        with super().view(scratch=scratch) as view:
            real = view.dump

            def dump(sink: Sink) -> Any:
                facts = real(sink)
                self.meanwhile(sink)
                return facts

            view.dump = dump  # type: ignore[method-assign]
            yield view
        self.ended_by = threading.current_thread()


class Gated(MemoryStorage):
    """Far away. What is created below `prefix` waits until `go`, or fails with `error` then; the first one alone."""

    lanes = 8

    def __init__(self, prefix: str) -> None:
        super().__init__("gated")
        self.prefix = prefix
        self.armed = False
        self.reached, self.go = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def upload(self) -> Upload:
        return _GatedUpload(self, super().upload())

    def pass_through(self, name: str) -> None:
        if not self.armed or not name.startswith(self.prefix):
            return
        self.armed = False
        self.reached.set()
        assert self.go.wait(PATIENCE_S), "nothing went on meanwhile"
        if self.error is not None:
            raise self.error


class _GatedUpload(Upload):
    def __init__(self, storage: Gated, inner: Upload) -> None:
        self._storage, self._inner = storage, inner

    def write(self, data: Buffer) -> None:
        self._inner.write(data)

    def publish(self, name: str) -> ObjectInfo:
        self._storage.pass_through(name)
        return self._inner.publish(name)

    def discard(self) -> None:
        self._inner.discard()


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Those after the first hold what it holds, and a little more."""
    shared = [os.urandom(30_000) for _ in range(4)]
    made = []
    for tier in range(4):
        made.append(tmp_path / f"tier-{tier}")
        made[-1].mkdir()
        for number, data in enumerate(shared):
            (made[-1] / f"shared-{number}").write_bytes(data)
        (made[-1] / "own").write_bytes(os.urandom(5_000))
    return made


@contextmanager
def _opened(monkeypatch: pytest.MonkeyPatch, storage: MemoryStorage, tmp_path: Path) -> Iterator[pb.Repository]:
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    if not list(storage.list("repository")):
        pb.Repository.create("memory://x", PASSPHRASE).close()
    with pb.Repository.open("memory://x", PASSPHRASE, state_dir=tmp_path / "state") as repo:
        if isinstance(storage, Gated):
            storage.armed = True
        yield repo


def _all_restore(repo: pb.Repository, tmp_path: Path, *names: str) -> None:
    assert sorted(snapshot.dataset for snapshot in repo.snapshots()) == sorted(names)
    assert repo.check(read_data=1.0).state == "ok"
    repo.restore(tmp_path / "out", snapshots=repo.snapshots())
    for name in names:
        for path in (tmp_path / name).iterdir():
            assert (tmp_path / "out" / name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("prefix", ["packs/", "index/", "intents/", "snapshots/"])
def test_the_next_two_are_read_while_one_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path], prefix: str
) -> None:
    storage = Gated(prefix)
    third = Watched(roots[2], 2, lambda _: storage.go.set())
    with _opened(monkeypatch, storage, tmp_path) as repo:
        repo.backup([pb.Files(roots[0], tier=0), pb.Files(roots[1], tier=1), third])
        _all_restore(repo, tmp_path, "tier-0", "tier-1", "tier-2")
        in_order = [repo.snapshot(f"tier-{tier}") for tier in range(3)]
        assert sorted(in_order, key=lambda snapshot: snapshot.time) == in_order


def test_no_more_than_two_wait_while_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """Each has buffers, and a pack that may not have reached its size."""
    storage = Gated("snapshots/")
    began: list[str] = []

    def told(event: pb.Event) -> None:
        if event.kind == "dataset":
            began.append(event.dataset or "")

    def look(_: Sink) -> None:
        threading.Timer(0.5, storage.go.set).start()

    sources = [Watched(root, tier, look if tier == 2 else lambda _: None) for tier, root in enumerate(roots)]
    sources[3].meanwhile = lambda _: began.append("committed" if storage.go.is_set() else "too early")
    with _opened(monkeypatch, storage, tmp_path) as repo:
        repo.backup(sources, progress=told)
    assert began == ["tier-0", "tier-1", "tier-2", "tier-3", "committed"]


def test_events_tell_of_whom_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    storage = Gated("snapshots/")
    told: list[tuple[str, str | None, int | None]] = []

    def wait(sink: Sink) -> None:
        """What is read is told now and then: what was committed meanwhile with it."""
        storage.go.set()
        while ("committed", "tier-0", 0) not in told or told[-1][0] != "progress":
            sink.check()

    second = Watched(roots[1], 1, wait)
    with _opened(monkeypatch, storage, tmp_path) as repo:
        report = repo.backup(
            [pb.Files(roots[0], tier=0), second],
            progress=lambda event: told.append((event.kind, event.dataset, event.tier)),
        )
    assert [what for what in told if what[0] in ("dataset", "committed")] == [
        ("dataset", "tier-0", 0),
        ("dataset", "tier-1", 1),
        ("committed", "tier-0", 0),
        ("committed", "tier-1", 1),
    ]
    after = told[told.index(("committed", "tier-0", 0)) :]
    assert {what[1:] for what in after if what[0] == "progress"} == {("tier-1", 1)}
    assert list(report.datasets) == ["tier-0", "tier-1"]


def test_views_are_let_go_by_the_thread_that_took_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """SQLite insists; and what is overtaken has to be read again, so that the first stays until it is committed."""
    storage = Gated("snapshots/")
    first = Watched(roots[0], 0)
    early: list[threading.Thread | None] = []

    def look(_: Sink) -> None:
        early.append(first.ended_by)
        storage.go.set()

    sources = [first, Watched(roots[1], 1, look)]
    with _opened(monkeypatch, storage, tmp_path) as repo:
        repo.backup(sources)
    assert early == [None]
    assert [source.ended_by for source in sources] == [threading.main_thread()] * 2


class _Refused(StorageFailed):
    pass


@pytest.mark.parametrize("prefix", ["packs/", "index/", "intents/", "snapshots/"])
@pytest.mark.parametrize("swallows", [False, True])
def test_when_one_is_not_committed_nothing_after_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cheap_kdf: None,
    roots: list[Path],
    prefix: str,
    swallows: bool,
) -> None:
    """What they rely on may be what it wrote. Also where a vendor's source makes its own error of all errors."""
    storage = Gated(prefix)
    storage.error = _Refused("It is full.", kind="full", location="gated")

    def until_it_fails(sink: Sink) -> None:
        storage.go.set()
        try:
            while True:
                sink.check()
        except StorageFailed:
            if not swallows:
                raise
        raise SourceFailed("It broke.", kind="tool-failed", dataset="tier-2")

    sources = [pb.Files(roots[0], tier=0), pb.Files(roots[1], tier=1), Watched(roots[2], 2, until_it_fails)]
    with _opened(monkeypatch, storage, tmp_path) as repo:
        with pytest.raises(_Refused):
            repo.backup(sources)
        assert repo.snapshots() == []
        assert not threads_left("pharmabackup-dataset")
        sources[2] = pb.Files(roots[2], tier=2)
        assert repo.backup(sources).state == "ok"
        _all_restore(repo, tmp_path, "tier-0", "tier-1", "tier-2")


def test_what_was_committed_before_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """The next backup does not read it again, though this one failed later."""
    monkeypatch.setattr("pharmabackup.sources.listing.RACY", 0)
    storage = Gated("none")

    def breaks(_: Sink) -> None:
        raise _Refused("It is full.", kind="full", location="gated")

    first = pb.Files(roots[0], tier=0)
    with _opened(monkeypatch, storage, tmp_path) as repo:
        with pytest.raises(_Refused):
            repo.backup([first, Watched(roots[1], 1, breaks)])
        assert [snapshot.dataset for snapshot in repo.snapshots()] == ["tier-0"]
        read: list[str] = []
        real = os.open
        monkeypatch.setattr(
            os, "open", lambda path, *given, **how: (read.append(str(path)), real(path, *given, **how))[1]
        )
        repo.backup([first])
    assert not [path for path in read if "shared" in path]


@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.parametrize("which", [0, 1])
def test_one_that_is_overtaken_is_read_again_with_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path], which: int, again: int
) -> None:
    storage = MemoryStorage("far")
    storage.lanes = 8
    decided: list[str] = []
    real, left = Attempt.decide, [again]

    def decide(attempt: Attempt, record: Any) -> Any:
        decided.append(record.snapshot.dataset)
        if record.snapshot.dataset == f"tier-{which}" and left[0]:
            left[0] -= 1
            raise Overtaken
        return real(attempt, record)

    monkeypatch.setattr(Attempt, "decide", decide)
    events: list[pb.Event] = []
    with _opened(monkeypatch, storage, tmp_path) as repo:
        report = repo.backup([pb.Files(root, tier=tier) for tier, root in enumerate(roots)], progress=events.append)
        assert report.state == "ok"
        _all_restore(repo, tmp_path, *(f"tier-{tier}" for tier in range(4)))
    expected = [f"tier-{tier}" for tier in range(4)]
    assert decided == [*expected[:which], *[f"tier-{which}"] * again, *expected[which:]]
    assert [event.kind for event in events].count("retrying") == again


def test_a_source_that_swallows_it_is_read_again_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """It did not fail: the one before it was overtaken."""
    storage = Gated("snapshots/")
    storage.error = Overtaken()
    left = [1]

    def swallow(sink: Sink) -> None:
        if not left[0]:
            return
        left[0] -= 1
        storage.go.set()
        try:
            while True:
                sink.check()
        except Exception as error:
            raise SourceFailed("It broke.", kind="tool-failed", dataset="tier-1") from error

    with _opened(monkeypatch, storage, tmp_path) as repo:
        report = repo.backup([pb.Files(roots[0], tier=0), Watched(roots[1], 1, swallow)])
        assert report.state == "ok"
        _all_restore(repo, tmp_path, "tier-0", "tier-1")


def test_one_that_cannot_be_read_takes_nothing_from_one_that_is_being_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """Its own blocks alone are given up: the third relies on the first's, and stores them no second time."""
    storage = Gated("packs/")

    def breaks(_: Sink) -> None:
        raise SourceFailed("It broke.", kind="tool-failed", dataset="tier-1")

    third = Watched(roots[2], 2, lambda _: storage.go.set())
    with _opened(monkeypatch, storage, tmp_path) as repo:
        with pytest.raises(pb.Incomplete, match=r"1 of 3 datasets not backed up: tier-1\.") as caught:
            repo.backup([pb.Files(roots[0], tier=0), Watched(roots[1], 1, breaks), third])
        _all_restore(repo, tmp_path, "tier-0", "tier-2")
    datasets = caught.value.result.datasets
    assert list(datasets) == ["tier-0", "tier-1", "tier-2"]
    assert datasets["tier-0"].added > 120_000
    assert datasets["tier-2"].added < 40_000


def test_a_backup_that_is_stopped_commits_nothing_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    storage, cancel = Gated("intents/"), threading.Event()

    def stop(sink: Sink) -> None:
        cancel.set()
        storage.go.set()
        while True:
            sink.check()

    with _opened(monkeypatch, storage, tmp_path) as repo:
        with pytest.raises(pb.Cancelled):
            repo.backup([pb.Files(roots[0], tier=0), Watched(roots[1], 1, stop)], cancel=cancel)
        assert repo.snapshots() == []
        assert not threads_left("pharmabackup-")


class _Slow(list[bytes]):
    """Lets the other thread go on whenever something was added."""

    def append(self, item: bytes) -> None:
        super().append(item)
        time.sleep(0.001)


def test_blocks_of_two_packs_are_placed_at_once() -> None:
    """Each number says where its own block lies, whichever thread was faster."""
    packs, blocks = 40, 3
    table = BlockTable()
    table.packs = _Slow()
    numbers = [[table.reserve() for _ in range(blocks)] for _ in range(packs)]
    key = WrappedKey(b"k" * 16, ())

    def place(own: range) -> None:
        for pack in own:
            identities = [pack.to_bytes(16, "big") + block.to_bytes(16, "big") for block in range(blocks)]
            found = tuple(Block(identity, 1, 0, at, pack + 1, 1) for at, identity in enumerate(identities))
            directory = Directory(
                domain=bytes(16), region=bytes(32), region_size=0, names_size=0, keys=(key,), blocks=found
            )
            table.place(numbers[pack], pack.to_bytes(32, "big"), pack, directory, signer=bytes(16))

    threads = [threading.Thread(target=place, args=(range(first, packs, 2),)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert LOST not in table.pack
    for pack, own in enumerate(numbers):
        for at, number in enumerate(own):
            assert table.packs[table.pack[number]] == pack.to_bytes(32, "big")
            assert (table.offset[number], table.length[number]) == (at, pack + 1)
            assert table.pack_sizes[table.pack[number]] == pack
