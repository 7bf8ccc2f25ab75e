"""The view of a live SQLite database: consistent, stable, and harmless to those who use the database."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pharmabackup.errors import SourceFailed
from pharmabackup.sources import sqlite_view
from pharmabackup.sources.sqlite_view import SQLiteView, restore_checks, view

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
COUNTER_BYTES = {*range(24, 28), *range(40, 44), *range(92, 100)}

# A chain of rows, each hashing the one before, and two counters whose sum stays: any torn or mixed state
# shows. Its argument is a mode: calm (transactions only) or brutal (everything else as well).
WRITER = """
import hashlib, random, sqlite3, sys, time
path, mode, seed = sys.argv[1:]
rnd = random.Random(int(seed))
db = sqlite3.connect(path, isolation_level=None, timeout=30)
db.execute("PRAGMA wal_autocheckpoint = 20")
db.execute("PRAGMA synchronous = OFF")

def write(rows):
    db.execute("BEGIN IMMEDIATE")
    n, head = db.execute("SELECT n, head FROM state").fetchone()
    for n in range(n + 1, n + rows + 1):
        text = rnd.randbytes(300)
        head = hashlib.sha256(head + text).digest()
        db.execute("INSERT INTO chain VALUES (?, ?, ?)", (n, text, head))
    moved = rnd.randrange(100)
    db.execute("UPDATE state SET n = ?, head = ?, a = a + ?, b = b - ?", (n, head, moved, moved))
    db.execute("DELETE FROM junk WHERE rowid % 3 = ?", (rnd.randrange(3),))
    db.executemany("INSERT INTO junk VALUES (?)", [(rnd.randbytes(2000),) for _ in range(rows % 50)])
    db.execute("COMMIT")

print("ready", flush=True)
slowest = 0
while True:
    started = time.monotonic()
    kind = rnd.randrange(30) if mode == "brutal" else 29
    try:
        if kind < 8:
            how = rnd.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
            db.execute("PRAGMA busy_timeout = 20")
            db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
            db.execute("PRAGMA busy_timeout = 30000")
        elif kind == 8:
            db.execute("VACUUM")
        elif kind == 9:
            db.execute("PRAGMA journal_mode = DELETE").fetchone()
            db.execute("PRAGMA journal_mode = WAL").fetchone()
        elif kind == 10:
            write(800)
        elif kind == 11:
            db.close()
            db = sqlite3.connect(path, isolation_level=None, timeout=30)
        else:
            write(1 + rnd.randrange(3))
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        db.rollback() if db.in_transaction else None
    slowest = max(slowest, time.monotonic() - started)
    if mode == "calm":
        time.sleep(0.002)
        print(slowest, flush=True)
"""


def make(path: Path, journal: str = "wal", rows: int = 0, page_size: int = 4096) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute(f"PRAGMA journal_mode = {journal}").fetchone()
        db.execute("CREATE TABLE chain (n INTEGER PRIMARY KEY, text BLOB, head BLOB)")
        db.execute("CREATE TABLE junk (x BLOB)")
        db.execute("CREATE TABLE state (n INTEGER, head BLOB, a INTEGER, b INTEGER)")
        db.execute("INSERT INTO state VALUES (0, x'', 500, 500)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO junk VALUES (randomblob(2000))", [()] * rows)
        db.execute("COMMIT")
        db.execute("PRAGMA user_version = 7")
    return path


def read_all(v: SQLiteView, step: int = 1 << 20, pause: float = 0) -> bytes:
    out, offset, buffer = bytearray(), 0, memoryview(bytearray(step))
    while got := v.read_into(offset, buffer):
        out += buffer[:got]
        offset += got
        time.sleep(pause)
    return bytes(out)


def check_state(data: bytes, folder: Path) -> tuple[int, int]:
    """That `data` is one committed state. Returns its numbers of chain and junk rows."""
    file = folder / "restored.db"
    file.write_bytes(data)
    rows = restore_checks(file, ["chain", "junk"])["rows"]
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        n, head, a, b = db.execute("SELECT * FROM state").fetchone()
        assert a + b == 1000
        assert rows["chain"] == n
        link = b""
        for index, (number, text, stored) in enumerate(db.execute("SELECT * FROM chain ORDER BY n"), 1):
            link = hashlib.sha256(link + text).digest()
            assert (number, stored) == (index, link)
        assert link == head
    return rows["chain"], rows["junk"]


@contextlib.contextmanager
def writers(path: Path, mode: str, number: int = 1) -> Iterator[list[subprocess.Popen[str]]]:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), mode, str(seed)], stdout=subprocess.PIPE, text=True
        )
        for seed in range(number)
    ]
    try:
        for process in running:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        yield running
        assert [process.poll() for process in running] == [None] * number, "a writer died"
    finally:
        for process in running:
            process.kill()
            process.communicate()


def chain_length(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=30)) as db:
        return int(db.execute("SELECT n FROM state").fetchone()[0])


def kind_of(path: Path | str, **options: Any) -> str:
    with pytest.raises(SourceFailed) as caught, view(path, dataset="till", **options):
        pass
    assert "till" in str(caught.value)
    assert caught.value.remedy
    assert caught.value.dataset == "till"
    return caught.value.kind


def other_process(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_frozen_view_is_the_main_file(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=300)
    with view(path, dataset="till", count=["junk", "STATE"]) as v:
        assert v.mode == "frozen"
        assert v.facts["rows"] == {"junk": 300, "STATE": 1}
        assert (v.facts["journal_mode"], v.facts["user_version"]) == ("wal", 7)
        assert v.size == v.facts["pages"] * v.page_size
        data = read_all(v)
        assert v.read_into(v.size - 3, memoryview(bytearray(10))) == 3
        assert v.read_into(v.size + 5, memoryview(bytearray(10))) == 0
        assert read_all(v, step=1237) == data
    assert data == path.read_bytes()
    assert os.listdir(tmp_path) == ["db"]


def test_what_only_the_wal_holds_is_in_the_view(tmp_path: Path) -> None:
    path = make(tmp_path / "db")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("UPDATE state SET a = 1, b = 999")
        with view(path, dataset="till") as v:
            db.execute("UPDATE state SET a = 2, b = 998")
            data = read_all(v)
    (tmp_path / "copy").write_bytes(data)
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("SELECT a, b FROM state").fetchone() == (1, 999)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [1024, 4096, 65536])
def test_frozen_view_does_not_change_whatever_writers_do(tmp_path: Path, page_size: int) -> None:
    path = make(tmp_path / "db", rows=2000, page_size=page_size)
    frozen = 0
    with writers(path, "brutal", 2):
        for _ in range(4):
            with view(path, dataset="till", count=["chain", "junk"], scratch=tmp_path) as v:
                before = chain_length(path)
                first = read_all(v, step=64 << 10, pause=0.01)
                while chain_length(path) < before + 20:
                    time.sleep(0.05)
                assert read_all(v, step=100_000, pause=0.01) == first
                frozen += v.mode == "frozen"
                rows = v.facts["rows"]
            assert check_state(first, tmp_path) == (rows["chain"], rows["junk"])
    assert frozen >= 2


@pytest.mark.slow
def test_writers_hardly_wait_for_a_frozen_view(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=2000)
    with writers(path, "calm") as (process,):
        for _ in range(5):
            with view(path, dataset="till") as v:
                assert v.mode == "frozen"
                read_all(v, step=256 << 10, pause=0.01)
        process.kill()
        assert process.stdout
        slowest = max(float(line) for line in process.stdout.read().splitlines()[:-1])
        assert slowest < 1
        process.poll = lambda: None  # type: ignore[method-assign]


def test_frozen_view_takes_turns_with_short_readers(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=100)
    stop = threading.Event()

    def use() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
            while not stop.is_set():
                db.execute("BEGIN")
                db.execute("SELECT count(*) FROM junk").fetchone()
                time.sleep(0.01)
                db.execute("COMMIT")
                db.execute("UPDATE state SET a = a + 1, b = b - 1")

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            with view(path, dataset="till") as v:
                first = read_all(v)
                time.sleep(0.05)
                assert read_all(v) == first
                assert v.mode == "frozen"
            check_state(first, tmp_path)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def pin(path: Path) -> sqlite3.Connection:
    """A reader of a state that only the WAL holds, while later ones follow."""
    old = sqlite3.connect(path, isolation_level=None)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE state SET a = a + 1, b = b - 1")
        old.execute("BEGIN")
        old.execute("SELECT * FROM state").fetchone()
        db.execute("UPDATE state SET a = a + 1, b = b - 1")
    return old


def test_old_reader_makes_it_a_copy_that_differs_only_in_header_counters(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=300)
    with closing(pin(path)), view(path, dataset="till", count=["junk"], timeout=timedelta(seconds=1)) as v:
        assert v.mode == "copied"
        assert v.facts["rows"] == {"junk": 300}
        copied = read_all(v)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("UPDATE state SET a = a + 1, b = b - 1")
        assert read_all(v) == copied
    check_state(copied, tmp_path)
    with view(path, dataset="till") as v:
        frozen = read_all(v)
        assert v.mode == "frozen"
    changed = {i for i, (x, y) in enumerate(zip(copied, frozen, strict=True)) if x != y}
    pages = {i // 4096 for i in changed}
    assert {i for i in changed if i < 4096} <= COUNTER_BYTES
    assert len(pages) <= 2, "the header's page and the updated one"


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "memory"])
def test_copied_view_of_rollback_databases(tmp_path: Path, journal: str) -> None:
    path = make(tmp_path / "db", journal, rows=300, page_size=1024)
    folder = tmp_path / "scratch"
    folder.mkdir()
    beside = set(os.listdir(tmp_path))
    before = path.read_bytes()
    with view(path, dataset="till", count=["junk"], scratch=folder) as v:
        assert (v.mode, v.page_size) == ("copied", 1024)
        assert v.facts["rows"] == {"junk": 300}
        if sys.platform != "win32":
            assert os.listdir(folder) == []
        data = read_all(v)
        with closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO junk VALUES (1)")
            db.commit()
        assert read_all(v) == data
    assert os.listdir(folder) == []
    assert {i for i, (x, y) in enumerate(zip(data, before, strict=True)) if x != y} <= COUNTER_BYTES
    assert set(os.listdir(tmp_path)) <= beside, "the writer may have removed an old journal"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["calm", "none"])
def test_large_rollback_database_is_copied_in_steps(tmp_path: Path, mode: str) -> None:
    path = make(tmp_path / "db", "delete", rows=20_000)
    with writers(path, "calm") if mode == "calm" else contextlib.nullcontext():
        for _ in range(3):
            with view(path, dataset="till", count=["chain", "junk"]) as v:
                assert v.size > sqlite_view.WHOLE_BYTES
                data = read_all(v)
                rows = v.facts["rows"]
            assert check_state(data, tmp_path) == (rows["chain"], rows["junk"])


@posix
def test_locks_of_this_process_survive_a_view(tmp_path: Path) -> None:
    probe = """
        import sqlite3, sys
        db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
        try:
            db.execute(sys.argv[2])
            print("free")
        except sqlite3.OperationalError as error:
            print(error)
    """
    for journal in ("wal", "delete"):
        path = make(tmp_path / journal, journal)
        with closing(sqlite3.connect(path, isolation_level=None)) as ours:
            ours.execute("BEGIN IMMEDIATE")
            ours.execute("UPDATE state SET a = 400, b = 600")
            assert other_process(probe, path, "BEGIN IMMEDIATE") == "database is locked"
            for _ in range(2):
                with view(path, dataset="till", timeout=timedelta(seconds=0.4)) as v:
                    read_all(v)
            assert other_process(probe, path, "BEGIN IMMEDIATE") == "database is locked"
            ours.execute("COMMIT")
            ours.execute("BEGIN")
            ours.execute("SELECT * FROM state").fetchone()
            with view(path, dataset="till") as v:
                assert v.mode == ("frozen" if journal == "wal" else "copied")
                read_all(v)
            # Leaving the journal mode needs the exclusive lock that our shared lock on the file denies.
            other = "PRAGMA journal_mode = DELETE" if journal == "wal" else "BEGIN EXCLUSIVE"
            assert other_process(probe, path, other) == "database is locked"
            ours.execute("COMMIT")
        assert other_process(probe, path, "BEGIN IMMEDIATE") == "free"


@posix
def test_descriptors_are_reused_and_dropped_with_the_file(tmp_path: Path) -> None:
    path = make(tmp_path / "db")
    with view(path, dataset="till") as a, view(path, dataset="till") as b:
        assert a._fd == b._fd
    with view(path, dataset="till") as c:
        assert c._fd == a._fd
        key = os.stat(path).st_dev, os.stat(path).st_ino
    assert key in sqlite_view._descriptors
    path.unlink()
    with view(make(tmp_path / "other"), dataset="till"):
        assert all(os.fstat(entry.fd).st_nlink for entry in sqlite_view._descriptors.values())


def test_locked_longer_than_the_timeout(tmp_path: Path) -> None:
    for journal in ("wal", "delete"):
        path = make(tmp_path / journal, journal)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
            db.execute("BEGIN EXCLUSIVE")
            db.execute("UPDATE state SET a = 1, b = 999")
            started = time.monotonic()
            assert kind_of(path, timeout=timedelta(seconds=0.3)) == "locked"
            assert time.monotonic() - started < 2


def test_lock_taken_while_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "db", "delete", rows=100)
    real = sqlite_view._scratch_database
    with closing(sqlite3.connect(path, isolation_level=None)) as db:

        def lock_first(*arguments: Any) -> Any:
            db.execute("BEGIN EXCLUSIVE")
            return real(*arguments)

        monkeypatch.setattr(sqlite_view, "_scratch_database", lock_first)
        assert kind_of(path, timeout=timedelta(seconds=0.3), scratch=tmp_path) == "locked"
    assert os.listdir(tmp_path) == ["db"]


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"dispensed: metformin 850 mg " * 400)
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    assert kind_of(tmp_path / "text") == "not-a-database"
    assert kind_of(tmp_path / "short") == "not-a-database"
    assert kind_of(tmp_path / "folder") == "not-a-file"
    assert kind_of(tmp_path / "nothing") == "missing"
    assert kind_of(tmp_path / "text" / "below") == "missing"
    assert kind_of("a\0b") == "missing"
    assert kind_of(make(tmp_path / "db"), count=["nothing"]) == "table-missing"
    assert not (tmp_path / "nothing").exists()


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch()
    with view(path, dataset="till") as v:
        assert (v.size, read_all(v), v.facts["pages"]) == (0, b"", 0)
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE t (x)")
        assert read_all(v) == b""


def test_file_longer_than_the_database_and_header_with_wrong_size(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=20)
    size = path.stat().st_size
    with path.open("r+b") as f:
        f.truncate(size + 3 * 4096 + 5)
    with view(path, dataset="till") as v:
        assert (v.mode, v.size) == ("frozen", size)
    for journal in ("wal", "delete"):
        path = make(tmp_path / f"short-{journal}", journal, rows=20)
        with path.open("r+b") as f:
            f.truncate(path.stat().st_size - 4096)
        assert kind_of(path) == "damaged"


@pytest.mark.parametrize("name", ["a b?c#d%41é&mode=memory.db", b"latin-\xe9.db", "file::memory:", "x'\"y"])
def test_odd_names(tmp_path: Path, name: str | bytes) -> None:
    if sys.platform in ("win32", "darwin") and not (isinstance(name, str) and name.startswith("a b")):
        pytest.skip("not a file name here")
    good = make(tmp_path / "good", rows=5)
    for journal in ("wal", "delete"):
        folder = tmp_path / journal
        folder.mkdir()
        path = folder / os.fsdecode(name)
        shutil.copyfile(good, path)
        if journal == "delete":
            data = bytearray(path.read_bytes())
            data[18:20] = b"\1\1"
            path.write_bytes(data)
        with view(path, dataset="till", count=["junk"], scratch=folder) as v:
            assert v.facts["rows"] == {"junk": 5}
        assert restore_checks(path, ["junk"])["rows"] == {"junk": 5}
        assert os.listdir(folder) == [os.fsdecode(name)]


def test_path_relative_and_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "db")
    link = tmp_path / "link"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no links here")
    monkeypatch.chdir(tmp_path)
    with view("link", dataset="till") as v:
        assert v.mode == "frozen"
        assert read_all(v) == path.read_bytes()


def test_lock_byte_page_is_zeros(tmp_path: Path) -> None:
    start = sqlite_view.LOCK_BYTE
    with (tmp_path / "big").open("w+b") as f:
        f.seek(start - 4096)
        f.write(b"\1" * 3 * 4096)
        facts: Any = {}
        v = SQLiteView(size=start + 8192, page_size=4096, mode="frozen", facts=facts, dataset="till", _fd=f.fileno())
        expected = b"\1" * 4096 + bytes(4096) + b"\1" * 4096
        for first, last in [(0, 12288), (100, 12288), (4096, 8192), (5000, 5100), (5000, 9000), (0, 4097)]:
            buffer = bytearray(b"\7" * (last - first))
            assert v.read_into(start - 4096 + first, memoryview(buffer)) == last - first
            assert buffer == expected[first:last]


@posix
def test_write_past_sqlite_is_noticed(tmp_path: Path) -> None:
    path = make(tmp_path / "db")
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(SourceFailed) as caught, view(path, dataset="till"):
            time.sleep(0.02)
            os.pwrite(fd, b"x", 3000)
    finally:
        os.close(fd)
    assert caught.value.kind == "changed"


def test_full_scratch_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "db", "delete", rows=100)
    folder = tmp_path / "scratch"
    assert kind_of(path, scratch=folder) == "tool-failed"
    folder.mkdir()
    monkeypatch.setattr(sqlite_view, "SPARE_BYTES", 1 << 60)
    assert kind_of(path, scratch=folder) == "tool-failed"
    assert os.listdir(folder) == []


@posix
def test_scratch_disk_that_fills_up(tmp_path: Path) -> None:
    path = make(tmp_path / "db", "delete", rows=300)
    (tmp_path / "scratch").mkdir()
    code = """
        import resource, sys
        from pharmabackup.sources.sqlite_view import view
        from pharmabackup.errors import SourceFailed
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with view(sys.argv[1], dataset="till", scratch=sys.argv[2]):
                print("copied")
        except SourceFailed as error:
            print(error.kind, "scratch disk" in error.remedy)
    """
    assert other_process(code, path, tmp_path / "scratch") == "tool-failed True"
    assert os.listdir(tmp_path / "scratch") == []


@posix
def test_killed_process_leaves_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "db", "delete", rows=300)
    (tmp_path / "scratch").mkdir()
    code = """
        import os, signal, sys
        from pharmabackup.sources.sqlite_view import view
        with view(sys.argv[1], dataset="till", scratch=sys.argv[2]) as v:
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(subprocess.CalledProcessError):
        other_process(code, path, tmp_path / "scratch")
    assert os.listdir(tmp_path / "scratch") == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("medium", [False, True], ids=["folder", "medium"])
def test_without_the_right_to_write(tmp_path: Path, journal: str, medium: bool) -> None:
    path = make(tmp_path / "db", journal, rows=20)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 1:
            folder.chmod(0o755)
    code = """
        import os, sys
        from pharmabackup.errors import SourceFailed
        from pharmabackup.sources import sqlite_view
        os.setgid(65534)
        os.setuid(65534)
        if sys.argv[2] == "True":
            sqlite_view._medium_is_read_only = lambda path: True
        try:
            with sqlite_view.view(sys.argv[1], dataset="till", count=["junk"]) as v:
                print(v.mode, v.facts["rows"]["junk"], v.facts["journal_mode"])
        except SourceFailed as error:
            print(error.kind)
    """
    expected = "copied 20 delete" if journal == "delete" else "frozen 20 wal" if medium else "permission"
    assert other_process(code, path, medium) == expected
    assert os.listdir(tmp_path) == ["db"]
    with closing(sqlite3.connect(path)) as db:  # in use: SQLite's own files are there to be read
        db.execute("UPDATE state SET a = 400, b = 600")
        db.commit()
        assert other_process(code, path, medium) == f"copied 20 {journal}"


def test_crashed_application(tmp_path: Path) -> None:
    code = """
        import os, sqlite3, sys
        db = sqlite3.connect(sys.argv[1], isolation_level=None)
        db.execute("PRAGMA cache_size = 1")
        db.execute("UPDATE state SET a = 400, b = 600")
        db.execute("BEGIN")
        db.executemany("INSERT INTO junk VALUES (randomblob(2000))", [()] * 500)
        os._exit(0)
    """
    for journal in ("wal", "delete"):
        path = make(tmp_path / journal, journal, rows=20)
        other_process(code, path)
        with view(path, dataset="till", count=["junk"]) as v:
            assert v.facts["rows"] == {"junk": 20}
            assert check_state(read_all(v), tmp_path) == (0, 20)


def test_restore_checks(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=50)
    before = path.read_bytes()
    facts = restore_checks(path, ["junk"], dataset="till")
    assert (facts["rows"], facts["user_version"]) == ({"junk": 50}, 7)
    assert os.listdir(tmp_path) == ["db"]
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE INDEX by_a ON state (a)")
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'by_a'").fetchone()[0]
    damaged = bytearray(path.read_bytes())
    damaged[(root - 1) * 4096 : root * 4096] = b"\x0a\0\0\0\0\x10\0\0" + bytes(4088)
    path.write_bytes(damaged)
    with pytest.raises(SourceFailed, match="row … missing from index by_a") as caught:
        restore_checks(path, ["junk"], dataset="till")
    assert caught.value.kind == "damaged"
    for bad, kind in [(before[:8000], "damaged"), (b"no database" * 100, "not-a-database")]:
        path.write_bytes(bad)
        with pytest.raises(SourceFailed) as caught:
            restore_checks(path)
        assert caught.value.kind == kind
    path.write_bytes(before)
    with pytest.raises(SourceFailed) as caught:
        restore_checks(path, ["nothing"])
    assert caught.value.kind == "table-missing"
