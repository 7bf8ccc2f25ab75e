"""Trees that cannot be read as they are: files that vanish, change, are locked or forbidden meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from pharmabackup.errors import SourceFailed
from pharmabackup.format.manifest import EntryKind
from pharmabackup.sources import listing, pending, reading, rows, tree, walk
from pharmabackup.sources.files import Files
from tests.sources.databases import other_process
from tests.sources.recording import Recorder, check_same, dump
from tests.sources.trees import count_descriptors, fill, once, opened

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")


# ---------------------------------------------------------------- files that vanish


def test_file_that_is_removed_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: None, way: str
) -> None:
    fill(tmp_path)
    (tmp_path / "e").symlink_to("a")
    monkeypatch.setattr(tree, "FILES_AHEAD", 1)
    recorder = dump(Files(tmp_path), hook=once(b"/a", (tmp_path / "c").unlink))
    assert recorder.findings == [("file-vanished", b"c", "warning")]
    assert set(recorder.tree()) == {b"", b"a", b"b", b"d", b"e"}
    assert recorder.tree()[b"e"].link_target == b"a"
    assert recorder.content(b"d") == b"d" * 100
    again = dump(Files(tmp_path), recorder)
    check_same(again, tmp_path)
    assert (again.read_files, again.kept_files) == (0, 3)


def test_what_replaces_a_vanished_file_is_read(
    tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """What is said of the entries after it is said of them still: that one of them is no proof, too."""
    fill(tmp_path, "a b c d e")
    monkeypatch.setattr(tree, "FILES_AHEAD", 1)

    def act() -> None:
        (tmp_path / "b").unlink()
        (tmp_path / "d").write_bytes(b"D" * 100)

    recorder = dump(Files(tmp_path), hook=once(b"/a", act))
    assert recorder.codes() == [("file-changed", b"d"), ("file-vanished", b"b")]
    (tmp_path / "b").write_text("it is back")
    names = opened(monkeypatch)
    again = dump(Files(tmp_path), recorder)
    check_same(again, tmp_path)
    assert names == ["b", "d"]


def test_file_that_is_removed_while_it_is_open(tmp_path: Path) -> None:
    recorder = dump(Files(fill(tmp_path)), hook=once(b"/a", (tmp_path / "c").unlink))
    assert recorder.findings == []
    assert recorder.content(b"c") == b"c" * 100


@pytest.mark.parametrize("then", ["link", "folder", "nothing"])
def test_entries_that_change_between_listing_and_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    fill(tmp_path, "a b/x")
    real = tree.TreeDump._add

    def change(self: Any, listed: listing.Listed) -> None:
        if not listed.path:
            (tmp_path / "a").unlink()
            (tmp_path / "b/x").unlink()
            (tmp_path / "b").rmdir()
            if then == "link":
                (tmp_path / "a").symlink_to("/etc/passwd")
                (tmp_path / "b").symlink_to("/etc")
            elif then == "folder":
                (tmp_path / "a").mkdir()
                (tmp_path / "b").write_text("a file now")
        real(self, listed)

    monkeypatch.setattr(tree.TreeDump, "_add", change)
    recorder = dump(Files(tmp_path))
    assert ("file-vanished", b"b") in recorder.codes()
    assert b"b/passwd" not in recorder.tree()
    assert not any(b"root:" in content for content in recorder.contents)
    assert b"a" not in recorder.tree() or recorder.tree()[b"a"].kind == EntryKind.UNREAD


def test_link_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("x")
    real = pending.Pending._describe_link

    def change(self: Any, entry: int) -> None:
        (tmp_path / "link").unlink()
        (tmp_path / "link").write_text("a file now")
        real(self, entry)

    monkeypatch.setattr(pending.Pending, "_describe_link", change)
    assert dump(Files(tmp_path)).findings == [("file-vanished", b"link", "warning")]


def test_folders_that_are_moved_under_a_deep_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way back up leads elsewhere then: what is left there is told, not taken from elsewhere."""
    monkeypatch.setattr(walk, "FOLDERS_OPEN", 2)
    (tmp_path / "root/a/b/c/d/e").mkdir(parents=True)
    for folder in ("root/z", "root/a/z", "root/a/b/z", "root/a/b/c/z"):
        (tmp_path / folder).mkdir()
    (tmp_path / "else/z").mkdir(parents=True)

    def move() -> None:
        os.rename(tmp_path / "root/a/b", tmp_path / "else/b")

    source = Files(tmp_path / "root")
    recorder = Recorder(hook=once(b"", move, "check"))
    calls = 0

    def hook(event: str, path: bytes) -> None:
        nonlocal calls
        calls += event == "check"
        if event == "check" and calls == 5:
            move()

    recorder.hook = hook
    with source.view(scratch=tmp_path) as view:
        view.dump(recorder)
    assert ("file-vanished", b"a/z") in recorder.codes()
    assert count_descriptors() < 100


# ---------------------------------------------------------------- files that change


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("change", ["grows", "shrinks", "is emptied", "is written"])
def test_file_that_changes(tmp_path: Path, later: None, size: int, change: str) -> None:
    fill(tmp_path, size=size)
    path = tmp_path / "b"

    def act() -> None:
        time.sleep(0.02)
        with path.open("r+b") as file:
            if change == "grows":
                file.seek(0, os.SEEK_END)
                file.write(b"more")
            elif change == "is written":
                file.write(b"X")
            else:
                file.truncate(size // 2 if change == "shrinks" else 0)

    recorder = dump(Files(tmp_path), hook=once(b"", act, "file" if size == 100 else "stream"))
    # The first file is stored when it changes the second one: what is read is new, and the row is not.
    assert recorder.codes() == [("file-changed", b"b")]
    assert recorder.content(b"b") == path.read_bytes()
    assert recorder.tree()[b"b"].size == path.stat().st_size
    again = dump(Files(tmp_path), recorder)
    check_same(again, tmp_path)
    assert (again.read_files, again.kept_files) == (1, 3)


def test_change_within_one_tick_is_seen_next_time(tmp_path: Path, later: None) -> None:
    """What was stored has another size than the file is said to have, though its times are as they were."""
    fill(tmp_path, "a b")
    status = (tmp_path / "b").stat()

    def act() -> None:
        (tmp_path / "b").write_bytes(b"short")
        os.utime(tmp_path / "b", ns=(status.st_atime_ns, status.st_mtime_ns))

    recorder = dump(Files(tmp_path), hook=once(b"", act))
    assert recorder.codes() == [("file-changed", b"b")]
    record = recorder.folders[b""]
    assert record.entries()[b"b"].row == rows.NEVER
    assert record.entries()[b"a"].row != rows.NEVER


def test_sparse_file_that_shrinks(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"a" * 8192)
        file.seek(1 << 20)
        file.write(b"b" * 8192)
        file.truncate(2 << 20)
    act = once(b"", lambda: os.truncate(tmp_path / "file", 5000), "stream")
    recorder = dump(Files(tmp_path), hook=act)
    assert recorder.codes() == [("file-changed", b"file")]
    assert recorder.content(b"file")[:5000] == b"a" * 5000
    assert recorder.tree()[b"file"].stored == 5000


# ---------------------------------------------------------------- files that cannot be read


def failing(monkeypatch: pytest.MonkeyPatch, function: str, number: int, *, after: int = 0, error: int) -> None:
    """From the `after`th call on, that function of the system fails for files with that inode."""
    real = getattr(os, function)
    calls = 0

    def fail(fd: int, *arguments: Any) -> Any:
        nonlocal calls
        if os.fstat(fd).st_ino == number:
            calls += 1
            if calls > after:
                raise OSError(error, os.strerror(error))
        return real(fd, *arguments)

    monkeypatch.setattr(os, function, fail)


def test_disk_error_in_a_small_file(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, "readv", (tmp_path / "b").stat().st_ino, error=errno.EIO)
        recorder = dump(Files(tmp_path))
    assert recorder.findings == [("file-unreadable", b"b", "warning")]
    entry = recorder.tree()[b"b"]
    assert (entry.kind, entry.size, entry.stored) == (EntryKind.UNREAD, 0, 0)
    again = dump(Files(tmp_path), recorder)
    check_same(again, tmp_path)
    assert (again.read_files, again.kept_files) == (1, 3)


def test_disk_error_in_the_middle(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored cannot be taken back: it is the file, and the finding says that there was more."""
    fill(tmp_path, "a b c", size=3 << 20)
    with monkeypatch.context() as patch:
        failing(patch, "preadv", (tmp_path / "b").stat().st_ino, after=2, error=errno.EIO)
        recorder = dump(Files(tmp_path))
    assert recorder.findings == [("file-unreadable", b"b", "warning")]
    assert recorder.content(b"b") == b"b" * (2 << 20)
    assert recorder.content(b"c") == b"c" * (3 << 20)
    check_same(dump(Files(tmp_path), recorder), tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, "preadv", (tmp_path / "b").stat().st_ino, error=errno.EIO)
        assert dump(Files(tmp_path)).tree()[b"b"].kind == EntryKind.UNREAD


def test_attributes_that_cannot_be_read(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, "listxattr", (tmp_path / "b").stat().st_ino, error=errno.EACCES)
        patch.setattr(os, "listxattr", lambda fd, real=os.listxattr, **_: real(fd) if isinstance(fd, int) else [])
        recorder = dump(Files(tmp_path))
    assert recorder.findings == [("attributes-unreadable", b"b", "warning")]
    assert recorder.content(b"b") == b"b" * 100
    assert dump(Files(tmp_path), recorder).read_files == 1


@as_root
def test_what_another_user_may_not_read(tmp_path: Path) -> None:
    fill(tmp_path, "a secret closed/x unsearchable/y fine/z")
    (tmp_path / "secret").chmod(0)
    (tmp_path / "closed").chmod(0)
    (tmp_path / "unsearchable").chmod(0o744)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 1:
            folder.chmod(0o755)
    code = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        from pharmabackup.errors import SourceFailed
        from pharmabackup.sources import walk
        from pharmabackup.sources.files import Files
        from tests.sources.recording import dump
        os.setgid(65534)
        os.setuid(65534)
        for by_descriptor in (True, False):
            walk.BY_DESCRIPTOR = by_descriptor
            recorder = dump(Files(sys.argv[1]))
            print(recorder.codes())
            print(sorted((p, int(e.kind), e.size) for p, e in recorder.tree().items() if e.kind != 1))
            inner = dump(Files(sys.argv[1] + "/unsearchable"))
            print({path: int(entry.kind) for path, entry in inner.tree().items()})
        try:
            dump(Files(sys.argv[1] + "/closed"))
        except SourceFailed as error:
            print(error.kind, error.dataset)
    """
    expected = [
        ("file-unreadable", b"secret"),
        ("file-unreadable", b"unsearchable/y"),
        ("folder-unreadable", b"closed"),
    ]
    entries = [(b"a", 0, 100), (b"fine/z", 0, 600), (b"secret", 7, 0), (b"unsearchable/y", 7, 0)]
    here = Path(__file__).parents[2]
    inner = {b"": 1, b"y": 7}
    assert other_process(code, tmp_path, here).splitlines() == [str(expected), str(entries), str(inner)] * 2 + [
        "permission closed"
    ]


def test_root_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    cases = [("nothing", "missing"), ("file/x", "missing"), ("fifo", "not-a-file")]
    for name, kind in cases:
        with pytest.raises(SourceFailed) as caught:
            dump(Files(tmp_path / name, name="papers"))
        assert (caught.value.kind, caught.value.dataset) == (kind, "papers")
        assert caught.value.remedy
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["folder", "file"])
def test_root_that_vanishes_after_the_view(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with Files(tmp_path / name).view(scratch=tmp_path) as view:
        os.rename(tmp_path / name, tmp_path / "elsewhere")
        with pytest.raises(SourceFailed) as caught:
            view.dump(Recorder())
    assert caught.value.kind == "missing"


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="no leases here")
@pytest.mark.parametrize("own", [True, False])
def test_file_under_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """As Samba takes them: whoever opens the file waits for it, even who does not want to."""
    if not own:
        monkeypatch.setattr(reading, "NO_ACCESS_TIME", 0)
    fill(tmp_path, "a")
    code = """
        import fcntl, os, signal, sys, time
        fd = os.open(sys.argv[1], os.O_RDWR)
        signal.signal(signal.SIGIO, lambda *_: (time.sleep(0.1), os.close(fd), os._exit(0)))
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        print("ready", flush=True)
        time.sleep(20)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        if holder.stdout.readline() != "ready\n":
            pytest.skip("no leases on this file system")
        assert dump(Files(tmp_path)).content(b"a") == b"a" * 100
