"""A look for garbage that others' collections overtake: it looks again, and calls nothing damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine import garbage
from pharmabackup.engine.garbage import Garbage
from pharmabackup.engine.index import Index
from pharmabackup.verbs import prune as prune_verb
from tests.verbs.site import PASSPHRASE, Site, Time, forget_all_but, prune, stored


def _choose_all(
    garbage: Garbage, unused: dict[bytes, int], content: dict[bytes, int], kept: dict[bytes, list[int]]
) -> None:
    garbage.sparse.update({pack: sorted(kept[pack]) for pack in unused})


def test_what_was_moved_twice_meanwhile_is_not_missing(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index is from before the first collection, and a pack that it lists from before the second."""
    forget_all_but(repo, 1, time)
    monkeypatch.setattr(garbage, "choose_sparse", _choose_all)
    with pb.Repository.open(repo.url, PASSPHRASE, state_dir=tmp_path / "other") as other:
        coming = ["after its index", "before its pack"]
        seen: list[list[str]] = []
        real_load, real_read = Index.load, garbage.read_directory

        def overtaken(when: str) -> None:
            if coming[:1] == [when]:
                coming.pop(0)
                prune(other)
                seen.append(stored(other._unlocked.storage, "packs"))

        def load(index: Index, **options: Any) -> None:
            real_load(index, **options)
            if index._unlocked is repo._unlocked:
                overtaken("after its index")

        def read_directory(unlocked: Any, pack: bytes, size: int) -> Any:
            if unlocked is repo._unlocked:
                overtaken("before its pack")
            return real_read(unlocked, pack, size)

        monkeypatch.setattr(Index, "load", load)
        monkeypatch.setattr(garbage, "read_directory", read_directory)
        assert repo.propose_prune().verb == "prune"
        assert not coming
        assert not set(seen[0]) & set(seen[1])
    site.all_restore(repo, tmp_path / "out")


def test_what_another_collection_has_deleted_meanwhile_is_not_damaged(
    tmp_path: Path, repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that this one wanted to do, which is to move blocks alone, is done then."""
    monkeypatch.setattr(garbage, "choose_sparse", _choose_all)
    proposal, real = repo.propose_prune(), prune_verb.move
    assert proposal.wish.sparse and not proposal.wish.dead  # type: ignore[attr-defined]

    def move(*given: Any) -> Any:
        monkeypatch.setattr(prune_verb, "move", real)
        with pb.Repository.open(repo.url, PASSPHRASE, state_dir=tmp_path / "other") as other:
            prune(other)
        return real(*given)

    monkeypatch.setattr(prune_verb, "move", move)
    assert repo.apply(proposal).findings == ()
    site.all_restore(repo, tmp_path / "out")
