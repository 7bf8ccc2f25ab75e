"""Times that no 64-bit count of nanoseconds holds, and files that are none any more when they are opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb

MakeRepo = Callable[[], pb.Repository]
FAR = 1 << 63  # nanoseconds: in the year 2262


def test_a_time_beyond_2262_does_not_stop_a_backup(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    (root / "far").write_bytes(b"far")
    (root / "near").write_bytes(b"near")
    try:
        os.utime(root / "far", ns=(FAR + 5, FAR + 5))
    except (OverflowError, OSError):
        pytest.skip("this system sets no time beyond 2262")
    if os.stat(root / "far").st_mtime_ns < FAR:
        pytest.skip("this file system keeps no time beyond 2262")
    repo = make_repo()
    report = repo.backup([pb.Files(root)])
    assert report.datasets["scans"].complete
    try:
        repo.restore(tmp_path / "out")
    except pb.Incomplete as error:
        pytest.fail(str(error.findings))
    assert (tmp_path / "out" / "scans" / "far").read_bytes() == b"far"
    assert (tmp_path / "out" / "scans" / "near").read_bytes() == b"near"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_file_that_became_a_fifo_is_a_finding(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).write_bytes(b"job")
    real = os.open

    def swapped(path: object, flags: int, *arguments: object, **more: object) -> int:
        if os.fsencode(path).endswith(b"a") and not flags & os.O_DIRECTORY:  # type: ignore[call-overload]
            (root / "a").unlink(missing_ok=True)
            if not (root / "a").exists():
                os.mkfifo(root / "a")
        return real(path, flags, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("os.open", swapped)
    repo = make_repo()
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pb.Files(root)])
    monkeypatch.undo()
    assert {finding.subject for finding in caught.value.findings} >= {"a"}
    assert repo.snapshot("spool").files >= 1
