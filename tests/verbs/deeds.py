"""What can be done with a repository: each public verb, who may do it, and what is so afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.format.wire import Kind
from pharmabackup.results import RecoveryDrill
from tests.verbs.ailing import QUIET, pages
from tests.verbs.crew import MARKER, ROLES, Crew, unchecked

EVERYBODY = frozenset(ROLES)
OWNERS = frozenset({"owner", "recovery"})
READERS = OWNERS | {"restorer"}
WRITERS = OWNERS | {"device"}
CARERS = OWNERS | {"maintainer"}
NEW = pb.Passphrase("another horse battery staple")
Shown = Callable[[Crew, Any], object]


@dataclass(frozen=True)
class Row:
    """One deed: the public verbs that it is made of, who may do it, and what is so afterwards."""

    name: str
    verbs: str
    who: frozenset[str]
    do: Callable[[Crew, pb.Repository], Any]
    shown: Shown
    before: Callable[[Crew], object] = lambda _: None  # by owners
    looks: bool = False  # it writes nothing, and shows nothing that lies under another key than the catalogue's
    open: Callable[[Crew, str], pb.Repository] = Crew.open


# ------------------------------------------------------------ deeds


def _documents(repo: pb.Repository, at: int = 0) -> pb.Snapshot:
    return repo.snapshots("documents")[at]


def _same(crew: Crew, out: Path) -> None:
    """The newest of each dataset is there, byte for byte."""
    ward = crew.ward
    for dataset in ("documents", "pmr"):
        state = ward.states[crew.owner().snapshot(dataset).id]
        found = {path.name: path for path in (out / dataset).iterdir()}
        assert found.keys() == state.keys()
        for name, path in found.items():
            assert state[name] == (pages(path) if dataset == "pmr" else path.read_bytes())


def _restore(crew: Crew, repo: pb.Repository) -> Path:
    out = crew.ward.root / "out"
    repo.restore(out)
    return out


def _names(crew: Crew, repo: pb.Repository) -> set[str]:
    return {entry.path for entry in _documents(repo).glob()}


def _letter(crew: Crew, repo: pb.Repository) -> bytes:
    with _documents(repo).open("letter") as file:
        return file.read()


def _asked(_: Crew, repo: pb.Repository) -> int:
    database = repo.snapshot("pmr").connect()
    try:
        [(count,)] = database.execute("SELECT count(*) FROM patient")
    finally:
        database.close()
    return int(count)


def _letter_by_path(crew: Crew, repo: pb.Repository) -> bytes:
    found: bytes = _documents(repo).filesystem().cat_file("letter")
    return found


def _is_letter(crew: Crew, content: bytes) -> None:
    assert content == MARKER * 5000


def _back_up(crew: Crew, repo: pb.Repository) -> pb.Report:
    crew.ward.change(9)
    return repo.backup(crew.ward.sources())


def _backed_up(crew: Crew, report: pb.Report) -> None:
    owner, snapshot = crew.owner(), report.datasets["documents"].snapshot
    assert snapshot is not None and snapshot.id == owner.snapshot("documents").id
    _as_documents_are(crew)


def _as_documents_are(crew: Crew) -> None:
    """The newest snapshot of the documents is as they are."""
    owner = crew.owner()
    owner.restore(crew.ward.root / "there", snapshots=[owner.snapshot("documents")])
    found = {path.name: path.read_bytes() for path in (crew.ward.root / "there" / "documents").iterdir()}
    assert found == {path.name: path.read_bytes() for path in crew.ward.documents.iterdir()}


def _follow(crew: Crew, repo: pb.Repository) -> object:
    crew.ward.change(9)
    stop = threading.Event()

    def listen(event: pb.Event) -> None:
        if event.kind == "finished":
            stop.set()

    return repo.follow(crew.ward.sources(), cancel=stop, progress=listen)


def _followed(crew: Crew, it: Any) -> None:
    assert it.snapshots == len(crew.ward.sources())
    _as_documents_are(crew)


def _across(crew: Crew, repo: pb.Repository) -> pb.Report:
    with pb.Repository.create(crew.ward.root / "other", NEW, state_dir=crew.ward.root / "others") as other:
        return repo.copy(other)


def _went_across(crew: Crew, report: pb.Report) -> None:
    with pb.Repository.open(crew.ward.root / "other", NEW, state_dir=crew.ward.root / "others") as other:
        assert len(other.snapshots()) == len(crew.ward.states)
        other.restore(crew.ward.root / "there")
    _same(crew, crew.ward.root / "there")


def _make_replica(crew: Crew) -> None:
    state = crew.ward.root / "state of owner"
    pb.Repository.create(crew.replica, crew.credential("owner"), replica_of=crew.ward.repo, state_dir=state).close()


def _replicate(crew: Crew, repo: pb.Repository) -> str:
    role = "recovery" if repo.slot == "recovery" else repo.slot.removeprefix("the ")
    there = crew.open(role, crew.replica)
    if repo._unlocked.keyring.role == there.role:
        repo.copy(there)
    else:
        with unchecked(there):
            repo.copy(there)
    return role


def _replicated(crew: Crew, role: str) -> None:
    there = crew.owner(crew.replica)
    if role == "device":  # it has backed up nothing, and brings nothing of others
        assert there.snapshots() == []
        return
    assert len(there.snapshots()) == len(crew.ward.states)
    there.restore(crew.ward.root / "there")
    _same(crew, crew.ward.root / "there")


def _create_replica(crew: Crew, repo: pb.Repository) -> None:
    """It has the keys of the first and none of its content."""
    role = "recovery" if repo.slot == "recovery" else repo.slot.removeprefix("the ")
    state = crew.ward.root / "state of it"
    with pb.Repository.create(crew.replica, crew.credential(role), replica_of=repo, state_dir=state) as there:
        assert (there.id, there.role, there.snapshots()) == (repo.id, repo.role, [])


def _propose_forget(crew: Crew, repo: pb.Repository) -> pb.Proposal:
    return repo.propose_forget(snapshots=[_documents(repo, 1)])


def _forget(crew: Crew, repo: pb.Repository) -> pb.Report:
    """What an owner has proposed: only what is done is judged."""
    return repo.apply(_propose_forget(crew, crew.owner()))


def _forgot(crew: Crew, report: pb.Report) -> None:
    assert _documents(crew.owner(), 1).forget_at is not None


def _prune(crew: Crew, repo: pb.Repository) -> pb.Report:
    return repo.apply(crew.owner().propose_prune())


def _pruned(crew: Crew, report: pb.Report) -> None:
    owner = crew.owner()
    gone = {snapshot.id for snapshot in owner.snapshots() if snapshot.forgotten}
    assert len(gone) == 1 and crew.ward.names("collections")
    assert crew.ward.whole(owner) == set(crew.ward.states) - gone


def lose_segment(crew: Crew) -> None:
    name = crew.ward.pack_of(Kind.DATA_BLOCK, part="large")
    crew.ward.flip(name, crew.ward.regions(name)["filler"])
    crew.ward.lose(crew.ward.names("index")[0])


def _repair(crew: Crew, repo: pb.Repository) -> pb.Report:
    return repo.apply(crew.owner().propose_repair())


def _repaired(crew: Crew, report: pb.Report) -> None:
    owner = crew.owner()
    assert {found.code for found in owner.check(read_data=1.0).findings} <= QUIET | {"index-stale"}
    assert crew.ward.whole(owner) == set(crew.ward.states)


def lose_letter(crew: Crew) -> None:
    crew.ward.flip(*crew.ward.block_of(crew.ward.repo.snapshot("documents"), "letter"))


def _repair_anew(crew: Crew, repo: pb.Repository) -> pb.Proposal:
    proposal = repo.propose_repair(sources=crew.ward.sources())
    repo.apply(proposal)
    return proposal


def _repaired_anew(crew: Crew, proposal: pb.Proposal) -> None:
    assert proposal.steps
    assert crew.ward.whole(crew.owner()) == set(crew.ward.states)


def _recalled(crew: Crew, result: object) -> None:
    assert _documents(crew.owner(), -2).forget_at is None


def _held(crew: Crew, result: object) -> None:
    assert _documents(crew.owner()).held


def _released(crew: Crew, result: object) -> None:
    assert not _documents(crew.owner(), -1).held


def _enrolled(crew: Crew, result: object) -> None:
    with pb.Repository.open(crew.ward.path, NEW, state_dir=crew.ward.root / "hers") as opened:
        assert opened.role == "owner"
        opened.restore(crew.ward.root / "there")
    _same(crew, crew.ward.root / "there")


def _revoke(crew: Crew, repo: pb.Repository) -> None:
    repo.revoke("a till", reason="stolen")


def _enrol_till(crew: Crew) -> None:
    crew.ward.repo.enrol("device", NEW, name="a till")


def _revoked(crew: Crew, result: object) -> None:
    with pytest.raises(pb.WrongCredential, match="stolen"):
        pb.Repository.open(crew.ward.path, NEW)


def _split(crew: Crew, shares: tuple[str, ...]) -> None:
    with pb.Repository.open(crew.ward.path, pb.Shares(*shares[:2]), state_dir=crew.ward.root / "safe") as opened:
        opened.restore(crew.ward.root / "there")
    _same(crew, crew.ward.root / "there")


def _drilled(crew: Crew, result: RecoveryDrill) -> None:
    assert (result.state, result.shares, len(result.datasets)) == ("ok", (2, 3), 2)
    assert [record.outcome for record in crew.owner().audit() if record.event == "drill"] == ["done"]


def _with_passphrase(crew: Crew, role: str) -> pb.Repository:
    """In a slot whose passphrase can be changed."""
    given = pb.Passphrase(f"a {role} that has a passphrase")
    crew.ward.repo.enrol(role, given, name=f"a {role} with a passphrase")  # type: ignore[arg-type]
    return crew.open_with(given, f"state of {role}")


def _changed(crew: Crew, result: object) -> None:
    with pb.Repository.open(crew.ward.path, NEW, state_dir=crew.ward.root / "hers") as opened:
        assert opened.slot == "a owner with a passphrase"
    with pytest.raises(pb.WrongCredential):
        pb.Repository.open(crew.ward.path, pb.Passphrase("a owner that has a passphrase"))


def _rotated(crew: Crew, result: object) -> None:
    assert len(crew.owner()._unlocked.roster.generations) == 3


def _reseal(crew: Crew, repo: pb.Repository) -> pb.Report:
    return repo.apply(crew.owner().propose_reseal())


def _resealed(crew: Crew, report: pb.Report) -> None:
    owner = crew.owner()
    assert not owner.propose_reseal().steps
    assert crew.ward.whole(owner) == set(crew.ward.states)


def _sound(crew: Crew, report: pb.Report) -> None:
    assert {found.code for found in report.findings} <= QUIET


def _compare(crew: Crew, repo: pb.Repository) -> pb.Comparison:
    return repo.compare(crew.open("owner", crew.replica))


def later(crew: Crew) -> None:
    """What was to be forgotten may be deleted by now: the row's test has the clock."""


def _is(expected: Callable[[Crew], object]) -> Shown:
    def shown(crew: Crew, result: object) -> None:
        assert result == expected(crew)

    return shown


def _recorded(crew: Crew) -> None:
    assert [record.facts for record in crew.ward.repo.audit() if record.event == "trial"] == [{"rows": 1}]


ROWS = (
    Row("open", "open close", EVERYBODY, lambda _, repo: repo.close(), lambda *_: None, looks=True),
    Row("create a replica", "create", EVERYBODY, _create_replica, lambda *_: None, looks=True),
    Row(
        "list", "snapshots", EVERYBODY, lambda _, repo: {it.id for it in repo.snapshots()},
        _is(lambda crew: set(crew.ward.states)), looks=True,
    ),
    Row(
        "look at one", "snapshot Snapshot.to_dict", EVERYBODY,
        lambda _, repo: repo.snapshot("documents").to_dict()["dataset"], _is(lambda _: "documents"), looks=True,
    ),
    Row("check", "check", EVERYBODY, lambda _, repo: repo.check(), _sound, looks=True),
    Row("check all data", "check", EVERYBODY, lambda _, repo: repo.check(read_data=1.0), _sound, looks=True),
    Row(
        "slots", "slots", EVERYBODY, lambda _, repo: len(repo.slots()), _is(lambda _: 1 + len(ROLES)), looks=True
    ),
    Row(
        "rules", "rules", EVERYBODY, lambda _, repo: repo.rules().forget_quorum, _is(lambda _: 1), looks=True
    ),
    Row(
        "compare", "compare", EVERYBODY, lambda crew, repo: len(_compare(crew, repo).only_here),
        _is(lambda crew: len(crew.ward.states)), before=_make_replica, looks=True,
    ),
    Row(
        "audit", "audit", EVERYBODY, lambda _, repo: {record.slot for record in repo.audit()} >= {"owner"},
        _is(lambda _: True), looks=True,
    ),
    Row(
        "verify the audit log", "audit_verify audit_anchor", EVERYBODY,
        lambda _, repo: (repo.audit_verify().state, repo.audit_anchor().repository), _is(
            lambda crew: ("ok", crew.ward.repo.id)
        ), looks=True,
    ),
    Row(
        "record", "record", EVERYBODY, lambda _, repo: repo.record("trial", {"rows": 1}),
        lambda crew, _: _recorded(crew),
    ),
    Row("restore", "restore", READERS, _restore, _same),
    Row("glob", "Snapshot.glob", READERS, _names, _is(lambda crew: set(os.listdir(crew.ward.documents)))),
    Row("open a file", "Snapshot.open", READERS, _letter, _is_letter),
    Row("as a file system", "Snapshot.filesystem", READERS, _letter_by_path, _is_letter),
    Row(
        "table", "Snapshot.table", READERS,
        lambda _, repo: sum(1 for _ in repo.snapshot("pmr").table("patient")), _is(lambda _: 3000),
    ),
    Row("SQL", "Snapshot.connect", READERS, _asked, _is(lambda _: 3000)),
    Row("copy to another repository", "copy", READERS, _across, _went_across),
    Row("back up", "backup", WRITERS, _back_up, _backed_up),
    Row("follow", "follow", WRITERS, _follow, _followed),
    Row("copy to a replica", "copy", WRITERS | CARERS, _replicate, _replicated, before=_make_replica),
    Row("propose a forget", "propose_forget", CARERS, _propose_forget, lambda _, it: _one(it.snapshots), looks=True),
    Row("forget", "apply", CARERS, _forget, _forgot),
    Row(
        "propose a prune", "propose_prune", CARERS, lambda _, repo: repo.propose_prune(),
        lambda _, it: _one(it.snapshots), before=later, looks=True,
    ),
    Row("prune", "apply", CARERS, _prune, _pruned, before=later),
    Row(
        "propose a repair", "propose_repair", CARERS, lambda _, repo: repo.propose_repair(),
        lambda _, it: _some(it.steps), before=lose_segment, looks=True,
    ),
    Row("repair", "apply", CARERS, _repair, _repaired, before=lose_segment),
    Row("repair from sources", "propose_repair apply", OWNERS, _repair_anew, _repaired_anew, before=lose_letter),
    Row(
        "recall", "recall", CARERS, lambda _, repo: repo.recall(_documents(repo, -2), reason="needed"), _recalled
    ),
    Row(
        "hold", "hold", EVERYBODY - {"auditor"}, lambda _, repo: repo.hold(_documents(repo), reason="dispute"), _held
    ),
    Row(
        "release", "release", CARERS, lambda _, repo: repo.release(_documents(repo, -1), reason="settled"), _released
    ),
    Row("enrol", "enrol", OWNERS, lambda _, repo: repo.enrol("owner", NEW, name="Jaya Patel"), _enrolled),
    Row("revoke", "revoke", OWNERS, _revoke, _revoked, before=_enrol_till),
    Row("split the recovery key", "split_recovery", OWNERS, lambda _, repo: repo.split_recovery(), _split),
    Row(
        "change the passphrase", "change_passphrase", OWNERS, lambda _, repo: repo.change_passphrase(NEW), _changed,
        open=_with_passphrase,
    ),
    Row(
        "drill the recovery key", "drill_recovery_key", EVERYBODY,  # what is opened the shares open
        lambda crew, repo: repo.drill_recovery_key(pb.Shares(*crew.shares[1:])), _drilled,
    ),
    Row(
        "look at one share", "check_share", EVERYBODY,  # and who has no key at all
        lambda crew, repo: pb.Repository.check_share(crew.ward.path, crew.shares[0]).current, _is(lambda _: True),
        looks=True,
    ),
    Row("rotate", "rotate", OWNERS, lambda _, repo: repo.rotate(reason="somebody left"), _rotated),
    Row(
        "configure", "configure", OWNERS, lambda _, repo: repo.configure(forget_delay=timedelta(0), forget_quorum=1),
        lambda crew, _: _is(lambda _: timedelta(0))(crew, crew.owner().rules().forget_delay),
    ),
    Row(
        "propose to seal anew", "propose_reseal", OWNERS, lambda _, repo: repo.propose_reseal(),
        lambda _, it: _some(it.steps), looks=True,
    ),
    Row("seal anew", "apply", OWNERS, _reseal, _resealed),
)  # fmt: skip


def _one(found: tuple[object, ...]) -> None:
    assert len(found) == 1


def _some(found: tuple[object, ...]) -> None:
    assert found
