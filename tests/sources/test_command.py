"""A program as a source: what it says, how it ends, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.testing.source import SourceConformance, children
from tests.sources.recording import Recorder, dump


@pytest.fixture(autouse=True)
def no_strays() -> Iterator[None]:
    """No test leaves a program running."""
    before = children()
    yield
    assert [name for process, name in children().items() if process not in before] == []


SECRET = "the-password-of-the-till"


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


class TestCommand(SourceConformance):
    """A file of numbered lines, exported by one program and imported by another."""

    replaces_whole = False

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "journal"
        self.path.touch()

    def source(self) -> pb.Source:
        return self._of(self.path)

    def target(self) -> pb.Source:
        return self._of(self.path.with_name("restored"))

    def _of(self, path: Path) -> pb.Source:
        export = "import sys; sys.stdout.write('journal\\n' + open(sys.argv[1]).read())"
        take = "import sys; data = sys.stdin.read(); open(sys.argv[1], 'w').write(data.removeprefix('journal\\n'))"
        return pb.Command(python(export, str(path)), name="journal", restore=python(take, str(path)))

    def write(self, number: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{number} {os.urandom(5000).hex()}\n")  # more than fits into a pipe, in all
        time.sleep(0.001)

    def read(self, source: pb.Source) -> list[int]:
        path = source._restore[-1]  # type: ignore[attr-defined]
        return sorted(int(line.split()[0]) for line in Path(path).read_text().splitlines())

    def test_it_is_of_the_moment_when_its_view_was_taken(self, repo: pb.Repository) -> None:
        pytest.skip("a program reads when it does")


def test_what_it_writes_is_one_file(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(data)
    code = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"
    recorder = dump(pb.Command(python(code, str(tmp_path / "data")), name="x"))
    assert recorder.content(b"dump") == data
    assert recorder.tree()[b"dump"].mode == 0o600
    assert not recorder.findings


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("import sys; print('half'); sys.exit(3)", "tool-failed", "ended with code 3"),
        ("import os, signal; print('half', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "tool-failed", "-9"),
        ("pass", "empty", "wrote nothing"),
    ],
)
def test_a_program_that_fails_fails_the_dataset(code: str, kind: str, says: str) -> None:
    with pytest.raises(pb.SourceFailed) as failed:
        dump(pb.Command(python(code), name="till"))
    assert failed.value.kind == kind
    assert says in failed.value.message
    assert failed.value.dataset == "till"
    assert failed.value.remedy.endswith(".")


def test_its_words_and_its_secrets_are_told_to_nobody() -> None:
    code = "import os, sys; print(os.environ['TILL'], file=sys.stderr); sys.exit(1)"
    source = pb.Command(python(code), name="till", env={"TILL": SECRET})
    with pytest.raises(pb.SourceFailed) as failed:
        dump(source)
    assert SECRET not in str(failed.value) + repr(failed.value) + repr(source)


def test_its_environment_is_ours_and_what_it_is_given() -> None:
    code = "import os; print(os.environ['PATH'] == os.environ['EXPECTED'], os.environ['TILL'])"
    env = {"TILL": SECRET, "EXPECTED": os.environ["PATH"]}
    assert dump(pb.Command(python(code), name="till", env=env)).content(b"dump") == f"True {SECRET}\n".encode()


def test_one_that_is_not_installed_is_named() -> None:
    with pytest.raises(pb.SourceFailed, match="no-such-program is not installed") as failed:
        dump(pb.Command(["/opt/no-such-program", "--export"], name="x"))
    assert failed.value.kind == "tool-missing"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permission")
def test_one_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.touch(0o600)
    with pytest.raises(pb.SourceFailed, match="export cannot be started: Permission denied") as failed:
        dump(pb.Command([str(path)], name="x"))
    assert failed.value.kind == "permission"


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(600)", "print(1, flush=True); import time; time.sleep(600)"]
)
def test_one_that_hangs_is_stopped(code: str) -> None:
    began = time.monotonic()
    with pytest.raises(pb.SourceFailed, match="took longer than it may") as failed:
        dump(pb.Command(python(code), name="x", timeout=timedelta(seconds=0.5)))
    assert failed.value.kind == "timeout"
    assert time.monotonic() - began < 60


def test_one_that_never_stops_writing_is_stopped() -> None:
    with pytest.raises(pb.SourceFailed, match="took longer than it may"):
        dump(pb.Command(["yes"], name="x", timeout=timedelta(seconds=0.5)))


@pytest.mark.skipif(os.name != "posix", reason="of signals")
def test_an_end_that_nobody_knows_is_no_good_end() -> None:
    """Where a program ignores its children's ends, their codes are lost, and 0 would be made of them."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(pb.SourceFailed, match="is not known"):
            dump(pb.Command(python("print('half'); raise SystemExit(3)"), name="x"))
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.skipif(os.name != "posix", reason="of a shell")
def test_what_one_that_failed_has_started_ends(tmp_path: Path) -> None:
    with pytest.raises(pb.SourceFailed):
        dump(pb.Command(["sh", "-c", f"sleep 600 >/dev/null 2>&1 & echo $! > {tmp_path}/child; exit 1"], name="x"))
    _gone(int((tmp_path / "child").read_text()))


def test_our_own_secrets_are_not_its(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHARMABACKUP_PASSPHRASE", SECRET)
    assert SECRET.encode() not in dump(pb.Command(["env"], name="x")).content(b"dump")


def test_waiting_for_its_turn_is_not_counted() -> None:
    """Those before it may take hours over a slow line."""
    source = pb.Command(python("print(1)"), name="x", timeout=timedelta(seconds=0.5))
    with source.view(scratch=Path()) as view:
        time.sleep(1)
        recorder = Recorder()
        view.dump(recorder)
    assert recorder.content(b"dump") == b"1\n"


@pytest.mark.skipif(os.name != "posix", reason="asks for a process group")
def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    """Also if both do not listen to being asked."""
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: open(sys.argv[1], 'w').write(str(child))\n"
        "time.sleep(600)"
    )
    path = tmp_path / "child"
    with pytest.raises(pb.SourceFailed):
        dump(pb.Command(python(code, str(path)), name="x", timeout=timedelta(seconds=10)))
    _gone(int(path.read_text()))


def _gone(process: int) -> None:
    for _ in range(500):
        try:
            os.kill(process, 0)
            if sys.platform == "linux" and Path(f"/proc/{process}/stat").read_text().split()[2] == "Z":
                return  # nobody waits for it here
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.01)
    raise AssertionError("it lives on")


@pytest.fixture
def repo(tmp_path: Path, cheap_kdf: None):
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase("a passphrase of tests")) as made:
        yield made


def test_a_cancel_is_heard_while_it_says_nothing(repo: pb.Repository) -> None:
    cancel = threading.Event()
    source = pb.Command(python("import time; print(1, flush=True); time.sleep(600)"), name="x")
    threading.Timer(0.5, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(pb.Cancelled):
        repo.backup([source], cancel=cancel)
    assert time.monotonic() - began < 30
    assert repo.snapshots() == []


def test_a_failed_program_makes_no_snapshot_and_others_go_on(tmp_path: Path, repo: pb.Repository) -> None:
    (tmp_path / "documents").mkdir()
    with pytest.raises(pb.Incomplete) as incomplete:
        repo.backup([
            pb.Command(python("print('half'); raise SystemExit(1)"), name="till", tier=0),
            pb.Files(tmp_path / "documents"),
        ])  # fmt: skip
    assert [snapshot.dataset for snapshot in repo.snapshots()] == ["documents"]
    assert "dataset-failed" in [finding.code for finding in incomplete.value.findings]


def test_a_small_change_in_a_large_dump_adds_little(tmp_path: Path, repo: pb.Repository) -> None:
    path = tmp_path / "export"
    rows = [f"{n},{n * 7919 % 100_003},{os.urandom(40).hex()}\n" for n in range(100_000)]
    source = pb.Command(python("import sys; sys.stdout.write(open(sys.argv[1]).read())", str(path)), name="x")
    path.write_text("".join(rows))
    repo.backup([source])
    for n in range(500, 100_000, 5_000):
        rows[n] = f"{n},changed\n"
    path.write_text("".join(rows))
    report = repo.backup([source])
    assert report.datasets["x"].added < 20 * 8_000 + 20_000


def test_a_copy_in_another_repository_is_cut_as_finely(tmp_path: Path, repo: pb.Repository) -> None:
    path = tmp_path / "export"
    rows = [f"{n},{os.urandom(40).hex()}\n" for n in range(50_000)]
    source = pb.Command(python("import sys; sys.stdout.write(open(sys.argv[1]).read())", str(path)), name="x")
    with pb.Repository.create(tmp_path / "other", pb.Passphrase("a passphrase of tests")) as other:
        for _ in range(2):
            path.write_text("".join(rows))
            repo.backup([source])
            repo.copy(other)
            rows[5_000::10_000] = ["changed\n"] * 5  # far apart: how large one piece is, is chance
        assert min(snapshot.added for snapshot in other.snapshots()) < 100_000


# ---------------------------------------------------------------- restore

TAKES = "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"


def _both(path: Path, restore: str = TAKES, *, size: int = 9_000_000, **more: object) -> pb.Command:
    export = f"import random, sys; sys.stdout.buffer.write(random.Random(1).randbytes({size}))"
    return pb.Command(python(export), name="till", restore=python(restore, str(path)), **more)  # type: ignore[arg-type]


def test_it_is_given_the_same_bytes(tmp_path: Path, repo: pb.Repository) -> None:
    source = _both(tmp_path / "out")
    repo.backup([source])
    report = repo.restore(into={"till": source})
    import random

    assert (tmp_path / "out").read_bytes() == random.Random(1).randbytes(9_000_000)
    result = report.datasets["till"]
    assert (result.complete, result.bytes, result.files, result.path) == (True, 9_000_000, 1, None)


def test_restored_to_a_folder_it_is_a_file(tmp_path: Path, repo: pb.Repository) -> None:
    repo.backup([_both(tmp_path / "out")])
    repo.restore(tmp_path / "folder")
    assert (tmp_path / "folder" / "till" / "dump").stat().st_size == 9_000_000


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; sys.stdin.buffer.read(); sys.exit(4)", "ended with code 4"),
        ("import sys; sys.stdin.buffer.read(10)", "ended before all was moved"),
    ],
)
def test_one_that_does_not_take_it_fails_the_restore(
    tmp_path: Path, repo: pb.Repository, code: str, says: str
) -> None:
    source = _both(tmp_path / "out", code)
    repo.backup([source])
    with pytest.raises(pb.Incomplete) as incomplete:
        repo.restore(into={"till": source})
    (finding,) = incomplete.value.findings
    assert finding.code == "load-failed"
    assert says in finding.message


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize("size", [100_000, 9_000_000])
def test_one_that_leaves_its_input_to_another_did_not_take_it(
    tmp_path: Path, repo: pb.Repository, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends well at once, and what it started holds the pipe and reads nothing."""
    monkeypatch.setattr("pharmabackup.sources.program.GRACE_S", 1)
    code = (
        "import os, sys, time\nif os.fork(): os._exit(0)\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    source = _both(tmp_path / "child", code, size=size)
    repo.backup([source])
    with pytest.raises(pb.Incomplete) as incomplete:
        repo.restore(into={"till": source})
    assert "ended before all was moved" in incomplete.value.findings[0].message
    _gone(int((tmp_path / "child").read_text()))


def test_one_that_is_not_given_all_is_not_told_an_end(tmp_path: Path, repo: pb.Repository) -> None:
    """Or it would take half for all. It writes a file at the end of its input; it must not come to that."""
    slow = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndata = b''\n"
        "while p := sys.stdin.buffer.read(1 << 20): data += p; time.sleep(0.1)\n"
    )
    source = _both(tmp_path / "out", slow + "open(sys.argv[1], 'wb').write(data)")
    repo.backup([source])
    cancel = threading.Event()

    def progress(event: pb.Event) -> None:
        if event.bytes_done > 2_000_000:
            cancel.set()

    with pytest.raises(pb.Cancelled):
        repo.restore(into={"till": source}, progress=progress, cancel=cancel)
    time.sleep(0.3)
    assert not (tmp_path / "out").exists()


def test_without_a_program_that_restores_nothing_begins(tmp_path: Path, repo: pb.Repository) -> None:
    source = pb.Command(python("print(1)"), name="till")
    repo.backup([source])
    with pytest.raises(pb.Unsupported, match="no program that restores it"):
        repo.restore(into={"till": source})


def test_some_files_of_it_cannot_be_given_to_a_program(tmp_path: Path, repo: pb.Repository) -> None:
    source = _both(tmp_path / "out")
    repo.backup([source])
    with pytest.raises(pb.Unsupported, match="as a whole"):
        repo.restore(into={"till": source}, only=["till/dump"])
    repo.restore(into={"till": source}, only=["till"])
    assert (tmp_path / "out").exists()


def test_another_kind_is_refused(tmp_path: Path, repo: pb.Repository) -> None:
    (tmp_path / "documents").mkdir()
    repo.backup([pb.Files(tmp_path / "documents", name="till")])
    with pytest.raises(pb.Unsupported, match="cannot be loaded into command"):
        repo.restore(into={"till": _both(tmp_path / "out")})


@pytest.mark.parametrize("command", ["gbak -b", [], [""], ["gbak", 3]])
def test_a_command_is_a_list_of_texts(command: object) -> None:
    with pytest.raises(pb.InvalidInput, match="as a list of texts"):
        pb.Command(command, name="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("env", [{"PORT": 5432}, {"A=B": "x"}, {"A": "x\0"}, {"": "x"}])
def test_an_environment_is_texts(env: dict) -> None:
    with pytest.raises(pb.InvalidInput, match="environment"):
        pb.Command(["true"], name="x", env=env)


def test_a_timeout_is_longer_than_nothing() -> None:
    with pytest.raises(pb.InvalidInput):
        pb.Command(["true"], name="x", timeout=timedelta(0))
