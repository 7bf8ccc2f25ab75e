"""Folders that are read from a snapshot: btrfs for real, Windows' shadow copies with a stand-in for PowerShell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources import vss
from pharmabackup.sources.vss import shadow_copy

posix = pytest.mark.skipif(sys.platform == "win32", reason="a stand-in for PowerShell that is a script")


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[pb.Repository]:
    pb.KeyFile.create(tmp_path / "key")
    with pb.Repository.create(
        tmp_path / "repository", pb.KeyFile(tmp_path / "key"), state_dir=tmp_path / "state"
    ) as made:
        yield made


def messages(error: pb.Error) -> str:
    return " ".join(finding.message + finding.remedy for finding in error.findings)


# ---------------------------------------------------------------- btrfs


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A subvolume of a btrfs of our own."""
    if not (hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mkfs.btrfs")):
        pytest.skip("btrfs cannot be made here (Debian: btrfs-progs, as root)")
    image, mount = tmp_path / "disk", tmp_path / "mount"
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    mount.mkdir()
    if subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, check=False).returncode:
        pytest.skip("btrfs cannot be mounted here")
    try:
        subprocess.run(["btrfs", "-q", "subvolume", "create", mount / "data"], check=True)
        yield mount / "data"
    finally:
        subprocess.run(["umount", mount], check=True)


@contextmanager
def btrfs_snapshot(folder: str) -> Iterator[str]:
    place = f"{folder}.snapshot"
    subprocess.run(["btrfs", "-q", "subvolume", "snapshot", "-r", folder, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["btrfs", "-q", "subvolume", "delete", place], check=True)


def test_files_that_are_written_all_the_time_are_of_one_moment(volume, repo, tmp_path):
    ledger, journal = volume / "ledger", volume / "journal"
    stop, written = threading.Event(), 0

    def write() -> None:
        """First one, then the other: at any moment the first is as far as the second, or one ahead."""
        nonlocal written
        with open(ledger, "ab", buffering=0) as one, open(journal, "ab", buffering=0) as other:
            while not stop.is_set():
                one.write(b"%09d\n" % written * 1000)
                other.write(b"%09d\n" % written * 1000)
                written += 1
                stop.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while written < 20:
            stop.wait(0.01)
        with pytest.raises(pb.Incomplete, match="Parts of plain"):  # as they are read, without a snapshot
            repo.backup([pb.Files(volume, name="plain")])
        report = repo.backup([pb.Files(volume, name="data", shadow=btrfs_snapshot)])
    finally:
        stop.set()
        writer.join()
    assert [finding.code for finding in report.findings if finding.code != "same-device"] == []
    assert report.datasets["data"].complete and not Path(f"{volume}.snapshot").exists()
    repo.restore(tmp_path / "back", only=["data"])
    one, other = ((tmp_path / "back" / "data" / name).read_bytes() for name in ("ledger", "journal"))
    assert 20 * 10_000 <= len(other) <= len(one) <= len(other) + 10_000
    assert one.startswith(other)


def test_what_has_not_changed_is_not_read_again_from_the_next_snapshot(volume, repo, monkeypatch):
    (volume / "scans").mkdir()
    for number in range(50):
        (volume / "scans" / f"{number}.tif").write_bytes(os.urandom(20_000))
    os.sync()
    past = 1_700_000_000
    for path in (*volume.rglob("*"), volume):
        os.utime(path, (past, past))
    files = pb.Files(volume, name="data", shadow=btrfs_snapshot)
    repo.backup([files])
    threading.Event().wait(2.2)  # what changed just before it was looked at proves nothing
    repo.backup([files])
    read = []
    from pharmabackup.engine.dataset import DatasetSink

    real = DatasetSink.file
    monkeypatch.setattr(DatasetSink, "file", lambda self, *given: read.append(given) or real(self, *given))
    assert repo.backup([files]).datasets["data"].files == 50
    assert read == []


# ---------------------------------------------------------------- any hook


def test_a_snapshot_that_cannot_be_made_fails_its_dataset_alone(repo, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()

    @contextmanager
    def refuses(folder: str) -> Iterator[str]:
        raise pb.SourceFailed("The storage makes no snapshots now.", remedy="Try again at night.")
        yield folder

    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pb.Files(tmp_path / "data", shadow=refuses), pb.Files(tmp_path / "other")])
    assert "makes no snapshots now" in messages(caught.value) and [one.dataset for one in repo.snapshots()] == [
        "other"
    ]


def test_a_snapshot_is_left_when_the_backup_fails_or_is_cancelled(repo, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_bytes(b"x")
    open_now, seen = [], []

    @contextmanager
    def shadow(folder: str) -> Iterator[Path]:
        open_now.append(folder)
        try:
            yield Path(folder)
        finally:
            seen.append(open_now.pop())

    repo.backup([pb.Files(tmp_path / "data", shadow=shadow)])
    cancel = threading.Event()

    def progress(event: pb.Event) -> None:
        if event.kind == "dataset":
            assert open_now == [str(tmp_path / "data")]
            cancel.set()

    with pytest.raises(pb.Cancelled):
        repo.backup([pb.Files(tmp_path / "data", shadow=shadow)], progress=progress, cancel=cancel)
    assert open_now == [] and seen == [str(tmp_path / "data")] * 2


def test_a_snapshot_that_is_not_there_is_told_by_the_folder_that_was_named(repo, tmp_path):
    (tmp_path / "data").mkdir()

    @contextmanager
    def nowhere(folder: str) -> Iterator[str]:
        yield f"{folder}.none"

    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pb.Files(tmp_path / "data", shadow=nowhere)])
    assert f"{tmp_path / 'data'} does not exist" in messages(caught.value)


# ---------------------------------------------------------------- Windows


class Windows:
    """PowerShell, as far as we use it: it notes what it was asked, and answers from `answers`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.device = folder / "asked", folder / "device"
        self.answer = folder / "answer"
        program = folder / "powershell.exe"
        program.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            "script = sys.stdin.read()\n"
            "ours = ('SHADOW_', 'PHARMABACKUP_')\n"
            "own = {name: value for name, value in os.environ.items() if name.startswith(ours)}\n"
            f"with open({str(self.asked)!r}, 'a') as file:\n"
            "    print(json.dumps([sys.argv[1:], 'Create' in script, 'Remove' in script, own]), file=file)\n"
            f"print(open({str(self.answer)!r}).read() if 'Create' in script else '')\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PHARMABACKUP_PASSPHRASE", "a secret")
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(folder))
        self.notes = folder / "pharmabackup-shadows"
        self.makes("{1}")

    def makes(self, name: str) -> None:
        self.answer.write_text(json.dumps({"id": name, "device": str(self.device)}))

    @property
    def done(self) -> list[tuple[str, str]]:
        found = []
        for line in self.asked.read_text().splitlines():
            words, makes, removes, given = json.loads(line)
            assert words == ["-NoProfile", "-NonInteractive", "-Command", "-"]
            assert makes != removes and not any(name.startswith("PHARMABACKUP_") for name in given)
            found.append(("make", given["SHADOW_VOLUME"]) if makes else ("remove", given["SHADOW_ID"]))
        return found


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Windows:
    folder = tmp_path / "windows"
    folder.mkdir()
    return Windows(folder, monkeypatch)


def of_volume(path: Path) -> tuple[Path, Path]:
    volume = path
    while not os.path.ismount(volume):
        volume = volume.parent
    return volume, path.relative_to(volume)


@posix
def test_a_folder_is_read_from_a_copy_of_its_volume_that_is_removed_then(windows, repo, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_bytes(b"now")
    volume, relative = of_volume(data)
    (windows.device / relative).mkdir(parents=True)
    (windows.device / relative / "x").write_bytes(b"then")
    repo.backup([pb.Files(data, shadow=shadow_copy)])
    assert repo.snapshot("data").open("x").read() == b"then"
    assert windows.done == [("make", os.path.join(volume, "")), ("remove", "{1}")]
    assert list(windows.notes.iterdir()) == []


@posix
def test_what_a_killed_process_has_left_is_removed_by_the_next(windows, tmp_path):
    windows.notes.mkdir()
    (windows.notes / "{old}.open").touch()
    (windows.notes / "{older}.gone").touch()
    volume, _ = of_volume(tmp_path)
    with shadow_copy(str(volume)) as place:
        assert place == f"{windows.device}{os.sep}"
        assert [path.name for path in windows.notes.iterdir()] == ["{1}.open"]
    assert sorted(windows.done[:2]) == [("remove", "{older}"), ("remove", "{old}")]


@posix
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"failed": 1}', "this account may not do that (1)"),
        ('{"failed": 9}', "there is no room for it (9)"),
        ('{"failed": 12345}', "Windows did not make it (12345)"),
        ("nonsense", "PowerShell did not do it"),
        ("[]", "Windows did not make it (None)"),
    ],
)
def test_what_windows_refuses_is_said(windows, tmp_path, answer, said):
    windows.answer.write_text(answer)
    with pytest.raises(pb.SourceFailed) as caught, shadow_copy(str(tmp_path)):
        pytest.fail("it was made")
    assert said in str(caught.value) and caught.value.remedy


def test_without_powershell_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(vss, "POWERSHELL", ("no such program",))
    with pytest.raises(pb.SourceFailed, match="PowerShell did not do it"), shadow_copy(str(tmp_path)):
        pytest.fail("it was made")


@posix
def test_only_windows_has_its_own(tmp_path):
    with pytest.raises(pb.Unsupported, match="exist on Windows only"):
        pb.Files(tmp_path, shadow=True)
