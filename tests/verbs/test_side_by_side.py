"""Far away, a dataset is committed beside the reading of those after it: what waits, what fails, in which order."""

from __future__ import annotations

import gc
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
from pharmabackup.engine.blocks import Buffer
from pharmabackup.engine.blocktable import LOST, BlockTable
from pharmabackup.engine.transaction import Attempt, Overtaken
from pharmabackup.errors import SourceFailed, StorageFailed
from pharmabackup.format.pack import Block, Directory, WrappedKey
from pharmabackup.sources import Sink, View
from pharmabackup.storage.base import Buffer as Bytes
from pharmabackup.storage.base import ObjectInfo, Upload
from pharmabackup.storage.memory import MemoryStorage
from tests.threads import threads_left
from tests.verbs.site import PASSPHRASE

PATIENCE_S = 20


def _checks(sink: Sink, until: Callable[[], object] = lambda: False) -> None:
    """What a source does in between, until that is so, or something is raised."""
    end = time.monotonic() + PATIENCE_S
    while not until():
        sink.check()
        assert time.monotonic() < end, "nothing happened"


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
        self.waited: Callable[[], object] = lambda: None

    def upload(self) -> Upload:
        return _GatedUpload(self, super().upload())

    def pass_through(self, name: str) -> None:
        if not self.armed or not name.startswith(self.prefix):
            return
        self.armed = False
        self.reached.set()
        assert self.go.wait(PATIENCE_S), "nothing went on meanwhile"
        self.waited()
        if self.error is not None:
            raise self.error


class _GatedUpload(Upload):
    def __init__(self, storage: Gated, inner: Upload) -> None:
        self._storage, self._inner = storage, inner

    def write(self, data: Bytes) -> None:
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
    """Each keeps its recipe and names."""
    storage = Gated("snapshots/")
    began: list[str] = []

    def told(event: pb.Event) -> None:
        if event.kind == "dataset":
            began.append(event.dataset or "")
            if event.dataset == "tier-3":
                storage.go.set()  # too early

    third = Watched(roots[2], 2, lambda _: threading.Timer(0.5, storage.go.set).start())
    sources = [pb.Files(roots[0], tier=0), pb.Files(roots[1], tier=1), third, pb.Files(roots[3], tier=3)]
    with _opened(monkeypatch, storage, tmp_path) as repo:
        storage.waited = lambda: began.append("went on")
        repo.backup(sources, progress=told)
    assert began == ["tier-0", "tier-1", "tier-2", "went on", "tier-3"]


def test_events_tell_of_whom_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    storage = Gated("snapshots/")
    told: list[tuple[str, str | None, int | None]] = []

    def wait(sink: Sink) -> None:
        """What is read is told now and then: what was committed meanwhile with it."""
        storage.go.set()
        _checks(sink, lambda: ("committed", "tier-0", 0) in told and told[-1][0] == "progress")

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
            _checks(sink)
        except StorageFailed:
            if not swallows:
                raise
        raise SourceFailed("It broke.", kind="tool-failed", dataset="tier-2")

    sources = [pb.Files(roots[0], tier=0), pb.Files(roots[1], tier=1), Watched(roots[2], 2, until_it_fails)]
    with _opened(monkeypatch, storage, tmp_path) as repo:
        with pytest.raises(_Refused):
            repo.backup(sources)
        assert repo.snapshots() == []
        assert not threads_left("pharmabackup-")
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
        assert not _read_of(repo, first, monkeypatch)


def _read_of(repo: pb.Repository, source: pb.Files, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that the next backup of it opens."""
    read: list[str] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *given, **how: (read.append(str(path)), real(path, *given, **how))[1]
    )
    repo.backup([source])
    return [path for path in read if "shared" in path or "own" in path]


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
            _checks(sink)
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
        _checks(sink)

    with _opened(monkeypatch, storage, tmp_path) as repo:
        with pytest.raises(pb.Cancelled):
            repo.backup([pb.Files(roots[0], tier=0), Watched(roots[1], 1, stop)], cancel=cancel)
        assert repo.snapshots() == []
        assert not threads_left("pharmabackup-")


def test_what_a_listener_raises_is_not_taken_for_a_trouble_of_the_next_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """A source takes an OSError for its file's own, and would go on without it."""
    storage = Gated("snapshots/")
    told: list[pb.Event] = []
    through: list[Sink] = []

    def listen(event: pb.Event) -> None:
        told.append(event)
        if event.kind == "committed" and event.dataset == "tier-0":
            raise BrokenPipeError

    def wait(sink: Sink) -> None:
        storage.go.set()
        _checks(sink, lambda: any(event.kind == "committed" for event in told))
        sink.check()
        through.append(sink)

    with _opened(monkeypatch, storage, tmp_path) as repo:
        with pytest.raises(BrokenPipeError):
            repo.backup([pb.Files(roots[0], tier=0), Watched(roots[1], 1, wait)], progress=listen)
        assert {snapshot.dataset: snapshot.complete for snapshot in repo.snapshots()}["tier-0"]
    assert through
    assert not [event for event in told if event.finding is not None]


def test_a_source_may_have_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """What others have to do with is done by the thread that backs up."""
    storage = Gated("snapshots/")
    by: list[threading.Thread] = []

    def hand_over(sink: Sink) -> None:
        storage.go.set()
        end = time.monotonic() + 0.5
        helper = threading.Thread(target=lambda: _checks(sink, lambda: time.monotonic() > end))
        helper.start()
        helper.join()

    def listen(event: pb.Event) -> None:
        if event.kind == "committed":
            by.append(threading.current_thread())

    first = Watched(roots[0], 0)
    with _opened(monkeypatch, storage, tmp_path) as repo:
        repo.backup([first, Watched(roots[1], 1, hand_over)], progress=listen)
    assert [first.ended_by, *by] == [threading.main_thread()] * 3


def test_whoever_interrupts_waits_for_what_is_being_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """And it is remembered."""
    monkeypatch.setattr("pharmabackup.sources.listing.RACY", 0)
    storage = Gated("snapshots/")

    def interrupt(_: Sink) -> None:
        threading.Timer(0.2, storage.go.set).start()
        raise KeyboardInterrupt

    first = pb.Files(roots[0], tier=0)
    with _opened(monkeypatch, storage, tmp_path) as repo:
        with pytest.raises(KeyboardInterrupt):
            repo.backup([first, Watched(roots[1], 1, interrupt)])
        assert [snapshot.dataset for snapshot in repo.snapshots()] == ["tier-0"]
        assert not _read_of(repo, first, monkeypatch)


def test_what_waits_holds_no_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    storage = Gated("packs/")
    left: list[int] = []

    def count() -> None:
        gc.collect()
        left.append(sum(isinstance(found, Buffer) for found in gc.get_objects()))

    def look(_: Sink) -> None:
        """The first waits for its pack, the second for its turn, and this one seals."""
        end = time.monotonic() + PATIENCE_S
        while (names := [thread.name for thread in threading.enumerate()]).count("pharmabackup-seal"):
            assert time.monotonic() < end, names  # the one that is read has sealed nothing yet
            time.sleep(0.01)
        count()
        storage.go.set()

    sources = [pb.Files(roots[0], tier=0), pb.Files(roots[1], tier=1), Watched(roots[2], 2, look)]
    count()
    with _opened(monkeypatch, storage, tmp_path) as repo:
        repo.backup(sources)
    before, meanwhile = left
    assert meanwhile - before == 1  # its own


class Counted(Gated):
    """Notes how many packs are on their way at once, and which are sent after the first was held back."""

    def __init__(self) -> None:
        super().__init__("packs/")
        self.now = self.most = 0
        self.after = 0
        self._counting = threading.Lock()

    def pass_through(self, name: str) -> None:
        if name.startswith("packs/"):
            with self._counting:
                self.now += 1
                self.most = max(self.most, self.now)
                self.after += self.reached.is_set()
            time.sleep(0.01)
        try:
            super().pass_through(name)
        finally:
            if name.startswith("packs/"):
                with self._counting:
                    self.now -= 1


def test_all_datasets_together_send_no_more_packs_at_once_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """Each that is under way lies in this machine's folder for temporary files; and services throttle."""
    monkeypatch.setattr("pharmabackup.engine.packs.PACK_TARGET", 1)
    monkeypatch.setattr("pharmabackup.engine.blocks.BLOCK_TARGET", 4096)
    monkeypatch.setattr("pharmabackup.engine.packs.WASTE_MAX", 1 << 20)
    for root in roots:
        for number in range(12):
            (root / f"scan-{number}").write_bytes(os.urandom(200_000))
    storage = Counted()
    storage.go.set()
    with _opened(monkeypatch, storage, tmp_path) as repo:
        repo.backup([pb.Files(root, tier=tier) for tier, root in enumerate(roots)])
    assert storage.after > 20
    assert storage.most <= 4


def test_what_waits_sends_nothing_to_a_storage_that_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    """Each try would be as patient as the first."""
    storage = Counted()
    storage.error = _Refused("It is full.", kind="full", location="gated")

    def until_it_fails(sink: Sink) -> None:
        storage.go.set()
        _checks(sink)

    sources = [pb.Files(roots[0], tier=0), pb.Files(roots[1], tier=1), Watched(roots[2], 2, until_it_fails)]
    with _opened(monkeypatch, storage, tmp_path) as repo, pytest.raises(_Refused):
        repo.backup(sources)
    assert storage.after == 0


def test_replicas_get_what_all_of_them_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, roots: list[Path]
) -> None:
    storage = Gated("snapshots/")
    with _opened(monkeypatch, storage, tmp_path) as repo:
        monkeypatch.undo()
        with pb.Repository.create(tmp_path / "usb", PASSPHRASE, replica_of=repo, state_dir=tmp_path / "s") as replica:
            sources = [pb.Files(root, tier=tier) for tier, root in enumerate(roots[:2])]
            third = Watched(roots[2], 2, lambda _: storage.go.set())
            report = repo.backup([*sources, third], replicas=[replica])
            assert not [finding for finding in report.findings if finding.code != "same-device"]
            assert not repo.compare(replica).only_here
            _all_restore(replica, tmp_path, "tier-0", "tier-1", "tier-2")


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
