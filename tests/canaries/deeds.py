"""A process that does something with a repository that holds canaries, and tells all that it heard.

python -m tests.canaries.deeds DEED FOLDER

FOLDER gets `log` with everything that is logged at DEBUG, `said` with errors and events as they show, `told` with
findings, which may name files, and `shown` with what Python shows and pickles of all results.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pharmabackup as pb
from pharmabackup.engine import hunting
from pharmabackup.report import recovery_kit
from pharmabackup.sources import sqlite_copy
from tests.canaries import search as c
from tests.canaries.given import given
from tests.damage.shop import two_weeks_later
from tests.verbs.forged import forged

Deed = Callable[["Teller"], object]
ENOUGH = 12  # events, until a process is killed or cancelled
KILLED_AFTER = 400_000  # bytes written


class Teller:
    """Where everything lies, and everything that a caller hears."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository, self.replica = folder / "repository", folder / "replica"
        self.state = folder / "state"
        self.sources: list[pb.Source] = [
            pb.SQLite(folder / "data" / "pmr.db", tier=1),
            pb.Files(folder / "data" / c.DATASET),
        ]
        self.outs = 0
        self.cancel = threading.Event()

    def open(self, passphrase: str = c.PASSPHRASE, place: Path | None = None) -> pb.Repository:
        return self.show(
            pb.Repository.open(place or self.repository, pb.Passphrase(passphrase), state_dir=self.state)
        )

    def hear(self, event: pb.Event) -> None:
        """Its text is safe to log; its path and finding may name a file."""
        self._write("said", f"{event} {event.text} {event.location}")
        logging.getLogger("caller").info("%s", event)
        if event.finding is not None:
            self._write("told", repr(event.finding))

    def show(self, thing: object) -> object:
        """Everything that Python shows of it."""
        self._write("shown", f"{thing!r}\n{thing}")
        with suppress(TypeError):  # what holds keys says so
            self._write("shown", pickle.dumps(thing, 0).decode("latin-1"))
        return thing

    def fail(self, error: BaseException) -> None:
        lines = traceback.format_exception(error)
        facts = {name: value for name, value in vars(error).items() if name not in ("findings", "result")}
        self._write("said", f"{error}\n{error!r}\n{''.join(lines)}\n{facts}")
        logging.getLogger("caller").error("it failed", exc_info=error)
        self.show(error)

    def keep(self, *shares: tuple[str, ...]) -> None:
        """Beside all that is searched: what holders wrote down."""
        (self.folder.parent / "shares").write_text(json.dumps(shares))

    def kept(self) -> list[tuple[str, ...]]:
        return [tuple(some) for some in json.loads((self.folder.parent / "shares").read_text())]

    def out(self) -> Path:
        self.outs += 1
        return self.folder / f"out-{self.outs}-{os.getpid()}"

    def attempt(self, work: Callable[[], object]) -> None:
        try:
            self.show(work())
        except Exception as error:
            self.fail(error)
            if not isinstance(error, pb.Error):
                raise

    def fails(self, work: Callable[[], object], kind: type[pb.Error]) -> None:
        try:
            self.show(work())
        except kind as error:
            self.fail(error)
        else:
            raise AssertionError(f"it should have ended in {kind}")

    def _write(self, name: str, text: str) -> None:
        with open(self.folder / name, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text + "\n")


def everything(teller: Teller) -> None:
    """Each verb once, and it succeeds."""
    hear, sources = teller.hear, teller.sources
    pb.Repository.create(teller.repository, pb.Passphrase(c.PASSPHRASE), state_dir=teller.state).close()
    with teller.open() as repo:
        teller.show(repo.backup(sources, reason=c.REASON, progress=hear))
        (teller.folder / "data" / c.DATASET / "plain").write_text(c.CONTENT * 3)
        report = repo.backup(sources, reason=c.REASON, progress=hear)
        teller.show(report)
        for result in report.datasets.values():
            teller.show(result)
        snapshot = repo.snapshot(c.DATASET)
        teller.show(snapshot)
        assert [teller.show(entry) for entry in snapshot.glob("**")]
        with snapshot.open(f"{c.FOLDER}/{c.FILE}") as file:
            teller.show(file)
            assert c.CONTENT.encode() in file.read()
        teller.show(repo.restore(teller.out(), progress=hear))
        teller.show(repo.restore(teller.out(), only=[f"{c.DATASET}/{c.FOLDER}/*"], progress=hear))
        teller.show(repo.check(read_data=1.0, progress=hear))
        repo.hold(snapshot, reason=c.REASON)
        repo.release(snapshot, reason=c.REASON)
        teller.show(repo.slots())
        repo.configure(keep={"*": pb.Keep(last=3)})
        teller.show(repo.rules())
        repo.enrol("owner", pb.Passphrase(c.NEW_PASSPHRASE + " of another"), name="second")
        replaced = repo.split_recovery()
        shares = repo.split_recovery(threshold=2, shares=3)
        teller.keep(shares, replaced)
        repo.rotate(reason=c.REASON)
        with pb.Repository.create(
            teller.replica, pb.Passphrase(c.PASSPHRASE), state_dir=teller.state, replica_of=repo
        ) as there:
            teller.show(repo.copy(there, progress=hear))
            teller.show(repo.compare(there))
            pack = next(path for path in teller.repository.joinpath("packs").rglob("*") if path.is_file())
            pack.unlink()
            proposal = repo.propose_repair(replicas=[there], sources=sources, progress=hear)
            teller.show(repo.apply(teller.show(proposal), progress=hear))
        for proposal in (repo.propose_forget(snapshots=[repo.snapshots()[-1]]), repo.propose_reseal()):
            teller.show(repo.apply(teller.show(proposal), progress=hear))
        with two_weeks_later():
            teller.show(repo.apply(teller.show(repo.propose_prune()), progress=hear))
        drill(teller, shares)
        till(teller, repo)
        repo.change_passphrase(pb.Passphrase(c.NEW_PASSPHRASE))
        teller.show(repo._unlocked)
        teller.show(repo._unlocked.keyring)
        teller.show(repo._unlocked.opener)


def till(teller: Teller, repo: pb.Repository) -> None:
    """A device of its own, with a key file that lies beside all that is searched."""
    key = pb.KeyFile.create(teller.folder.parent / "till.key")
    repo.enrol("device", key.recipient, name="till")
    teller.show(key)
    with pb.Repository.open(teller.repository, key, state_dir=teller.state) as own:
        teller.show(own)
        teller.show(own.backup(teller.sources, reason=c.REASON, progress=teller.hear))
        teller.fails(lambda: own.restore(teller.out()), pb.NotPermitted)
        teller.show(own._unlocked)
        teller.show(own._unlocked.opener)


def drill(teller: Teller, shares: tuple[str, ...]) -> None:
    """As holders do it who have nothing else, each with a share alone; and the page that lies with none of them."""
    given = pb.Shares(*shares)
    teller.show(given)
    with pb.Repository.open(teller.repository, given, state_dir=teller.state) as repo:
        teller.show(repo.drill_recovery_key(given, progress=teller.hear))
        recovery_kit(teller.folder / "kit.html", repo, holders=["first", "second", "third"])
    for share in shares:
        teller.show(pb.Repository.check_share(teller.repository, share))


def failing(teller: Teller) -> None:
    """What goes wrong in each verb that opens, reads or writes."""
    for passphrase in (c.WRONG_PASSPHRASE, c.PASSPHRASE):  # the second was changed
        teller.fails(lambda passphrase=passphrase: teller.open(passphrase), pb.WrongCredential)
    teller.fails(lambda: teller.open(c.NEW_PASSPHRASE, teller.folder / "nowhere"), pb.Error)
    create = pb.Repository.create
    teller.fails(lambda: create(teller.folder / "new", pb.Passphrase("canary-too")), pb.InvalidInput)
    teller.fails(lambda: create(teller.repository, pb.Passphrase(c.WRONG_PASSPHRASE)), pb.Conflict)
    teller.fails(lambda: pb.Repository.open("nosuch://x", pb.Passphrase(c.WRONG_PASSPHRASE)), pb.Unsupported)
    with teller.open(c.NEW_PASSPHRASE) as repo:
        failing_drills(teller, repo)
        locked = teller.folder / "data" / c.DATASET / c.FOLDER / c.FILE
        real = os.open

        def refuse(path: object, *args: object, **more: object) -> int:
            if os.fsencode(path).endswith(c.FILE.encode()):  # type: ignore[call-overload]
                raise PermissionError(13, "Permission denied", path)
            return real(path, *args, **more)  # type: ignore[arg-type]

        locked.touch()
        with mock.patch("os.open", refuse):
            teller.fails(lambda: repo.backup(teller.sources, progress=teller.hear), pb.Incomplete)
        teller.fails(lambda: repo.backup([pb.Files(teller.folder / "nowhere")]), pb.Error)
        repo.backup(teller.sources)
        teller.fails(lambda: repo.backup([pb.SQLite(teller.folder / "data" / c.DATASET / "plain")]), pb.Error)
        teller.fails(lambda: repo.enrol("owner", pb.Passphrase("canary-too"), name="third"), pb.InvalidInput)
        teller.fails(lambda: repo.change_passphrase(pb.Passphrase("canary-too")), pb.InvalidInput)
        teller.cancel.set()
        for verb in (
            lambda: repo.backup(teller.sources, cancel=teller.cancel),
            lambda: repo.restore(teller.out(), cancel=teller.cancel),
            lambda: repo.check(read_data=1.0, cancel=teller.cancel),
        ):
            teller.fails(verb, pb.Cancelled)
        teller.fails(lambda: repo.snapshot(c.DATASET).open("not there"), pb.NotFound)
        out = teller.out()
        repo.restore(out)
        teller.fails(lambda: repo.restore(out), pb.Conflict)


def failing_drills(teller: Teller, repo: pb.Repository) -> None:
    """Shares that were replaced, too few, mistyped, of two keys, that do not fit, and one of them odd."""
    shares, replaced = teller.kept()
    drill, cancelled = repo.drill_recovery_key, threading.Event()
    cancelled.set()
    teller.fails(lambda: drill(pb.Shares(*replaced[:2])), pb.WrongCredential)
    teller.fails(lambda: drill(pb.Shares(*shares), cancel=cancelled), pb.Cancelled)
    teller.fails(lambda: pb.Shares(shares[0]), pb.WrongCredential)
    teller.fails(lambda: pb.Shares(shares[0], replaced[1]), pb.InvalidInput)
    mistyped = shares[1].replace(shares[1].split()[9], "academic")
    teller.fails(lambda: pb.Shares(shares[0], mistyped), pb.InvalidInput)
    teller.fails(lambda: pb.Repository.check_share(teller.repository, mistyped), pb.InvalidInput)
    teller.show(pb.Repository.check_share(teller.repository, replaced[0]))
    odd = forged(shares[1])
    teller.fails(lambda: drill(pb.Shares(shares[0], odd)), pb.WrongCredential)
    teller.fails(lambda: drill(pb.Shares(shares[0], odd, shares[2])), pb.Incomplete)


def full(teller: Teller) -> None:
    """No file can be larger than a few kilobytes: as on a full disk, of storage and of this machine."""
    import resource  # which Windows does not have

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with teller.open(c.NEW_PASSPHRASE) as repo:
        (teller.folder / "data" / c.DATASET / "large").write_bytes(os.urandom(60_000) + c.CONTENT.encode())
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        failed = _Kept(teller)
        failed.fails(lambda: repo.backup(teller.sources), pb.Error)
        failed.fails(lambda: repo.restore(teller.out()), pb.Error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    failed.tell()


class _Kept:
    """Tells what failed later, when files can be written again."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._errors: list[BaseException] = []

    def fails(self, work: Callable[[], object], kind: type[pb.Error]) -> None:
        try:
            work()
        except kind as error:
            self._errors.append(error)
        else:
            raise AssertionError("it should have failed")

    def tell(self) -> None:
        for error in self._errors:
            self._teller.fail(error)


def damaged(teller: Teller) -> None:
    """Every pack has a byte that is another one; everything is asked all the same."""
    for path in (teller.folder / "repository" / "packs").rglob("*"):
        if path.is_file():
            for at in range(60, path.stat().st_size // 2, 100):
                _flip(path, at)
    with teller.open(c.NEW_PASSPHRASE) as repo:
        teller.attempt(lambda: repo.restore(teller.out(), progress=teller.hear))
        teller.attempt(lambda: repo.check(read_data=1.0, progress=teller.hear))
        teller.attempt(lambda: repo.snapshot(c.DATASET).open("plain").read() and None)  # its caller says that name
        teller.attempt(lambda: list(repo.snapshot(c.DATASET).glob("**")))
        with pb.Repository.open(teller.replica, pb.Passphrase(c.PASSPHRASE), state_dir=teller.state) as there:
            teller.attempt(lambda: repo.copy(there))
            teller.attempt(lambda: repo.apply(repo.propose_repair(replicas=[there], sources=teller.sources)))
        teller.attempt(lambda: repo.apply(repo.propose_prune()))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def killed_backup(teller: Teller) -> None:
    """In the midst of many new files."""
    heard = [0]

    def hear(event: pb.Event) -> None:
        heard[0] += 1
        if heard[0] >= ENOUGH or event.bytes_done > KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    for number in range(40):
        place = teller.folder / "data" / c.DATASET / f"{c.FOLDER} {number}"
        place.mkdir()
        (place / c.FILE).write_bytes(os.urandom(50_000) + c.CONTENT.encode() * 100)
    with teller.open(c.NEW_PASSPHRASE) as repo:
        repo.backup(teller.sources, progress=hear)


def killed_repair(teller: Teller) -> None:
    """While a lost pack's blocks are made again out of a database and files: chunks lie in a temporary file."""
    place = teller.folder / "another repository"
    with pb.Repository.create(place, pb.Passphrase(c.PASSPHRASE), state_dir=teller.state) as repo:
        repo.backup(teller.sources)
        for path in (place / "packs").rglob("*"):
            if path.is_file():
                _flip(path, 5000)
        with mock.patch.object(hunting._Pile, "put", _dying(hunting._Pile.put, after=2)):
            repo.apply(repo.propose_repair(sources=teller.sources))


def killed_copying(teller: Teller) -> None:
    """With a copy of a database that is being written to."""
    with (
        teller.open(c.NEW_PASSPHRASE) as repo,
        mock.patch.object(sqlite_copy, "_backup", _dying(sqlite_copy._backup)),
    ):
        repo.backup(teller.sources)


def _dying(real: Callable[..., object], *, after: int = 1) -> Callable[..., object]:
    """Does what it does so many times, and then its process is killed."""
    left = [after]

    def do(*given: object, **named: object) -> object:
        done = real(*given, **named)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return do


DEEDS: dict[str, Deed] = {
    "everything": everything,
    "given": given,
    "failing": failing,
    "full": full,
    "damaged": damaged,
    "killed backup": killed_backup,
    "killed repair": killed_repair,
    "killed copying": killed_copying,
}


def main() -> None:
    folder = Path(sys.argv[2])
    logging.basicConfig(filename=folder / "log", level=logging.DEBUG)
    teller = Teller(folder)
    with mock.patch.multiple("pharmabackup.crypto.passphrases", MEMORY_KIB=64, ITERATIONS=1):
        DEEDS[sys.argv[1]](teller)


if __name__ == "__main__":
    main()
