"""What a revoked slot has left behind: nobody relies on its packs, prefers them, or believes them without a proof."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

import pharmabackup as pb
from pharmabackup import clock, ids
from pharmabackup.engine import garbage
from pharmabackup.format.transaction import Condemn, Done, Execute
from pharmabackup.format.wire import Kind
from tests.reader.reader import Reader
from tests.verbs.ailing import a_wrong_bit
from tests.verbs.site import DAY_NS, Site, Time, prune, stored
from tests.verbs.staff import Staff
from tests.verbs.test_enrol import _other_names

MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def staff(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Staff]:
    made = Staff(make_repo(), tmp_path)
    yield made
    made.close()


def test_a_block_of_a_revoked_device_is_proved(staff: Staff, site: Site, tmp_path: Path) -> None:
    """He may have put another block beside the one that counts, which opens under its id."""
    site.change()
    with mock.patch("pharmabackup.engine.content_files.blake3", _other_names):
        wrong = site.back_up(staff.enrol("device", "till-1", domain="branch"))
    staff.repo.restore(tmp_path / "before", snapshots=[staff.repo.snapshot(id=wrong)])
    staff.repo.revoke("till-1", reason="stolen")
    with pytest.raises(pb.Incomplete):
        staff.repo.restore(tmp_path / "after", snapshots=[staff.repo.snapshot(id=wrong)])


def test_of_two_packs_the_one_stays_that_no_revoked_device_wrote(staff: Staff, site: Site, tmp_path: Path) -> None:
    """Though it is the younger one: what a thief put there first must not take its place."""
    till, heir = staff.enrol("device", "till-1"), staff.enrol("device", "till-2")
    site.change()
    (site.root / "large").write_bytes(os.urandom(300_000))
    site.back_up(till)
    old = set(stored(staff.repo._unlocked.storage, "packs"))
    site.back_up(heir)
    staff.repo.revoke("till-1", reason="stolen")
    site.back_up(heir)
    found = garbage.look_for_garbage(staff.repo._unlocked, clock.now_ns() + 9 * DAY_NS, lambda: None)
    signers = dict(zip(found.index.blocks.packs, found.index.blocks.signers, strict=True))
    first, second = (one._unlocked.keyring.slot for one in (till, heir))
    large = max(found.sizes, key=lambda pack: (signers[pack] == first, found.sizes[pack]))
    assert f"packs/{large.hex()[:2]}/{large.hex()}" in old
    assert large in found.dead
    kept = [pack for pack in found.emptiable if signers[pack] == second and found.sizes[pack] > 300_000]
    assert len(kept) == 1
    found.index.close()


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_what_leads_to_an_accepted_snapshot_and_is_not_there_is_told(
    staff: Staff, site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Of a chain the owner accepted the end: without that, nobody can say that the others came before."""
    till = staff.enrol("device", "till-1")
    site.change()
    first = site.back_up(till)
    last = site.back_up(till)
    monkeypatch.setattr("pharmabackup.verbs.keys.ACCEPTED_NEWEST", 0)  # as if there were many in between
    staff.repo.revoke("till-1", reason="stolen")
    assert {snapshot.id for snapshot in staff.repo.snapshots()} == {first, last}
    record = Path(staff.repo.url, "snapshots", last)
    whole = record.read_bytes()
    record.unlink()
    if how == "damaged":
        record.write_bytes(whole[:-1])
    auditor = staff.enrol("auditor", "a new machine")
    assert auditor.snapshots() == []
    (told,) = [found for found in auditor.check().findings if found.code == "snapshot-revoked"]
    assert told.severity == "warning" and told.subject == f"snapshots/{first}"
    assert "leads to it through a record that is damaged or gone" in told.message and "propose_repair" in told.remedy
    record.write_bytes(whole)
    assert {snapshot.id for snapshot in auditor.snapshots()} == {first, last}


@pytest.mark.parametrize("role", ["owner", "maintainer"])
def test_a_wrong_block_of_a_revoked_device_gets_no_new_name(
    staff: Staff, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """Its pack is hardly used, and would be emptied: an owner finds it, and who cannot look leaves it alone."""
    till, heir = staff.enrol("device", "till-1"), staff.enrol("device", "till-2")
    maintainer = staff.enrol("maintainer", "keeper")
    site.change()
    (site.root / "0").write_bytes(os.urandom(1_200_000))
    (site.root / "1").write_bytes(os.urandom(9_000_000))
    with a_wrong_bit(monkeypatch):
        site.back_up(till)
    (site.root / "1").unlink()
    site.back_up(till)
    site.back_up(heir)
    staff.repo.revoke("till-1", reason="stolen")
    staff.repo.apply(staff.repo.propose_forget({"*": pb.Keep(last=1)}))
    time.ahead += 20 * DAY_NS
    who = staff.repo if role == "owner" else maintainer
    old = set(stored(who._unlocked.storage, "packs"))
    found = garbage.look_for_garbage(who._unlocked, clock.now_ns() + time.ahead, lambda: None)
    doubtful = found.in_doubt & set(found.emptiable)
    assert doubtful
    assert bool(doubtful & set(found.sparse)) == (role == "owner")
    found.index.close()
    if role == "owner":
        with pytest.raises(pb.Incomplete):
            prune(who)
    else:
        prune(who)
    assert {ids.pack_name(pack) for pack in doubtful} <= old & set(stored(who._unlocked.storage, "packs"))


def test_who_is_revoked_while_it_is_open_writes_nothing_more(staff: Staff, site: Site) -> None:
    """Before there are new keys, too: an intent that does not count would be in every collector's way."""
    till = staff.enrol("device", "till-1")
    site.change()
    with mock.patch("pharmabackup.verbs.keys.rotate"):
        staff.repo.revoke("till-1", reason="stolen")
    before = stored(staff.repo._unlocked.storage, "")
    with pytest.raises(pb.WrongCredential, match="revoked") as caught:
        site.back_up(till)
    assert caught.value.kind == "revoked"
    assert stored(staff.repo._unlocked.storage, "") == before
    staff.repo.propose_prune()


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_collection_of_a_thief_deletes_nothing(staff: Staff, site: Site, tmp_path: Path, parts: int) -> None:
    """He says of all snapshots that they are gone, and of all packs: whoever finds it unfinished ends it."""
    carer = staff.enrol("maintainer", "the supplier")
    site.change()
    site.back_up(staff.repo)
    staff.repo.revoke("the supplier", reason="stolen")
    unlocked = carer._unlocked
    before = stored(unlocked.storage, "packs") + stored(unlocked.storage, "index")
    packs = b"".join(ids.hex_tail(name) or b"" for name in stored(unlocked.storage, "packs"))
    segments = b"".join(ids.hex_tail(name) or b"" for name in stored(unlocked.storage, "index"))
    records: list[tuple[Kind, Condemn | Execute | Done]] = [
        (Kind.CONDEMN, Condemn(1, packs, b"", bytes.fromhex(staff.repo.snapshot().id))),
        (Kind.EXECUTE, Execute(1, packs, segments)),
        (Kind.DONE, Done(1)),
    ]
    with mock.patch.multiple(unlocked.__class__, renew=lambda _: None, renewed=lambda *_: False):
        for kind, record in records[:parts]:
            unlocked.put(kind, f"collections/1/{kind.name.lower()}", record)
    prune(staff.repo)
    assert set(before) <= set(stored(unlocked.storage, ""))
    assert "collections/1/done" in stored(unlocked.storage, "collections/1")
    assert [snapshot.forgotten for snapshot in staff.repo.snapshots()] == [False]
    site.all_restore(staff.repo, tmp_path / "out")
    reader = Reader(Path(staff.repo.url), "correct horse battery staple")
    assert len(reader.restore(staff.repo.snapshot().id)) == 5
    site.change()
    site.back_up(staff.repo)
    prune(staff.repo)
    site.all_restore(staff.repo, tmp_path / "again")
