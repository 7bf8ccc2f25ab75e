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


def test_files_that_are_written_all_the_time_are_of_one_moment(volume, repo, tmp_path, monkeypatch):
    ledger, journal = volume / "ledger", volume / "journal"
    stop, written = threading.Event(), 0

    def write() -> None:
        """First one, then the other: at any moment the first is as far as the second, or one ahead."""
        nonlocal written
        with open(ledger, "ab", buffering=0) as one, open(journal, "ab", buffering=0) as other:
            while not stop.is_set():
                for file in (one, other):
                    file.write(b"%09d\n" % written * 1000)
                    os.fsync(file.fileno())
                written += 1
                stop.wait(0.001)

    from pharmabackup.engine.dataset import DatasetSink

    real = DatasetSink.stream

    def stream(self, read_into, **more):
        """While a file is read, something is written."""
        began = written

        def read(view):
            size = read_into(view)
            while written < began + 2 and writer.is_alive():
                stop.wait(0.001)
            return size

        return real(self, read, **more)

    monkeypatch.setattr(DatasetSink, "stream", stream)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        while written < 20:
            stop.wait(0.01)
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
    read = []
    from pharmabackup.engine.dataset import DatasetSink

    for name in ("file", "stream"):
        real = getattr(DatasetSink, name)

        def counted(self, *given, real=real, **more):
            read.append(given)
            return real(self, *given, **more)

        monkeypatch.setattr(DatasetSink, name, counted)
    repo.backup([files])
    threading.Event().wait(2.2)  # what changed just before it was looked at proves nothing
    repo.backup([files])
    assert len(read) == 100, "the first two read all"
    assert repo.backup([files]).datasets["data"].files == 50
    assert len(read) == 100


def test_what_a_snapshot_does_not_hold_is_told(volume, repo):
    """A subvolume and a file system that are mounted in the folder."""
    (volume / "a").write_bytes(b"a")
    (volume / "empty").mkdir()
    subprocess.run(["btrfs", "-q", "subvolume", "create", volume / "scans"], check=True)
    (volume / "scans" / "s").write_bytes(b"s")
    (volume / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", volume / "mounted"], check=True)
    try:
        with pytest.raises(pb.Incomplete) as caught:
            repo.backup([pb.Files(volume, name="data", shadow=btrfs_snapshot)])
        report = repo.backup([pb.Files(volume, name="own", shadow=btrfs_snapshot, one_file_system=True)])
    finally:
        subprocess.run(["umount", volume / "mounted"], check=True)
    found = {finding.code for finding in caught.value.findings}
    assert (
        "mount-not-in-snapshot" in found
        and sum(f.code == "mount-not-in-snapshot" for f in caught.value.findings) == 2
    )
    assert report.datasets["own"].complete and not repo.snapshot("data").complete


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


@pytest.mark.parametrize("when", ["entered", "left"])
def test_a_hook_that_fails_in_its_own_way_stops_no_other_dataset(repo, tmp_path, when, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()

    @contextmanager
    def fails(folder: str) -> Iterator[str]:
        subprocess.run(["false"], check=when == "entered")
        yield folder
        subprocess.run(["false"], check=True)

    sources = [pb.Files(tmp_path / "data", shadow=fails), pb.Files(tmp_path / "other")]
    if when == "entered":
        with pytest.raises(pb.Incomplete) as caught:
            repo.backup(sources)
        assert "could be made (CalledProcessError)" in messages(caught.value)
    else:
        repo.backup(sources)
        assert "was not removed (CalledProcessError)" in caplog.text
    assert "other" in {one.dataset for one in repo.snapshots()}


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


def test_a_hook_that_gives_no_place_is_told_and_left(repo, tmp_path):
    (tmp_path / "data").mkdir()
    left = []

    @contextmanager
    def nothing(folder: str) -> Iterator[None]:
        yield
        left.append(folder)

    @contextmanager
    def watched(folder: str) -> Iterator[None]:
        try:
            yield
        finally:
            left.append(folder)

    for hook in (nothing, watched):
        with pytest.raises(pb.Incomplete) as caught:
            repo.backup([pb.Files(tmp_path / "data", shadow=hook)])
        assert "it gives no place" in messages(caught.value)
    assert left == [str(tmp_path / "data")]


def test_a_snapshot_that_is_not_there_is_told_by_the_folder_that_was_named(repo, tmp_path):
    (tmp_path / "data").mkdir()

    @contextmanager
    def nowhere(folder: str) -> Iterator[str]:
        yield f"{folder}.none"

    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pb.Files(tmp_path / "data", shadow=nowhere)])
    assert f"{tmp_path / 'data'} does not exist" in messages(caught.value)


# ---------------------------------------------------------------- Windows


GUID = "{01234567-89AB-CDEF-0123-456789ABCDEF}"


class Windows:
    """PowerShell, as far as we use it: it notes what it was asked, and answers from `answers`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.device = folder / "asked", folder / "device"
        self.answer = folder / "answer"
        program = folder / "powershell.exe"
        program.write_text(
            f"#!{sys.executable}\n"
            "import base64, json, os, sys\n"
            "assert sys.argv[1:4] == ['-NoProfile', '-NonInteractive', '-EncodedCommand'] and not sys.stdin.read()\n"
            "script = base64.b64decode(sys.argv[4]).decode('utf-16-le')\n"
            "ours = ('SHADOW_', 'PHARMABACKUP_')\n"
            "own = {name: value for name, value in os.environ.items() if name.startswith(ours)}\n"
            f"with open({str(self.asked)!r}, 'a') as file:\n"
            "    print(json.dumps([script, own]), file=file)\n"
            f"print(open({str(self.answer)!r}).read() if 'Create' in script else '')\n"
            f"sys.exit('Remove' in script and os.path.exists({str(folder / 'stays')!r}))\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PHARMABACKUP_PASSPHRASE", "a secret")
        self.stays = folder / "stays"
        self.answer.write_text(json.dumps({"id": GUID, "device": str(self.device)}))

    @property
    def done(self) -> list[tuple[str, str]]:
        found = []
        for line in self.asked.read_text().splitlines():
            script, given = json.loads(line)
            assert script.startswith("$ErrorActionPreference = 'Stop'; try {") and script.endswith("exit 0")
            assert script.count("{") == script.count("}")
            assert not any(name.startswith("PHARMABACKUP_") for name in given)
            found.append(("make", given["SHADOW_VOLUME"]) if "Create" in script else ("remove", given["SHADOW_ID"]))
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
    assert windows.done == [("make", os.path.join(volume, "")), ("remove", GUID)]


@posix
def test_one_that_cannot_be_removed_fails_no_backup(windows, repo, tmp_path, caplog):
    data = tmp_path / "data"
    data.mkdir()
    _, relative = of_volume(data)
    (windows.device / relative).mkdir(parents=True)
    windows.stays.touch()
    report = repo.backup([pb.Files(data, shadow=shadow_copy)])
    assert report.datasets["data"].complete and "A snapshot of data was not removed" in caplog.text


@posix
def test_a_link_leads_to_the_volume_that_it_leads_to(windows, tmp_path):
    (tmp_path / "link").symlink_to("/proc")
    with shadow_copy(str(tmp_path / "link" / "sys")) as place:
        assert place == f"{windows.device}{os.sep}sys"
    assert windows.done[0] == ("make", "/proc/")


@posix
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"failed": 1}', "this account may not do that (1)"),
        ('{"failed": 9}', "there is no room for it (9)"),
        ('{"failed": 12345}', "Windows did not make it (12345)"),
        ("nonsense", "PowerShell did not do it"),
        ("[]", "Windows did not make it (None)"),
        ('{"id": "x\' OR ID LIKE \'%", "device": "d"}', "Windows did not make it (None)"),
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
