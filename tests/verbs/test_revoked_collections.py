"""What who has the key of a revoked maintainer writes into collections, beside those who may: nothing goes by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import pharmabackup as pb
from pharmabackup import clock, ids
from pharmabackup.engine import garbage
from pharmabackup.engine.condemned import burnt_names, let_go, read_condemned
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.transaction import Condemn, Done, Execute
from pharmabackup.format.wire import Kind
from pharmabackup.verbs import prune as prune_verb
from tests.verbs.ailing import Ward, a_wrong_bit
from tests.verbs.site import DAY_NS, Site, Time, forget_all_but, prune, stored
from tests.verbs.staff import Staff
from tests.verbs.test_shunned import _before

MakeRepo = Callable[[], pb.Repository]
Put = Callable[[Unlocked, Kind, str, Any], Any]


@pytest.fixture
def staff(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Staff]:
    repo = make_repo()
    for _ in range(8):
        site.change()
        site.back_up(repo)
    made = Staff(repo, tmp_path)
    yield made
    made.close()


class Thief:
    """He has a maintainer's key and may add objects. He cites the list of keys of before he was revoked."""

    def __init__(self, staff: Staff) -> None:
        self._unlocked = staff.enrol("maintainer", "the supplier")._unlocked

    def put(self, *records: Condemn | Execute | Done) -> None:
        with mock.patch.multiple(Unlocked, renew=lambda _: None, renewed=lambda *_: False):
            for record in records:
                kind = Kind[type(record).__name__.upper()]
                self._unlocked.put(kind, ids.collection_name(record.number, kind.name.lower()), record)

    def all_of(self, folder: str) -> bytes:
        return b"".join(ids.hex_tail(name) or b"" for name in stored(self._unlocked.storage, folder))


def _meanwhile(monkeypatch: pytest.MonkeyPatch, kind: Kind, act: Callable[[Any], None]) -> None:
    """Do something else once, before somebody creates a record of this kind."""
    real, done = Unlocked.put, list[bool]()

    def put(unlocked: Unlocked, own: Kind, name: str, record: Any) -> Any:
        if own == kind and not done:
            done.append(True)
            act(record)
        return real(unlocked, own, name, record)

    monkeypatch.setattr(Unlocked, "put", put)


def test_nobody_obeys_what_a_thief_executes(
    staff: Staff, site: Site, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He says that all of a collection goes, just before its collector says what a backup has called back."""
    thief = Thief(staff)
    forget_all_but(staff.repo, 1, time)
    staff.repo.revoke("the supplier", reason="stolen")

    def come_back() -> None:
        site.bring_back()
        site.back_up(staff.repo)

    def steal(record: Execute) -> None:
        condemned = staff.repo._unlocked.get(Kind.CONDEMN, ids.collection_name(record.number, "condemn"), Condemn)
        assert 0 < len(record.packs) < len(condemned.record.packs)
        thief.put(Execute(record.number, condemned.record.packs, thief.all_of("index")))

    _before(monkeypatch, prune_verb, come_back)
    _meanwhile(monkeypatch, Kind.EXECUTE, steal)
    before = set(stored(staff.repo._unlocked.storage, "packs"))
    with pytest.raises(pb.Conflict) as caught:  # it begins anew, and finds what was called back
        prune(staff.repo)
    assert caught.value.kind == "proposal-stale"
    assert before <= set(stored(staff.repo._unlocked.storage, "packs"))
    assert "collections/1/done" in stored(staff.repo._unlocked.storage, "collections")
    site.all_restore(staff.repo, tmp_path / "out")
    prune(staff.repo)  # what is needed by nobody goes by a collection of his own
    assert not before <= set(stored(staff.repo._unlocked.storage, "packs"))
    site.all_restore(staff.repo, tmp_path / "again")


def test_what_a_thief_spoilt_is_done_all_the_same(staff: Staff, site: Site, time: Time) -> None:
    """Nobody is told that a prune is done which has deleted nothing."""
    thief = Thief(staff)
    site.change()
    site.back_up(staff.repo)
    forget_all_but(staff.repo, 1, time)
    staff.repo.revoke("the supplier", reason="stolen")
    with pytest.MonkeyPatch.context() as patch:
        _meanwhile(patch, Kind.EXECUTE, lambda record: thief.put(Execute(record.number, record.packs, b"")))
        assert prune(staff.repo).bytes > 0
    done = stored(staff.repo._unlocked.storage, "collections")
    assert {"collections/1/done", "collections/2/done"} <= set(done)


@pytest.mark.parametrize("both", [False, True])
def test_what_a_thief_named_is_not_taken_for_what_a_collection_let_go(
    staff: Staff, site: Site, time: Time, both: bool
) -> None:
    """It is shunned all the same. Only what an honest one let go goes without being condemned again."""
    thief = Thief(staff)
    site.change()
    site.back_up(staff.repo)
    forget_all_but(staff.repo, 1, time)
    staff.repo.revoke("the supplier", reason="stolen")
    unlocked = staff.repo._unlocked
    packs = thief.all_of("packs")
    if both:
        thief.put(Condemn(1, packs, b"", b""))
    else:
        unlocked.put(Kind.CONDEMN, "collections/1/condemn", Condemn(1, packs, b"", b""))
    thief.put(Execute(1, packs, b""))
    assert burnt_names(unlocked) and not let_go(unlocked)


@pytest.mark.parametrize("executed", [False, True])
def test_who_has_not_heard_of_a_revocation_hears_of_it_before_he_finishes(
    staff: Staff, site: Site, tmp_path: Path, executed: bool
) -> None:
    """A proposal lies a day until somebody applies it; the thief says that everything is gone."""
    thief, carer = Thief(staff), staff.enrol("maintainer", "the carer")
    proposal = carer.propose_prune()
    staff.repo.revoke("the supplier", reason="stolen")
    before = stored(staff.repo._unlocked.storage, "packs") + stored(staff.repo._unlocked.storage, "index")
    gone = b"".join(bytes.fromhex(snapshot.id) for snapshot in staff.repo.snapshots())
    thief.put(Condemn(1, thief.all_of("packs"), gone, gone))
    if executed:
        thief.put(Execute(1, thief.all_of("packs"), thief.all_of("index")))
    carer.apply(proposal)
    assert set(before) <= set(stored(staff.repo._unlocked.storage, ""))
    assert "collections/1/done" in stored(staff.repo._unlocked.storage, "collections")
    site.all_restore(staff.repo, tmp_path / "out")


def test_a_collection_is_not_done_before_it_is_decided(
    staff: Staff, site: Site, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody says that it is done while its collector sleeps. Another chooses otherwise where a block stays."""
    thief, carer = Thief(staff), staff.enrol("maintainer", "the carer")
    for _ in range(3):
        site.change(size=1_500_000)
        site.back_up(staff.repo)
    forget_all_but(staff.repo, 1, time)
    staff.repo.revoke("the supplier", reason="stolen")

    def steal(record: Execute) -> None:
        assert record.packs
        thief.put(Done(record.number))
        # Meanwhile so much was stored that nothing is worth moving.
        monkeypatch.setattr("pharmabackup.engine.emptying.UNUSED_SHARE", 1.0)
        prune(carer)

    _meanwhile(monkeypatch, Kind.EXECUTE, steal)
    prune(staff.repo)
    site.all_restore(staff.repo, tmp_path / "out")


def _mended(ward: Ward, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Staff:
    """A bit of a block was wrong when it was stored; a repair has condemned its pack, which survived."""
    with a_wrong_bit(monkeypatch):
        ward.back_up()
    ward.reopen()
    ward.mend()
    return Staff(ward.repo, folder)


def _backs_up(ward: Ward, repo: pb.Repository) -> None:
    own, ward.repo = ward.repo, repo
    ward.back_up()
    ward.repo = own


def _prunes_and_all_is_whole(ward: Ward, staff: Staff, time: Time) -> None:
    time.ahead += 3 * DAY_NS
    for _ in range(2):
        prune(ward.repo)
        assert ward.whole() == set(ward.states)
    staff.close()
    ward.repo.close()


def test_what_mends_a_block_stays_when_its_slot_is_revoked(
    tmp_path: Path, cheap_kdf: None, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup has stored the block anew, from a till that is replaced later."""
    ward = Ward(tmp_path / "ward")
    staff = _mended(ward, monkeypatch, tmp_path)
    _backs_up(ward, staff.enrol("device", "till-1"))
    assert ward.whole() == set(ward.states)
    ward.repo.revoke("till-1", reason="it was replaced")
    _prunes_and_all_is_whole(ward, staff, time)


def test_what_mends_a_block_stays_when_a_thief_condemns_it(
    tmp_path: Path, cheap_kdf: None, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward = Ward(tmp_path / "ward")
    staff = _mended(ward, monkeypatch, tmp_path)
    thief = Thief(staff)
    _backs_up(ward, ward.repo)
    assert ward.whole() == set(ward.states)
    ward.repo.revoke("the supplier", reason="stolen")
    thief.put(Condemn(read_condemned(ward.repo._unlocked).highest + 1, thief.all_of("packs"), b"", b""))
    _prunes_and_all_is_whole(ward, staff, time)


def test_what_mends_a_block_stays_when_both_slots_are_revoked(
    tmp_path: Path, cheap_kdf: None, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One till after the other is replaced. No backup relies on what the first has stored, so the second mends it."""
    ward = Ward(tmp_path / "ward")
    staff = Staff(ward.repo, tmp_path)
    first, second = staff.enrol("device", "till-1"), staff.enrol("device", "till-2")
    with a_wrong_bit(monkeypatch):
        _backs_up(ward, first)
    ward.repo.revoke("till-1", reason="it was replaced")
    _backs_up(ward, second)
    assert ward.whole() == set(ward.states)
    ward.repo.revoke("till-2", reason="it was replaced, too")
    _prunes_and_all_is_whole(ward, staff, time)


def test_out_of_packs_that_are_in_doubt_nothing_is_moved(
    tmp_path: Path, cheap_kdf: None, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block lies in one that was condemned for damage, and in one of a revoked slot: neither gets a new name."""
    ward = Ward(tmp_path / "ward")
    staff = _mended(ward, monkeypatch, tmp_path)
    till = staff.enrol("device", "till-1")
    _backs_up(ward, till)
    ward.change(0)
    _backs_up(ward, till)
    ward.repo.apply(ward.repo.propose_forget({"*": pb.Keep(last=1)}))
    ward.repo.revoke("till-1", reason="it was replaced")
    time.ahead += 20 * DAY_NS
    monkeypatch.setattr("pharmabackup.engine.emptying.UNUSED_SHARE", 0.0)  # whatever is not all alive would be moved
    found = garbage.look_for_garbage(ward.repo._unlocked, clock.now_ns() + time.ahead, lambda: None)
    doubtful = {pack for pack in found.emptiable if found.emptiable[pack] and pack in found.history.shunned}
    table = found.index.blocks
    beside = {
        table.packs[table.pack[number]]
        for pack in doubtful
        for own in found.emptiable[pack]
        for number in table.instances(table.ids[own])
    } - doubtful
    found.index.close()
    assert doubtful and beside
    assert not (doubtful | beside) & set(found.sparse)
    staff.close()
    ward.repo.close()
