"""What a check reads of the audit log on a machine that has verified it before, and what it finds all the same."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pharmabackup as pb
from pharmabackup.engine import auditlocal
from pharmabackup.errors import StorageFailed
from pharmabackup.storage.base import ObjectInfo
from pharmabackup.storage.local import LocalStorage
from pharmabackup.verbs import audit_chains, audit_reading
from pharmabackup.verbs.audit_chains import Chains
from pharmabackup.verbs.audit_listing import Chain
from tests.threads import threads_left
from tests.verbs.site import Site
from tests.verbs.test_audit_verify import RECORDS, TAMPERING, Log

SECOND = pb.Passphrase("another horse battery staple")
LATER_NS = 10**9


@pytest.fixture
def log(tmp_path: Path, cheap_kdf: None) -> Log:
    """One that this machine has verified."""
    made = Log(tmp_path)
    assert check(made) == set()
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which records were read by who looks at chains."""
    found: list[int] = []
    real = audit_reading.RecordReader._stored

    def noted(self: audit_reading.RecordReader, name: str) -> Any:
        found.append(int(name.rpartition("/")[2]))
        return real(self, name)

    monkeypatch.setattr(audit_reading.RecordReader, "_stored", noted)
    return found


def check(log: Log, state: str = "state", share: float = 0.0) -> set[tuple[str, str]]:
    """What a check says of this slot's records, each with its code."""
    with log.open(state) as repo:
        findings = repo.check(read_data=share).findings
    return {
        (finding.subject.rpartition("/")[2], finding.code)
        for finding in findings
        if finding.code.startswith("audit-")
    }


def last(log: Log) -> int:
    return max(int(path.name) for path in log.folder.iterdir())


def tell_nothing(log: Log, tamper: Callable[[], object]) -> None:
    """Change what is in some records, and put back when each was written."""
    before = {path: path.stat() for path in log.folder.iterdir()}
    tamper()
    for path, was in before.items():
        assert path.stat().st_size == was.st_size
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ------------------------------------------------------------ what is read


def test_a_check_reads_what_is_new_since_the_last(log: Log, read: list[int]) -> None:
    seen = last(log) - 1  # a check does not see its own record
    for new in (1, 5, 0):
        with log.open() as repo:
            Log.write(repo, new)
        read.clear()
        assert check(log) == set()
        now = last(log) - 1
        assert set(read) == {seen - 1, *range(seen, now + 1)} and len(read) == len(set(read))
        seen = now


def test_without_memory_all_are_read_and_audit_verify_reads_all_always(log: Log, read: list[int]) -> None:
    assert check(log, "fresh") == set()
    assert sorted(read) == list(range(last(log)))
    for _ in range(2):
        read.clear()
        assert log.verify() == {}
        assert sorted(read) == list(range(last(log)))
    read.clear()
    assert check(log) == set()
    assert len(read) == 3  # what audit verify has read counts


def test_shares_of_the_older_records_take_turns(log: Log, read: list[int]) -> None:
    with log.open() as repo:
        Log.write(repo, 22)
    assert check(log) == set()
    old, taken = last(log), set[int]()
    for _ in range(11):
        read.clear()
        assert check(log, share=0.1) == set()
        assert len(read) == len(set(read)) <= 9  # a tenth, what is new, and the one before each
        taken.update(read)
    assert taken >= set(range(old))
    read.clear()
    assert check(log, share=1.0) == set()
    assert sorted(read) == list(range(last(log)))


def test_each_slot_has_a_memory_of_its_own(log: Log, read: list[int]) -> None:
    with log.open() as repo:
        repo.enrol("owner", SECOND, name="Jaya Patel")
    with pb.Repository.open(log.path, SECOND, state_dir=log.root / "second") as other:
        Log.write(other, 6)
        theirs = log.path / "audit" / other._unlocked.keyring.slot.hex()
    assert check(log) == set()
    read.clear()
    assert check(log) == set()
    assert len(read) == 5
    flip(theirs / "2")
    read.clear()
    assert check(log) == {("2", "audit-damaged")}
    assert len(read) == 3 + 6  # the other's all, this one's not


# ------------------------------------------------------------ what is found all the same


@pytest.mark.parametrize("how", list(TAMPERING))
def test_every_check_finds_what_changes_how_records_are_listed(log: Log, how: str) -> None:
    """As whoever has no memory does, and again the next time, when little is read."""
    tamper, expected = TAMPERING[how]
    before = {path.name: path.stat() for path in log.folder.iterdir()}
    tamper(log.folder)
    for path in log.folder.iterdir():  # as time passes between one check and the next
        if path.name not in before or path.stat().st_mtime_ns != before[path.name].st_mtime_ns:
            os.utime(path, ns=(0, path.stat().st_mtime_ns + LATER_NS))
    shutil.copytree(log.root / "state", log.root / "copy")
    found = {(number, code) for number, code in expected.items() if number not in ("10", "11")}  # where chains go on
    for state in ("fresh", "state", "state", "copy"):
        assert check(log, state) >= found


@pytest.mark.parametrize("cut", [1, 3, RECORDS])
def test_every_check_finds_what_was_cut_off(log: Log, cut: int) -> None:
    top = last(log)
    for number in range(top - cut, top + 1):
        (log.folder / str(number)).unlink()
    for path in (log.root / "state").rglob(auditlocal.HEADS):
        path.unlink()  # what was verified tells as well
    with log.open() as repo:
        found = {(finding.code, finding.subject) for finding in repo.check().findings}
        repo._journal._told = True
    assert ("audit-truncated", f"audit/{log.slot}/{top - 1}") in found


def test_every_check_finds_a_chain_that_was_written_anew(log: Log) -> None:
    """Also if each object is as large as it was, and says that it was written when it was."""
    top = last(log)
    before = {path.name: path.stat() for path in log.folder.iterdir()}
    log.forge(range(3, top + 1))
    for name, was in before.items():
        os.utime(log.folder / name, ns=(0, was.st_mtime_ns))
    for _ in range(2):
        assert (str(top - 1), "audit-forked") in check(log)


def test_a_last_record_that_cannot_be_read_is_not_forgotten(log: Log) -> None:
    """When another takes its place, it is another."""
    top = last(log) - 1
    (log.folder / str(top + 1)).unlink()
    tell_nothing(log, lambda: flip(log.folder / str(top)))
    for _ in range(2):
        for path in (log.root / "state").rglob(auditlocal.HEADS):
            path.unlink()  # what was verified tells as well
        assert (str(top), "audit-damaged") in check(log)
        for path in log.folder.iterdir():
            if int(path.name) > top:
                path.unlink()
    log.forge(range(top, top + 1))
    assert (str(top), "audit-forked") in check(log)


def test_what_is_damaged_is_told_by_each_check_and_the_rest_is_not_read_again(log: Log, read: list[int]) -> None:
    flip(log.folder / "3")
    (log.folder / "6").unlink()
    expected = {("3", "audit-damaged"), ("6", "audit-damaged")}
    assert check(log) == expected
    for _ in range(2):
        read.clear()
        assert check(log) == expected
        assert set(read) == {2, 3, *range(last(log) - 3, last(log))}
    flip(log.folder / "3")  # mended
    for _ in range(2):
        assert check(log) == {("6", "audit-damaged")}


def test_where_too_much_is_damaged_all_is_read_each_time(
    log: Log, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditlocal, "BAD_MAX", 2)
    for number in (1, 3, 5):
        flip(log.folder / str(number))
    expected = {(number, "audit-damaged") for number in "135"}
    for _ in range(3):
        read.clear()
        assert check(log) == expected
        assert sorted(read) == list(range(last(log)))


def test_an_old_record_that_is_edited_in_place_is_left_to_those_that_read_it(log: Log) -> None:
    """Its size and time as before: as a failing disk does it, or somebody who sets them. docs/audit.md says so."""
    with log.open() as repo:
        Log.write(repo, 12)
    assert check(log) == set()
    tell_nothing(log, lambda: flip(log.folder / "14"))
    shutil.copytree(log.root / "state", log.root / "verifies")
    assert check(log) == set()
    assert check(log, "fresh") == {("14", "audit-damaged")}
    assert log.verify("verifies") == {"14": "audit-damaged"}
    assert check(log, "verifies") == {("14", "audit-damaged")}
    shares = itertools.takewhile(lambda _: check(log, share=0.2) == set(), range(6))
    assert 0 < len(list(shares)) < 5
    assert check(log) == {("14", "audit-damaged")}  # from then on all say so


def test_an_old_record_that_its_slot_wrote_anew_comes_with_its_share(log: Log) -> None:
    """It is whole itself: that the one after it does not follow tells."""
    with log.open() as repo:
        Log.write(repo, 12)
    assert check(log) == set()
    tell_nothing(log, lambda: log.forge(range(4, 5), event="tock"))
    assert check(log) == set()
    found = [check(log, share=0.1) for _ in range(12)]
    assert {("5", "audit-damaged")} in found
    assert check(log) == {("5", "audit-damaged")}


DEEDS = st.one_of(
    st.tuples(st.just("delete"), st.integers(0, RECORDS)),
    st.tuples(st.just("flip"), st.integers(0, RECORDS)),
    st.tuples(st.just("copy"), st.integers(0, RECORDS), st.integers(0, RECORDS + 3)),
    st.tuples(st.just("swap"), st.integers(0, RECORDS), st.integers(0, RECORDS)),
    st.tuples(st.just("check"), st.floats(0, 1)),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Log:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pharmabackup.crypto.passphrases.MEMORY_KIB", 64)
        patch.setattr("pharmabackup.crypto.passphrases.ITERATIONS", 1)
        return Log(tmp_path_factory.mktemp("log"))


@settings(max_examples=60)
@given(st.lists(DEEDS, max_size=6))
def test_whoever_remembers_finds_what_others_find(built: Log, deeds: list[tuple[Any, ...]]) -> None:
    """Whatever was done, and however many checks came in between: each writing has a time of its own."""
    whole = {path.name: path.read_bytes() for path in built.folder.iterdir()}
    clock = itertools.count(1)

    def put(number: int, data: bytes) -> None:
        path = built.folder / str(number)
        path.write_bytes(data)
        os.utime(path, ns=(0, next(clock) * LATER_NS))

    with built.open() as repo:
        unlocked = repo._unlocked
        repo._journal._told = True
        try:
            for number in range(len(whole)):
                put(number, whole[str(number)])
            shutil.rmtree(unlocked.state, ignore_errors=True)
            assert list(Chains(unlocked, lambda: None, share=0.0).findings("warning")) == []
            for what, *which in deeds:
                at = [built.folder / str(number) for number in which]
                with suppress(FileNotFoundError):
                    if what == "check":
                        list(Chains(unlocked, lambda: None, share=which[0]).findings("warning"))
                    elif what == "delete":
                        at[0].unlink()
                    elif what == "flip":
                        data = bytearray(at[0].read_bytes())
                        data[-1] ^= 1
                        put(which[0], bytes(data))
                    elif what == "copy":
                        put(which[1], at[0].read_bytes())
                    else:
                        one, other = at[0].read_bytes(), at[1].read_bytes()
                        put(which[0], other)
                        put(which[1], one)
            few = {(f.code, f.subject) for f in Chains(unlocked, lambda: None, share=0.0).findings("warning")}
            again = {(f.code, f.subject) for f in Chains(unlocked, lambda: None, share=0.0).findings("warning")}
            every = {(f.code, f.subject) for f in Chains(unlocked, lambda: None).findings("warning")}
        finally:
            shutil.rmtree(built.folder)
            built.folder.mkdir()
            for name, data in whole.items():
                (built.folder / name).write_bytes(data)
    assert few == every == again


# ------------------------------------------------------------ the memory


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_between_verifying_and_remembering_is_harmless(
    log: Log, read: list[int], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class Killed(BaseException):
        pass

    def killed(*given: Any) -> None:
        if when == "after":
            real(*given)
        raise Killed

    real = auditlocal.remember_verified
    with log.open() as repo:
        Log.write(repo, 4)
    flip(log.folder / "3")
    monkeypatch.setattr(auditlocal, "remember_verified", killed)
    with pytest.raises(Killed):
        check(log)
    monkeypatch.setattr(auditlocal, "remember_verified", real)
    read.clear()
    assert check(log) == {("3", "audit-damaged")}
    assert (len(read) < last(log)) == (when == "after")
    assert check(log) == {("3", "audit-damaged")}


@pytest.mark.parametrize("spoil", [b"", b"x" * 200, None], ids=["empty", "other", "cut"])
def test_a_memory_that_cannot_be_read_is_none(log: Log, read: list[int], spoil: bytes | None) -> None:
    (memory,) = (log.root / "state").rglob(auditlocal.VERIFIED)
    memory.write_bytes(memory.read_bytes()[:-1] if spoil is None else spoil)
    tell_nothing(log, lambda: flip(log.folder / "3"))
    assert check(log) == {("3", "audit-damaged")}
    assert sorted(read) == list(range(last(log)))


def test_a_full_state_folder_is_no_memory(log: Log, read: list[int]) -> None:
    with log.open("none") as repo:
        (repo._unlocked.state / auditlocal.VERIFIED).mkdir(parents=True)
    for _ in range(2):
        read.clear()
        assert check(log, "none") == set()
        assert sorted(read) == list(range(last(log)))


def test_a_check_that_storage_ends_remembers_nothing_of_that_chain(
    log: Log, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalStorage.get

    def failing(self: LocalStorage, name: str, *, limit: int) -> bytes:
        if name == f"audit/{log.slot}/5":
            raise StorageFailed("The line is down.", kind="unreachable", location="test")
        return real(self, name, limit=limit)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "get", failing)
        with pytest.raises(StorageFailed, match="The line is down"):
            check(log, "fresh")
    read.clear()
    assert check(log, "fresh") == set()
    assert sorted(read) == list(range(last(log)))


def test_what_storage_does_not_list_yet_is_not_remembered_as_listed(
    log: Log, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or how it is listed later would look like somebody's deed."""
    real, hidden = LocalStorage.list, {f"audit/{log.slot}/6"}

    def late(self: LocalStorage, prefix: str) -> Any:
        return (info for info in real(self, prefix) if info.name not in hidden)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "list", late)
        assert check(log, "other") == set()
    with log.open("other") as repo:
        assert auditlocal.load_verified(repo._unlocked)[log.slot].head.number == 5
    read.clear()
    assert check(log, "other") == set()
    assert set(read) == set(range(4, last(log)))


def test_a_storage_that_lists_a_record_twice_changes_nothing() -> None:
    def info(number: int) -> ObjectInfo:
        return ObjectInfo(name=f"audit/x/{number}", size=number, modified=-number)

    chain, other = Chain("x", "x"), Chain("x", "x")
    for number in (3, 1, 2, 3, 0, 1):
        chain.add(number, info(number))
    for number in range(4):
        other.add(number, info(number))
    chain.sort()
    other.sort()
    assert list(chain.numbers) == list(chain.sizes) == [0, 1, 2, 3]
    assert chain.listed(3) == other.listed(3) != chain.listed(2)


# ------------------------------------------------------------ several at once


def test_records_are_read_several_at_a_time_and_no_more_than_that(
    tmp_path: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request waits until four are under way: one after the other they would never come back."""
    log = Log(tmp_path)
    with log.open() as repo:
        Log.write(repo, 40)
    together, lock, now, most = threading.Barrier(4), threading.Lock(), 0, 0
    real = LocalStorage.get

    def waiting(self: LocalStorage, name: str, *, limit: int) -> bytes:
        nonlocal now, most
        if not threading.current_thread().name.startswith("pharmabackup-reading"):
            return real(self, name, limit=limit)
        with lock:
            now += 1
            most = max(most, now)
        if int(name.rpartition("/")[2]) < 40:
            together.wait(60)
        data = real(self, name, limit=limit)
        with lock:
            now -= 1
        return data

    monkeypatch.setattr(LocalStorage, "get", waiting)
    for look in (lambda: check(log, "fresh"), log.verify, lambda: list(log.open().audit())):
        most = 0
        look()
        assert 4 <= most <= audit_reading.THREADS


@pytest.mark.parametrize("limit", ["AHEAD_BYTES", "groups"])
def test_what_is_read_ahead_is_bounded(
    tmp_path: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch, limit: str, read: list[int]
) -> None:
    log = Log(tmp_path)
    monkeypatch.setattr(audit_reading, "TOGETHER", 1)
    if limit == "AHEAD_BYTES":
        monkeypatch.setattr(audit_reading, "AHEAD_BYTES", 2 * (log.folder / "1").stat().st_size)
    else:
        monkeypatch.setattr(audit_reading, "THREADS", 1)
    with log.open() as repo:
        Log.write(repo, 30)
        for number, _ in enumerate(repo.audit(), 1):
            assert len(read) <= number + 4
        assert len(read) == number


def test_records_are_told_in_order_however_they_come(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of each four comes last."""
    with log.open() as repo:
        Log.write(repo, 40)
    monkeypatch.setattr(audit_reading, "TOGETHER", 1)
    real, done = LocalStorage.get, {number: threading.Event() for number in range(100)}

    def upside_down(self: LocalStorage, name: str, *, limit: int) -> bytes:
        data = real(self, name, limit=limit)
        if threading.current_thread().name.startswith("pharmabackup-reading"):
            number = int(name.rpartition("/")[2])
            if number % 4 == 0 and number < 40:
                done[number + 3].wait(60)
            done[number].set()
        return data

    monkeypatch.setattr(LocalStorage, "get", upside_down)
    with log.open() as repo:
        records = list(repo.audit())
    assert [int(record.id.rpartition("/")[2]) for record in records] == list(range(len(records)))
    assert len(records) > 40


def test_who_stops_listening_leaves_no_thread(log: Log) -> None:
    with log.open() as repo:
        told = repo.audit()
        next(told)
        told.close()  # type: ignore[attr-defined]
    assert not threads_left("pharmabackup-reading")


def test_who_listens_on_after_close_is_told_so_and_nothing_more_is_read(
    log: Log, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_reading, "TOGETHER", 1)
    monkeypatch.setattr(audit_reading, "THREADS", 1)
    with log.open() as repo:
        Log.write(repo, 30)
        told = repo.audit()
        next(told)
    asked = len(read)
    with pytest.raises(pb.InvalidInput, match="was closed"):
        list(told)
    assert not threads_left("pharmabackup-reading")
    assert len(read) == asked < 30


def test_what_several_read_ahead_is_one_share_each(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    real = audit_reading.in_lanes

    def noted(*arguments: Any, at_most: int, **named: Any) -> Any:
        given.append(at_most)
        return real(*arguments, at_most=at_most, **named)

    monkeypatch.setattr(audit_reading, "in_lanes", noted)
    with log.open() as repo:
        repo.enrol("owner", SECOND, name="second")
    with pb.Repository.open(
        log.folder.parent.parent, SECOND, state_dir=log.folder.parent.parent.parent / "x"
    ) as repo:
        repo.check()
        list(repo.audit())
    assert audit_reading.AHEAD_BYTES // 2 in given


def test_a_check_is_cancelled_while_it_reads(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, real = threading.Event(), audit_chains.open_record

    def noted(unlocked: Any, name: str, stored: Any) -> Any:
        if name.endswith("/3"):
            cancel.set()
        return real(unlocked, name, stored)

    monkeypatch.setattr(audit_chains, "open_record", noted)
    with log.open("fresh") as repo, pytest.raises(pb.Cancelled):
        repo.check(cancel=cancel)
    with log.open("fresh") as repo:
        assert auditlocal.load_verified(repo._unlocked) == {}


@pytest.mark.parametrize("verb", ["restore", "look", "close", "enrol"])
def test_the_first_to_notice_that_the_log_was_cut_off_has_it_told(
    repo: pb.Repository, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    """Though its own record is of a beginning, and no report is made of that."""
    site.back_up(repo)
    for number in range(3):
        repo.record("tick", {"number": number})
    storage = repo._unlocked.storage
    assert storage.delete(
        [max((info.name for info in storage.list("audit")), key=lambda name: int(name.rpartition("/")[2]))]
    )
    snapshot = repo.snapshot("documents")
    if verb == "restore":
        report = repo.restore(tmp_path / "out")
        assert "audit-truncated" in {finding.code for finding in report.findings}
        return
    if verb != "enrol":
        list(snapshot.glob("*"))
    else:  # which writes its own record
        repo.enrol("owner", pb.Passphrase("another horse battery staple"), name="second")
    if verb in ("look", "enrol"):
        assert "audit-truncated" in {finding.code for finding in repo.check().findings}
        return
    repo.close()
    assert "that was seen here, number" in caplog.text and "is gone" in caplog.text
