"""Audit records that wait on this machine: what else there is in the way of them, and who is told."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine import audit, auditlocal, localfiles, statefolder
from pharmabackup.errors import Damaged, StorageFailed, Unsupported
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
    first = min((place / "keys" / slot.id.hex()).iterdir(), key=lambda path: int(path.name))
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
            repo.record("second", {})
        repo.record("third", {})
        assert [record.event for record in repo.audit()][-3:] == ["second", "first", "third"]


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


@pytest.mark.parametrize("fails", ["the lock", "the list", "the lock, and storage"])
def test_what_storage_takes_is_not_lost_for_what_waits(
    tmp_path: Path, refusing: Refusing, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A state folder that is full, or cannot be read: better out of order than nowhere."""

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with _open(tmp_path) as repo:
        refusing.refuses = True
        repo.record("first", {})
        refusing.refuses = fails.endswith("storage")
        with monkeypatch.context() as ailing:
            ailing.setattr(auditlocal, "write_durably", full)
            ailing.setattr(auditlocal, *(("_listed", full) if fails == "the list" else ("try_lock", full)))
            if fails != "the list":
                ailing.setattr(auditlocal.os, "open", full)
            if refusing.refuses:
                with pytest.raises(StorageFailed, match="recorded nowhere"):
                    repo.record("second", {})
            else:
                repo.record("second", {})
        refusing.refuses = False
        repo.record("third", {})
        told = [record.event for record in repo.audit()]
        assert told[-2:] == ["first", "third"]
        assert told.count("second") == (0 if fails.endswith("storage") else 1)
        assert repo.audit_verify().state == "ok"


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
    """A repository for everybody, and a folder for caches that all may write to, as an administrator makes it."""
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


def _queues(shared: Path, state: Path, who: pb.Passphrase = PASSPHRASE) -> Callable[[], bool]:
    """A record that storage does not take, of whatever account does it."""

    def queues() -> bool:
        with pb.Repository.open(shared / "backup", who, state_dir=state) as repo:
            real, audit.create = audit.create, _refuses
            repo.record("trial", {})  # StorageFailed("audit-lost") if nobody keeps it
            audit.create = real
            return len(auditlocal.queued(repo._unlocked)) == 1

    return queues


def _delivers(shared: Path, state: Path, who: pb.Passphrase = PASSPHRASE) -> Callable[[], bool]:
    def delivers() -> bool:
        with pb.Repository.open(shared / "backup", who, state_dir=state) as repo:
            repo.record("after", {})
            remembered = auditlocal.load(repo._unlocked)
            return not auditlocal.queued(repo._unlocked) and bool(remembered)

    return delivers


def _refuses(*_: object) -> None:
    raise StorageFailed("It is full.", kind="full", location="test")


@ANYBODY
@pytest.mark.parametrize("of", ["all", "a group", "one of them", "root"])
def test_each_account_of_a_machine_keeps_its_own(shared: Path, of: str) -> None:
    """Also where two use one credential: nobody finds or meets what is another's."""
    state = shared / "state"
    if of == "one of them":
        os.chown(state, 1001, 1001)
        state.chmod(0o755)
    elif of == "root":
        state.chmod(0o755)
    elif of == "a group":
        os.chown(state, 0, 1001)
        state.chmod(0o775)
    accounts = {"all": (1001, 1002, 1003, 0), "a group": (1001, 0), "one of them": (1001, 0, 1001), "root": (0,)}[of]
    for account in accounts:
        who = OTHER if account == 1002 else PASSPHRASE
        assert _as(account, _queues(shared, state, who)), account
        assert _as(account, _delivers(shared, state, who)), account
        _open_to_all(shared / "backup")
    alone = {"all": set[int](), "a group": set[int](), "one of them": {1001}, "root": {0}}[of]
    assert {path.name for path in state.glob("~u*")} == {f"~u{each}" for each in {*accounts} - alone}
    for account in {*accounts} - alone:
        assert {path.stat().st_uid for path in (state / f"~u{account}").rglob("*")} == {account}
    with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "mine") as repo:
        told = [record.event for record in repo.audit() if record.slot == "owner"]
        assert told.count("trial") == len([each for each in accounts if each != 1002])


@ANYBODY
@pytest.mark.parametrize("what", ["a folder", "a link"])
def test_what_another_account_has_put_in_the_place_of_ones_own_is_told(
    shared: Path, tmp_path: Path, what: str
) -> None:
    target = tmp_path / "of root"
    target.mkdir(mode=0o700)
    own = shared / "state" / "~u0"

    def plants() -> bool:
        if what == "a link":
            own.symlink_to(target)
        else:
            own.mkdir()
            own.chmod(0o777)
        return True

    assert _as(1001, plants)
    with pytest.raises(Unsupported, match="was put there by another account") as told:
        pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "state")
    assert told.value.kind == "state-folder"
    assert not [*target.iterdir()] and not [*own.iterdir()]


@ANYBODY
def test_another_accounts_link_is_not_followed(shared: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "of root", shared / "state" / "link"
    target.mkdir(mode=0o700)
    assert _as(1001, lambda: link.symlink_to(target) is None)
    with pytest.raises(Unsupported, match="is another account's link"):
        pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=link)
    assert not [*target.iterdir()]
    link.unlink()
    link.symlink_to(target)  # one's own is
    pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=link).close()
    assert [*target.iterdir()]


@ANYBODY
def test_a_folder_that_is_not_ones_own_any_more_is_told(shared: Path) -> None:
    """What waits there, and what was seen, would not be looked for any more."""
    state = shared / "of its own"
    assert _queues(shared, state)()
    assert state.stat().st_mode & 0o777 == 0o700
    for mode, owner in ((0o777, 0), (0o755, 1001)):
        state.chmod(mode)
        os.chown(state, owner, owner)
        with pytest.raises(Unsupported, match="was this account's alone, and is not any more"):
            pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=state)
    os.chown(state, 0, 0)
    assert _delivers(shared, state)()


@ANYBODY
def test_a_file_system_that_does_not_keep_whose_files_are_is_told(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as NFS, where root is nobody."""
    real = Path.mkdir

    def squashed(self: Path, *how: Any, **options: Any) -> None:
        real(self, *how, **options)
        os.chown(self, 65534, 65534)

    monkeypatch.setattr(Path, "mkdir", squashed)
    for _ in range(2):
        with pytest.raises(Unsupported, match="does not keep whose files are"):
            pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "new")
        assert not [*(shared / "new").iterdir()]


@pytest.mark.skipif(os.name == "nt", reason="whose a folder is, is not asked there")
def test_a_state_folder_that_cannot_be_looked_at_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_: Path) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "lstat", stale)
    with pytest.raises(StorageFailed, match="which repository was where") as told:
        statefolder.state_folder(tmp_path)
    assert told.value.kind == "state-folder"


@ANYBODY
def test_what_others_put_into_a_shared_folder_is_not_believed(shared: Path) -> None:
    """Nor does it stop anybody, though it has the names of what is one's own."""
    state = shared / "state"
    with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "mine") as repo:
        name = repo._unlocked.state.name
    _open_to_all(shared / "backup")
    place = statefolder.PLACE.match(name)
    assert place is not None

    def plants() -> bool:
        for folder in (name, f"{'0' * 16}-{'0' * 8}-{place['place']}-x", f"audit-queue/{name}"):
            (state / folder).mkdir(parents=True)
            (state / folder).chmod(0o777)
        return True

    assert _as(1002, plants)
    for account in (1001, 0):
        assert _as(account, _queues(shared, state)) and _as(account, _delivers(shared, state))
        _open_to_all(shared / "backup")
    assert not [*(state / name).iterdir()]


@ANYBODY
def test_where_another_account_keeps_all_to_itself_a_repository_opens(shared: Path) -> None:
    os.chown(shared / "state", 1001, 1001)
    (shared / "state").chmod(0o700)

    def opens() -> bool:
        with pb.Repository.open(shared / "backup", PASSPHRASE, state_dir=shared / "state") as repo:
            repo.record("trial", {})
            return repo.role == "owner" and next(iter([*repo.audit()][::-1])).event == "trial"

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
    for folder in (shared / "state").glob("*/*"):
        folder.chmod(0o500)  # what is remembered counts, though nothing more can be
    another()
    assert not _as(1001, opens) and not _as(1002, opens) and _as(1003, opens)
    assert _as(1002, lambda: opens(repository=known[0])) and _as(1002, opens)
    assert not _as(1001, opens)
    another()
    assert not _as(1002, opens)


@ANYBODY
@pytest.mark.parametrize("home", ["new", "closed", "none"])
def test_where_an_account_keeps_its_state_that_says_nothing(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """A service's home has no `.local` yet; what lies among temporary files is gone at the next start."""
    place = tmp_path_factory.mktemp("home")
    for folder in (place, *place.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    (place / "home").mkdir()
    (place / "temporary").mkdir()
    (place / "temporary").chmod(0o1777)
    if home != "closed":
        os.chown(place / "home", 1001, 1001)
    for name in ("PHARMABACKUP_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setattr(statefolder, "SYSTEM", place / "system")
    monkeypatch.setattr(statefolder.tempfile, "gettempdir", lambda: str(place / "temporary"))
    if home == "none":
        monkeypatch.delenv("HOME")  # and account 1001 has no entry among the system's either
    expected = place / ("home/.local/state" if home == "new" else "temporary") / "pharmabackup"
    assert _as(1001, lambda: statefolder.state_folder(None) == expected)
    assert statefolder.state_folder(None) == place / "system"  # root's
