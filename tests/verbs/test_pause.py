"""The caller's pause is left in time, once, whatever a source does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources.base import View

MakeRepo = Callable[[], pb.Repository]


class Slow(pb.Files):
    """It takes its view when it is let."""

    def __init__(self, path: Path, let: threading.Event) -> None:
        super().__init__(path)
        self._let = let

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:
        assert self._let.wait(30)
        return super().view(scratch=scratch)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter").write_text("a letter")
    return tmp_path / "documents"


def test_it_is_left_while_a_source_hangs(documents: Path, make_repo: MakeRepo) -> None:
    left: list[str] = []
    let = threading.Event()

    @contextmanager
    def pause() -> Iterator[None]:
        yield
        left.append(threading.current_thread().name)
        let.set()  # the source goes on only now: it would hang for ever

    repo = make_repo()
    report = repo.backup([Slow(documents, let)], freeze=pause(), freeze_timeout=timedelta(seconds=0.2))
    assert len(left) == 1 and left[0] != threading.current_thread().name
    (finding,) = [found for found in report.findings if found.code == "freeze-ended"]
    assert "after 0.2 s" in finding.message
    assert repo.snapshot("documents").open("letter").read() == b"a letter"


def test_it_is_left_once_and_by_the_caller_where_all_goes_well(documents: Path, make_repo: MakeRepo) -> None:
    left: list[str] = []

    @contextmanager
    def pause() -> Iterator[None]:
        yield
        left.append(threading.current_thread().name)

    before = threading.active_count()
    report = make_repo().backup([pb.Files(documents)], freeze=pause(), freeze_timeout=timedelta(seconds=0.5))
    time.sleep(0.7)
    assert left == [threading.current_thread().name]
    assert "freeze-ended" not in [found.code for found in report.findings]
    assert threading.active_count() <= before


def test_one_that_cannot_be_left_fails_the_backup(documents: Path, make_repo: MakeRepo) -> None:
    let = threading.Event()

    @contextmanager
    def pause() -> Iterator[None]:
        yield
        let.set()
        raise OSError("the queue does not answer")

    repo = make_repo()
    with pytest.raises(OSError, match="does not answer"):
        repo.backup([Slow(documents, let)], freeze=pause(), freeze_timeout=timedelta(seconds=0.1))
    assert repo.snapshots() == []


def test_an_error_while_views_are_taken_is_not_hidden(documents: Path, make_repo: MakeRepo) -> None:
    class Broken(pb.Files):
        def view(self, *, scratch: Path) -> AbstractContextManager[View]:
            raise ZeroDivisionError

    left: list[object] = []

    @contextmanager
    def pause() -> Iterator[None]:
        try:
            yield
        except ZeroDivisionError as error:
            left.append(error)
            raise

    with pytest.raises(ZeroDivisionError):
        make_repo().backup([Broken(documents)], freeze=pause())
    assert len(left) == 1


def test_a_pause_of_no_time_is_refused(documents: Path, make_repo: MakeRepo) -> None:
    with pytest.raises(pb.InvalidInput, match="longer than nothing"):
        make_repo().backup(
            [pb.Files(documents)], freeze=contextmanager(lambda: iter([1]))(), freeze_timeout=timedelta(0)
        )
