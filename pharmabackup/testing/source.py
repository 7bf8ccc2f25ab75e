"""The conformance suite of sources: a database's source that passes keeps the promises of `pharmabackup.sources`.

    class TestMine(SourceConformance):
        def source(self): return MySource("pmr")
        def target(self): return MySource("pmr_restored")
        def write(self, number): ...   # one transaction
        def read(self, source): ...    # the numbers that are there, sorted

Writes are numbered 0, 1, 2 …; each is one transaction and touches several places, and `read` raises unless these
agree. So what was restored is one moment of the source exactly if its numbers have no gap. `source` gives the same
database each time it is called, empty when a test begins, and `target` one that is not there; both have to pickle.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources.base import Sink, Source, View

PASSPHRASE = "a passphrase for conformance"
MARK = "CONFORMANCE_OF_PHARMABACKUP"  # in the environment of everything that a killed backup has started
WAIT_S = 30


class SourceConformance(ABC):
    """Inherit from it in a class whose name begins with `Test`."""

    writes = 200  # before a backup
    again_adds_at_most = 100_000  # bytes, where nothing has changed
    replaces_whole = True  # a restore that fails leaves what was there; one that succeeds needs `overwrite` for it

    @abstractmethod
    def source(self) -> Source:
        """What is backed up."""

    @abstractmethod
    def target(self) -> Source:
        """What is restored into."""

    @abstractmethod
    def write(self, number: int) -> None:
        """Commit one change. Any thread."""

    @abstractmethod
    def read(self, source: Source) -> list[int]:
        """The changes that are in a source, sorted."""

    @pytest.fixture(autouse=True)
    def strays(self) -> Callable[[], list[str]]:
        """What this process has started since the test began, and not ended."""
        before = children()
        return lambda: sorted(name for process, name in children().items() if process not in before)

    @pytest.fixture
    def repo(self, tmp_path: Path) -> Iterator[pb.Repository]:
        with pb.Repository.create(
            tmp_path / "repository", pb.Passphrase(PASSPHRASE), state_dir=tmp_path / "state"
        ) as made:
            yield made

    def restored(self, repo: pb.Repository) -> list[int]:
        target = self.target()
        repo.restore(into={self.source().name: target})
        return self.read(target)

    def filled(self) -> list[int]:
        for number in range(self.writes):
            self.write(number)
        return list(range(self.writes))

    # ------------------------------------------------------------ what is promised

    def test_what_was_backed_up_comes_back(self, repo: pb.Repository) -> None:
        numbers = self.filled()
        report = repo.backup([self.source()])
        assert report.datasets[self.source().name].complete
        assert self.restored(repo) == numbers == self.read(self.source())

    def test_an_empty_one_comes_back(self, repo: pb.Repository) -> None:
        repo.backup([self.source()])
        assert self.restored(repo) == []

    def test_the_same_again_adds_little(self, repo: pb.Repository) -> None:
        self.filled()
        repo.backup([self.source()])
        again = repo.backup([self.source()])
        assert again.datasets[self.source().name].added <= self.again_adds_at_most

    def test_it_is_of_the_moment_when_its_view_was_taken(self, repo: pb.Repository) -> None:
        numbers = self.filled()

        @contextmanager
        def freeze() -> Iterator[None]:
            yield
            self.write(self.writes)

        repo.backup([self.source()], freeze=freeze())
        assert self.read(self.source()) == [*numbers, self.writes]
        assert self.restored(repo) == numbers

    def test_a_writer_at_full_speed_is_cut_between_two_writes(self, repo: pb.Repository) -> None:
        written = len(self.filled())
        stop, failed = threading.Event(), list[BaseException]()

        def go_on() -> None:
            nonlocal written
            try:
                while not stop.is_set():
                    self.write(written)
                    written += 1
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        writer = threading.Thread(target=go_on)
        writer.start()
        try:
            before = written
            repo.backup([self.source()])
            after = written
        finally:
            stop.set()
            writer.join()
        assert not failed
        numbers = self.restored(repo)
        assert numbers == list(range(len(numbers)))
        assert before <= len(numbers) <= after + 1
        assert after > before, "the writer was held up as long as the backup took"

    def test_read_twice_it_is_the_same(self, repo: pb.Repository) -> None:
        """As it is when a collection overtakes a backup."""
        numbers = self.filled()
        repo.backup([_Twice(self.source())])
        assert self.restored(repo) == numbers

    # ------------------------------------------------------------ what goes wrong

    def test_a_cancelled_backup_leaves_nothing(self, repo: pb.Repository, strays: Callable[[], list[str]]) -> None:
        numbers = self.filled()
        cancel = threading.Event()

        def progress(event: pb.Event) -> None:
            if event.kind == "dataset":
                cancel.set()

        with pytest.raises(pb.Cancelled):
            repo.backup([self.source()], progress=progress, cancel=cancel)
        assert repo.snapshots() == []
        assert strays() == []
        repo.backup([self.source()])
        assert self.restored(repo) == numbers

    @pytest.mark.skipif(sys.platform != "linux", reason="whose processes they are is asked of /proc")
    def test_a_killed_backup_leaves_no_process_and_no_snapshot(self, tmp_path: Path, repo: pb.Repository) -> None:
        numbers = self.filled()
        mark = os.urandom(8).hex()
        (tmp_path / "source").write_bytes(pickle.dumps(self.source()))
        arguments = [str(repo.url), str(tmp_path / "source"), str(tmp_path / "other state")]
        paths = os.pathsep.join(filter(None, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-c", BACK_UP, *arguments],
            env={**os.environ, MARK: mark, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"dumped\n"
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        _until(lambda: not _marked(mark), "something that the killed backup has started lives on")
        assert repo.snapshots() == []
        repo.backup([self.source()])
        assert self.restored(repo) == numbers

    def test_what_is_there_is_not_replaced(self, repo: pb.Repository) -> None:
        if not self.replaces_whole:
            pytest.skip("only the program that restores knows what is there")
        numbers = self.filled()
        repo.backup([self.source()])
        self.write(self.writes)
        with pytest.raises(pb.Conflict):
            repo.restore(into={self.source().name: self.source()})
        assert self.read(self.source()) == [*numbers, self.writes]
        repo.restore(into={self.source().name: self.source()}, overwrite=True)
        assert self.read(self.source()) == numbers

    def test_a_restore_that_is_cancelled_at_any_look_leaves_what_was_there(
        self, repo: pb.Repository, strays: Callable[[], list[str]]
    ) -> None:
        if not self.replaces_whole:
            pytest.skip("what a program leaves when it is stopped is its own matter")
        numbers = self.filled()
        repo.backup([self.source()])
        self.write(self.writes)
        for looks in (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25, 50, 100, 1000):
            cancel = CancelledLater(looks)
            try:
                repo.restore(into={self.source().name: self.source()}, overwrite=True, cancel=cancel)
                break
            except pb.Cancelled:
                assert self.read(self.source()) == [*numbers, self.writes]
                assert strays() == []
        assert looks > 1, "nothing was cancelled"
        assert self.read(self.source()) == numbers

    def test_damaged_blocks_restore_nothing(
        self, tmp_path: Path, repo: pb.Repository, strays: Callable[[], list[str]]
    ) -> None:
        """What cannot be read whole is no database."""
        self.filled()
        repo.backup([self.source()])
        packs = [path for path in (tmp_path / "repository" / "packs").rglob("*") if path.is_file()]
        for path in packs:
            path.chmod(0o600)
            data = bytearray(path.read_bytes())
            for at in range(0, len(data) // 3, 97):  # the directory, at its end, stays
                data[at] ^= 0xFF
            path.write_bytes(data)
        with pytest.raises((pb.Damaged, pb.Incomplete)):
            repo.restore(into={self.source().name: self.target()})
        assert strays() == []
        if self.replaces_whole:
            with pytest.raises(Exception):  # noqa: B017  (whatever says that it is not there)
                self.read(self.target())


class CancelledLater(threading.Event):
    """A cancel that is seen when it is looked for that often."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


class _Twice(Source):
    """Read, forgotten, and read again by the same view."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name, source.tier)
        self.kind = source.kind
        self._source = source

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:
        return self._view(scratch)

    @contextmanager
    def _view(self, scratch: Path) -> Iterator[View]:
        with self._source.view(scratch=scratch) as view:
            yield _DumpedTwice(view)


class _Stopped(Exception):
    pass


class _DumpedTwice(View):
    def __init__(self, view: View) -> None:
        self._view = view

    def dump(self, sink: Sink) -> Mapping[str, object]:
        with suppress(_Stopped):
            self._view.dump(_Stopping())
        return self._view.dump(sink)


class _Stopping(Sink):
    """Reads a little, and is stopped."""

    def previous(self, *_: object) -> None:
        return None

    def keep_folder(self, *_: object) -> None:
        raise AssertionError

    def keep_file(self, *_: object) -> None:
        raise AssertionError

    def file(self, *_: object) -> tuple[int, int]:
        raise _Stopped

    def stream(self, read_into: Callable[[memoryview], int], **_: object) -> tuple[int, int]:
        read_into(memoryview(bytearray(100)))
        raise _Stopped

    def pages(self, read_at: Callable[[int, memoryview], int], *, size: int, **_: object) -> tuple[int, int]:
        read_at(0, memoryview(bytearray(min(100, size))))
        raise _Stopped

    def folder(self, *_: object) -> None:
        raise AssertionError

    def finding(self, *_: object, **__: object) -> None:
        pass

    def check(self) -> None:
        pass


BACK_UP = f"""
import pickle, sys, time
import pharmabackup as pb
from pharmabackup.engine.dataset import DatasetSink
url, source, state = sys.argv[1:]
def finish(sink):
    print("dumped", flush=True)
    time.sleep(600)
DatasetSink.stream = DatasetSink.pages = lambda self, read, **more: finish(self)
with pb.Repository.open(url, pb.Passphrase({PASSPHRASE!r}), state_dir=state) as repo:
    repo.backup([pickle.load(open(source, "rb"))])
"""


def children() -> dict[int, str]:
    """Processes that this one has started and not ended, by number: their names. None where there is no /proc."""
    own = f"/proc/{os.getpid()}/task"
    found = {}
    for task in os.listdir(own) if sys.platform == "linux" else []:
        with suppress(OSError):
            for child in Path(own, task, "children").read_text().split():
                found[int(child)] = Path("/proc", child, "comm").read_text().strip()
    return found


def _marked(mark: str) -> list[int]:
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def _until(ready: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + WAIT_S
    while not ready():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)
