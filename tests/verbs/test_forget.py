"""Forgetting: proposed, applied, called back; and what stays whatever anybody says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pharmabackup as pb
from pharmabackup import clock, ids
from pharmabackup.engine import grants
from pharmabackup.engine import history as history_module
from pharmabackup.engine.history import History, Said
from pharmabackup.engine.historyreader import load_history, sound_history
from pharmabackup.engine.transaction import Transaction
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import Fate, Head, Mark
from pharmabackup.format.wire import COUNT_MAX, Kind
from pharmabackup.storage.base import ObjectInfo
from pharmabackup.verbs import backup_run
from pharmabackup.verbs.forget import _marks
from pharmabackup.verbs.marks import say
from tests.format import samples as s
from tests.verbs.site import PASSPHRASE
from tests.verbs.staff import Staff

MakeRepo = Callable[[], pb.Repository]
DAY = timedelta(days=1)
BASE = datetime(2025, 3, 1, 12, tzinfo=UTC)  # what lies in the future is judged otherwise


class Calendar:
    """What the storage's clock says when a snapshot is committed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = BASE
        real = Transaction.pin

        def pin(transaction: Transaction, *arguments: Any) -> tuple[ObjectInfo, bytes]:
            info, digest = real(transaction, *arguments)
            return replace(info, modified=clock.to_ns(self.now)), digest

        monkeypatch.setattr(Transaction, "pin", pin)


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    return Calendar(monkeypatch)


@pytest.fixture
def repo(tmp_path: Path, make_repo: MakeRepo, calendar: Calendar) -> pb.Repository:
    """Ten days of documents and of scans; each day adds a file, and the first day's is gone after that."""
    made = make_repo()
    for name in ("documents", "scans"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "first").write_bytes(os.urandom(3_000_000))
    for day in range(10):
        calendar.now = BASE + day * DAY
        for name in ("documents", "scans"):
            (tmp_path / name / f"{day}").write_bytes(os.urandom(1000))
        made.backup([pb.Files(tmp_path / "documents", tier=1), pb.Files(tmp_path / "scans", tier=2)])
        for name in ("documents", "scans"):
            (tmp_path / name / "first").unlink(missing_ok=True)
    return made


def _days(snapshots: Any) -> list[int]:
    return sorted((snapshot.time - BASE).days for snapshot in snapshots)


def _at(repo: pb.Repository, dataset: str, day: int) -> pb.Snapshot:
    return next(item for item in repo.snapshots(dataset) if (item.time - BASE).days == day)


def test_rules_say_what_goes_and_nothing_happens_before_it_is_applied(repo: pb.Repository) -> None:
    proposal = repo.propose_forget({"doc*": pb.Keep(daily=3), "*": pb.Keep(last=9)})
    assert _days(item for item in proposal.snapshots if item.dataset == "documents") == list(range(7))
    assert _days(item for item in proposal.snapshots if item.dataset == "scans") == [0]
    assert [item.time for item in proposal.snapshots] == sorted(
        (item.time for item in proposal.snapshots), reverse=True
    )
    assert 3_000_000 < proposal.bytes_freed < 6_000_000  # most of both first files, which no later one has
    assert not any(item.forget_at for item in repo.snapshots())
    assert "documents" in str(proposal) and proposal.to_dict()["bytes_freed"] == proposal.bytes_freed


def test_what_it_frees_counts_what_is_asked_for_already(
    tmp_path: Path, repo: pb.Repository, calendar: Calendar
) -> None:
    """Both snapshots have the file; whoever forgets the second one frees it."""
    (tmp_path / "documents" / "more").write_bytes(os.urandom(2_000_000))
    for day in (10, 11, 12):
        calendar.now = BASE + day * DAY
        if day == 12:
            (tmp_path / "documents" / "more").unlink()
        (tmp_path / "documents" / f"{day}").write_bytes(os.urandom(1000))
        repo.backup([pb.Files(tmp_path / "documents")])
    first = repo.propose_forget(snapshots=[_at(repo, "documents", 10)])
    assert first.bytes_freed < 100_000
    repo.apply(first)
    assert repo.propose_forget(snapshots=[_at(repo, "documents", 11)]).bytes_freed > 500_000  # whole blocks
    repo.hold(_at(repo, "documents", 10), reason="incident 7")
    assert repo.propose_forget(snapshots=[_at(repo, "documents", 11)]).bytes_freed < 100_000


def test_rules_for_a_device_and_for_a_label(tmp_path: Path, repo: pb.Repository, calendar: Calendar) -> None:
    for day in range(10, 14):
        calendar.now = BASE + day * DAY
        repo.backup([pb.Files(tmp_path / "documents")], reason=f"Before update {day}" if day % 2 else None)
    proposal = repo.propose_forget({"*:before *": pb.Keep(last=1), "till/*": pb.Keep(), "*/doc*": pb.Keep(last=3)})
    assert _days(proposal.snapshots) == [*range(9), 11]  # scans have no rule; 9, 10 and 12 are the last three
    assert {snapshot.dataset for snapshot in proposal.snapshots} == {"documents"}
    assert repo.propose_forget({"till/*": pb.Keep()}).snapshots == ()


def test_a_time_in_the_future_is_told_and_pushes_nothing_out(
    tmp_path: Path, repo: pb.Repository, calendar: Calendar
) -> None:
    assert "time-ahead" not in {finding.code for finding in repo.check().findings}
    calendar.now = datetime.now(UTC) + 4000 * DAY
    repo.backup([pb.Files(tmp_path / "documents")])
    assert _days(repo.propose_forget({"documents": pb.Keep(within=3 * DAY)}).snapshots) == list(range(6))
    told = [finding for finding in repo.check().findings if finding.code == "time-ahead"]
    assert [finding.severity for finding in told] == ["warning"]
    calendar.now = datetime.now(UTC)
    findings = repo.backup([pb.Files(tmp_path / "documents")]).findings
    assert [finding.severity for finding in findings if finding.code == "time-ahead"] == ["warning"]


def test_a_dataset_without_a_rule_keeps_everything(repo: pb.Repository) -> None:
    assert {item.dataset for item in repo.propose_forget({"scans": pb.Keep()}).snapshots} == {"scans"}
    assert repo.propose_forget().snapshots == ()  # the owner has said nothing yet
    assert repo.propose_forget({}).snapshots == ()


def test_applied_it_is_forgotten_when_the_delay_is_over(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = repo.propose_forget({"documents": pb.Keep(last=2)})
    assert proposal.not_before is not None
    report = repo.apply(proposal)
    assert report.verb == "forget" and report.state == "ok"
    asked = [item for item in repo.snapshots() if item.forget_at]
    assert {item.id for item in asked} == {item.id for item in proposal.snapshots}
    assert not any(item.forgotten for item in asked)
    for item in asked:
        assert item.forget_at is not None
        assert abs(item.forget_at - proposal.not_before) < timedelta(minutes=5)
    assert repo.propose_forget({"documents": pb.Keep(last=2)}).snapshots == ()
    later = clock.now_ns() + 15 * 86400 * 10**9
    monkeypatch.setattr(history_module, "now_ns", lambda: later)
    monkeypatch.setattr("pharmabackup.verbs.standing.now_ns", lambda: later)
    assert _days(item for item in repo.snapshots() if item.forgotten) == list(range(8))
    assert repo.snapshot("documents").time == BASE + 9 * DAY


def test_before_that_it_restores_and_can_be_called_back(tmp_path: Path, repo: pb.Repository) -> None:
    repo.apply(repo.propose_forget({"documents": pb.Keep(last=2)}))
    first, second = _at(repo, "documents", 0), _at(repo, "documents", 1)
    repo.restore(tmp_path / "out", snapshots=[first])
    assert (tmp_path / "out" / "documents" / "first").stat().st_size == 3_000_000
    repo.recall(first, reason="the wrong one")
    assert _at(repo, "documents", 0).forget_at is None
    assert _days(item for item in repo.snapshots("documents") if item.forget_at) == list(range(1, 8))
    assert _at(repo, "documents", 1).forget_at == second.forget_at
    with pytest.raises(pb.NotFound, match="Nobody said to forget this snapshot"):
        repo.recall(first, reason="again")


def test_what_was_forgotten_cannot_be_called_back(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.apply(repo.propose_forget({"documents": pb.Keep(last=2)}))
    first = _at(repo, "documents", 0)
    later = clock.now_ns() + 15 * 86400 * 10**9
    monkeypatch.setattr(history_module, "now_ns", lambda: later)
    with pytest.raises(pb.Conflict, match="it may be gone already") as caught:
        repo.recall(first, reason="too late")
    assert caught.value.kind == "snapshot-forgotten"


def test_named_snapshots_go_but_not_the_newest_or_what_is_held(repo: pb.Repository) -> None:
    old, held, newest = _at(repo, "scans", 1), _at(repo, "scans", 2), _at(repo, "scans", 9)
    repo.hold(held, reason="incident 7")
    proposal = repo.propose_forget(snapshots=[old, held, newest])
    assert [item.id for item in proposal.snapshots] == [old.id]
    assert {(finding.code, finding.subject) for finding in proposal.findings} == {
        ("snapshot-stays", held.id),
        ("snapshot-stays", newest.id),
    }
    repo.apply(proposal)
    assert _days(item for item in repo.snapshots("scans") if item.forget_at) == [1]


def test_what_shares_its_time_with_another_can_be_named(
    tmp_path: Path, repo: pb.Repository, calendar: Calendar
) -> None:
    """Rules keep it, since its time says nothing."""
    for _ in range(2):  # at the same moment as the last one
        (tmp_path / "scans" / "more").write_bytes(os.urandom(1000))
        repo.backup([pb.Files(tmp_path / "scans", tier=2)])
    middle = repo.snapshots("scans")[1]
    assert middle.time == repo.snapshots("scans")[0].time
    assert middle.id not in {item.id for item in repo.propose_forget({"scans": pb.Keep()}).snapshots}
    assert [item.id for item in repo.propose_forget(snapshots=[middle]).snapshots] == [middle.id]


def test_a_hold_overrides_every_rule_until_it_is_released(repo: pb.Repository) -> None:
    repo.hold(_at(repo, "documents", 3), reason="incident 7")
    assert _at(repo, "documents", 3).held == "incident 7"
    proposal = repo.propose_forget({"documents": pb.Keep()})
    assert _days(proposal.snapshots) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [finding.code for finding in proposal.findings] == ["snapshot-stays"]
    repo.release(_at(repo, "documents", 3), reason="closed")
    assert _at(repo, "documents", 3).held is None
    assert _days(repo.propose_forget({"documents": pb.Keep()}).snapshots) == list(range(9))
    with pytest.raises(pb.NotFound, match="Nothing holds this snapshot"):
        repo.release(_at(repo, "documents", 3), reason="closed")


def test_a_hold_may_end_by_itself(repo: pb.Repository) -> None:
    with pytest.raises(pb.InvalidInput, match="cannot end in the past"):
        repo.hold(_at(repo, "documents", 3), reason="x", until=datetime.now(UTC) - DAY)
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    repo.hold(_at(repo, "documents", 3), reason="x", until=soon)
    assert _at(repo, "documents", 3).held == "x"
    time.sleep(max(0.0, (soon - datetime.now(UTC)).total_seconds()) + 0.01)
    assert _at(repo, "documents", 3).held is None


def test_a_release_ends_a_hold_for_the_one_that_it_names(repo: pb.Repository) -> None:
    both = [_at(repo, "documents", day) for day in (3, 4)]
    say(repo._unlocked, "hold", [bytes.fromhex(item.id) for item in both], reason="incident 7")
    repo.release(both[0], reason="closed")
    assert _at(repo, "documents", 3).held is None
    assert _at(repo, "documents", 4).held == "incident 7"


def test_a_mark_of_somebody_who_may_not_make_it_does_not_count(
    repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it stop anything: every device can sign marks."""
    repo.hold(_at(repo, "documents", 3), reason="incident 7")
    monkeypatch.setitem(grants.MARK_GRANTS, "hold", frozenset({"maintainer"}))  # type: ignore[arg-type]
    repo._unlocked.renew()  # what was read before is judged anew
    assert _at(repo, "documents", 3).held is None
    assert 3 in _days(repo.propose_forget({"documents": pb.Keep(last=1)}).snapshots)
    assert [(item.code, item.severity) for item in repo.check().findings] == [("mark-void", "warning")]


@pytest.mark.parametrize("verb", ["hold", "release", "recall"])
def test_a_reason_is_needed(repo: pb.Repository, verb: str) -> None:
    with pytest.raises(pb.InvalidInput, match="no reason given"):
        getattr(repo, verb)(_at(repo, "documents", 3), reason="  ")


def test_what_was_verified_last_stays(repo: pb.Repository, calendar: Calendar, tmp_path: Path) -> None:
    assert repo.check(read_data=1.0).state == "ok"
    calendar.now = BASE + 20 * DAY
    (tmp_path / "documents" / "new").write_bytes(b"new")
    repo.backup([pb.Files(tmp_path / "documents", tier=1)])
    assert _days(repo.propose_forget({"documents": pb.Keep()}).snapshots) == list(range(9))  # 9: verified, 20: newest


@pytest.mark.parametrize("change", ["held", "forgotten"])
def test_a_proposal_that_is_no_longer_true_is_refused(repo: pb.Repository, change: str) -> None:
    proposal = repo.propose_forget({"documents": pb.Keep(last=2)})
    if change == "held":
        repo.hold(_at(repo, "documents", 0), reason="wait")
    else:
        repo.apply(repo.propose_forget(snapshots=[_at(repo, "documents", 0)]))
    with pytest.raises(pb.Conflict, match="no longer true") as caught:
        repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"
    assert _days(item for item in repo.snapshots("documents") if item.forget_at) == (
        [0] if change == "forgotten" else []
    )


def test_a_backup_in_between_does_not_matter(tmp_path: Path, repo: pb.Repository, calendar: Calendar) -> None:
    proposal = repo.propose_forget({"documents": pb.Keep(last=2)})
    calendar.now = BASE + 10 * DAY
    repo.backup([pb.Files(tmp_path / "documents", tier=1)])
    repo.apply(proposal)
    assert _days(item for item in repo.snapshots("documents") if item.forget_at) == list(range(8))


def test_a_damaged_mark_stops_forgetting(repo: pb.Repository) -> None:
    """It might be a hold."""
    repo.hold(_at(repo, "documents", 3), reason="incident 7")
    storage = repo._unlocked.storage
    name = next(info.name for info in storage.list("marks"))
    path = Path(storage.local_root() or "") / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (repo._unlocked.state / "history").unlink()
    with pytest.raises(pb.Damaged, match=f"can be read .{name}., so nothing can be let go"):
        repo.propose_forget({"documents": pb.Keep()})
    assert [item.code for item in repo.check().findings] == ["mark-damaged"]


def test_a_mark_that_was_deleted_stops_forgetting(repo: pb.Repository) -> None:
    repo.hold(_at(repo, "documents", 3), reason="incident 7")
    repo.snapshots()  # this machine has seen it
    storage = repo._unlocked.storage
    assert not any(storage.delete([info.name for info in storage.list("marks")]).values())
    with pytest.raises(pb.Damaged) as caught:
        repo.propose_forget({"documents": pb.Keep()})
    assert caught.value.kind == "history-forked"


def test_rules_and_names_do_not_go_together(repo: pb.Repository) -> None:
    with pytest.raises(pb.InvalidInput, match="do not go together"):
        repo.propose_forget({"*": pb.Keep()}, snapshots=[_at(repo, "scans", 1)])


def test_a_snapshot_of_another_repository_is_not_here(
    tmp_path: Path, repo: pb.Repository, make_repo: MakeRepo
) -> None:
    other = make_repo()
    with pytest.raises(pb.NotFound, match="is not here"):
        other.propose_forget(snapshots=[_at(repo, "scans", 1)])


def test_devices_are_judged_by_themselves(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one floods, another keeps: here every snapshot before the fifth day is another device's."""
    real = sound_history

    def two_devices(*arguments: Any, **options: Any) -> History:
        found = real(*arguments, **options)
        other = replace_slot(repo._unlocked.slot, b"o" * 16)
        for key, item in list(found.committed.items()):
            if clock.from_ns(item.snapshot.time) < BASE + 5 * DAY:
                found.committed[key] = replace(item, slot=other)
        return found

    monkeypatch.setattr("pharmabackup.verbs.forget.sound_history", two_devices)
    proposal = repo.propose_forget({"documents": pb.Keep(last=2)})
    assert _days(proposal.snapshots) == [0, 1, 2, 5, 6, 7]


def replace_slot(slot: Slot, slot_id: bytes) -> Slot:
    fields = {name: getattr(slot, name) for name in slot.__struct_fields__}
    return Slot(**{**fields, "id": slot_id})


def _said(mark: int, slot: int, transactions: bytes, about: bytes | None = None) -> Said:
    who = Slot(bytes([slot]) * 16, "x", "owner", None, "recipient", s.KEY, s.PUBLIC, 0, None, None)
    return Said(bytes([mark]) * 16, Mark("forget", transactions, 0, None, None, about), who, mark)


def test_a_second_person_seconds_what_the_first_said() -> None:
    one, two, three = (bytes([i]) * 16 for i in (1, 2, 3))
    mine, theirs = b"\1" * 16, b"\2" * 16
    history = History(said=[_said(7, 2, one + two)], quorum=2)
    assert _marks(history, mine, {one, three}) == {b"\7" * 16: {one}, None: {three}}
    assert _marks(history, theirs, {one}) == {None: {one}}
    assert _marks(History(said=history.said, quorum=1), mine, {one}) == {None: {one}}


def test_of_two_that_a_quorum_asks_for_one_is_not_enough(
    repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sound_history

    def strict(*arguments: Any, **options: Any) -> History:
        found = real(*arguments, **options)
        found.quorum = 2
        return found

    monkeypatch.setattr("pharmabackup.verbs.forget.sound_history", strict)
    proposal = repo.propose_forget(snapshots=[_at(repo, "scans", 1)])
    assert proposal.not_before is None
    repo.apply(proposal)
    assert repo.propose_forget(snapshots=[_at(repo, "scans", 1)]).snapshots == ()  # this one has said it
    assert strict(repo._unlocked).forgets() == {}


@pytest.mark.parametrize("names", ["the newest", "nothing", "the one of that day"])
def test_a_stolen_device_pushes_out_nothing_of_its_own_past(
    tmp_path: Path, make_repo: MakeRepo, calendar: Calendar, names: str
) -> None:
    """Whoever has its key signs a snapshot into each day that is past, though it comes when all were there; and one
    into the last day, whose place he could take by a backup, too."""
    (tmp_path / "documents").mkdir()
    staff = Staff(make_repo(), tmp_path)
    till, root = staff.enrol("device", "till"), Path(staff.repo.url)
    for day in range(6):
        calendar.now = BASE + day * DAY
        (tmp_path / "documents" / f"{day}").write_bytes(os.urandom(100))
        till.backup([pb.Files(tmp_path / "documents")])
        came = clock.to_ns(calendar.now + timedelta(seconds=3))
        fate = root / ids.fate_name(bytes.fromhex(till.snapshot().id))
        fate.chmod(0o600)  # Windows sets no times of what is read-only
        os.utime(fate, ns=(came, came))
    genuine, newest = {snapshot.id for snapshot in till.snapshots()}, till.snapshot().id
    rules = {"*": pb.Keep(daily=6, weekly=1)}
    with staff.open("till", state_dir=tmp_path / "thief") as thief:
        unlocked = thief._unlocked
        there = load_history(unlocked).newest()
        for day, before in enumerate(reversed(there)):
            named = {"the newest": there[:1], "nothing": [], "the one of that day": [before]}[names]
            transaction = ids.new_id()
            snapshot = msgspec.structs.replace(
                there[0].snapshot,
                time=clock.to_ns(BASE + day * DAY + timedelta(hours=8)),
                sequence=before.snapshot.sequence + 1 if named else 1000 + day,
                heads=tuple(Head(item.slot.id, item.transaction, item.hash) for item in named),
            )
            fate = Fate(transaction, "commit", bytes(32), snapshot)
            unlocked.put(Kind.FATE, ids.fate_name(transaction), fate)
    with pb.Repository.open(staff.repo.url, PASSPHRASE, state_dir=tmp_path / "owner's") as owner:
        proposal = owner.propose_forget(rules)
        assert {snapshot.id for snapshot in proposal.snapshots} & genuine == {newest}
        (told,) = [finding for finding in proposal.findings if finding.code == "late-stays"]
        assert told.subject == "till/documents" and told.message.startswith(
            "5 snapshots of documents that 'till' made"
        )
        behind = [finding for finding in owner.check().findings if finding.code == "time-behind"]
        assert len(behind) == (1 if names == "the newest" else 0)
        assert all(finding.severity == "warning" and "'till'" in finding.message for finding in behind)
        for _ in range(6):  # what is late stays so when what it came after has been forgotten
            owner.apply(owner.propose_forget(rules))
        there = [snapshot for snapshot in owner.snapshots() if not snapshot.forget_at]
        assert {snapshot.id for snapshot in there} >= genuine - {newest}
        planted = [snapshot for snapshot in there if snapshot.id not in genuine][1:]
        named_ones = owner.propose_forget(snapshots=planted)  # whoever looked at them can have them go
        assert {snapshot.id for snapshot in named_ones.snapshots} == {snapshot.id for snapshot in planted}
    staff.close()


def test_what_a_copy_brings_late_is_known_to_have_come_late(tmp_path: Path, make_repo: MakeRepo) -> None:
    """By when the object that brings it came, which nobody signs."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "first").write_bytes(b"x")
    repo = make_repo()
    repo.backup([pb.Files(tmp_path / "documents")])
    with pb.Repository.create(tmp_path / "replica", PASSPHRASE, replica_of=repo) as replica:
        repo.copy(replica)
        here, there = load_history(repo._unlocked), load_history(replica._unlocked)
        (made,) = (item.came for item in here.committed.values())
        (brought,) = (item.came for item in there.committed.values())
        assert brought > made > 0
        (carry,) = (info for info in replica._unlocked.storage.list("snapshots"))
        assert brought == carry.modified


@pytest.mark.parametrize("what", ["the last number", "more than a record may name"])
def test_no_record_of_a_stolen_device_stops_its_backups(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(backup_run, "HEADS_MAX", 5)
    (tmp_path / "documents").mkdir()
    repo = make_repo()
    repo.backup([pb.Files(tmp_path / "documents")])
    unlocked = repo._unlocked
    (before,) = load_history(unlocked).committed.values()
    for number in range(1 if what == "the last number" else 9):
        transaction = ids.new_id()
        sequence = COUNT_MAX if what == "the last number" else number
        snapshot = msgspec.structs.replace(before.snapshot, sequence=sequence, heads=())
        unlocked.put(Kind.FATE, ids.fate_name(transaction), Fate(transaction, "commit", bytes(32), snapshot))
    for _ in range(2):
        repo.backup([pb.Files(tmp_path / "documents")])
    newest = load_history(unlocked).newest()[0].snapshot
    assert 1 <= len(newest.heads) <= 5
    assert (newest.sequence == COUNT_MAX) == (what == "the last number")
