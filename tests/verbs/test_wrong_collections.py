"""A maintainer who deletes what he may not, by records of his own and by hand: no rule stops him; checks say who."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.transaction import Condemn, Done, Execute
from pharmabackup.format.wire import Kind
from pharmabackup.verbs import check_collections
from pharmabackup.verbs.marks import say
from tests.verbs.site import Site, Time, forget_all_but, prune, stored
from tests.verbs.staff import Staff

MakeRepo = Callable[[], pb.Repository]
WRONG = "collection-wrong"


@pytest.fixture
def staff(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Staff]:
    made = Staff(make_repo(), tmp_path)
    made.enrol("maintainer", "the supplier")
    made.enrol("auditor", "the auditor")
    for _ in range(3):
        site.change()
        site.back_up(made.repo)
    yield made
    made.close()


def _wrong(repo: pb.Repository) -> list[tuple[str, str, str]]:
    found = [finding for finding in repo.check().findings if finding.code == WRONG]
    return [(finding.severity, finding.subject, finding.message) for finding in found]


def _collect(unlocked: Unlocked, snapshots: bytes = b"", packs: bool = False, segments: bool = False) -> None:
    """As a prune of his own would: two records, the deletes, and that all is done."""
    names = stored(unlocked.storage, "packs") if packs else []
    indexes = stored(unlocked.storage, "index") if segments else []
    digests, of = b"".join(_digest(name) for name in names), b"".join(_digest(name) for name in indexes)
    number = 1 + len(stored(unlocked.storage, "collections")) // 3
    for kind, record in (
        (Kind.CONDEMN, Condemn(number, digests, b"", snapshots)),
        (Kind.EXECUTE, Execute(number, digests, of)),
        (Kind.DONE, Done(number)),
    ):
        unlocked.put(kind, ids.collection_name(number, kind.name.lower()), record)
    unlocked.storage.delete([*names, *indexes])


def _digest(name: str) -> bytes:
    return ids.hex_tail(name) or b""


@pytest.mark.parametrize("deletes", [False, True])
def test_what_nobody_has_forgotten(staff: Staff, deletes: bool) -> None:
    """He says that two snapshots are gone. They are forgotten from then on, whatever becomes of their packs."""
    gone = b"".join(bytes.fromhex(snapshot.id) for snapshot in staff.repo.snapshots()[:2])
    _collect(staff.open("the supplier")._unlocked, gone, packs=deletes)
    for repo in (staff.repo, staff.open("the auditor")):
        assert [snapshot.forgotten for snapshot in repo.snapshots()] == [True, True, False]
        first, *others = _wrong(repo)
        assert first[:2] == ("critical", "collections/1")
        assert "'the supplier'" in first[2] and "2 snapshots are gone" in first[2]
        assert len(others) == deletes
        if deletes:
            assert "that snapshots need" in others[0][2]


def test_what_too_few_have_forgotten(staff: Staff) -> None:
    """Two have to agree; he forgets alone, and does not wait."""
    staff.repo.configure(forget_quorum=2)
    supplier, last = staff.open("the supplier"), staff.repo.snapshots()[-1]
    supplier.apply(supplier.propose_forget(snapshots=[supplier.snapshot(id=last.id)]))
    _collect(supplier._unlocked, bytes.fromhex(last.id))
    ((severity, subject, message),) = _wrong(staff.repo)
    assert (severity, subject) == ("critical", "collections/1") and "1 snapshots are gone" in message


def test_what_somebody_had_called_back(staff: Staff) -> None:
    """That the recall came first the storage's times say, and nothing else does."""
    supplier, last = staff.open("the supplier"), staff.repo.snapshots()[-1]
    supplier.apply(supplier.propose_forget(snapshots=[supplier.snapshot(id=last.id)]))
    staff.repo.recall(staff.repo.snapshot(id=last.id), reason="a dispute")
    _collect(supplier._unlocked, bytes.fromhex(last.id))
    ((severity, subject, message),) = _wrong(staff.repo)
    assert (severity, subject) == ("warning", "collections/1")
    assert "'the supplier'" in message and "1 snapshots are gone, which somebody had called back before" in message


def test_nobody_is_accused_for_times_that_a_copy_of_the_storage_has_changed(
    staff: Staff, site: Site, time: Time
) -> None:
    """An honest prune, and a recall that came too late; then all objects have the time of the copying."""
    for _ in range(4):
        site.change()
        site.back_up(staff.repo)
    forget_all_but(staff.repo, 1, time)
    prune(staff.repo)
    gone = load_history(staff.repo._unlocked).deleted
    for first in {first for first, _ in load_history(staff.repo._unlocked).standing_forgets()}:
        say(staff.repo._unlocked, "undo", gone, about=first)
    assert len(gone) == 6 and _wrong(staff.repo) == []
    for path in Path(staff.repo.url, "collections").rglob("*"):
        os.utime(path)
    assert [severity for severity, *_ in _wrong(staff.open("the auditor"))] == ["warning"]


def test_that_he_did_not_wait_and_that_it_was_held_is_not_told(staff: Staff) -> None:
    """docs/security.md says so: a storage's times prove nothing, and he could have released it."""
    supplier, last = staff.open("the supplier"), staff.repo.snapshots()[-1]
    supplier.apply(supplier.propose_forget(snapshots=[supplier.snapshot(id=last.id)]))
    staff.repo.hold(last, reason="a dispute")
    assert staff.repo.snapshot(id=last.id).forget_at is not None
    _collect(supplier._unlocked, bytes.fromhex(last.id))
    assert staff.repo.snapshots()[-1].forgotten
    assert _wrong(staff.repo) == []


@pytest.mark.parametrize("segments", [False, True])
def test_packs_that_snapshots_need(staff: Staff, segments: bool) -> None:
    """Where he has deleted the index too nothing says which pack held what: then it is said who may have."""
    collected = staff.open("the supplier")._unlocked
    count = len(stored(collected.storage, "packs"))
    _collect(collected, packs=True, segments=segments)
    codes = {finding.code for finding in staff.repo.check().findings}
    assert codes >= {"snapshot-damaged"} | (set() if segments else {"pack-missing"})
    ((severity, subject, message),) = _wrong(staff.repo)
    if segments:
        assert (severity, subject) == ("warning", "collections") and "1 (the supplier)" in message
    else:
        assert (severity, subject) == ("critical", "collections/1")
        assert f"'the supplier'. It deleted {count} packs" in message


def test_what_is_not_in_question_is_not_worked_out(staff: Staff, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which forgets a collection obeyed takes all that was ever said, for each of them."""
    asked: list[object] = []
    monkeypatch.setattr(check_collections, "_let_go", lambda *given: asked.append(given) or (set(), set()))
    _collect(staff.open("the supplier")._unlocked, packs=True)
    assert _wrong(staff.repo) and asked == []


def test_nothing_is_said_of_what_rules_allowed(staff: Staff, site: Site, time: Time, tmp_path: Path) -> None:
    """Also when they are stricter afterwards, or somebody calls back what is gone."""
    supplier = staff.open("the supplier")
    for _ in range(4):
        site.change()
        site.back_up(staff.repo)
    forget_all_but(supplier, 1, time)
    prune(supplier)
    assert len(load_history(staff.repo._unlocked).deleted) == 6
    assert [snapshot.forgotten for snapshot in staff.repo.snapshots()] == [False] + [True] * 6
    site.all_restore(staff.repo, tmp_path / "out")
    staff.repo.configure(forget_quorum=2, forget_delay=timedelta(days=90))
    with pytest.raises(pb.Conflict):
        staff.repo.recall(staff.repo.snapshots()[-1], reason="needed")
    gone = load_history(staff.repo._unlocked).deleted
    for first in {first for first, _ in load_history(staff.repo._unlocked).standing_forgets()}:
        say(staff.repo._unlocked, "undo", gone, about=first)  # by a clock that went back since
    staff.enrol("maintainer", "another supplier")
    assert _wrong(staff.repo) == []
    site.all_restore(staff.repo, tmp_path / "later")


def test_nothing_is_said_while_what_was_said_cannot_be_read(staff: Staff, site: Site, time: Time) -> None:
    for _ in range(4):
        site.change()
        site.back_up(staff.repo)
    forget_all_but(staff.repo, 1, time)
    prune(staff.repo)
    assert load_history(staff.repo._unlocked).deleted
    (mark,) = stored(staff.repo._unlocked.storage, "marks")
    (Path(staff.repo.url) / mark).write_bytes(b"x" * 2000)
    assert "mark-damaged" in {finding.code for finding in staff.repo.check().findings}
    assert _wrong(staff.repo) == []


def test_what_was_lost_otherwise_is_nobodys_fault(staff: Staff, site: Site, time: Time) -> None:
    """A pack that a disk lost, after a prune that deleted another."""
    for _ in range(4):
        site.change()
        site.back_up(staff.repo)
    forget_all_but(staff.repo, 1, time)
    prune(staff.repo)
    site.change()
    site.back_up(staff.repo)
    for name in stored(staff.repo._unlocked.storage, "packs"):
        (Path(staff.repo.url) / name).unlink()
    assert "pack-missing" in {finding.code for finding in staff.repo.check().findings}
    assert _wrong(staff.repo) == []
