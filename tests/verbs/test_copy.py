"""Copies to a replica: everything that counts arrives, whoever dies or collects meanwhile, and nothing twice."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import clock, ids
from pharmabackup.engine import opening
from pharmabackup.engine.garbage import pinned_in
from pharmabackup.engine.history import History
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.transaction import Carried, Carry, Fate
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import ObjectInfo, Storage
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.local_uploads import LocalUpload
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.verbs import copy_replica, reporter
from tests.verbs.faults import BusyStorage, Dead, DyingStorage, any_call
from tests.verbs.site import DAY_NS, Site, Time, forget_all_but, prune, stored, twin

PASSPHRASE = pb.Passphrase("correct horse battery staple")
MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def repo(make_repo: MakeRepo, site: Site, time: Time) -> pb.Repository:
    made = make_repo()
    for _ in range(4):
        site.change()
        site.back_up(made)
    return made


def _replica(repo: pb.Repository, place: Path) -> pb.Repository:
    return pb.Repository.create(place, PASSPHRASE, replica_of=repo)


def _bytes(repo: pb.Repository) -> int:
    return sum(info.size for info in repo._unlocked.storage.list("packs"))


def _alive(repo: pb.Repository) -> list[str]:
    return [snapshot.id for snapshot in repo.snapshots() if not snapshot.forgotten]


def test_a_replica_alone_restores_everything(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = _replica(repo, tmp_path / "there")
    assert there.id == repo.id
    report = repo.copy(there)
    assert report.bytes == _bytes(repo) == _bytes(there)
    assert report.datasets["documents"].snapshot is not None
    assert report.datasets["documents"].snapshot.id == repo.snapshots()[0].id
    assert stored(repo._unlocked.storage, "packs") == stored(there._unlocked.storage, "packs")
    before = [snapshot.to_dict() for snapshot in repo.snapshots()]
    (tmp_path / "repository-0").rename(tmp_path / "lost")
    with pb.Repository.open(tmp_path / "there", PASSPHRASE) as alone:
        assert [snapshot.to_dict() for snapshot in alone.snapshots()] == before
        site.all_restore(alone, tmp_path / "out")
        site.change()
        site.back_up(alone)  # and it is a repository like any other
        site.all_restore(alone, tmp_path / "again")


def test_what_is_there_is_not_sent_again(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = _replica(repo, tmp_path / "there")
    repo.copy(there)
    objects = stored(there._unlocked.storage, "")
    assert repo.copy(there).bytes == 0
    assert stored(there._unlocked.storage, "") == objects
    before = _bytes(repo)
    site.change()
    site.back_up(repo)
    assert repo.copy(there).bytes == _bytes(repo) - before
    site.all_restore(there, tmp_path / "out")


def test_no_reading_key_is_needed(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = _replica(repo, tmp_path / "there")
    for one in (repo, there):
        one._unlocked.keyring = replace(one._unlocked.keyring, readers=())
        one._unlocked._session.clear()
    keyring = repo._unlocked.keyring
    repo._unlocked.keyring = replace(keyring, readers=())
    with pytest.MonkeyPatch.context() as patch:  # learning new keys would bring them back
        for one in (repo, there):
            patch.setattr(type(one._unlocked), "renew", lambda _: None)
        repo.copy(there)
    with pb.Repository.open(tmp_path / "there", PASSPHRASE) as alone:
        site.all_restore(alone, tmp_path / "out")


def test_what_one_has_and_the_other_lacks(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = _replica(repo, tmp_path / "there")
    found = repo.compare(there)
    assert [snapshot.id for snapshot in found.only_here] == _alive(repo)
    assert (found.only_there, found.bytes_to_copy) == ((), _bytes(repo))
    repo.copy(there)
    site.change()
    new = site.back_up(there)
    found = repo.compare(there)
    assert (found.only_here, found.bytes_to_copy) == ((), 0)
    assert [snapshot.id for snapshot in found.only_there] == [new]
    assert "1 only there" in str(found)
    there.copy(repo)
    assert repo.snapshots()[0].id == new
    site.all_restore(repo, tmp_path / "out")
    assert repo.compare(there).to_dict() == {"only_here": [], "only_there": [], "bytes_to_copy": 0}


def test_what_is_damaged_is_compared_all_the_same(tmp_path: Path, repo: pb.Repository) -> None:
    there = _replica(repo, tmp_path / "there")
    for info in repo._unlocked.storage.list("packs"):
        path = tmp_path / "repository-0" / info.name
        data = path.read_bytes()
        path.write_bytes(bytes(len(data) // 2) + data[len(data) // 2 :])  # the directory is still there
    found = repo.compare(there)
    assert [snapshot.id for snapshot in found.only_here] == _alive(repo)


def test_seeded_by_a_disk_and_gone_on_over_the_line(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    disk = _replica(repo, tmp_path / "disk")
    repo.copy(disk)
    site.change()
    site.back_up(repo)
    far = _replica(disk, tmp_path / "far")
    disk.copy(far)
    report = repo.copy(far)
    assert report.bytes == _bytes(repo) - _bytes(disk)
    assert _alive(far) == _alive(repo)
    site.all_restore(far, tmp_path / "out")


def test_what_was_pruned_here_is_no_hole_there(tmp_path: Path, repo: pb.Repository, site: Site, time: Time) -> None:
    forget_all_but(repo, 2, time)
    prune(repo)
    there = _replica(repo, tmp_path / "there")
    report = repo.copy(there)
    assert report.findings == ()
    assert _alive(there) == _alive(repo)
    assert [s.id for s in there.snapshots() if s.forgotten] == [s.id for s in repo.snapshots() if s.forgotten]
    site.all_restore(there, tmp_path / "out")
    prune(there)
    site.all_restore(there, tmp_path / "again")


def test_what_was_said_comes_along(tmp_path: Path, repo: pb.Repository, site: Site, time: Time) -> None:
    there = _replica(repo, tmp_path / "there")
    repo.copy(there)
    newest, *others = repo.snapshots()
    repo.hold(others[2], reason="incident 7")
    repo.apply(repo.propose_forget(snapshots=others[:2]))
    repo.recall(others[0], reason="needed")
    repo.copy(there)
    by_id = {snapshot.id: snapshot for snapshot in there.snapshots()}
    assert by_id[others[2].id].held == "incident 7"
    assert by_id[others[1].id].forget_at is not None
    assert by_id[others[0].id].forget_at is None
    repo.release(others[2], reason="closed")
    repo.copy(there)
    assert there.snapshot(id=others[2].id).held is None
    time.ahead += 15 * DAY_NS
    prune(there)
    assert _alive(there) == [snapshot.id for snapshot in (newest, others[0], others[2])]
    site.all_restore(there, tmp_path / "out")


def test_a_hold_counts_there_though_there_is_no_delay(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time
) -> None:
    oldest = repo.snapshots()[-1]
    repo.hold(oldest, reason="incident 7")
    for one in (repo, there := _replica(repo, tmp_path / "there")):
        policy = replace(one._unlocked.roster.policy, forget_delay=0)
        one._unlocked.roster = replace(one._unlocked.roster, policy=policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(repo._unlocked), "renew", lambda _: None)
        from pharmabackup.verbs.marks import say

        say(repo._unlocked, "forget", [bytes.fromhex(oldest.id)])
        assert not repo.snapshot(id=oldest.id).forgotten
        repo.copy(there)
        assert not there.snapshot(id=oldest.id).forgotten
        prune(there)
        there.restore(tmp_path / "out", snapshots=[there.snapshot(id=oldest.id)])


def test_what_is_kept_here_and_forgotten_there_is_told(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time
) -> None:
    there = _replica(repo, tmp_path / "there")
    repo.apply(repo.propose_forget(snapshots=repo.snapshots()[1:2]))
    repo.copy(there)
    ((carrier, _),) = load_history(there._unlocked).carriers.items()
    long_ago = clock.now_ns() - 20 * DAY_NS
    os.utime(tmp_path / "there" / ids.fate_name(carrier), ns=(long_ago, long_ago))
    repo.recall(repo.snapshots()[1], reason="needed")
    report = repo.copy(there)
    assert [finding.code for finding in report.findings] == ["snapshot-forgotten-there"]
    assert there.snapshots()[1].forgotten and not repo.snapshots()[1].forgotten


def test_verified_there_is_what_was_read_there(tmp_path: Path, repo: pb.Repository) -> None:
    assert repo.check(read_data=1.0).state == "ok"
    there = _replica(repo, tmp_path / "there")
    repo.copy(there)
    assert repo.snapshots()[0].verified is not None
    assert there.snapshots()[0].verified is None
    objects = stored(there._unlocked.storage, "")
    repo.copy(there)
    assert stored(there._unlocked.storage, "") == objects


def test_some_snapshots_and_later_the_rest(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = _replica(repo, tmp_path / "there")
    chosen = repo.snapshots()[1]
    repo.copy(there, snapshots=[chosen])
    assert _alive(there) == [chosen.id]
    assert there.check(read_data=1.0).state == "ok"
    prune(there)
    repo.copy(there)
    assert _alive(there) == _alive(repo)
    site.all_restore(there, tmp_path / "out")


def test_what_cannot_be_read_here_is_told_and_comes_when_it_can(
    tmp_path: Path, repo: pb.Repository, site: Site
) -> None:
    site.change(size=300_000)
    newest = site.back_up(repo)
    root = tmp_path / "repository-0"
    pack = max(repo._unlocked.storage.list("packs"), key=lambda info: info.size)
    good = (root / pack.name).read_bytes()
    (root / pack.name).write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    there = _replica(repo, tmp_path / "there")
    for _ in range(2):
        with pytest.raises(pb.Incomplete) as caught:
            repo.copy(there)
        assert [finding.code for finding in caught.value.findings] == ["snapshot-not-copied"]
        assert caught.value.findings[0].subject == newest
        assert _alive(there) == [one for one in _alive(repo) if one != newest]
        carries = len(load_history(there._unlocked).carriers)
        assert carries == 1
    site.all_restore(there, tmp_path / "out")
    (root / pack.name).write_bytes(good)
    repo.copy(there)
    assert len(load_history(there._unlocked).carriers) == 2
    assert _alive(there) == _alive(repo)
    site.all_restore(there, tmp_path / "again")


@pytest.mark.parametrize("how", ["flipped", "gone"])
@pytest.mark.parametrize("folder", ["snapshots", "marks"])
def test_a_copy_mends_records(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, how: str, folder: str
) -> None:
    repo.hold(repo.snapshots()[-1], reason="incident 7")
    _replica(repo, tmp_path / "there").close()
    for name in ("snapshots", "packs", "index", "marks"):  # as a device does that backs up to both
        shutil.copytree(tmp_path / "repository-0" / name, tmp_path / "there" / name, dirs_exist_ok=True)
    path = tmp_path / "there" / stored(repo._unlocked.storage, folder)[0]
    there = pb.Repository.open(tmp_path / "there", PASSPHRASE)
    if how == "gone":
        assert there.check().state == "ok"  # this machine has seen it
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert there.check().state == "critical"
    repo.copy(there)
    assert there.check(read_data=1.0).findings == ()
    assert _alive(there) == _alive(repo)
    assert there.snapshots()[-1].held == "incident 7"
    prune(there)
    site.all_restore(there, tmp_path / "out")


def test_lists_of_who_may_do_what_must_agree(tmp_path: Path, repo: pb.Repository) -> None:
    there = _replica(repo, tmp_path / "there")
    repo.enrol("owner", pb.Passphrase("quite another passphrase"), name="second")
    there.enrol("owner", pb.Passphrase("yet another passphrase"), name="third")
    with pytest.raises(pb.Conflict) as caught:
        repo.copy(there)
    assert caught.value.kind == "history-forked"
    assert stored(there._unlocked.storage, "packs") == []


def test_a_fork_leaves_both_as_they_were(tmp_path: Path, repo: pb.Repository) -> None:
    """One place has one more list: it follows from the other's."""
    there = _replica(repo, tmp_path / "there")
    repo.enrol("owner", pb.Passphrase("quite another passphrase"), name="second")
    repo.enrol("owner", pb.Passphrase("one more passphrase"), name="third")
    there.enrol("owner", pb.Passphrase("yet another passphrase"), name="fourth")
    objects = stored(there._unlocked.storage, "")
    with pytest.raises(pb.Conflict):
        repo.copy(there)
    assert stored(there._unlocked.storage, "") == objects
    pb.Repository.open(tmp_path / "there", PASSPHRASE).close()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_roster_that_is_not_the_one_that_was_verified_is_not_brought(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _replica(repo, tmp_path / "there")
    repo.enrol("owner", pb.Passphrase("quite another passphrase"), name="second")
    monkeypatch.setattr(type(repo._unlocked), "renew", lambda _: None)
    _flip(tmp_path / "repository-0" / "roster" / "1")
    with pytest.raises(pb.Damaged):
        repo.copy(there)
    assert stored(there._unlocked.storage, "roster") == ["roster/0"]


def test_a_damaged_keyring_is_told_and_not_brought(tmp_path: Path, repo: pb.Repository) -> None:
    there, far = _replica(repo, tmp_path / "there"), _replica(repo, tmp_path / "far")
    repo.enrol("owner", pb.Passphrase("quite another passphrase"), name="second")
    slot = repo._unlocked.roster.slots[1].id.hex()
    repo.copy(there)
    (name,) = stored(there._unlocked.storage, f"keys/{slot}")
    _flip(tmp_path / "there" / name)
    assert [(one.code, one.subject) for one in repo.copy(there).findings] == [("keyring-differs", name)]
    (tmp_path / "there" / name).write_bytes(b"no keyring")
    assert [(one.code, one.subject) for one in there.copy(far).findings] == [("keyring-differs", name)]
    assert stored(far._unlocked.storage, f"keys/{slot}") == []


def test_a_list_of_keys_is_not_brought_where_the_keyring_for_it_is_damaged(
    tmp_path: Path, repo: pb.Repository
) -> None:
    """A storage that lies kept the beginning of it: with the list, nobody could open that place any more."""
    replica = _replica(repo, tmp_path / "replica")
    before = set(stored(repo._unlocked.storage, "keys"))
    repo.rotate(reason="a test")
    (name,) = set(stored(repo._unlocked.storage, "keys")) - before
    torn = repo._unlocked.storage.get(name, limit=1 << 20)[:50]
    replica._unlocked.storage.put_new(name, torn)
    assert [item.subject for item in replica.check().findings if item.code == "keyring-damaged"] == [name]
    with pytest.raises(pb.Damaged) as caught:
        repo.copy(replica)
    assert name in caught.value.message and "delete that one object" in (caught.value.remedy or "")
    with pb.Repository.open(tmp_path / "replica", PASSPHRASE, state_dir=tmp_path / "fresh") as opened:
        assert opened.check(read_data=1.0).state != "critical"
    (tmp_path / "replica" / name).unlink()
    repo.copy(replica)
    with pb.Repository.open(tmp_path / "replica", PASSPHRASE, state_dir=tmp_path / "fresh") as opened:
        assert len(_alive(opened)) == 4


def test_a_record_that_is_damaged_since_it_was_read_is_not_brought(
    tmp_path: Path, repo: pb.Repository, site: Site
) -> None:
    there = _replica(repo, tmp_path / "there")
    newest, *others = (snapshot.id for snapshot in repo.snapshots())
    path = tmp_path / "repository-0" / ids.fate_name(bytes.fromhex(newest))
    whole = path.read_bytes()
    _flip(path)
    with pytest.raises(pb.Incomplete):
        repo.copy(there)
    assert load_history(there._unlocked).damaged == {}
    assert _alive(there) == others
    path.write_bytes(whole)
    repo.copy(there)
    assert _alive(there) == [newest, *others]
    site.all_restore(there, tmp_path / "out")


def test_nothing_is_let_go_there_while_a_mark_cannot_be_read_here(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time
) -> None:
    there = _replica(repo, tmp_path / "there")
    oldest = repo.snapshots()[-1]
    repo.hold(oldest, reason="incident 7")
    (hold,) = stored(repo._unlocked.storage, "marks")
    repo.apply(repo.propose_forget(snapshots=repo.snapshots()[1:]))
    from pharmabackup.verbs.marks import say

    say(repo._unlocked, "forget", [bytes.fromhex(oldest.id)])
    _flip(tmp_path / "repository-0" / hold)
    with pytest.raises(pb.Incomplete):
        repo.copy(there)
    time.ahead += 15 * DAY_NS
    prune(there)
    assert len(_alive(there)) == 4


def test_what_vanished_there_is_not_given_up_there(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = _replica(repo, tmp_path / "there")
    for name in ("snapshots", "packs", "index"):  # as a device does that backs up to both
        shutil.copytree(tmp_path / "repository-0" / name, tmp_path / "there" / name, dirs_exist_ok=True)
    assert there.check().state == "ok"
    newest = repo.snapshots()[0].id
    (tmp_path / "there" / ids.fate_name(bytes.fromhex(newest))).unlink()
    site.change()
    last = site.back_up(repo)
    repo.copy(there, snapshots=[repo.snapshot(id=last)])
    assert _alive(there)[:2] == [last, newest]
    prune(there)
    site.all_restore(there, tmp_path / "out")


def test_what_vanished_there_and_is_damaged_here_is_not_given_up_there(
    tmp_path: Path, repo: pb.Repository, site: Site
) -> None:
    there = _replica(repo, tmp_path / "there")
    repo.copy(there)
    site.change()
    newest = site.back_up(repo)
    for name in ("snapshots", "index"):
        shutil.copytree(tmp_path / "repository-0" / name, tmp_path / "there" / name, dirs_exist_ok=True)
    assert newest in _alive(there)
    (tmp_path / "there" / ids.fate_name(bytes.fromhex(newest))).unlink()
    known = stored(there._unlocked.storage, "packs")
    for name in stored(repo._unlocked.storage, "packs"):
        if name not in known:
            _flip(tmp_path / "repository-0" / name)
    with pytest.raises(pb.Incomplete):
        repo.copy(there)
    assert load_history(there._unlocked).vanished == [ids.fate_name(bytes.fromhex(newest))]


def test_what_was_given_up_there_is_told(tmp_path: Path, repo: pb.Repository) -> None:
    """A folder was copied as it was while a backup ran, and its collector gave that up."""
    there = _replica(repo, tmp_path / "there")
    newest = repo.snapshots()[0].id
    transaction = bytes.fromhex(newest)
    there._unlocked.put(Kind.FATE, ids.fate_name(transaction), Fate(transaction, "abort", None, None))
    with pytest.raises(pb.Incomplete) as caught:
        repo.copy(there)
    assert [finding.subject for finding in caught.value.findings] == [newest]
    assert load_history(there._unlocked).damaged == {}
    assert [snapshot.id for snapshot in repo.compare(there).only_here] == [newest]


def test_places_with_long_names_have_caches_of_their_own(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    places = [tmp_path / disk / "the-pharmacy-in-the-high-street/backup-repository" for disk in ("usb-a", "usb-b")]
    for place in places:
        place.parent.mkdir(parents=True)
    one, two = (_replica(repo, place) for place in places)
    repo.copy(one)
    assert len(one.snapshots()) == 4
    assert one._unlocked.state != two._unlocked.state
    assert two.check().findings == ()


def test_what_was_sent_before_a_collection_came_between_is_in_the_index(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _replica(repo, tmp_path / "there")
    from pharmabackup.engine.carrying import Carrier

    real, calls = Carrier._copy, list[bytes]()

    def send(self: Carrier, pack: bytes, size: int, step: Callable[[int], None]) -> bool:
        calls.append(pack)
        if len(calls) == 3:
            raise pb.NotFound("It is gone.", kind="object", remedy="Look again.")
        return real(self, pack, size, step)

    monkeypatch.setattr(Carrier, "_copy", send)
    repo.copy(there)
    assert there.check(read_data=1.0).findings == ()


def test_marks_come_in_groups_and_what_keeps_comes_first(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.apply(repo.propose_forget(snapshots=repo.snapshots()[1:2]))
    for snapshot in repo.snapshots():
        repo.hold(snapshot, reason="incident 7")
    there = _replica(repo, tmp_path / "there")
    monkeypatch.setattr(copy_replica, "GROUP_RECORDS", 2)
    repo.copy(there)
    history = load_history(there._unlocked)
    assert len(history.carriers) == 5
    assert [said.mark.kind for said in history.said] == ["hold"] * 4 + ["forget"]
    assert _alive(there) == _alive(repo)


def test_a_copy_looks_at_the_history_a_few_times(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each snapshot, and a carry that brought many is read once."""
    there = _replica(repo, tmp_path / "there")
    loads: list[pb.Repository] = []
    real = load_history

    def load(*args: Any, **options: Any) -> History:
        loads.append(repo)
        return real(*args, **options)

    for module in ("engine.historyreader", "verbs.copy_replica"):
        monkeypatch.setattr(f"pharmabackup.{module}.load_history", load)
    monkeypatch.setattr(copy_replica, "GROUP_RECORDS", 2)
    repo.copy(there)
    assert len(loads) == 3  # both once, and what is shown
    far = _replica(there, tmp_path / "far")
    asked: list[str] = []
    get = LocalStorage.get

    def noted(self: LocalStorage, name: str, *, limit: int) -> bytes:
        asked.append(name)
        return get(self, name, limit=limit)

    monkeypatch.setattr(LocalStorage, "get", noted)
    there.copy(far)
    carriers = {ids.fate_name(carrier) for carrier in load_history(there._unlocked).carriers}
    assert sorted(name for name in asked if name in carriers) == sorted(carriers)


def test_what_was_there_is_pinned_as_what_is_sent(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    """Nothing there may need it any more, so that a collector could take it meanwhile."""
    there = _replica(repo, tmp_path / "there")
    repo.copy(there)
    before = set(stored(there._unlocked.storage, "intents"))
    site.change()
    newest = bytes.fromhex(site.back_up(repo))
    repo.copy(there)
    unlocked, reader = there._unlocked, there._block_reader()
    new = set(stored(unlocked.storage, "intents")) - before
    pinned = {pack for name in new for pack in pinned_in(unlocked, name)}
    record = load_history(unlocked).committed[newest].snapshot
    table = reader.index.blocks
    found = [table.find(block, record.domain) for block in SnapshotReader(reader, record).relied()]
    relied = {table.packs[table.pack[number]] for number in found if number is not None}
    assert len(relied) > 1
    assert relied <= pinned


def test_what_was_brought_is_verified_once(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.hold(repo.snapshots()[0], reason="incident 7")
    there = _replica(repo, tmp_path / "there")
    repo.copy(there)
    before = [snapshot.to_dict() for snapshot in there.snapshots()]
    opened: list[str] = []
    real = Unlocked.open

    def open_(self: Unlocked, kind: Kind, name: str, *rest: Any) -> Any:
        opened.append(name)
        return real(self, kind, name, *rest)

    monkeypatch.setattr(Unlocked, "open", open_)
    assert [snapshot.to_dict() for snapshot in there.snapshots()] == before
    assert opened == []
    assert len(load_history(there._unlocked, anew=True).committed) == 4
    assert len(opened) == 1 + 4 + 1
    ((carrier, _),) = load_history(there._unlocked).carriers.items()
    (tmp_path / "there" / ids.fate_name(carrier)).unlink()
    assert load_history(there._unlocked).vanished == [ids.fate_name(carrier)]


def test_a_carry_does_not_bring_back_what_was_aborted(tmp_path: Path, repo: pb.Repository) -> None:
    there = _replica(repo, tmp_path / "there")
    name, transaction = ids.fate_name(bytes.fromhex(repo.snapshots()[0].id)), ids.new_id()
    aborted = bytes.fromhex(repo.snapshots()[0].id)
    there._unlocked.put(Kind.FATE, name, Fate(aborted, "abort", None, None))
    items = (Carried(name, repo._unlocked.storage.get(name, limit=1 << 20), False),)
    there._unlocked.put(Kind.CARRY, ids.fate_name(transaction), Carry(transaction, bytes(32), items))
    history = load_history(there._unlocked)
    assert list(history.damaged) == [f"{ids.fate_name(transaction)} ({name})"]
    assert not history.committed


def test_a_carry_that_brings_anything_else_is_told(tmp_path: Path, repo: pb.Repository) -> None:
    there = _replica(repo, tmp_path / "there")
    transaction, name = ids.new_id(), "collections/1/condemn"
    there._unlocked.put(
        Kind.CARRY, ids.fate_name(transaction), Carry(transaction, bytes(32), (Carried(name, b"", False),))
    )
    assert list(load_history(there._unlocked).damaged) == [f"{ids.fate_name(transaction)} ({name})"]


def test_to_itself_or_as_a_reader_it_is_refused(tmp_path: Path, repo: pb.Repository) -> None:
    with pytest.raises(pb.InvalidInput):
        repo.copy(repo)
    there = _replica(repo, tmp_path / "there")
    there._unlocked.keyring = replace(there._unlocked.keyring, role="restorer")
    with pytest.raises(pb.NotPermitted):
        repo.copy(there)


def test_a_replica_is_not_made_over_something(tmp_path: Path, repo: pb.Repository) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes").write_text("mine")
    with pytest.raises(pb.Conflict):
        _replica(repo, tmp_path / "there")
    with pytest.raises(pb.WrongCredential):
        pb.Repository.create(tmp_path / "elsewhere", pb.Passphrase("not the passphrase"), replica_of=repo)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("at", ["progress", "committed"])
def test_a_copy_is_stopped_in_the_middle_and_goes_on(
    tmp_path: Path, repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """After a pack that nothing relies on there yet, or between two groups of snapshots. Nothing is sent twice."""
    monkeypatch.setattr(reporter, "BETWEEN_LOOKS", 1)
    monkeypatch.setattr(reporter, "BETWEEN_PROGRESS_S", 0)
    if at == "committed":
        monkeypatch.setattr(copy_replica, "GROUP_BYTES", 1)
    there, cancel = _replica(repo, tmp_path / "there"), threading.Event()
    published: list[str] = []
    real = LocalUpload.publish

    def publish(self: LocalUpload, name: str) -> ObjectInfo:
        published.append(name)
        return real(self, name)

    def stop(event: pb.Event) -> None:
        if event.kind == at and event.bytes_done:
            cancel.set()

    monkeypatch.setattr(LocalUpload, "publish", publish)
    with pytest.raises(pb.Cancelled):
        repo.copy(there, progress=stop, cancel=cancel)
    sent, everything = stored(there._unlocked.storage, "packs"), stored(repo._unlocked.storage, "packs")
    assert 0 < len(sent) < len(everything)
    assert len(there.snapshots()) == (1 if at == "committed" else 0)
    site.all_restore(there, tmp_path / "some")
    events: list[pb.Event] = []
    rest = _bytes(repo) - _bytes(there)
    assert repo.copy(there, progress=events.append).bytes == rest
    assert [events[0].kind, events[-1].kind] == ["started", "finished"]
    assert "committed" in {event.kind for event in events}
    assert sorted(name for name in published if name.startswith("packs/")) == everything
    assert stored(there._unlocked.storage, "packs") == everything
    assert _alive(there) == _alive(repo)
    site.all_restore(there, tmp_path / "out")


def test_two_copies_at_once(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = _replica(repo, tmp_path / "there")
    problems: list[pb.Error] = []

    def run(number: int) -> None:
        try:
            with (
                pb.Repository.open(tmp_path / "repository-0", PASSPHRASE, state_dir=tmp_path / f"s{number}") as one,
                pb.Repository.open(tmp_path / "there", PASSPHRASE, state_dir=tmp_path / f"s{number}") as other,
            ):
                one.copy(other)
        except pb.Error as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert _alive(there) == _alive(repo)
    site.all_restore(there, tmp_path / "out")


# ------------------------------------------------------------ deaths, and collections meanwhile


class Pair:
    """Two replicas in memory, of which the second lacks what the newest snapshots of the first hold."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site, time: Time) -> None:
        self._monkeypatch = monkeypatch
        self._tmp_path = tmp_path
        self.one, self.two = MemoryStorage("one"), MemoryStorage("two")
        self._use(self.one)
        pb.Repository.create("memory://one", PASSPHRASE).close()
        with self.open(self.one, "one") as repo:
            for _ in range(2):
                site.change(size=3000)
                site.back_up(repo)
            self._use(self.two)
            pb.Repository.create("memory://two", PASSPHRASE, replica_of=repo).close()
            with self.open(self.two, "two") as there:
                repo.copy(there)
            for _ in range(2):
                site.change(size=3000)
                site.back_up(repo)
            forget_all_but(repo, 3, time)
            site.change(size=3000)
            site.back_up(repo)

    def _use(self, storage: Storage) -> None:
        self._monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)

    def open(self, storage: Storage, state: str) -> pb.Repository:
        self._use(storage)
        return pb.Repository.open("memory://x", PASSPHRASE, state_dir=self._tmp_path / state)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, site: Site, time: Time) -> Pair:
    return Pair(tmp_path, monkeypatch, site, time)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("which", ["source", "target"])
def test_it_dies_at_any_call(tmp_path: Path, pair: Pair, site: Site, which: str, after: bool) -> None:
    for dies_at in any_call():
        inner = twin(pair.two)
        source, target = DyingStorage(pair.one), DyingStorage(inner)
        with pair.open(source, "one") as repo, pair.open(target, f"two-{dies_at}") as there:
            (source if which == "source" else target).arm(dies_at, after=after)
            try:
                repo.copy(there)
                died = False
            except Dead:
                died = True
        with pair.open(inner, f"two-{dies_at}") as there, pair.open(pair.one, "one") as repo:
            site.all_restore(there, tmp_path / f"out-{dies_at}")
            repo.copy(there)
            assert _alive(there) == _alive(repo)
            site.all_restore(there, tmp_path / f"again-{dies_at}")
        if not died:
            return


@pytest.mark.parametrize("where", ["source", "target"])
def test_a_collector_runs_between_any_two_calls_of_a_copy(
    tmp_path: Path, pair: Pair, site: Site, time: Time, where: str
) -> None:
    for at in any_call():
        inner, first = twin(pair.two), twin(pair.one)

        def meanwhile(inner: MemoryStorage = inner, first: MemoryStorage = first, at: int = at) -> None:
            with pair.open(first if where == "source" else inner, f"collector-{at}") as collector:
                prune(collector)
                prune(collector)

        source, target = BusyStorage(first, meanwhile), BusyStorage(inner, meanwhile)
        busy = source if where == "source" else target
        with pair.open(source, f"one-{at}") as repo, pair.open(target, f"two-{at}") as there:
            busy.interrupt(at)
            repo.copy(there)
            assert set(_alive(there)) >= set(_alive(repo))
        with pair.open(inner, f"two-{at}") as there:
            site.all_restore(there, tmp_path / f"out-{at}")
            prune(there)
            site.all_restore(there, tmp_path / f"again-{at}")
        if not busy.interrupted:
            return


def test_a_name_that_was_deleted_is_not_used_again(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector that sleeps may still come to delete it."""
    there = _replica(repo, tmp_path / "there")
    from pharmabackup.engine.carrying import Carrier

    with monkeypatch.context() as patch:
        patch.setattr(Carrier, "decide", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            repo.copy(there)
    sent = stored(there._unlocked.storage, "packs")
    assert sent
    time.ahead += 2 * DAY_NS
    prune(there)
    assert stored(there._unlocked.storage, "packs") == []
    repo.copy(there)
    assert set(stored(there._unlocked.storage, "packs")).isdisjoint(sent)
    there._unlocked.storage.delete(sent)  # the sleeper
    site.all_restore(there, tmp_path / "out")


def test_something_else_under_a_packs_name_is_left_alone(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = _replica(repo, tmp_path / "there")
    name = stored(repo._unlocked.storage, "packs")[0]
    there._unlocked.storage.put_new(name, os.urandom(5000))
    repo.copy(there)
    assert _alive(there) == _alive(repo)
    for snapshot in there.snapshots():
        there.restore(tmp_path / snapshot.id, snapshots=[snapshot])
    assert {finding.code for finding in there.check(read_data=1.0).findings} == {"pack-damaged"}


def test_a_full_disk_stops_it_and_it_goes_on(
    tmp_path: Path, repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _replica(repo, tmp_path / "there")
    from pharmabackup.storage.local_uploads import LocalUpload

    real, calls = LocalUpload.write, list[int]()

    def write(self: LocalUpload, data: bytes) -> None:
        calls.append(len(data))
        if len(calls) > 3:
            raise pb.StorageFailed("The disk is full.", kind="full", location="there", remedy="Free some space.")
        real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalUpload, "write", write)
        with pytest.raises(pb.StorageFailed) as caught:
            repo.copy(there)
    assert caught.value.kind == "full"
    assert isinstance(there._unlocked.storage, LocalStorage)
    assert there.check().state == "ok"
    repo.copy(there)
    site.all_restore(there, tmp_path / "out")
