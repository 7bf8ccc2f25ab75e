"""A repository that was closed, or that a forked process has from its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.storage.local import LocalStorage

MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(3 << 20))
    return folder


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
    with operator.attrgetter({lock!r})(repo):
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
