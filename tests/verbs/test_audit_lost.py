"""Audit records that are nowhere, neither in storage nor on this machine: somebody is told of each, once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine import opening
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.faults import Refusing
from tests.verbs.site import PASSPHRASE


def _open(tmp_path: Path) -> pb.Repository:
    return pb.Repository.open("memory://x", PASSPHRASE, state_dir=tmp_path / "state")


def _no_queue(repo: pb.Repository) -> None:
    """Nothing can wait on this machine."""
    repo._unlocked.queue.parent.mkdir(exist_ok=True)
    repo._unlocked.queue.write_text("not a folder")


def test_what_no_report_can_tell_of_is_logged(
    tmp_path: Path, refusing: Refusing, documents: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _open(tmp_path) as repo:
        repo.backup([pb.Files(documents)])
        refusing.refuses = True
        _no_queue(repo)
        repo.snapshot().open("file").read()
        assert not caplog.records
    assert "that are nowhere: 2." in caplog.text


def test_neither_storage_nor_this_machine_keeps_it(tmp_path: Path, refusing: Refusing, documents: Path) -> None:
    """A restore is never refused for that. What a program wants to be recorded fails."""
    with _open(tmp_path) as repo:
        repo.backup([pb.Files(documents)])
        refusing.refuses = True
        _no_queue(repo)
        repo.hold(repo.snapshot(), reason="a dispute")  # it gives no report that could tell
        report = repo.restore(tmp_path / "out")
        (lost,) = (finding for finding in report.findings if finding.code == "audit-lost")
        assert "here either: 3." in lost.message  # and the restore's two
        assert {each.code for each in report.findings} == {"audit-lost"} and (
            tmp_path / "out" / "documents" / "file"
        ).exists()
        with pytest.raises(pb.StorageFailed) as caught:
            repo.record("trial", {})
        assert caught.value.kind == "audit-lost" and caught.value.remedy


def test_a_copy_tells_of_both_places(
    monkeypatch: pytest.MonkeyPatch,
    cheap_kdf: None,
    tmp_path: Path,
    documents: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    places = {name: Refusing(MemoryStorage(name), deletes=True) for name in "ab"}
    monkeypatch.setattr(opening, "connect", lambda url, **_: places[url[-1]])
    for place in places.values():
        place.refuses = False
    with (
        pb.Repository.create("memory://a", PASSPHRASE, state_dir=tmp_path / "state") as one,
        pb.Repository.create("memory://b", PASSPHRASE, state_dir=tmp_path / "state", replica_of=one) as other,
    ):
        one.backup([pb.Files(documents)])
        for place, repo in zip(places.values(), (one, other), strict=True):
            place.refuses = True
            _no_queue(repo)
        told = {(each.code, each.location) for each in one.copy(other).findings if each.code != "same-device"}
        assert told == {("audit-lost", places[name].location) for name in "ab"}
    assert not caplog.records


def test_whoever_is_told_by_an_error_takes_nothing_from_others(
    tmp_path: Path,
    refusing: Refusing,
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A check on another thread ends while `record` is about to fail."""
    with _open(tmp_path) as repo:
        repo.backup([pb.Files(documents)])
        refusing.refuses = True
        _no_queue(repo)
        real, told = repo._journal._write, list[str]()

        def write(*given: Any, **how: Any) -> Any:
            written = real(*given, **how)
            check = threading.Thread(target=lambda: told.extend(each.message for each in repo.check().findings))
            check.start()
            check.join()
            return written

        with monkeypatch.context() as patch, pytest.raises(pb.StorageFailed):
            patch.setattr(repo._journal, "_write", write)
            repo.record("trial", {})
        assert ["here either: 1." in message for message in told] == [True]  # its own
        repo.hold(repo.snapshot(), reason="a dispute")
    repo.close()
    assert caplog.text.count("that are nowhere: 1.") == 1
