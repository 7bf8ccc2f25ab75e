"""What was done to the log is found, and named by slot and number; what was not done is not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.clock import now_ns
from pharmabackup.engine import auditlocal, enrolment
from pharmabackup.engine.roster import read_rosters
from pharmabackup.format import keys
from pharmabackup.format.transaction import Audit
from pharmabackup.format.wire import Kind
from pharmabackup.results import AuditAnchor
from pharmabackup.verbs.audit_chains import Chains
from tests.verbs.site import PASSPHRASE

SECOND = pb.Passphrase("another horse battery staple")
RECORDS = 8
Tamper = Callable[[Path], object]


class Log:
    """A repository in a folder whose owner has written some records, and what is wrong with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "repository"
        with pb.Repository.create(self.path, PASSPHRASE, state_dir=root / "state") as repo:
            self.write(repo, RECORDS - 1)
            self.slot: str = repo._unlocked.keyring.slot.hex()
        self.folder = self.path / "audit" / self.slot

    @staticmethod
    def write(repo: pb.Repository, count: int) -> None:
        for number in range(count):
            repo.record("tick", {"number": number})

    def open(self, state: str = "state") -> pb.Repository:
        return pb.Repository.open(self.path, PASSPHRASE, state_dir=self.root / state)

    def verify(self, state: str = "state", **more: Any) -> dict[str, str]:
        """Codes by what they name in this slot's chain."""
        with self.open(state) as repo:
            report = repo.audit_verify(**more)
        assert all(finding.remedy and finding.severity == "critical" for finding in report.findings)
        assert report.state == ("critical" if report.findings else "ok")
        return {finding.subject.rpartition("/")[2]: finding.code for finding in report.findings}

    def forge(self, numbers: range, *, event: str = "tick") -> None:
        """As with the slot's own key: each record whole, signed, and following from the one before it."""
        with self.open("forger") as repo:
            unlocked = repo._unlocked
            for number in numbers:
                path = self.folder / str(number)
                path.unlink(missing_ok=True)
                before = self.folder / str(number - 1)
                previous = stored_hash(before) if number else None
                record = Audit(number, previous, now_ns(), None, event, "done", "forged", None, {})
                unlocked.put(Kind.AUDIT, f"audit/{self.slot}/{number}", record)
            repo._journal._told = True  # it leaves no record of its own


def stored_hash(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.fixture
def log(tmp_path: Path, cheap_kdf: None) -> Log:
    return Log(tmp_path)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _swap(folder: Path, one: str, other: str) -> None:
    first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
    (folder / one).write_bytes(second)
    (folder / other).write_bytes(first)


# ------------------------------------------------------------ what storage itself tells


def test_a_log_that_nobody_touched(log: Log) -> None:
    for state in ("state", "state", "fresh"):
        assert log.verify(state) == {}


TAMPERING: dict[str, tuple[Tamper, dict[str, str]]] = {
    "deleted": (lambda at: (at / "3").unlink(), {"3": "audit-damaged"}),
    "several deleted": (lambda at: [(at / str(number)).unlink() for number in (2, 3, 4)], {"4": "audit-damaged"}),
    "the first deleted": (lambda at: (at / "0").unlink(), {"0": "audit-damaged"}),
    "edited": (lambda at: _flip(at / "3"), {"3": "audit-damaged"}),
    "emptied": (lambda at: (at / "3").write_bytes(b""), {"3": "audit-damaged"}),
    "cut": (lambda at: (at / "3").write_bytes((at / "3").read_bytes()[:50]), {"3": "audit-damaged"}),
    "swapped": (lambda at: _swap(at, "3", "5"), {"3": "audit-damaged", "5": "audit-damaged"}),
    "moved up": (lambda at: (at / "3").rename(at / "11"), {"3": "audit-damaged", "11": "audit-damaged"}),
    "copied to the end": (lambda at: shutil.copy(at / "3", at / str(RECORDS)), {str(RECORDS): "audit-damaged"}),
    "everything at once": (
        lambda at: [(at / "1").unlink(), _flip(at / "3"), _swap(at, "5", "6")],
        {number: "audit-damaged" for number in "1356"},
    ),
}


@pytest.mark.parametrize("state", ["state", "fresh"])
@pytest.mark.parametrize("how", list(TAMPERING))
def test_each_kind_of_tampering_is_named(log: Log, how: str, state: str) -> None:
    """It needs no memory, and goes on after the first finding."""
    tamper, expected = TAMPERING[how]
    tamper(log.folder)
    found = log.verify(state)
    assert {number: code for number, code in found.items() if number not in ("10", str(RECORDS))} == {
        number: code for number, code in expected.items() if number not in ("10", str(RECORDS))
    }
    assert set(expected) <= set(found)


def test_the_message_names_slot_and_numbers(log: Log) -> None:
    for number in (2, 3, 4):
        (log.folder / str(number)).unlink()
    with log.open() as repo:
        (finding,) = repo.audit_verify().findings
    assert "owner" in finding.message and "from 2 on" in finding.message and f"{log.slot}/4" in finding.message


def test_a_record_that_its_own_slot_wrote_anew(log: Log) -> None:
    log.forge(range(3, 4), event="nothing happened")
    assert log.verify("fresh") == {"4": "audit-damaged"}


def test_a_record_that_another_slot_wrote(log: Log) -> None:
    """It follows, and it is signed; the signature is another's."""
    with log.open() as repo:
        repo.enrol("owner", SECOND, name="Jaya Patel")
    number = len(list(log.folder.iterdir()))
    with pb.Repository.open(log.path, SECOND, state_dir=log.root / "second") as other:
        previous = stored_hash(log.folder / str(number - 1))
        record = Audit(number, previous, now_ns(), None, "tick", "done", "", None, {})
        other._unlocked.put(Kind.AUDIT, f"audit/{log.slot}/{number}", record)
        assert other._unlocked.get(Kind.AUDIT, f"audit/{log.slot}/{number}", Audit).record == record
    assert log.verify() == {str(number): "audit-damaged"}


def test_records_of_a_slot_that_nobody_is(log: Log) -> None:
    stranger = log.path / "audit" / ("ab" * 16)
    shutil.copytree(log.folder, stranger)
    with log.open() as repo:
        report = repo.audit_verify()
        assert {finding.subject for finding in report.findings} == {
            f"audit/{stranger.name}/{number}" for number in range(RECORDS)
        }
        assert {record.slot for record in repo.audit() if record.event == "unreadable"} == {"nobody (abababab)"}


def test_what_cannot_be_read_is_there_in_the_log_as_such(log: Log) -> None:
    _flip(log.folder / "3")
    with log.open() as repo:
        records = list(repo.audit())
    assert len(records) == RECORDS
    (unreadable,) = [record for record in records if record.event == "unreadable"]
    assert unreadable.id == f"{log.slot[:8]}/3" and unreadable.outcome == "damaged"


# ------------------------------------------------------------ what this machine remembers


@pytest.mark.parametrize("cut", [1, 3, RECORDS])
def test_records_that_were_cut_off(log: Log, cut: int) -> None:
    for number in range(RECORDS - cut, RECORDS):
        (log.folder / str(number)).unlink()
    assert log.verify("fresh") == {}  # nothing tells whoever has never been here
    shutil.rmtree(log.folder)
    assert log.verify() == {str(RECORDS - 1): "audit-truncated"}


def test_a_chain_goes_on_after_it_was_cut_off_and_the_gap_stays(log: Log) -> None:
    for number in (6, 7):
        (log.folder / str(number)).unlink()
    (log.root / "documents").mkdir()
    with log.open() as repo:
        report = repo.backup([pb.Files(log.root / "documents")])
        (finding,) = [item for item in report.findings if item.code == "audit-truncated"]
        assert "number 7, is gone" in finding.message
        assert report.audit_id == f"{log.slot[:8]}/8"
    assert log.verify("fresh") == {"7": "audit-damaged"}
    assert log.verify() == {"7": "audit-damaged"}


def test_a_chain_that_was_written_anew_with_the_slots_own_key(log: Log) -> None:
    """All is whole and follows: only who saw it before can tell."""
    log.forge(range(4, RECORDS + 4))
    assert log.verify("fresh") == {}
    (log.root / "documents").mkdir()
    with log.open() as repo:
        report = repo.backup([pb.Files(log.root / "documents")])
        assert "audit-forked" in {finding.code for finding in report.findings}
        assert "audit-forked" in {finding.code for finding in repo.check().findings}
    assert log.verify()["7"] == "audit-forked"  # it does not forget when it has gone on
    with log.open() as repo:
        repo.record("tick", {})
    assert log.verify()["7"] == "audit-forked"


def test_who_verifies_remembers_all_slots(log: Log) -> None:
    with log.open() as repo:
        repo.enrol("owner", SECOND, name="Jaya Patel")
    with pb.Repository.open(log.path, SECOND, state_dir=log.root / "second") as other:
        assert other.audit_verify().state == "ok"
    shutil.rmtree(log.folder)
    with pb.Repository.open(log.path, SECOND, state_dir=log.root / "second") as other:
        (finding,) = other.audit_verify().findings
        assert finding.code == "audit-truncated" and log.slot in finding.subject and "owner" in finding.message


def test_what_is_remembered_that_cannot_be_read_is_nothing(log: Log) -> None:
    for path in (log.root / "state").rglob(auditlocal.HEADS):
        path.write_bytes(b"x" * 100)
    assert log.verify() == {}


def test_a_storage_that_was_turned_back(log: Log) -> None:
    shutil.copytree(log.path, log.root / "before")
    with log.open() as repo:
        Log.write(repo, 3)
    shutil.rmtree(log.path)
    (log.root / "before").rename(log.path)
    assert log.verify() == {str(RECORDS + 2): "audit-truncated"}


# ------------------------------------------------------------ anchors


@pytest.fixture
def anchor(log: Log) -> AuditAnchor:
    with log.open() as repo:
        made = AuditAnchor.from_dict(json.loads(json.dumps(repo.audit_anchor().to_dict())))
        assert dataclasses.replace(repo.audit_anchor(), time=made.time) == made
        assert [(head.slot, head.number) for head in made.heads] == [("owner", RECORDS - 1)]
        repo._journal._told = True
    return made


def test_an_anchor_of_what_is_there(log: Log, anchor: AuditAnchor) -> None:
    with log.open() as repo:
        Log.write(repo, 3)
    assert log.verify("fresh", anchors=[anchor]) == {}


def test_an_anchor_of_what_was_cut_off(log: Log, anchor: AuditAnchor) -> None:
    (log.folder / str(RECORDS - 1)).unlink()
    assert log.verify("fresh", anchors=[anchor]) == {str(RECORDS - 1): "audit-truncated"}


def test_an_anchor_of_what_was_written_anew(log: Log, anchor: AuditAnchor) -> None:
    log.forge(range(2, RECORDS + 2))
    assert log.verify("fresh", anchors=[anchor]) == {str(RECORDS - 1): "audit-forked"}


def test_an_anchor_of_a_chain_that_begins_anew(log: Log, anchor: AuditAnchor) -> None:
    """That it is not longer than before helps nobody; and of one whose last record stayed, the first tells."""
    data = (log.folder / str(RECORDS - 1)).read_bytes()
    log.forge(range(RECORDS))
    (log.folder / str(RECORDS - 1)).write_bytes(data)
    found = log.verify("fresh", anchors=[anchor])
    assert found == {"0": "audit-forked", str(RECORDS - 1): "audit-damaged"}


def test_an_anchor_of_another_repository(log: Log, anchor: AuditAnchor, tmp_path: Path) -> None:
    with pb.Repository.create(tmp_path / "other", SECOND) as other, pytest.raises(pb.InvalidInput) as caught:
        other.audit_verify(anchors=[anchor])
    assert "another repository" in str(caught.value)


def test_an_anchor_can_be_kept_in_another_repository(log: Log, anchor: AuditAnchor, tmp_path: Path) -> None:
    with pb.Repository.create(tmp_path / "other", SECOND) as other:
        other.record("anchor", anchor.to_dict())
        (kept,) = [record.facts for record in other.audit() if record.event == "anchor"]
    (log.folder / str(RECORDS - 1)).unlink()
    found = log.verify("fresh", anchors=[AuditAnchor.from_dict(kept)])
    assert found == {str(RECORDS - 1): "audit-truncated"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: None,
        lambda facts: [facts],
        lambda facts: facts | {"repository": "x"},
        lambda facts: facts | {"time": "2027-01-01T00:00:00"},
        lambda facts: facts | {"heads": [{}]},
        lambda facts: facts | {"heads": [facts["heads"][0] | {"number": "7"}]},
        lambda facts: facts | {"heads": [facts["heads"][0] | {"number": -1}]},
        lambda facts: facts | {"heads": [facts["heads"][0] | {"hash": "zz"}]},
        lambda facts: facts | {"heads": [facts["heads"][0] | {"first": 7}]},
        lambda facts: {key: value for key, value in facts.items() if key != "heads"},
    ],
)
def test_what_is_no_anchor(anchor: AuditAnchor, spoil: Callable[[Any], Any]) -> None:
    with pytest.raises(pb.InvalidInput) as caught:
        AuditAnchor.from_dict(spoil(anchor.to_dict()))
    assert caught.value.remedy


# ------------------------------------------------------------ two places


def test_replicas_have_chains_of_their_own(log: Log) -> None:
    with (
        log.open() as repo,
        pb.Repository.create(log.root / "replica", PASSPHRASE, replica_of=repo) as replica,
    ):
        repo.copy(replica)
        assert repo.audit_verify(replicas=[replica]).findings == ()
        assert replica.audit_verify(replicas=[repo]).findings == ()


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_copied_folder_that_was_written_to_in_both_places(log: Log, more: int) -> None:
    shutil.copytree(log.path, log.root / "copy")
    with pb.Repository.open(log.root / "copy", PASSPHRASE, state_dir=log.root / "there") as there:
        if not more:
            there._journal._told = True
            assert log.verify(replicas=[there]) == {}
            return
        Log.write(there, more)
        with log.open() as here:
            Log.write(here, 3)
        assert log.verify(replicas=[there]) == {str(RECORDS): "audit-forked"}


def test_another_repository_is_no_replica(log: Log, tmp_path: Path) -> None:
    with (
        pb.Repository.create(tmp_path / "other", SECOND) as other,
        log.open() as repo,
        pytest.raises(pb.InvalidInput),
    ):
        repo.audit_verify(replicas=[other])


# ------------------------------------------------------------ who was revoked


def test_what_a_revoked_slot_wrote_before_stays_and_what_it_writes_after_is_found(log: Log) -> None:
    with log.open() as repo:
        repo.enrol("owner", SECOND, name="Jaya Patel")
    other = pb.Repository.open(log.path, SECOND, state_dir=log.root / "second")
    other.record("before", {})
    slot = other._unlocked.keyring.slot
    with log.open() as repo:
        revoked = keys.Revoked(now_ns(), "lost", b"")
        enrolment.change_roster(
            repo._unlocked,
            lambda roster: replace(
                roster,
                slots=tuple(replace(one, revoked=revoked) if one.id == slot else one for one in roster.slots),
            ),
        )
        assert repo.audit_verify().findings == ()
    newest = read_rosters(other._unlocked.storage, other._unlocked.repository)  # as software that does not care
    other._unlocked.rosters, other._unlocked.roster = newest.hashes, newest.newest
    other.record("after", {})
    with log.open() as repo:
        (finding,) = repo.audit_verify().findings
        assert finding.subject == f"audit/{slot.hex()}/1" and "revoked" in finding.message
    other._unlocked.storage.close()


# ------------------------------------------------------------ any of it


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pharmabackup.crypto.passphrases.MEMORY_KIB", 64)
        patch.setattr("pharmabackup.crypto.passphrases.ITERATIONS", 1)
        yield Log(tmp_path_factory.mktemp("log"))


DEEDS = st.one_of(
    st.tuples(st.just("delete"), st.integers(0, RECORDS - 1)),
    st.tuples(st.just("flip"), st.integers(0, RECORDS - 1), st.integers(0, 10_000)),
    st.tuples(st.just("copy"), st.integers(0, RECORDS - 1), st.integers(0, RECORDS + 3)),
    st.tuples(st.just("swap"), st.integers(0, RECORDS - 1), st.integers(0, RECORDS - 1)),
)


@settings(max_examples=60)
@given(st.lists(DEEDS, max_size=4))
def test_whatever_is_done_to_the_objects_is_found_and_what_is_whole_is_not_blamed(
    built: Log, deeds: list[tuple[Any, ...]]
) -> None:
    """Against what was there before, by whoever remembers the last record."""
    whole = {number: (built.folder / str(number)).read_bytes() for number in range(RECORDS)}
    now = dict(whole)
    for deed in deeds:
        what, one = deed[0], deed[1]
        if one not in now:
            continue
        if what == "delete":
            del now[one]
        elif what == "flip":
            data = bytearray(now[one])
            data[deed[2] % len(data)] ^= 1
            now[one] = bytes(data)
        elif what == "copy":
            now[deed[2]] = now[one]
        elif deed[2] in now:
            now[one], now[deed[2]] = now[deed[2]], now[one]
    with built.open() as repo:
        unlocked = repo._unlocked
        try:
            for number in {*whole, *now}:
                path = built.folder / str(number)
                path.unlink(missing_ok=True)
                if number in now:
                    path.write_bytes(now[number])
            found = {f.subject.rpartition("/")[2] for f in Chains(unlocked, lambda: None).findings("critical")}
        finally:
            for path in built.folder.iterdir():
                path.unlink()
            for number, data in whole.items():
                (built.folder / str(number)).write_bytes(data)
            repo._journal._told = True
    changed = {number for number in {*whole, *now} if whole.get(number) != now.get(number)}
    assert bool(found) == bool(changed)
    last = max(now, default=-1)
    for number in changed:  # each that is there is named; of a stretch that is missing, its last
        if number in now:
            assert str(number) in found
    missing = [number for number in range(last) if number not in now and number + 1 in now]
    assert {str(number) for number in missing} <= found
    blamed = {int(number) for number in found} - changed
    assert all(number - 1 in changed or number not in now for number in blamed)
