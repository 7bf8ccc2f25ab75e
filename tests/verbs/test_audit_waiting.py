"""Audit records that wait on this machine: what else there is in the way of them, and who is told."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine import audit, auditlocal, localfiles, statefolder
from pharmabackup.errors import Damaged, StorageFailed
from tests.verbs.faults import Refusing
from tests.verbs.site import PASSPHRASE

FOLDERS = ["folder", "folder"] if os.name == "posix" else []  # of the queues, and of the folder above
OTHER = pb.Passphrase("another horse battery staple")
ANYBODY = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root becomes somebody else"
)


def _open(tmp_path: Path, who: pb.Passphrase = PASSPHRASE) -> pb.Repository:
    return pb.Repository.open("memory://x", who, state_dir=tmp_path / "state")


def _spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_behind_any_number_that_cannot_be_read_the_others_go(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "AT_ONCE", 3)
    with _open(tmp_path) as repo:
        refusing.refuses = True
        for number in range(5):
            repo.record("spoilt", {"number": number})
        for name in auditlocal.queued(repo._unlocked):
            _spoil(repo._unlocked.queue / name)
        for number in range(4):
            repo.record("whole", {"number": number})
        refusing.refuses = False
        for _ in range(2):  # so many at a time
            repo.record("after", {})
        told = [record.event for record in repo.audit()]
        assert told.count("whole") == 4 and told.count("after") == 2 and "spoilt" not in told
        assert len(auditlocal.queued(repo._unlocked)) == 5


def test_what_waits_while_the_signing_key_is_damaged_goes_when_it_is_whole(tmp_path: Path, cheap_kdf: None) -> None:
    place, state = tmp_path / "backup", tmp_path / "state"
    with pb.Repository.create(place, PASSPHRASE, state_dir=tmp_path / "owner's") as repo:
        repo.enrol("restorer", OTHER, name="desk")
        (slot,) = (each for each in repo._unlocked.roster.slots if each.name == "desk")
        repo.rotate(reason="so that there is another keyring, without the signing key")
    first = min((place / "keys" / slot.id.hex()).iterdir())
    whole = first.read_bytes()
    first.chmod(0o600)
    _spoil(first)
    with pb.Repository.open(place, OTHER, state_dir=state) as repo:
        assert repo._unlocked.keyring.signing is None
        repo.record("while-it-was-damaged", {})
        assert len(auditlocal.queued(repo._unlocked)) == 1
    first.write_bytes(whole)
    with pb.Repository.open(place, OTHER, state_dir=state) as repo:
        repo.record("after", {})
        assert [record.event for record in repo.audit()][-2:] == ["while-it-was-damaged", "after"]
        assert not auditlocal.queued(repo._unlocked)


def test_what_waits_for_a_disk_that_has_another_path_now_is_told(
    tmp_path: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, state = tmp_path / "usb1", tmp_path / "usb2", tmp_path / "state"
    pb.Repository.create(first / "backup", PASSPHRASE, state_dir=state).close()

    def refused(*_: object) -> None:
        raise StorageFailed("It is write-protected.", kind="storage-denied", location="test")

    with pb.Repository.open(first / "backup", PASSPHRASE, state_dir=state) as repo, monkeypatch.context() as patch:
        patch.setattr(audit, "create", refused)
        repo.record("by-hand", {})
    first.rename(second)
    with pb.Repository.open(second / "backup", PASSPHRASE, state_dir=state) as repo:
        for report in (repo.check(), repo.audit_verify()):
            (told,) = report.findings
            assert (told.code, told.severity) == ("audit-queued", "info")
            assert "usb1-backup: 1." in told.message and "by the name that it had" in told.remedy
    second.rename(first)
    with pb.Repository.open(first / "backup", PASSPHRASE, state_dir=state) as repo:
        repo.record("after", {})
        assert [record.event for record in repo.audit()][-2:] == ["by-hand", "after"]
        assert repo.check().findings == ()


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with _open(tmp_path) as repo:
        refusing.refuses = True
        repo.record("kept", {})
        with monkeypatch.context() as patch:
            patch.setattr(localfiles.os, "fsync", full)
            with pytest.raises(StorageFailed):
                repo.record("lost", {})
        assert set(os.listdir(repo._unlocked.queue)) - {"lock"} == set(auditlocal.queued(repo._unlocked))
        assert len(auditlocal.queued(repo._unlocked)) == 1
        refusing.refuses = False


def test_what_is_kept_is_there_after_a_power_cut(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content is synced before it has its name, and the folder after; before, those in which new folders are."""
    steps, fsync, rename = list[str](), os.fsync, os.replace

    def synced(fd: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def named(*paths: os.PathLike[str]) -> None:
        steps.append("name")
        rename(*paths)

    with _open(tmp_path) as repo:
        refusing.refuses = True
        with monkeypatch.context() as patch:
            patch.setattr(localfiles.os, "fsync", synced)
            patch.setattr(localfiles.os, "replace", named)
            assert auditlocal.enqueue(repo._unlocked, auditlocal.Entry(0, None, "x", "done", "", None, {}))
        assert steps == [*FOLDERS, "file", "name", *FOLDERS[1:]]
        refusing.refuses = False


@pytest.mark.parametrize("fails", ["the queue", "the memory"])
def test_what_cannot_be_read_now_is_not_taken_for_nothing(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    with _open(tmp_path) as repo:
        unlocked = repo._unlocked
        if fails == "the memory":
            auditlocal.remember(unlocked, "aa" * 16, auditlocal.Pin(5, bytes(32)), ())
            with monkeypatch.context() as ailing:
                ailing.setattr(Path, "read_bytes", _ails)
                auditlocal.remember(unlocked, "bb" * 16, auditlocal.Pin(1, bytes(32)), ())
            assert "aa" * 16 in auditlocal.load(unlocked)
            return
        refusing.refuses = True
        repo.record("first", {})
        refusing.refuses = False
        with monkeypatch.context() as ailing:
            ailing.setattr(auditlocal.os, "listdir", _ails)
            with pytest.raises(StorageFailed, match="recorded nowhere"):  # it cannot be put behind the first
                repo.record("second", {})
        repo.record("third", {})
        assert [record.event for record in repo.audit()][-2:] == ["first", "third"]


def test_what_waits_of_others_is_not_taken_for_nothing_when_it_cannot_be_listed(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path) as repo:
        real = os.listdir

        def fails(path: os.PathLike[str]) -> list[str]:
            return _ails() if os.fspath(path).endswith("audit-queue") else real(path)  # type: ignore[return-value]

        monkeypatch.setattr(auditlocal.os, "listdir", fails)
        (told,) = [each for each in repo.check().findings if each.code == "audit-queued"]
        assert told.severity == "info" and "cannot be seen now" in told.message


def test_where_nothing_can_be_locked_records_are_delivered_all_the_same(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as on NFS without its lock service."""

    def no_locks(_: int) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with _open(tmp_path) as repo:
        refusing.refuses = True
        repo.record("first", {})
        refusing.refuses = False
        monkeypatch.setattr(auditlocal, "try_lock", no_locks)
        repo.record("second", {})
        assert [record.event for record in repo.audit()][-2:] == ["first", "second"]
        assert not auditlocal.queued(repo._unlocked)


def test_a_place_is_named_without_the_account_that_left_something_for_it(tmp_path: Path, refusing: Refusing) -> None:
    with _open(tmp_path) as repo:
        queue = repo._unlocked.queue
        found = statefolder.PLACE.match(queue.name)
        assert found is not None
        for ends in ("usb1", "usb1~u1001", "usb-u2"):
            folder = queue.with_name(f"{found['repository']}-{found['slot']}-{'0' * 8}-{ends}")
            folder.mkdir(parents=True)
            (folder / f"{1:020d}-{'0' * 8}").touch()
        assert auditlocal.queued_elsewhere(repo._unlocked) == {"usb1": 2, "usb-u2": 1}


def _ails(*_: object) -> bytes:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
def test_a_process_that_was_forked_during_a_delivery_holds_up_no_record(
    tmp_path: Path, refusing: Refusing, cheap_kdf: None
) -> None:
    with _open(tmp_path) as repo:
        refusing.refuses = True
        repo.record("tick", {})
        goes_on, ends = os.pipe()
        with auditlocal.delivering(repo._unlocked) as may:
            assert may
            if not (child := os.fork()):
                os.close(ends)
                os.read(goes_on, 1)
                os._exit(0)
        refusing.refuses = False
        with auditlocal.delivering(repo._unlocked) as may:
            assert may
        repo.record("tick", {})
        assert not auditlocal.queued(repo._unlocked)
        os.close(ends)
        assert os.waitpid(child, 0)[1] == 0
        os.close(goes_on)


# ------------------------------------------------------------ several accounts of one machine


def _as(account: int, does: Callable[[], bool]) -> bool:
    """In a process of that account."""
    child = os.fork()
    if not child:
        try:
            os.umask(0o022)
            os.setgid(account)
            os.setuid(account)
            os._exit(0 if does() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory, cheap_kdf: None) -> Path:
    """A repository for everybody, and a folder for caches that belongs to all, as an administrator makes it."""
    place = tmp_path_factory.mktemp("shared")
    for folder in (place, *place.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    (place / "state").mkdir()
    (place / "state").chmod(0o1777)
    with pb.Repository.create(place / "backup", PASSPHRASE, state_dir=place / "mine") as repo:
        repo.enrol("owner", OTHER, name="second")
    with pb.Repository.open(place / "backup", OTHER, state_dir=place / "mine") as repo:
        repo.check()  # all is imported: other accounts may not reach this Python
    _open_to_all(place / "backup")
    return place


def _open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


@ANYBODY
def test_each_account_of_a_machine_has_a_queue_of_its_own(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two use one credential, and whoever came first made the folder."""

    def refused(*_: object) -> None:
        raise StorageFailed("It is full.", kind="full", location="test")

    def waits(who: pb.Passphrase) -> bool:
        monkeypatch.setattr(audit, "create", refused)
        with pb.Repository.open(shared / "backup", who, state_dir=shared / "state") as repo:
            repo.record("trial", {})  # StorageFailed("audit-lost") if nobody keeps it
            return auditlocal.queued(repo._unlocked) != []

    for account, who in ((1001, PASSPHRASE), (1002, OTHER), (1003, PASSPHRASE)):
        assert _as(account, lambda who=who: waits(who)), account  # type: ignore[misc]
    with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "state") as repo:
        messages = {each.message for each in repo.check().findings if each.code == "audit-queued"}
        assert [record.event for record in repo.audit()][-2:] == ["trial", "check"]  # root delivers the first's
    assert {message.partition(" that wait")[0] for message in messages} == {
        "Audit records of second",
        "Audit records of owner, of another account of this machine,",
    }


@ANYBODY
def test_root_delivers_for_others_and_is_not_in_their_way(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def queues() -> bool:
        with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "state") as repo:
            real = audit.create
            audit.create = _refuses
            repo.record("queued", {})
            audit.create = real
            os._exit(0 if len(auditlocal.queued(repo._unlocked)) == 1 else 1)

    def delivers() -> bool:
        os.umask(0o077)
        with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "state") as repo:
            repo.record("delivers", {})
            remembered = auditlocal.load(repo._unlocked)
            return not auditlocal.queued(repo._unlocked) and bool(remembered)

    for account in (1001, 0, 1001):
        if account:
            assert _as(account, queues)
        assert _as(account, delivers)
        _open_to_all(shared / "backup")
    assert not list((shared / "state").rglob("*~u*"))
    with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "mine") as repo:
        assert [record.event for record in repo.audit()].count("queued") == 2


def _refuses(*_: object) -> None:
    raise StorageFailed("It is full.", kind="full", location="test")


@ANYBODY
@pytest.mark.parametrize("link", ["audit-queue", "lock", "a cache"])
def test_another_account_cannot_have_root_give_away_what_is_not_its_own(
    shared: Path, tmp_path: Path, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a link in a folder that both may write to."""
    target = tmp_path / "of root"
    target.mkdir(mode=0o755) if link == "audit-queue" else target.touch(mode=0o600)
    before = target.stat()
    with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "state") as repo:
        queue = repo._unlocked.queue
        if link == "audit-queue":
            (shared / "state" / link).symlink_to(target)
            auditlocal._share(queue.parent)
        elif link == "lock":
            queue.mkdir(parents=True)
            os.chown(queue, 1001, 1001)
            (queue / link).symlink_to(target)
            with auditlocal.delivering(repo._unlocked) as may:
                assert may is None
        else:
            os.chown(repo._unlocked.state, 1001, 1001)
            real = localfiles.give

            def swaps(file: int, folder: Path) -> None:
                for fresh in folder.glob("cached.*"):
                    fresh.unlink()
                    fresh.symlink_to(target)
                real(file, folder)

            monkeypatch.setattr(localfiles, "give", swaps)
            localfiles.replace(repo._unlocked.state / "cached", b"x")
    after = target.stat()
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


@ANYBODY
@pytest.mark.parametrize("refused", ["fchmod", "fchown"])
def test_what_a_file_system_refuses_to_give_away_is_kept_all_the_same(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def no(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, refused, no)
    with _open(tmp_path) as repo:
        (tmp_path / "state" / "audit-queue").mkdir(mode=0o700)
        refusing.refuses = True
        repo.record("tick", {})
        assert len(auditlocal.queued(repo._unlocked)) == 1
        refusing.refuses = False


@ANYBODY
def test_who_has_a_queue_of_his_own_keeps_it(shared: Path) -> None:
    """Though the other's is gone by then."""
    plain = shared / "plain"
    own = shared / "plain~u0"
    own.mkdir()
    assert statefolder.own_folder(plain) == own
    assert statefolder.own_folder(shared / "other") == shared / "other"


@ANYBODY
@pytest.mark.parametrize("private", ["state", "state/audit-queue"])
def test_where_another_account_keeps_all_to_itself_a_repository_opens(shared: Path, private: str) -> None:
    (shared / private).mkdir(exist_ok=True)
    os.chown(shared / private, 1001, 1001)
    (shared / private).chmod(0o700)

    def opens() -> bool:
        with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "state") as repo:
            repo.record("trial", {})
            return repo.role == "owner"

    assert _as(1002, opens)


@ANYBODY
def test_what_another_account_remembers_of_a_place_does_not_stop_this_one(shared: Path) -> None:
    """Each is told for itself that another repository is there, and each says for itself that it is right."""
    known: list[str] = []

    def opens(**how: str) -> bool:
        try:
            pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "state", **how).close()
        except Damaged as error:
            return error.kind != "another-repository"
        return True

    def another() -> None:
        shutil.rmtree(shared / "backup")
        with pb.Repository.create(shared / "backup", PASSPHRASE, state_dir=shared / "mine") as repo:
            known.append(repo.id)
        _open_to_all(shared / "backup")

    assert _as(1001, opens) and _as(1002, opens)
    for folder in (shared / "state").iterdir():
        folder.chmod(0o500)  # what is remembered counts, though nothing more can be
    another()
    assert not _as(1001, opens) and not _as(1002, opens)
    assert _as(1002, lambda: opens(repository=known[0])) and _as(1002, opens)
    assert not _as(1001, opens)
    another()
    assert not _as(1002, opens)
