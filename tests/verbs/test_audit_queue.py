"""What becomes of audit records that storage does not take, when processes die, and when several write at once."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.engine import audit as audit_engine
from pharmabackup.engine import auditlocal
from pharmabackup.engine.statefolder import AUDIT_QUEUE
from pharmabackup.storage.base import ObjectInfo
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.testing.simulated import SimulatedStorage
from pharmabackup.testing.simulation import Simulation
from tests.storage.mounts import tmpfs
from tests.verbs.faults import BusyStorage, Dead, DyingStorage, Refusing
from tests.verbs.site import PASSPHRASE, open_at, twin

SECRET = "correct horse battery staple"


def told(repo: pb.Repository) -> list[tuple[str, str]]:
    return [(record.event, record.outcome) for record in repo.audit()]


def codes(report: pb.Report) -> set[str]:
    return {finding.code for finding in report.findings} - {"same-device"}


def _twin(storage: MemoryStorage) -> MemoryStorage:
    """The same objects at the same place, as far as this machine can tell, to be written to apart."""
    made = twin(storage)
    made.location = storage.location
    return made


def _open(tmp_path: Path, state: str = "state", **words: Any) -> pb.Repository:
    return pb.Repository.open("memory://x", PASSPHRASE, state_dir=tmp_path / state, **words)


# ------------------------------------------------------------ the queue


def test_what_storage_does_not_take_waits_and_goes_before_the_next(
    tmp_path: Path, refusing: Refusing, documents: Path
) -> None:
    refusing.refuses = True
    with _open(tmp_path, actor="Sam Okafor", reason="disk failed") as repo:
        report = repo.backup([pb.Files(documents)])
        assert codes(report) == {"audit-queued"} and report.audit_id is None and report.state == "warning"
        report = repo.restore(tmp_path / "out")
        (finding,) = report.findings
        assert finding.severity == "warning" and ": 3. It is full." in finding.message and finding.remedy
        repo.record("trial", {"rows": 1})  # it waits as well, without an error
        assert told(repo) == [("create", "done")]
    refusing.refuses = False
    with _open(tmp_path) as repo:
        report = repo.check()
        assert codes(report) == set() and report.audit_id is not None
        expected = [
            ("create", "done"),
            ("backup", "done"),
            ("restore", "begun"),
            ("restore", "done"),
            ("trial", "done"),
        ]
        assert told(repo) == [*expected, ("check", "done")]
        records = list(repo.audit())
        assert [record.actor for record in records] == [None, *["Sam Okafor"] * 4, None]
        assert [record.time for record in records] == sorted(record.time for record in records)
        assert repo.audit_verify().state == "ok"


def test_what_waits_can_be_read_by_nobody_else(tmp_path: Path, refusing: Refusing) -> None:
    refusing.refuses = True
    with _open(tmp_path, actor="Sam Okafor") as repo:
        repo.record("trial", {"a": "a clear word"})
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert any(AUDIT_QUEUE in path.parts for path in files)
    for path in files:
        assert b"clear word" not in path.read_bytes() and b"Okafor" not in path.read_bytes()


def test_what_was_changed_in_the_queue_is_not_delivered_and_stays_a_finding(
    tmp_path: Path, refusing: Refusing
) -> None:
    refusing.refuses = True
    with _open(tmp_path) as repo:
        repo.record("one", {})
        repo.record("two", {})
        names = auditlocal.queued(repo._unlocked)
        first = repo._unlocked.queue / names[0]
        data = bytearray(first.read_bytes())
        data[-1] ^= 1
        first.write_bytes(data)
        refusing.refuses = False
        assert codes(repo.check()) == {"audit-queued"}
        assert [event for event, _ in told(repo)] == ["create", "two", "check"]
        first.rename(first.with_name(names[1]))  # nor does one pass for another
        assert auditlocal.waiting(repo._unlocked, names[1]) is None


def test_a_long_queue_is_delivered_in_parts(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_engine, "AT_ONCE", 4)
    refusing.refuses = True
    with _open(tmp_path) as repo:
        for number in range(10):
            repo.record("tick", {"number": number})
        refusing.refuses = False
        assert codes(repo.check()) == {"audit-queued"}
        assert codes(repo.check()) == {"audit-queued"}
        assert codes(repo.check()) == set()
        assert [r.facts["number"] for r in repo.audit() if r.event == "tick"] == list(range(10))
        assert told(repo)[-3:] == [("check", "done")] * 3


def test_a_medium_that_cannot_be_written_to(tmp_path: Path, documents: Path, cheap_kdf: None) -> None:
    """A restore from it works, and its record waits until there is somewhere to put it."""
    with tmpfs("20m") as disk:
        state = tmp_path / "state"
        with pb.Repository.create(disk / "repository", PASSPHRASE, state_dir=state) as repo:
            repo.backup([pb.Files(documents)])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pb.Repository.open(disk / "repository", PASSPHRASE, state_dir=state, actor="Sam") as repo:
            report = repo.restore(tmp_path / "out")
            assert (tmp_path / "out" / "documents" / "file").read_text() == "content"
            assert codes(report) == {"audit-queued"}
            assert repo.snapshot().open("file").read() == b"content"
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with pb.Repository.open(disk / "repository", PASSPHRASE, state_dir=state) as repo:
            repo.snapshots()
        with pb.Repository.open(disk / "repository", PASSPHRASE, state_dir=state) as repo:
            assert told(repo)[2:] == [
                *[("restore", "begun"), ("restore", "done"), ("read", "begun"), ("read", "done"), ("open", "done")]
            ]
            assert repo.audit_verify().state == "ok"


def test_without_the_state_folder_no_more_is_lost_than_what_waits(tmp_path: Path, refusing: Refusing) -> None:
    with _open(tmp_path) as repo:
        repo.record("one", {})
        refusing.refuses = True
        repo.record("lost", {})
    shutil.rmtree(tmp_path / "state")
    refusing.refuses = False
    with _open(tmp_path) as repo:
        repo.record("two", {})
        assert [event for event, _ in told(repo)] == ["create", "one", "two"]
        assert repo.audit_verify().state == "ok"


def test_who_cannot_sign_keeps_his_records_here(tmp_path: Path, refusing: Refusing) -> None:
    """Nothing that he could do: it is no warning."""
    with _open(tmp_path) as repo:
        repo._unlocked.keyring = replace(repo._unlocked.keyring, signing=None)
        report = repo.check()
        assert [(item.code, item.severity) for item in report.findings] == [("audit-queued", "info")]
        assert report.state == "ok" and report.audit_id is None
        assert told(repo) == [("create", "done")]


def test_a_storage_that_cannot_create_exclusively(tmp_path: Path, documents: Path) -> None:
    """One computer writes there; what it finds there it does not replace."""
    with Simulation(tmp_path / "state") as simulation:
        storage = SimulatedStorage(clock=simulation.clock, exclusive=False)
        simulation.create(storage)
        for device in ("one", "two", "one", "two"):  # the second does not know how far the first has come
            with simulation.open(storage, device=device) as repo:
                repo.record(device, {})
        with simulation.open(storage, device="one") as repo:
            assert [event for event, _ in told(repo)] == ["create", "one", "two", "one", "two"]
            assert repo.audit_verify().state == "ok"


def test_whoever_can_write_to_the_storage_stops_nobody_with_a_name(tmp_path: Path, refusing: Refusing) -> None:
    with _open(tmp_path) as repo:
        repo.record("one", {})
        folder = f"audit/{repo._unlocked.keyring.slot.hex()}"
    for name in ("thumbs.db", "007", "2", "3", "999999999999999999"):
        refusing.put_new(f"{folder}/{name}", b"x")
    for state in ("state", "fresh"):
        with _open(tmp_path, state) as repo:
            assert codes(repo.check()) >= {"audit-damaged"}
            assert list(repo.audit())[-1].event in ("check", "unreadable")
        assert any(record.event == "check" for record in repo.audit())
    with _open(tmp_path, "third") as repo:
        repo.record("after", {})
        assert "after" in [event for event, _ in told(repo)]


# ------------------------------------------------------------ deaths


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("state", ["remembers", "is new"])
def test_the_storage_dies_at_any_call(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch, after: bool, state: str
) -> None:
    """Each record is in the chain in the end, once, whenever that was."""
    with _open(tmp_path) as repo:
        repo.record("before", {})
    base = refusing.inner
    assert isinstance(base, MemoryStorage)
    for dies_at in range(30):
        inner = _twin(base)
        dying = DyingStorage(inner)
        folder = tmp_path / f"state-{dies_at}"
        if state == "remembers":
            shutil.copytree(tmp_path / "state", folder)
        with open_at(monkeypatch, dying, folder) as repo:
            dying.arm(dies_at, after=after)
            repo.record("one", {})
            reached = dying.calls > dies_at
            dying.arm(-1, after=False)
            repo.record("two", {})
            assert [event for event, _ in told(repo)] == ["create", "before", "one", "two"]
            assert repo.audit_verify().state == "ok"
        if not reached:
            break
    else:
        raise AssertionError("it never came through")
    assert dies_at > 4


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_verb_whose_record_cannot_be_written_is_done_all_the_same(
    tmp_path: Path, refusing: Refusing, documents: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Whichever of its last calls the refusing dies at."""
    assert isinstance(refusing.inner, MemoryStorage)
    base = _twin(refusing.inner)
    shutil.copytree(tmp_path / "state", tmp_path / "empty")
    with _open(tmp_path) as repo:
        refusing.log.clear()
        repo.backup([pb.Files(documents)])
        calls = [call.partition(" ")[2].startswith("audit/") for call in refusing.log]
        first = calls.index(True)
    done = 0
    for dies_at in range(first - 1, len(calls) + 2):
        dying = DyingStorage(_twin(base))
        shutil.copytree(tmp_path / "empty", tmp_path / f"s-{dies_at}")
        with open_at(monkeypatch, dying, tmp_path / f"s-{dies_at}") as repo:
            dying.arm(dies_at, after=after)
            try:
                report = repo.backup([pb.Files(documents)])
            except Dead:
                continue
            finally:
                dying.arm(-1, after=False)
            done += 1
            assert codes(report) <= {"audit-queued"}
            repo.check()
            assert [event for event, _ in told(repo)] == ["create", "backup", "check"]
    assert done >= 5


WORKER = """
import sys
import pharmabackup as pb
secret, url, state, count, name = sys.argv[1:]
with pb.Repository.open(url, pb.Passphrase(secret), state_dir=state) as repo:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        repo.record(name, {"number": number})
        print(number, flush=True)
"""


def _worker(where: Path, state: Path, count: int, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WORKER, SECRET, str(where), str(state), str(count), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def _go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_a_killed_process_leaves_a_chain_that_goes_on(tmp_path: Path, cheap_kdf: None) -> None:
    """What it said was recorded is; the one that was under way is there once, or not at all."""
    where, state = tmp_path / "repository", tmp_path / "state"
    pb.Repository.create(where, PASSPHRASE, state_dir=state).close()
    said = 0
    for turn in range(6):
        with _worker(where, state, 10_000, f"turn-{turn}") as process:
            _go(process)
            assert process.stdout is not None
            for _ in range(3 + 7 * turn):
                said = int(process.stdout.readline())
            process.kill()
        assert process.returncode == -signal.SIGKILL
        with pb.Repository.open(where, PASSPHRASE, state_dir=state) as repo:
            numbers = [record.facts["number"] for record in repo.audit() if record.event == f"turn-{turn}"]
            assert numbers == list(range(len(numbers))) and len(numbers) > said
            assert codes(repo.check()) == set()
            assert repo.audit_verify().findings == ()


@pytest.mark.parametrize("state", ["shared", "separate"])
def test_processes_of_one_slot_at_once(tmp_path: Path, cheap_kdf: None, state: str) -> None:
    where, count = tmp_path / "repository", 40
    pb.Repository.create(where, PASSPHRASE, state_dir=tmp_path / "state-0").close()
    folders = [tmp_path / ("state-0" if state == "shared" else f"state-{number}") for number in range(3)]
    running = [_worker(where, folder, count, f"worker-{number}") for number, folder in enumerate(folders)]
    for process in running:
        _go(process)
    for process in running:
        process.communicate(timeout=60)
        assert process.returncode == 0
    with pb.Repository.open(where, PASSPHRASE, state_dir=tmp_path / "state-0") as repo:
        assert codes(repo.check()) == set()  # and delivers what had to wait, if anything had
        found = Counter(record.event for record in repo.audit())
        waiting = sum(len(list(folder.rglob(f"{AUDIT_QUEUE}/*/*-*"))) for folder in {*folders} - {folders[0]})
        assert sum(found[f"worker-{number}"] for number in range(3)) + waiting == 3 * count
        for number in range(3):
            told = [r.facts["number"] for r in repo.audit() if r.event == f"worker-{number}"]
            assert told == sorted(told) and len(set(told)) == len(told)
        assert repo.audit_verify().findings == ()


def test_another_process_writes_between_any_two_calls(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And many records at once, so that the next number is far away."""
    base = refusing.inner
    assert isinstance(base, MemoryStorage)
    with _open(tmp_path) as repo:
        repo.record("before", {})
    for others in (1, 200):
        for at in range(12):
            inner = _twin(base)
            other = open_at(monkeypatch, inner, tmp_path / f"other-{at}-{others}")

            def meanwhile(other: pb.Repository = other, others: int = others) -> None:
                for _ in range(others):
                    other.record("other", {})

            busy = BusyStorage(inner, meanwhile)
            shutil.copytree(tmp_path / "state", tmp_path / f"state-{at}-{others}")
            repo = open_at(monkeypatch, busy, tmp_path / f"state-{at}-{others}")
            busy.interrupt(at)
            repo.record("one", {})
            repo.record("two", {})
            assert busy.interrupted
            calls = busy.calls
            events = [event for event, _ in told(repo)]
            assert Counter(events) == {"create": 1, "before": 1, "one": 1, "two": 1, "other": others}
            assert repo.audit_verify().findings == ()
            if others > 1:
                assert calls < 60  # the other's do not count


def test_what_waits_is_delivered_once_by_two_processes(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share the state folder, and both find the queue; the second comes between any two calls of the first."""
    refusing.refuses = True
    with _open(tmp_path) as repo:
        for number in range(3):
            repo.record("queued", {"number": number})
    base = refusing.inner
    assert isinstance(base, MemoryStorage)
    for at in range(25):
        inner = _twin(base)
        folder = tmp_path / f"state-{at}"
        shutil.copytree(tmp_path / "state", folder)
        other = open_at(monkeypatch, inner, folder)
        busy = BusyStorage(inner, lambda other=other: other.record("other", {}))
        repo = open_at(monkeypatch, busy, folder)
        busy.interrupt(at)
        repo.record("one", {})
        events = [(record.event, record.facts.get("number")) for record in repo.audit()]
        assert events[1:4] == [("queued", 0), ("queued", 1), ("queued", 2)], at  # whatever is newer comes after them
        assert sorted(event for event, _ in events[4:]) == ["one", "other"][: len(events) - 4]
        assert auditlocal.queued(repo._unlocked) == []
        assert repo.audit_verify().findings == ()


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends meanwhile"])
def test_while_another_process_delivers_what_is_newer_waits_behind(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """Not for long, since it may have been stopped: the next record of anybody takes it along."""
    refusing.refuses = True
    with _open(tmp_path) as repo:
        repo.record("older", {})
        refusing.refuses = False
        with auditlocal.delivering(repo._unlocked) as may, monkeypatch.context() as patch:
            assert may
            if ends:
                turns = iter([False, True])
                patch.setattr(auditlocal, "try_lock", lambda _: next(turns))
            report = repo.check()
        if ends:
            assert codes(report) == set() and report.audit_id == list(repo.audit())[-1].id
        else:
            assert codes(report) == {"audit-queued"} and report.audit_id is None
            assert "Another process" in report.findings[0].message
            assert told(repo) == [("create", "done")]
        repo.record("newer", {})
        assert [event for event, _ in told(repo)] == ["create", "older", "check", "newer"]
        assert auditlocal.queued(repo._unlocked) == [] and repo.audit_verify().findings == ()


def test_json_of_a_report_says_which_record(tmp_path: Path, refusing: Refusing) -> None:
    with _open(tmp_path) as repo:
        report = repo.check()
        assert json.loads(json.dumps(report.to_dict()))["audit_id"] == list(repo.audit())[-1].id


class Late(DyingStorage):
    """Does not list these yet, though they are there."""

    hidden: frozenset[str] = frozenset()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return (info for info in super().list(prefix) if info.name not in self.hidden)


@pytest.mark.parametrize("hidden", [{2}, {4, 5}, {0, 1}, {0, 3, 5}, set(range(6))], ids=str)
def test_what_is_only_not_listed_is_not_missing(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch, hidden: set[int]
) -> None:
    """Others write while refusing lists, and some storages list late."""
    with _open(tmp_path) as repo:
        for number in range(5):
            repo.record("tick", {"number": number})
        slot = repo._unlocked.keyring.slot.hex()
    late = Late(refusing.inner)
    late.hidden = frozenset(f"audit/{slot}/{number}" for number in hidden)
    with open_at(monkeypatch, late, tmp_path / "state") as repo:
        assert codes(repo.check()) == set()
        late.hidden |= {f"audit/{slot}/6"} if len(hidden) == 6 else set()
        assert repo.audit_verify().findings == ()
        if len(hidden) < 6:
            assert [record.event for record in repo.audit()][:6] == ["create", *["tick"] * 5]
        last = auditlocal.load(repo._unlocked)[slot][-1].number
        late.hidden = frozenset(f"audit/{slot}/{number}" for number in range(3, last + 1))
        assert not late.inner.delete([f"audit/{slot}/4"])[f"audit/{slot}/4"]
        assert [finding.subject for finding in repo.audit_verify().findings] == [f"audit/{slot}/4"]
        assert auditlocal.load(repo._unlocked)[slot][-1].number > last


def test_what_is_remembered_stays_small(tmp_path: Path, refusing: Refusing) -> None:
    """One record of a chain that was found whole is enough; what contradicts a chain stays."""
    with _open(tmp_path) as repo:
        slot = repo._unlocked.keyring.slot.hex()
        for number in range(5):
            repo.record("tick", {"number": number})
        assert [pin.number for pin in auditlocal.load(repo._unlocked)[slot]] == [5]
        true = auditlocal.load(repo._unlocked)[slot][0]
        auditlocal.remember(repo._unlocked, slot, auditlocal.Pin(3, b"\1" * 32), ())
        auditlocal.remember(repo._unlocked, slot, true, (true,))
        assert [pin.number for pin in auditlocal.load(repo._unlocked)[slot]] == [3, 5]
        assert {finding.code for finding in repo.audit_verify().findings} == {"audit-forked"}
        assert {pin.number for pin in auditlocal.load(repo._unlocked)[slot]} >= {3}


def test_a_queue_that_cannot_be_emptied_is_not_delivered_again_and_again(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state folder has become read-only: new records go to refusing all the same."""
    refusing.refuses = True
    with _open(tmp_path) as repo:
        repo.record("queued", {})
        refusing.refuses = False
        monkeypatch.setattr(auditlocal, "delivering", lambda _: nullcontext(None))
        for _ in range(3):
            report = repo.check()
            assert codes(report) == {"audit-queued"} and report.audit_id is not None
        assert [event for event, _ in told(repo)] == ["create", "check", "check", "check"]
