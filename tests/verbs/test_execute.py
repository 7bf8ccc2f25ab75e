"""What a collection deletes is what its record `execute` says, whoever wrote that; without it nothing is gone."""

from __future__ import annotations

from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import StorageFailed
from pharmabackup.format.transaction import Execute
from pharmabackup.format.wire import Kind
from pharmabackup.verbs import prune as prunes
from tests.verbs.site import Site, Time, forget_all_but, only_before, prune, stored


def test_who_loses_the_race_for_it_obeys_it(
    repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other collector has found that everything is still needed."""
    forget_all_but(repo, 1, time)
    before, real = set(stored(repo._unlocked.storage, "packs")), Unlocked.put

    def put(unlocked: Unlocked, kind: Kind, name: str, record: Any) -> Any:
        if kind == Kind.EXECUTE:
            real(unlocked, kind, name, Execute(record.number, b"", b""))
        return real(unlocked, kind, name, record)

    with monkeypatch.context() as patch:
        patch.setattr(Unlocked, "put", put)
        prune(repo)
    assert before <= set(stored(repo._unlocked.storage, "packs"))


def test_what_was_only_condemned_is_not_gone_yet(
    repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_all_but(repo, 1, time)
    proposal = repo.propose_prune()
    with monkeypatch.context() as patch, pytest.raises(StorageFailed):
        patch.setattr(prunes, "finish", only_before(prunes.finish))
        repo.apply(proposal)
    assert stored(repo._unlocked.storage, "collections") == ["collections/1/condemn"]
    assert load_history(repo._unlocked).deleted == set()
    repo.apply(repo.propose_prune())
    gone = {ids.hex_tail(f"snapshots/{snapshot.id}") for snapshot in proposal.snapshots}
    assert gone and load_history(repo._unlocked).deleted == gone
