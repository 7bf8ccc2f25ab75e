"""One backup to several places: the source is read once, and no place's trouble is another's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

import pharmabackup as pb
from pharmabackup.engine import carrying
from pharmabackup.errors import NotFound, StorageFailed
from pharmabackup.storage import memory
from pharmabackup.storage.base import Upload
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.site import PASSPHRASE, Site, Time, forget_all_but, prune

MakeRepo = Callable[[], pb.Repository]


def _full() -> StorageFailed:
    return StorageFailed("there is full.", kind="full", remedy="Free some space there.", location="there")


class Sick(MemoryStorage):
    """Takes so many objects, and then no more."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.left = 1 << 30

    def upload(self) -> Upload:
        if self.left <= 0:
            raise _full()
        self.left -= 1
        return super().upload()


@pytest.fixture
def sick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sick:
    made = Sick(tmp_path.name)
    monkeypatch.setitem(memory._named, tmp_path.name, made)
    return made


def _replica(repo: pb.Repository, url: str | Path, state: Path) -> pb.Repository:
    return pb.Repository.create(url, PASSPHRASE, replica_of=repo, state_dir=state)


def _back_up(site: Site, repo: pb.Repository, *replicas: pb.Repository) -> pb.Report:
    site.change()
    report = repo.backup([pb.Files(site.root)], replicas=replicas)
    snapshot = report.datasets[site.root.name].snapshot
    assert snapshot is not None
    site.states[snapshot.id] = {path.name: path.read_bytes() for path in site.root.iterdir()}
    return report


def _codes(report: pb.Report) -> set[str]:
    return {finding.code for finding in report.findings} - {"same-device"}


def test_each_place_has_all_of_it_and_restores_alone(make_repo: MakeRepo, site: Site, tmp_path: Path) -> None:
    repo = make_repo()
    usb, cloud = (
        _replica(repo, tmp_path / "usb", tmp_path / "s1"),
        _replica(repo, f"memory://{tmp_path.name}", tmp_path / "s2"),
    )
    for _ in range(3):
        assert _codes(_back_up(site, repo, usb, cloud)) == set()
    for number, place in enumerate((usb, cloud)):
        site.all_restore(place, tmp_path / f"out {number}")
        assert not repo.compare(place).only_here
        assert [record.outcome for record in place.audit() if record.event == "copy"] == ["done"] * 3


def test_the_source_is_read_once(
    make_repo: MakeRepo, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, read = make_repo(), list[str]()
    places = [_replica(repo, tmp_path / f"place {number}", tmp_path / f"s{number}") for number in range(3)]
    real = pb.Files.view

    def view(self: pb.Files, *, scratch: Path) -> object:
        read.append("once")
        return real(self, scratch=scratch)

    monkeypatch.setattr(pb.Files, "view", view)
    _back_up(site, repo, *places)
    assert read == ["once"]
    for place in places:
        assert len(place.snapshots()) == 1


def test_packs_go_on_while_the_backup_runs(
    make_repo: MakeRepo, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit in the first place waits until the other one has the pack: in turn it could not."""
    from pharmabackup.engine.transaction import Transaction

    repo, arrived = make_repo(), threading.Event()
    cloud = _replica(repo, f"memory://{tmp_path.name}", tmp_path / "state")
    real_send, real_commit, seen = carrying.send_pack, Transaction.commit, list[bool]()

    def send(*args: object, **options: object) -> bool:
        sent = real_send(*args, **options)  # type: ignore[arg-type]
        arrived.set()
        return sent

    def commit(self: Transaction, *args: object) -> bytes:
        seen.append(arrived.wait(60))
        return real_commit(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("pharmabackup.verbs.spread.send_pack", send)
    monkeypatch.setattr(Transaction, "commit", commit)
    _back_up(site, repo, cloud)
    assert seen == [True]
    site.all_restore(cloud, tmp_path / "out")


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_a_place_that_fails_stops_nobody_and_catches_up(
    make_repo: MakeRepo, site: Site, sick: Sick, tmp_path: Path, left: int
) -> None:
    repo = make_repo()
    usb, cloud = _replica(repo, tmp_path / "usb", tmp_path / "s1"), _replica(repo, sick.location, tmp_path / "s2")
    sick.left = left
    report = _back_up(site, repo, cloud, usb)
    (behind,) = [finding for finding in report.findings if finding.code == "location-behind"]
    assert (behind.severity, behind.location, report.state) == ("warning", sick.location, "critical")
    assert "Free some space there." in behind.remedy
    assert "next backup" in behind.remedy
    site.all_restore(usb, tmp_path / "usb out")
    assert not cloud.snapshots()
    sick.left = 1 << 30
    assert _codes(_back_up(site, repo, cloud, usb)) == set()
    site.all_restore(cloud, tmp_path / "cloud out")


def test_a_pack_that_is_gone_again_is_left_to_the_copy(
    make_repo: MakeRepo, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a collection in the first place lets go what an attempt that it overtook had written."""
    repo = make_repo()
    usb, asked = _replica(repo, tmp_path / "usb", tmp_path / "s1"), list[bytes]()

    def gone(*args: object) -> bool:
        asked.append(args[2])  # type: ignore[arg-type]
        raise NotFound("There is no such object.", kind="object")

    monkeypatch.setattr("pharmabackup.verbs.spread.send_pack", gone)
    assert _codes(_back_up(site, repo, usb)) == set()
    assert asked
    site.all_restore(usb, tmp_path / "out")


def test_what_the_copy_tells_is_told(make_repo: MakeRepo, site: Site, time: Time, tmp_path: Path) -> None:
    repo = make_repo()
    usb = _replica(repo, tmp_path / "usb", tmp_path / "s1")
    for _ in range(2):
        _back_up(site, repo, usb)
    forget_all_but(usb, 1, time)
    assert _codes(_back_up(site, repo, usb)) == {"snapshot-forgotten-there"}


class Failing(pb.Files):
    """What it backs up is well; the storage is not."""

    def view(self, *, scratch: Path) -> NoReturn:
        raise _full()


def test_what_was_committed_before_the_first_place_failed_is_in_the_others(
    make_repo: MakeRepo, site: Site, tmp_path: Path
) -> None:
    repo, other = make_repo(), tmp_path / "other"
    usb = _replica(repo, tmp_path / "usb", tmp_path / "s1")
    site.change()
    other.mkdir()
    with pytest.raises(StorageFailed):
        repo.backup([pb.Files(site.root, tier=1), Failing(other, tier=4)], replicas=[usb])
    assert [one.dataset for one in usb.snapshots()] == [one.dataset for one in repo.snapshots()]
    assert not [thread for thread in threading.enumerate() if thread.name == "pharmabackup-follow"]


def test_a_fault_in_one_place_loses_no_report(
    make_repo: MakeRepo, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    usb, cloud = _replica(repo, tmp_path / "usb", tmp_path / "s1"), _replica(repo, tmp_path / "two", tmp_path / "s2")
    real = repo.copy

    def copy(other: pb.Repository, **options: object) -> pb.Report:
        if other is usb:
            raise RuntimeError("of /home/jaya/letters")
        return real(other, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repo, "copy", copy)
    report = _back_up(site, repo, usb, cloud)
    (behind,) = [finding for finding in report.findings if finding.code == "location-behind"]
    assert "RuntimeError" in behind.message
    assert "letters" not in str(behind)
    site.all_restore(cloud, tmp_path / "out")


def test_what_was_not_read_is_missing_everywhere_and_is_no_other_places_fault(
    make_repo: MakeRepo, site: Site, tmp_path: Path
) -> None:
    repo = make_repo()
    usb = _replica(repo, tmp_path / "usb", tmp_path / "s1")
    site.change()
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pb.Files(site.root), pb.Files(tmp_path / "nothing")], replicas=[usb])
    assert "location-behind" not in _codes(caught.value.result)
    assert [snapshot.dataset for snapshot in usb.snapshots()] == [site.root.name]


def test_a_backup_that_was_stopped_sends_no_more(make_repo: MakeRepo, site: Site, tmp_path: Path) -> None:
    repo = make_repo()
    usb, cancel = _replica(repo, tmp_path / "usb", tmp_path / "s1"), threading.Event()
    cancel.set()
    site.change()
    with pytest.raises(pb.Cancelled):
        repo.backup([pb.Files(site.root)], replicas=[usb], cancel=cancel)
    assert not [thread for thread in threading.enumerate() if thread.name == "pharmabackup-follow"]
    assert not usb.snapshots()
    assert _codes(_back_up(site, repo, usb)) == set()


def test_a_device_backs_up_to_all_with_its_own_key(make_repo: MakeRepo, site: Site, tmp_path: Path) -> None:
    repo, key = make_repo(), pb.KeyFile.create(tmp_path / "till.key")
    repo.enrol("device", pb.Recipient(str(key.recipient)), name="till")
    _replica(repo, tmp_path / "usb", tmp_path / "s1").close()
    first = pb.Repository.open(repo.url, key, state_dir=tmp_path / "s2")
    with first, pb.Repository.open(tmp_path / "usb", key, state_dir=tmp_path / "s3") as usb:
        for _ in range(2):
            assert _codes(_back_up(site, first, usb)) == set()
    with pb.Repository.open(tmp_path / "usb", PASSPHRASE, state_dir=tmp_path / "s4") as usb:
        site.all_restore(usb, tmp_path / "out")


def test_a_prune_there_at_the_same_time_takes_nothing_away(
    make_repo: MakeRepo, site: Site, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the packs that go ahead and the copy that makes them count: as if their writer had died."""
    repo = make_repo()
    usb = _replica(repo, tmp_path / "usb", tmp_path / "s1")
    for _ in range(3):
        _back_up(site, repo, usb)
    forget_all_but(usb, 1, time)
    real, pruned = repo.copy, list[bool]()

    def copy(*args: object, **options: object) -> pb.Report:
        prune(usb)
        pruned.append(True)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repo, "copy", copy)
    _back_up(site, repo, usb)
    assert pruned
    site.all_restore(usb, tmp_path / "out")


@pytest.mark.parametrize("what", ["another repository", "the first place", "one place twice"])
def test_what_is_no_other_place(make_repo: MakeRepo, site: Site, tmp_path: Path, what: str) -> None:
    repo = make_repo()
    usb = _replica(repo, tmp_path / "usb", tmp_path / "s1")
    replicas = {"another repository": [make_repo()], "the first place": [repo], "one place twice": [usb, usb]}[what]
    site.change()
    with pytest.raises(pb.InvalidInput):
        repo.backup([pb.Files(site.root)], replicas=replicas)
    assert not repo.snapshots()
