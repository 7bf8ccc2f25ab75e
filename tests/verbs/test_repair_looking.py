"""How a repair looks: what fails, what is read how often, what it keeps, and that it can be watched and stopped."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine import hunting, taking
from pharmabackup.engine.index import Index
from pharmabackup.format.wire import Kind
from pharmabackup.sources.base import Sink, View
from pharmabackup.storage.local import LocalStorage
from pharmabackup.verbs import repair_proposal
from tests.verbs.ailing import Ward


class Failing(pb.Files):
    """Hands everything over, and fails then."""

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:
        return self._failing(super().view(scratch=scratch))

    @contextmanager
    def _failing(self, inner: AbstractContextManager[View]) -> Iterator[View]:
        with inner as view:
            dump = view.dump

            def failing(sink: Sink) -> object:
                dump(sink)
                raise pb.SourceFailed("The share went away.", dataset=self.name)

            view.dump = failing  # type: ignore[method-assign, assignment]
            yield view


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object was read whole."""
    found, get = Counter[str](), LocalStorage.get

    def counting(self: LocalStorage, name: str, *, limit: int) -> bytes:
        found[name] += 1
        return get(self, name, limit=limit)

    monkeypatch.setattr(LocalStorage, "get", counting)
    return found


def _as_maintainer(ward: Ward, patch: pytest.MonkeyPatch, **changes: object) -> None:
    unlocked = ward.repo._unlocked
    patch.setattr(unlocked, "keyring", replace(unlocked.keyring, role="maintainer", readers=(), **changes))


# ------------------------------------------------------------ sources that fail


@pytest.mark.parametrize("how", ["missing", "half"])
def test_a_source_that_fails_stops_nothing(ward: Ward, replica: pb.Repository, how: str) -> None:
    """What a replica and other sources have is mended all the same."""
    mine, at = ward.block_of(ward.repo.snapshots("documents")[-1], "large")
    other, there = ward.block_of(ward.repo.snapshots("pmr")[-1], "pmr.db")
    assert mine != other
    ward.flip(mine, at)
    ward.flip(other, there)
    (ward.root / "replica" / mine).unlink()
    bad = pb.Files(ward.root / "nowhere") if how == "missing" else Failing(ward.documents, name="share")
    given = [bad, pb.SQLite(ward.root / "first.db"), pb.Files(ward.documents)]
    proposal = ward.mend(replicas=[replica], sources=given)
    found = {finding.code: finding for finding in proposal.findings}
    assert set(found) == {"dataset-failed"} and found["dataset-failed"].subject == bad.name
    assert any("made anew" in step for step in proposal.steps)
    ward.all_is_well()


def test_nothing_is_made_of_what_a_source_may_not_have_handed_over(ward: Ward) -> None:
    ward.flip(*ward.block_of(ward.repo.snapshots("documents")[-1], "large"))
    proposal = ward.mend(sources=[Failing(ward.documents)])
    assert not any("made anew" in step for step in proposal.steps)
    assert {"dataset-failed", "snapshot-damaged"} <= {finding.code for finding in proposal.findings}


def test_a_source_that_fails_when_it_is_applied(ward: Ward) -> None:
    """Why is said."""
    ward.flip(*ward.block_of(ward.repo.snapshots("documents")[-1], "large"))
    proposal = ward.repo.propose_repair(sources=ward.sources())
    assert any("made anew" in step for step in proposal.steps)
    ward.documents.rename(ward.root / "away")
    with pytest.raises(pb.Conflict) as caught:
        ward.repo.apply(proposal)
    assert caught.value.kind == "proposal-stale" and "does not exist" in caught.value.message


def test_who_cannot_use_sources_is_told_first(
    ward: Ward, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _as_maintainer(ward, patch, naming=())
        with pytest.raises(pb.NotPermitted):
            ward.repo.propose_repair(sources=ward.sources())
    assert {name.partition("/")[0] for name in reads} == {"audit"}  # that it was refused


# ------------------------------------------------------------ what is read how often, and kept


def test_who_may_not_read_reads_a_changed_pack_once_more(
    ward: Ward, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each of its blocks."""
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)["data block"])
    with monkeypatch.context() as patch:
        _as_maintainer(ward, patch)
        reads.clear()
        ward.repo.propose_repair()
    assert reads[name] == 1


def test_names_and_segments_are_read_once(ward: Ward, reads: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many packs that do not say themselves any more what they held."""
    for day in range(10, 14):
        ward.change(day)
        ward.back_up()
    ward.reopen()
    names = Counter[bytes]()
    read_names = taking.read_names

    def counting(unlocked: object, digest: bytes, directory: object) -> list[bytes]:
        names[digest] += 1
        return read_names(unlocked, digest, directory)  # type: ignore[arg-type]

    monkeypatch.setattr(taking, "read_names", counting)
    for name in ward.names("packs"):
        regions = ward.regions(name)
        ward.flip(name, regions["data block"])
        ward.flip(name, regions["manifest block"])
        ward.flip(name, regions["directory"])
    reads.clear()
    ward.repo.propose_repair()
    before = {name: reads[name] for name in ward.names("index")}
    reads.clear()
    names.clear()
    ward.repo.propose_repair(sources=ward.sources())
    assert set(names.values()) == {1} and len(names) > 2
    assert all(reads[name] <= count + 2 for name, count in before.items())  # and for what this machine remembers


def test_a_hunt_keeps_no_runs(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    finish = hunting._HuntingSink.finish

    def keeping(self: hunting._HuntingSink) -> None:
        finish(self)
        kept.append(len(self._contents.runs))

    monkeypatch.setattr(hunting._HuntingSink, "finish", keeping)
    ward.flip(*ward.block_of(ward.repo.snapshots("documents")[-1], "large"))
    ward.mend(sources=ward.sources())
    assert len(kept) >= 4 and not any(kept)


def test_a_replicas_history_is_read_once(ward: Ward, replica: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    load_history = repair_proposal.load_history
    monkeypatch.setattr(
        repair_proposal, "load_history", lambda *given: (loaded.append(given), load_history(*given))[1]
    )
    assert not ward.repo.propose_repair(replicas=[replica]).steps
    assert len(loaded) == 1


def test_what_the_index_said_is_read_from_each_pack_once_when_it_is_applied(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it was lost."""
    ward.lose(*ward.names("index"))
    ward.reopen()
    proposal = ward.repo.propose_repair()
    read, get_range = [0], LocalStorage.get_range

    def counting(self: LocalStorage, name: str, offset: int, length: int) -> bytes:
        read[0] += length * name.startswith("packs/")
        return get_range(self, name, offset, length)

    monkeypatch.setattr(LocalStorage, "get_range", counting)
    ward.repo.apply(proposal)
    assert read[0] < 1.2 * sum((ward.path / name).stat().st_size for name in ward.names("packs"))


# ------------------------------------------------------------ what is lost, and to whom


def test_a_forgotten_snapshot_can_still_be_called_back(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what it lost is told, in less words."""
    documents = ward.repo.snapshots("documents")
    ward.repo.apply(ward.repo.propose_forget(snapshots=[documents[-1]]))
    later = now_ns() + 60 * 86400 * 10**9
    monkeypatch.setattr("pharmabackup.engine.history.now_ns", lambda: later)
    ward.flip(*ward.block_of(documents[-1], "large"))
    found = [finding for finding in ward.repo.propose_repair().findings if finding.code == "snapshot-damaged"]
    assert {finding.subject for finding in found if finding.severity == "critical"} == {
        snapshot.id for snapshot in documents[:-1]
    }
    (forgotten,) = (finding for finding in found if finding.severity == "warning")
    assert forgotten.subject == documents[-1].id and "(forgotten; it could be called back)" in forgotten.message


# ------------------------------------------------------------ what nobody can read


def test_an_unreadable_pack_stays_while_something_is_lost(ward: Ward) -> None:
    """What it held is nowhere said any more: it may be just that."""
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.cut(name, (ward.path / name).stat().st_size // 2)
    ward.lose(*ward.names("index"))
    ward.reopen()
    proposal = ward.mend()
    assert {finding.code for finding in proposal.findings} >= {"pack-damaged"}
    assert name in ward.names("packs")


def test_of_what_a_snapshot_needs_whose_list_is_lost_everything_is_moved(ward: Ward) -> None:
    """It may be any block of a damaged pack."""
    before = set(ward.names("packs"))
    ward.change(10)
    ward.back_up()
    newest = ward.repo.snapshot("documents")._committed.snapshot
    index = Index(ward.repo._unlocked, chunks=False)
    index.load()
    table = index.blocks
    number = table.find(newest.table[0].block, newest.domain)
    assert number is not None
    name = ids.pack_name(table.packs[table.pack[number]])
    assert name not in before
    held = {table.ids[other] for other in range(len(table)) if table.pack[other] == table.pack[number]}
    ward.flip(name, table.offset[number] + 50)
    ward.flip(name, ward.regions(name)["filler"])
    proposal = ward.mend()
    assert any(step.startswith(f"{len(held) - 1} blocks are moved") for step in proposal.steps)
    assert "snapshot-lost" in {finding.code for finding in proposal.findings}
    index = Index(ward.repo._unlocked, chunks=False)
    index.load()
    moved = {
        index.blocks.ids[at]
        for at, place in index.blocks.placed()
        if ids.pack_name(index.blocks.packs[place]) != name
    }
    assert held - moved == {table.ids[number]}
    assert name in ward.names("packs")


# ------------------------------------------------------------ watched and stopped


def test_a_proposal_is_watched(ward: Ward) -> None:
    events: list[pb.Event] = []
    ward.repo.propose_repair(progress=events.append)
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished") and "progress" in kinds
    size = sum((ward.path / name).stat().st_size for name in ward.names("packs"))
    assert events[-1].bytes_done == size
    assert {event.bytes_total for event in events if event.kind == "progress"} <= {None, size}


@pytest.mark.parametrize("given", ["nothing", "replica", "sources"])
def test_a_proposal_is_stopped(ward: Ward, replica: pb.Repository, given: str) -> None:
    """At any of its events, when that is asked for."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    ward.flip(name, ward.regions(name)["data block"])
    what = {"replica": {"replicas": [replica]}, "sources": {"sources": ward.sources()}, "nothing": {}}[given]
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(pb.Cancelled):
        ward.repo.propose_repair(cancel=cancel, **what)  # type: ignore[arg-type]
    cancel.clear()
    heard: list[pb.Event] = []

    def stop(event: pb.Event) -> None:
        heard.append(event)
        if event.bytes_done:
            cancel.set()

    with pytest.raises(pb.Cancelled):
        ward.repo.propose_repair(cancel=cancel, progress=stop, **what)  # type: ignore[arg-type]
    assert heard[-1].kind == "progress"
