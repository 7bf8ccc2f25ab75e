"""The audit log: what is recorded of what is done, what is not, and who may not do without a reason."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import clock
from pharmabackup.engine import opening
from pharmabackup.results import AuditRecord
from pharmabackup.verbs import audit as audit_module
from pharmabackup.verbs.journal import EVENTS
from tests.verbs.faults import DyingStorage
from tests.verbs.site import PASSPHRASE, Site, forget_all_but, stops
from tests.verbs.site import Time as StorageTime
from tests.verbs.test_roles import Becomes, become  # noqa: F401  (a fixture)

SECOND = pb.Passphrase("another horse battery staple")
CANARY = "canary-of-a-patient"
MakeRepo = Callable[[], pb.Repository]


def told(repo: pb.Repository) -> list[tuple[str, str]]:
    return [(record.event, record.outcome) for record in repo.audit()]


def last(repo: pb.Repository) -> AuditRecord:
    return list(repo.audit())[-1]


@dataclasses.dataclass
class Dressed:
    name: str


@pytest.fixture
def place(tmp_path: Path, cheap_kdf: None) -> Path:
    """A repository with one snapshot of a folder, and nobody's log yet but for that."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / f"{CANARY}.txt").write_text(f"the {CANARY}'s letter")
    where = tmp_path / "repository"
    with pb.Repository.create(where, PASSPHRASE) as repo:
        repo.backup([pb.Files(tmp_path / "documents")])
    return where


@pytest.fixture
def repo(place: Path) -> Iterator[pb.Repository]:
    with pb.Repository.open(place, PASSPHRASE, actor="Sam Okafor", reason="disk failed") as opened:
        yield opened


def test_each_verb_is_one_record(tmp_path: Path, make_repo: MakeRepo, site: Site, time: StorageTime) -> None:
    repo = make_repo()
    for _ in range(2):
        site.change()
        site.back_up(repo)
    first, second = reversed(repo.snapshots())
    repo.restore(tmp_path / "out", only=["documents/a*", "documents/b"])
    repo.check(read_data=1.0)
    repo.hold(first, reason="a dispute")
    repo.release(first, reason="it is settled")
    repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    repo.recall(first, reason="it is needed")
    forget_all_but(repo, 1, time)
    repo.apply(repo.propose_prune())
    repo.configure(forget_delay=timedelta(days=1))
    repo.rotate(reason="a laptop was lost")
    repo.apply(repo.propose_reseal())
    repo.enrol("owner", SECOND, name="Jaya Patel")
    repo.change_passphrase(pb.Passphrase("a third horse battery staple"))
    repo.apply(repo.propose_repair())
    repo.audit_verify()
    repo.record("trial", {"found": 3})
    repo.close()
    with pb.Repository.open(repo.url, SECOND) as other:
        expected = ["create", "backup", "backup", "restore", "restore", "check", "hold", "release"]
        expected += ["forget", "recall", "forget", "prune", "configure", "rotate", "reseal", "enrol"]
        expected += ["change-passphrase", "repair", "audit-verify", "trial"]
        records = list(other.audit())
    assert [record.event for record in records] == expected
    assert [record.outcome for record in records] == ["done"] * 3 + ["begun"] + ["done"] * 16
    by = {record.event: record for record in records}
    assert by["restore"].facts["patterns"] == 2 and by["restore"].facts["snapshots"] == [second.id]
    assert (by["backup"].facts["files"], by["restore"].facts["files"]) == (5, 2)
    assert by["check"].facts["read_data"] == 1.0 and by["check"].facts["state"] == "ok"
    assert (by["hold"].subject, by["hold"].reason) == (first.id, "a dispute")
    assert (by["rotate"].reason, by["enrol"].subject) == ("a laptop was lost", "Jaya Patel")
    assert (by["recall"].subject, by["recall"].reason) == (first.id, "it is needed")
    assert by["audit-verify"].facts["state"] == "ok"
    assert by["forget"].facts["proposed"] == 1 and by["trial"].facts == {"found": 3}
    assert {record.slot for record in records} == {"owner"}


def test_who_and_why(repo: pb.Repository, tmp_path: Path) -> None:
    report = repo.restore(tmp_path / "out")
    record = last(repo)
    assert (record.actor, record.reason, record.id) == ("Sam Okafor", "disk failed", report.audit_id)
    repo.backup([pb.Files(tmp_path / "documents")], reason="before 9.2")
    assert (last(repo).actor, last(repo).reason) == ("Sam Okafor", "before 9.2")
    assert abs(last(repo).time - datetime.now(UTC)) < timedelta(minutes=5)


def test_an_open_that_only_lists_is_one_record(place: Path) -> None:
    with pb.Repository.open(place, PASSPHRASE) as repo:
        before = told(repo)
        repo.snapshots()
        repo.slots()
        repo.propose_forget({"*": pb.Keep(last=1)})
        assert told(repo) == before
        repo.close()
        assert told(repo) == [*before, ("open", "done")]
        repo.close()
        assert told(repo) == [*before, ("open", "done")]


def test_an_open_that_is_followed_by_a_verb_is_in_that_verbs_record(place: Path) -> None:
    with pb.Repository.open(place, PASSPHRASE) as repo:
        repo.snapshots()
        repo.check()
    assert told(repo)[-2:] == [("backup", "done"), ("check", "done")]


def test_a_look_inside_is_recorded_before_anything_is_handed_out(repo: pb.Repository) -> None:
    snapshot = repo.snapshot()
    names = snapshot.glob()
    assert told(repo)[-1] == ("read", "begun") and last(repo).subject == snapshot.id
    path = next(entry.path for entry in names)
    before = len(told(repo))
    snapshot.open(path).read()
    snapshot.open(path).read()
    snapshot.filesystem()
    assert len(told(repo)) == before  # of one snapshot, one record
    repo.close()
    assert last(repo).facts == {"snapshots": 1, "names": 1, "files": 2, "filesystems": 1}
    assert told(repo)[-1] == ("read", "done")


def test_who_may_not_is_recorded(ward: Any, become: Becomes, tmp_path: Path) -> None:  # noqa: F811
    become("auditor")
    repo = ward.repo
    snapshot = repo.snapshot()
    for what in (
        lambda: repo.restore(tmp_path / "out"),
        lambda: list(snapshot.glob()),
        lambda: repo.backup(ward.sources()),
        lambda: repo.rotate(reason="x"),
        lambda: repo.configure(forget_delay=timedelta(0)),
        lambda: repo.enrol("owner", SECOND, name="x"),
    ):
        with pytest.raises(pb.NotPermitted):
            what()
    refused = [record for record in repo.audit() if record.outcome == "refused"]
    assert [record.event for record in refused] == ["restore", "read", "backup", "rotate", "configure", "enrol"]
    assert {record.facts["error"] for record in refused} == {"role"}
    assert told(repo)[-7] != ("restore", "begun")


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_a_reason_is_required_when_the_owner_says_so(place: Path, tmp_path: Path, reason: str | None) -> None:
    with closing(sqlite3.connect(tmp_path / "pmr.db")) as db:
        db.execute("CREATE TABLE x (id)")
    with pb.Repository.open(place, PASSPHRASE) as owner:
        owner.backup([pb.SQLite(tmp_path / "pmr.db")])
        owner.configure(reason_required=True)
        assert owner.rules().reason_required and "has to say why" in str(owner.rules())
        assert last(owner).subject == "reason_required: True (was False)"
    with pb.Repository.open(place, PASSPHRASE, reason=reason) as repo:
        for what in (
            lambda: repo.restore(tmp_path / "out"),
            lambda: list(repo.snapshot().glob()),
            lambda: repo.snapshot().open("x"),
            lambda: list(repo.snapshot("pmr").table("x")),
            lambda: repo.snapshot().filesystem(),
        ):
            with pytest.raises(pb.NotPermitted) as caught:
                what()
            assert caught.value.kind == "reason-required" and caught.value.remedy
            assert last(repo).outcome == "refused" and last(repo).facts["error"] == "reason-required"
        assert not (tmp_path / "out").exists()
        repo.backup([pb.Files(tmp_path / "documents")])
        assert repo.check().state == "ok"
    with pb.Repository.open(place, PASSPHRASE, reason="disk failed") as repo:
        repo.restore(tmp_path / "out")
        assert list(repo.snapshot("documents").glob()) and not list(repo.snapshot("pmr").table("x"))
        repo.configure(reason_required=False)
    with pb.Repository.open(place, PASSPHRASE) as repo:
        repo.restore(tmp_path / "another")


def test_to_another_repository_content_is_read(place: Path, tmp_path: Path, repo: pb.Repository) -> None:
    """To a replica it is not."""
    with pb.Repository.open(place, PASSPHRASE) as owner:
        owner.configure(reason_required=True)
    with (
        pb.Repository.create(tmp_path / "replica", PASSPHRASE, replica_of=repo) as replica,
        pb.Repository.create(tmp_path / "other", SECOND) as other,
        pb.Repository.open(place, PASSPHRASE) as silent,
    ):
        silent.copy(replica)
        assert last(silent).facts["to"] == silent.id
        with pytest.raises(pb.NotPermitted, match="a reason"):
            silent.copy(other)
        assert (last(other).event, last(other).outcome) == ("copy", "refused")
        report = repo.copy(other)
        assert report.audit_id == last(repo).id and last(repo).facts["to"] == other.id


def test_each_place_of_a_copy_vouches_for_the_other(place: Path, tmp_path: Path, repo: pb.Repository) -> None:
    with pb.Repository.create(tmp_path / "replica", PASSPHRASE, replica_of=repo) as replica:
        repo.copy(replica)
        head = last(replica).facts["head"]
        assert isinstance(head, dict)
        own = next(one for one in repo.audit_anchor().heads if one.slot_id == head["slot"])
        assert (head["number"], head["hash"]) == (own.number, own.hash)
        assert told(replica)[0] == ("create", "done")  # a place's log says what was done there


@pytest.mark.parametrize("propose", ["forget", "prune", "repair", "reseal"])
def test_a_proposal_for_which_the_role_is_not_enough(
    repo: pb.Repository, monkeypatch: pytest.MonkeyPatch, propose: str
) -> None:
    before = told(repo)
    getattr(repo, f"propose_{propose}")()
    assert told(repo) == before  # nothing was done
    monkeypatch.setattr(repo._unlocked, "keyring", replace(repo._unlocked.keyring, role="auditor"))
    with pytest.raises(pb.NotPermitted):
        getattr(repo, f"propose_{propose}")()
    assert told(repo) == [*before, (propose, "refused")]
    assert last(repo).facts == {"error": "role"}
    repo.close()
    assert told(repo) == [*before, (propose, "refused")]  # and no open beside it


def test_a_comparison_is_in_both_places(tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    with pb.Repository.create(tmp_path / "replica", PASSPHRASE, replica_of=repo) as replica:
        repo.compare(replica)
        repo.copy(replica)
        replica.compare(repo)
        for at, first in ((repo, (1, 0)), (replica, (0, 1))):
            facts = [record.facts for record in at.audit() if record.event == "compare"]
            assert [(item["only_here"], item["only_there"]) for item in facts] == [first, (0, 0)]
        with monkeypatch.context() as patch, pytest.raises(pb.StorageFailed):
            patch.setattr(replica._unlocked.storage, "list", stops)
            repo.compare(replica)
        assert told(repo)[-1] == told(replica)[-1] == ("compare", "failed")


def test_the_page_names_what_the_library_records() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]*)\|", page.partition("## What is recorded")[2].partition("**One record")[0], re.M)
    assert set(re.findall(r"`([a-z-]+)`", " ".join(rows))) == EVENTS


def test_what_goes_wrong_is_recorded(repo: pb.Repository, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "documents").mkdir()
    (tmp_path / "full" / "documents" / "mine").write_text("x")
    with pytest.raises(pb.Conflict):
        repo.restore(tmp_path / "full")
    assert (last(repo).outcome, last(repo).facts["error"]) == ("failed", "target-not-empty")
    with pytest.raises(pb.NotFound):
        repo.restore(tmp_path / "out", only=["nothing"])
    assert (last(repo).outcome, last(repo).facts["error"]) == ("failed", "dataset")

    def stop(event: pb.Event) -> None:
        raise RuntimeError(CANARY)

    with pytest.raises(RuntimeError):
        repo.check(progress=stop)
    assert (last(repo).outcome, last(repo).facts["error"]) == ("failed", "exception")
    (tmp_path / "gone").mkdir()
    gone = pb.Files(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pb.Files(tmp_path / "documents"), gone])
    assert last(repo).outcome == "incomplete" and caught.value.result.audit_id == last(repo).id
    assert last(repo).facts["datasets"] == 2 and last(repo).facts["complete"] == 1


def test_what_a_caller_gets_wrong_is_not(repo: pb.Repository) -> None:
    before = told(repo)
    for what in (lambda: repo.backup([]), lambda: repo.check(read_data=7), lambda: repo.rotate(reason=" ")):
        with pytest.raises(pb.InvalidInput):
            what()
    assert told(repo) == before


def test_a_cancelled_verb(repo: pb.Repository, tmp_path: Path) -> None:
    import threading

    cancel = threading.Event()
    cancel.set()
    with pytest.raises(pb.Cancelled):
        repo.restore(tmp_path / "out", cancel=cancel)
    assert told(repo)[-2:] == [("restore", "begun"), ("restore", "cancelled")]


@pytest.mark.parametrize(
    "words", [{"actor": "x" * 4001}, {"reason": "\ud800"}, {"actor": 7}], ids=["long", "no Unicode", "no text"]
)
def test_words_that_cannot_be_recorded_are_refused_before_anything_is_done(place: Path, words: Any) -> None:
    with pytest.raises(pb.InvalidInput) as caught:
        pb.Repository.open(place, PASSPHRASE, **words)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "facts",
    [
        {"deep": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]},
        {1: "x"},
        {"large": "x" * (2 << 20)},
        {str(number): 1 for number in range(1001)},
    ],
    ids=["deep", "a number for a name", "large", "many"],
)
def test_facts_that_cannot_be_recorded_are_refused_and_do_not_wait(repo: pb.Repository, facts: Any) -> None:
    before = told(repo)
    with pytest.raises(pb.InvalidInput):
        repo.record("trial", facts)
    assert told(repo) == before
    facts = {"dataset": "pmr", "rows": 7, "of": [1.5, None, True, "ü", -(1 << 63)], "more": {"a": (1 << 64) - 1}}
    repo.record("trial", facts)
    assert last(repo).facts == facts == json.loads(json.dumps(last(repo).to_dict()))["facts"]


@pytest.mark.parametrize(
    "value",
    [
        datetime(2027, 1, 1, tzinfo=UTC),
        timedelta(days=1),
        math.nan,
        -math.inf,
        b"x",
        {"Jaya"},
        Decimal("1.5"),
        Path("x"),
        Dressed("Jaya"),
        1 << 64,
        -(1 << 63) - 1,
        "\ud800",
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fact_that_is_no_json_is_refused_by_its_key(repo: pb.Repository, value: Any) -> None:
    """Or it would come back as text, a list or a mapping, or make an export that nobody can read."""
    before = told(repo)
    for facts in ({"rows": 1, "of": [{"found": value}]}, {"of": [{"found": (1, value)}]}, {"of": value}):
        with pytest.raises(pb.InvalidInput) as caught:
            repo.record("trial", facts)
        assert "'of" in caught.value.message and caught.value.remedy
        assert "Jaya" not in str(caught.value) and "2027" not in str(caught.value)
    assert told(repo) == before
    with pytest.raises(pb.InvalidInput, match=r"'of\.0\.found'"):
        repo.record("trial", {"rows": 1, "of": [{"found": value}]})


@pytest.mark.parametrize("facts", [None, [("a", 1)], "a", 7])
def test_facts_are_a_mapping(repo: pb.Repository, facts: Any) -> None:
    with pytest.raises(pb.InvalidInput, match="mapping"):
        repo.record("trial", facts)


def test_a_program_does_not_speak_for_the_library(repo: pb.Repository) -> None:
    for event in ("restore", "backup", "open", "drill"):
        with pytest.raises(pb.InvalidInput, match="itself records"):
            repo.record(event, {})
    with pytest.raises(pb.InvalidInput):
        repo.record("", {})


def test_nothing_of_what_is_backed_up_is_in_the_log(
    place: Path, tmp_path: Path, repo: pb.Repository, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither names nor content, whatever was done with it, and whatever went wrong."""
    snapshot = repo.snapshot()
    name = f"{CANARY}.txt"
    repo.restore(tmp_path / f"out-{CANARY}", only=[f"documents/{CANARY}*"])
    list(snapshot.glob(f"*{CANARY}*"))
    snapshot.open(name).read()
    for what in (
        lambda: repo.restore(tmp_path / "x", only=[f"documents/{CANARY}/none"]),
        lambda: snapshot.open(f"{CANARY}/none"),
        lambda: snapshot.table(CANARY),
        lambda: repo.restore(tmp_path / f"out-{CANARY}"),
    ):
        with suppress(pb.Error):
            what()
    pack = max(
        (path for path in (place / "packs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(pack.read_bytes())
    data[40] ^= 1
    pack.write_bytes(data)
    for number, act in enumerate((repo.check, lambda **more: repo.restore(tmp_path / "again", **more))):
        with suppress(pb.Error):
            act(**({"read_data": 1.0} if number == 0 else {}))
    repo.close()
    records = list(repo.audit())
    assert {"restore", "read", "check"} <= {record.event for record in records}
    assert all(CANARY not in json.dumps(record.to_dict()) for record in records)
    assert all(PASSPHRASE._secret not in json.dumps(record.to_dict()) for record in records)


def test_since(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the newest back, past a clock that was wrong for a while; a long log is not read."""
    monkeypatch.setattr(audit_module, "EARLIER", 5)
    begin = clock.now_ns()
    read: list[int] = []
    real = audit_module._shown
    monkeypatch.setattr(
        audit_module,
        "_shown",
        lambda of, chain, number, stored: [read.append(number), real(of, chain, number, stored)][1],
    )
    for number in range(30):
        hours = 0 if number == 22 else number  # it was set back, once
        monkeypatch.setattr("pharmabackup.engine.audit.now_ns", lambda hours=hours: begin + hours * 3600 * 10**9)
        repo.record("tick", {"number": number})
    first = next(record for record in repo.audit() if record.event == "tick")
    found = [record.facts["number"] for record in repo.audit(since=first.time + timedelta(hours=20))]
    assert found == [20, 21, *range(23, 30)]
    read.clear()
    assert [r.facts["number"] for r in repo.audit(since=first.time + timedelta(hours=28))] == [28, 29]
    assert len(set(read)) == 7
    assert len(list(repo.audit(since=first.time - timedelta(days=1)))) == len(list(repo.audit()))
    with pytest.raises(pb.InvalidInput, match="no time zone"):
        list(repo.audit(since=datetime(2027, 1, 1)))


def test_the_logs_of_all_are_told_in_the_order_of_time(place: Path, repo: pb.Repository) -> None:
    repo.enrol("owner", SECOND, name="Jaya Patel")
    with pb.Repository.open(place, SECOND, actor="Jaya Patel") as other:
        for number in range(3):
            repo.record("tick", {"number": 2 * number})
            other.record("tick", {"number": 2 * number + 1})
        ticks = [record for record in other.audit() if record.event == "tick"]
    assert [record.facts["number"] for record in ticks] == list(range(6))
    assert [record.slot for record in ticks] == ["owner", "Jaya Patel"] * 3
    assert len({record.id for record in repo.audit()}) == len(list(repo.audit()))


def test_a_record_costs_a_few_calls_however_long_the_chain_is(
    tmp_path: Path, cheap_kdf: None, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = DyingStorage(memory)
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    with pb.Repository.open("memory://x", PASSPHRASE, state_dir=tmp_path / "state") as repo:
        repo.record("first", {})  # a new machine looks once
        for _ in range(50):
            repo.record("tick", {})
        storage.log.clear()
        repo.record("tick", {})
        log = [call.partition(" ")[0] for call in storage.log]
        assert sorted(log) == ["get", "get_range", "info", "publish", "upload", "write"]
        storage.log.clear()
        repo.snapshots()
        repo.close()
        assert not [call for call in storage.log if call.startswith(("list audit", "publish audit"))]


def test_importing_the_library_does_not_wait_for_the_log() -> None:
    code = "import sys, pharmabackup; sys.exit(any(name.endswith(('audit', 'journal')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
