"""A repository that was closed, or that a forked process has from its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine import lanes, opening
from pharmabackup.engine.reading import BlockReader
from pharmabackup.format.transaction import Audit
from pharmabackup.format.wire import Kind
from pharmabackup.storage import local_os
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.site import PASSPHRASE

MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(3 << 20))
    return folder


@pytest.mark.parametrize("what", ["create", "replica", "open"])
def test_what_cannot_be_opened_leaves_no_connection(
    make_repo: MakeRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    closes, real = list[str](), LocalStorage.close

    def close(self: LocalStorage) -> None:
        closes.append(self.location)
        real(self)

    def fails(*_: object) -> None:
        raise pb.StorageFailed("It is gone.", kind="unreachable", location="test")

    with make_repo() as repo:
        monkeypatch.setattr(opening, "_unlock" if what == "open" else "probe", fails)
        monkeypatch.setattr(LocalStorage, "close", close)
        where = repo.url if what == "open" else str(tmp_path / "new")
        with pytest.raises(pb.StorageFailed):
            if what == "open":
                pb.Repository.open(where, PASSPHRASE)
            else:
                pb.Repository.create(where, PASSPHRASE, replica_of=repo if what == "replica" else None)
        assert closes == [where]


def test_who_ends_after_a_close_closes_nothing_that_another_has_begun_with_since(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    closes, started, ends = list[str](), threading.Event(), threading.Event()
    repo, real = make_repo(), LocalStorage.close

    def close(self: LocalStorage) -> None:
        closes.append(threading.current_thread().name)
        real(self)

    def waits() -> None:
        started.set()
        assert ends.wait(60)

    def verb() -> None:
        ends.set()
        old.join()
        assert closes == ["MainThread"]

    monkeypatch.setattr(LocalStorage, "close", close)
    old = threading.Thread(target=lambda: repo._journal.run("check", waits), name="old")
    old.start()
    assert started.wait(60)
    repo.close()
    repo._journal.run("check", verb)
    started.clear()
    ends.clear()
    again = threading.Thread(target=lambda: repo._journal.run("check", waits), name="again")
    again.start()
    assert started.wait(60)
    repo.close()
    ends.set()
    again.join()
    assert closes == ["MainThread", "MainThread", "again"]  # where nobody has, nothing is left open


@pytest.mark.parametrize("looked", [False, True])
def test_who_reads_a_file_on_after_close_is_told_so_and_no_storage_is_asked(
    make_repo: MakeRepo, files: Path, monkeypatch: pytest.MonkeyPatch, looked: bool
) -> None:
    repo = make_repo()
    repo.backup([pb.Files(files)])
    snapshot = repo.snapshot("files")
    file = snapshot.open("large")
    if looked:  # what is kept in memory is not handed out either
        file.read(10)
    repo.close()
    asked, real = list[str](), LocalStorage.get_range

    def get_range(self: LocalStorage, name: str, offset: int, length: int) -> bytes:
        asked.append(name)
        return real(self, name, offset, length)

    monkeypatch.setattr(LocalStorage, "get_range", get_range)
    with pytest.raises(pb.InvalidInput, match=r"was closed\.") as told:
        file.seek(-10, os.SEEK_END)
        file.read()
    assert told.value.kind == "closed"
    assert asked == []
    with snapshot.open("large") as again:  # who begins anew opens it again
        assert again.read() == (files / "large").read_bytes()
    repo.close()


def test_what_was_asked_for_before_a_close_is_not_handed_out_after_it(
    make_repo: MakeRepo, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    repo.backup([pb.Files(files)])
    file, real = repo.snapshot("files").open("large"), LocalStorage.get_range
    file.read(1)

    def closed_meanwhile(self: LocalStorage, name: str, offset: int, length: int) -> bytes:
        repo.close()  # on another thread
        return real(self, name, offset, length)

    monkeypatch.setattr(LocalStorage, "get_range", closed_meanwhile)
    with pytest.raises(pb.InvalidInput, match=r"was closed\."):
        file.seek(-10, os.SEEK_END)
        file.read()


def test_who_begins_while_it_is_closed_spoils_it_for_nobody(
    make_repo: MakeRepo, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    repo.backup([pb.Files(files)])
    snapshot, real = repo.snapshot("files"), BlockReader.refresh

    def closes(self: BlockReader, **more: Any) -> None:
        real(self, **more)
        repo._unlocked.threads.close()  # what `close` on another thread does first

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(BlockReader, "refresh", closes)
        with pytest.raises(pb.InvalidInput, match=r"was closed\."):
            snapshot.open("large").read()
    for _ in range(2):
        with snapshot.open("large") as file:
            assert file.read() == (files / "large").read_bytes()


@pytest.mark.parametrize("what", ["close", "read"])
def test_a_close_beside_another_finds_no_reader(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    repo = make_repo()
    found = [repo._block_reader()]

    def then_none(_: object) -> BlockReader | None:
        """The other one comes between looking and using."""
        return found.pop() if found else None

    monkeypatch.setattr(pb.Repository, "_blocks", property(then_none, lambda *_: None), raising=False)
    if what == "close":
        repo.close()
    else:
        assert repo._block_reader()


def test_what_a_close_stopped_is_recorded(make_repo: MakeRepo, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make_repo()
    repo.backup([pb.Files(files)])

    def closed(self: BlockReader, *_: Any, **__: Any) -> bytes:
        raise lanes.closed()

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(BlockReader, "fetch", closed)
        with pytest.raises(pb.InvalidInput, match=r"was closed\."):
            repo.check(read_data=1.0)
    assert [(record.event, record.outcome) for record in repo.audit()][-1] == ("check", "failed")


def test_a_verb_that_a_close_stopped_leaves_nothing_open(make_repo: MakeRepo, files: Path, tmp_path: Path) -> None:
    repo = make_repo()
    repo.backup([pb.Files(files)])
    closes = [repo.close]

    def progress(_: object) -> None:
        if closes:
            closes.pop()()

    with pytest.raises(pb.InvalidInput, match=r"was closed\."):
        repo.restore(tmp_path / "restored", progress=progress)
    storage = repo._unlocked.storage
    assert isinstance(storage, LocalStorage)
    assert storage._workspace is None
    assert [(record.event, record.outcome) for record in repo.audit()][-1] == ("restore", "failed")
    repo.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
@pytest.mark.parametrize("by", ["close", "report"])
def test_the_parent_alone_tells_what_it_has_noticed_and_lost(
    make_repo: MakeRepo, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    repo = make_repo()
    repo._unlocked.gone_records = {7: "audit-truncated"}
    repo._unlocked.lost_records = 2
    if not (child := os.fork()):
        codes = {finding.code for finding in repo.check().findings} if by == "report" else set()
        repo.close()
        os._exit(bool(caplog.records) or not codes.isdisjoint({"audit-lost", "audit-truncated"}))
    assert os.waitpid(child, 0)[1] == 0
    assert {"audit-lost", "audit-truncated"} <= {finding.code for finding in repo.check().findings}
    repo.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
def test_the_parent_alone_tells_what_it_has_looked_at(make_repo: MakeRepo, files: Path) -> None:
    repo = make_repo()
    repo.backup([pb.Files(files)])
    repo.snapshot("files").open("large").read(1)
    with repo._journal._lock.own:  # who forks lets go of it himself
        child = os.fork()
    if not child:
        repo.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    repo.close()
    assert [record.facts for record in repo.audit() if (record.event, record.outcome) == ("read", "done")] == [
        {"snapshots": 1, "files": 1}
    ]
    repo.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
@pytest.mark.parametrize(
    "lock",
    [
        "_unlocked.auditing",
        "_unlocked.remembering",
        "_unlocked.threads._lock",
        "_journal._lock",
        "_read_lock",
        "_blocks._lock",
        "_blocks._refreshing",
        "_unlocked.storage._lock",
    ],
)
def test_a_forked_process_waits_for_no_lock_of_its_parents_threads(tmp_path: Path, files: Path, lock: str) -> None:
    """Whatever a thread is at when another forks."""
    code = f"""
import operator, os, signal, threading
import pharmabackup as pb
where = {str(tmp_path / "repository")!r}
repo = pb.Repository.create(where, pb.Passphrase("four words and more"), state_dir={str(tmp_path / "state")!r})
repo.backup([pb.Files({str(files)!r})])
(snapshot,) = repo.snapshots()
snapshot.open("large").read(1)
held, go = threading.Event(), threading.Event()

def hold():
    with operator.attrgetter({lock!r})(repo).own:
        held.set()
        go.wait(60)

holder = threading.Thread(target=hold)
holder.start()
held.wait()
if not (child := os.fork()):
    signal.alarm(30)
    with snapshot.open("large") as file:
        whole = file.read()
    repo._fresh_blocks()
    repo._unlocked.threads.pool()
    repo.record("tick", {{"number": len(whole)}})
    assert repo.audit_verify().findings == ()
    repo.close()
    os._exit(0)
status = os.waitpid(child, 0)[1]
go.set()
holder.join()
repo.close()
raise SystemExit(os.waitstatus_to_exitcode(status) != 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_keys_that_another_thread_learned_meanwhile_open_what_is_sealed_with_them(
    tmp_path: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pb.Repository.create("memory://keys", PASSPHRASE, state_dir=tmp_path / "one") as one:
        other = pb.Repository.open("memory://keys", PASSPHRASE, state_dir=tmp_path / "other")
        one.rotate(reason="a trial")
        unlocked = other._unlocked
        name = max(info.name for info in unlocked.storage.list("audit"))
        data, real = unlocked.storage.get(name, limit=1 << 20), MemoryStorage.list
        learns = [unlocked.renew]

        def listed(self: MemoryStorage, folder: str) -> Any:
            if folder == "roster" and learns:
                learns.pop()()
            return real(self, folder)

        monkeypatch.setattr(MemoryStorage, "list", listed)
        assert unlocked.open(Kind.AUDIT, name, data, Audit).record.event == "rotate"
        assert not learns
        other.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
def test_a_process_that_was_forked_while_a_file_was_published_holds_up_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").touch()
    goes_on, ends = os.pipe()
    real, children = os.rename, list[int]()

    def forks(source: str, target: str) -> None:
        if not children:
            children.append(os.fork())
            if not children[0]:
                os.close(ends)
                os.read(goes_on, 1)
                os._exit(0)
        real(source, target)

    monkeypatch.setattr(os, "rename", forks)
    local_os.rename_locked(str(tmp_path / "first"), str(tmp_path / "a"))
    assert _is_free(tmp_path / "publish")
    os.close(ends)
    os.close(goes_on)
    assert os.waitpid(children[0], 0)[1] == 0


def _is_free(path: Path) -> bool:
    lock = os.open(path, os.O_RDWR)
    try:
        return local_os.try_lock(lock)
    finally:
        local_os.close_locked(lock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
@pytest.mark.parametrize("what", ["a queue", "publishing", "uploads"])
def test_a_forked_process_holds_no_lock_of_its_parent_that_was_killed(tmp_path: Path, what: str) -> None:
    code = f"""
import os, sys
from pharmabackup.storage import local_os
from pharmabackup.storage.local import LocalStorage

def forks(*_):
    if not os.fork():
        print("there", flush=True)
    sys.stdin.read()
    os._exit(0)

os.chdir({str(tmp_path)!r})
if {what!r} == "publishing":
    open("first", "w").close()
    os.rename = forks
    local_os.rename_locked("first", "a")
elif {what!r} == "uploads":
    storage = LocalStorage(".")
    storage.put_new("a", b"")
else:
    assert local_os.try_lock(os.open("queue", os.O_RDWR | os.O_CREAT))
forks()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"there\n"
        files = ["publish", "queue", *Path(tmp_path, ".uploads").glob("*.lock")]
        (lock,) = (tmp_path / name for name in files if (tmp_path / name).exists())
        assert not _is_free(lock)
        process.kill()
        process.wait()
        assert _is_free(lock)
