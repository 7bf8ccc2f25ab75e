"""What a collection condemned and that survived: no writer relies on it, and collections do not rely on it either."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine.condemned import burnt_names, shunned_packs
from pharmabackup.engine.packs import PackWriter
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.verbs import prune as prune_verb
from pharmabackup.verbs import reseal as reseal_verb
from tests.verbs.ailing import Ward, a_wrong_bit
from tests.verbs.site import DAY_NS, PASSPHRASE, Site, Time, forget_all_but, prune, stored

MakeRepo = Callable[[], pb.Repository]


def _before(monkeypatch: pytest.MonkeyPatch, verb: Any, act: Callable[[], None]) -> None:
    """Do something else once, between a collector's look and its condemning."""
    real, done = verb.move, list[bool]()

    def move(*given: Any, **named: Any) -> Any:
        if not done:
            done.append(True)
            act()
        return real(*given, **named)

    monkeypatch.setattr(verb, "move", move)


def _rounds(repo: pb.Repository, site: Site, time: Time) -> tuple[list[int], list[int]]:
    """Bytes that each of three backups of a small change adds, and that a prune after each frees."""
    added, freed = [], []
    for _ in range(3):
        (site.root / "note").write_bytes(os.urandom(100))
        snapshot = repo.backup([pb.Files(site.root)]).datasets[site.root.name].snapshot
        assert snapshot is not None
        added.append(snapshot.added)
        time.ahead += 15 * DAY_NS
        freed.append(prune(repo).bytes)
    return added, freed


def _survivors(repo: pb.Repository) -> frozenset[bytes]:
    return shunned_packs(repo._unlocked) - burnt_names(repo._unlocked)


def test_what_a_backup_called_back_is_stored_once_more_and_no_more(
    make_repo: MakeRepo, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was moved away comes back just when what it was in is about to go."""
    repo, big = make_repo(), os.urandom(1_500_000)
    for content in (None, big, None):
        path = site.root / "big"
        path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
        (site.root / "base").write_bytes(os.urandom(1_500_000))
        repo.backup([pb.Files(site.root)])
    repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    time.ahead += 15 * DAY_NS

    def come_back() -> None:
        path.write_bytes(big)
        repo.backup([pb.Files(site.root)])

    _before(monkeypatch, prune_verb, come_back)
    prune(repo)
    assert _survivors(repo)
    added, _ = _rounds(repo, site, time)
    assert added[0] > len(big)
    assert max(added[1:]) < 100_000


@pytest.mark.parametrize("overtaken", [True, False])
def test_what_was_moved_while_another_condemned_is_in_no_index(
    tmp_path: Path, large: pb.Repository, time: Time, monkeypatch: pytest.MonkeyPatch, overtaken: bool
) -> None:
    """The other may have been a repair, and what was moved the damage."""
    repo = large
    forget_all_but(repo, 1, time)
    indexes = list[list[str]]()
    real, real_finish = prune_verb.condemn, PackWriter.finish

    def finish(writer: PackWriter) -> Any:
        monkeypatch.setattr(PackWriter, "finish", real_finish)
        if overtaken:
            with pb.Repository.open(repo.url, PASSPHRASE, state_dir=tmp_path / "other") as second:
                prune(second)
        indexes.append(stored(repo._unlocked.storage, "index"))
        return real_finish(writer)

    def condemn(unlocked: Unlocked, *given: Any) -> bool:
        if unlocked is repo._unlocked:
            indexes.append(stored(unlocked.storage, "index"))
        return real(unlocked, *given)

    monkeypatch.setattr(PackWriter, "finish", finish)
    monkeypatch.setattr(prune_verb, "condemn", condemn)
    prune(repo)
    assert (indexes[1] == indexes[0]) is overtaken


def test_what_was_sealed_anew_beside_a_backup_stays(
    make_repo: MakeRepo, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    (site.root / "base").write_bytes(os.urandom(3_000_000))
    repo.backup([pb.Files(site.root)])
    repo.rotate(reason="a laptop was lost")

    def one_more() -> None:
        (site.root / "more").write_bytes(b"1")
        repo.backup([pb.Files(site.root)])

    _before(monkeypatch, reseal_verb, one_more)
    repo.apply(repo.propose_reseal())
    assert _survivors(repo)
    added, freed = _rounds(repo, site, time)
    assert max(added) < 100_000
    assert sum(freed) > 2_900_000  # the old ones
    assert not {f"packs/{pack.hex()[:2]}/{pack.hex()}" for pack in _survivors(repo)} & set(
        stored(repo._unlocked.storage, "packs")
    )


@pytest.mark.parametrize("unindexed", [False, True])
def test_a_wrong_block_in_a_pack_that_is_as_it_was_written(
    tmp_path: Path, cheap_kdf: None, time: Time, monkeypatch: pytest.MonkeyPatch, unindexed: bool
) -> None:
    """A writer's memory changed a bit. What the next backup stores anew mends old snapshots; a prune keeps that."""
    ward = Ward(tmp_path / "ward")
    with a_wrong_bit(monkeypatch):
        ward.back_up()
    if unindexed:
        ward.lose(*ward.names("index"))
    ward.reopen()
    assert ward.whole() != set(ward.states)
    ward.mend()
    ward.reopen()
    ward.back_up()
    assert ward.whole() == set(ward.states)
    time.ahead += 3 * DAY_NS
    prune(ward.repo)
    ward.reopen()
    assert ward.whole() == set(ward.states)
    ward.repo.close()


def test_a_wrong_block_gets_no_new_name(
    tmp_path: Path, cheap_kdf: None, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pack is what its name says: a bit was wrong before. A repair condemned it; a prune opens nothing."""
    ward = Ward(tmp_path / "ward")
    (ward.documents / "other").write_bytes(os.urandom(3_000_000))
    with a_wrong_bit(monkeypatch):
        ward.back_up(pb.Files(ward.documents))
    (ward.documents / "other").unlink()
    ward.back_up(pb.Files(ward.documents))
    ward.reopen()
    ward.mend()
    survived = shunned_packs(ward.repo._unlocked) - burnt_names(ward.repo._unlocked)
    assert survived
    ward.repo.apply(ward.repo.propose_forget({"*": pb.Keep(last=1)}))
    time.ahead += 20 * DAY_NS
    with pytest.raises(pb.Incomplete):  # the block could not be proved, and its pack was left
        prune(ward.repo)
    assert shunned_packs(ward.repo._unlocked) - burnt_names(ward.repo._unlocked) == survived
    before = set(ward.states)
    ward.reopen()
    ward.back_up(pb.Files(ward.documents))
    assert set(ward.states) - before <= ward.whole()
    ward.repo.close()
