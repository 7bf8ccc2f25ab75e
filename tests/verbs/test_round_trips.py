"""How often opening, and a restore before its first file is there, wait for a storage that is far away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine import listing, opening, passphrase_tries
from pharmabackup.engine.audit import write
from pharmabackup.errors import Damaged, NotPermitted, StorageFailed, WrongCredential
from pharmabackup.storage.base import ObjectInfo
from pharmabackup.storage.memory import MemoryStorage
from tests.benchmarks.distant import DistantStorage
from tests.verbs.site import PASSPHRASE

QUIET_S = 0.3  # for so long nothing is asked and no processor used: everybody waits for an answer
PATIENCE_S = 60


class InRounds(DistantStorage):
    """Answers nothing until it is told to answer all that was asked: what is asked at once is one round trip."""

    def __init__(self) -> None:
        super().__init__(MemoryStorage("far"), answers=True)
        self.holding = False
        self._round = 0
        self._changed = threading.Condition()

    @contextmanager
    def _request(self, what: str) -> Iterator[None]:  # type: ignore[override]
        with self._changed:
            self.requests.append(what)
            if self.holding:
                mine = self._round
                assert self._changed.wait_for(lambda: self._round > mine or not self.holding, PATIENCE_S)
        yield

    def answer(self) -> None:
        """What was asked by now, if anybody waits."""
        self.settle()
        with self._changed:
            self._round += 1
            self._changed.notify_all()

    def settle(self) -> None:
        """Until nobody asks for more, and nobody works: all wait for answers, or are done."""
        with self._changed:
            while True:
                asked, worked = len(self.requests), time.process_time()
                self._changed.wait(QUIET_S)
                if asked == len(self.requests) and time.process_time() - worked < QUIET_S / 10:
                    return

    def let_go(self) -> None:
        with self._changed:
            self.holding = False
            self._changed.notify_all()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, cheap_kdf: None) -> Iterator[InRounds]:
    """A repository with three snapshots of two datasets."""
    storage = InRounds()
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    yield storage
    storage.let_go()


@pytest.fixture
def backed_up(far: InRounds, tmp_path: Path) -> InRounds:
    pb.Repository.create("memory://far", PASSPHRASE).close()
    sources = []
    for name in ("letters", "scans"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}").write_bytes(bytes([number]) * 1000)
        sources.append(pb.Files(tmp_path / name))
    with _open(tmp_path, "till") as repo:
        for _ in range(3):
            repo.backup(sources)
    return far


def _open(tmp_path: Path, state: str, **how: str) -> pb.Repository:
    return pb.Repository.open("memory://far", PASSPHRASE, state_dir=tmp_path / state, **how)


def _files(out: Path) -> int:
    return sum(path.is_file() for path in out.rglob("[0-9]"))


def _rounds(far: InRounds, does: Callable[[], object], until: Callable[[], object] = lambda: False) -> int:
    """How many round trips that takes, or until something is there."""
    far.holding = True
    thread = threading.Thread(target=does)
    thread.start()
    try:
        for rounds in range(20):
            if until() or not thread.is_alive():
                return rounds
            far.answer()
            far.settle()  # what came of it is there
        raise AssertionError("it did not come")
    finally:
        far.let_go()
        thread.join()


def _first_file(far: InRounds, repo: pb.Repository, out: Path) -> int:
    return _rounds(far, lambda: repo.restore(out), lambda: _files(out))


def test_opening_takes_three(backed_up: InRounds, tmp_path: Path) -> None:
    """What it is, and which lists of keys there are; these; the keyring."""
    opened: list[pb.Repository] = []
    assert _rounds(backed_up, lambda: opened.append(_open(tmp_path, "new"))) == 3
    assert opened[0].role == "owner"
    opened[0].close()


@pytest.mark.parametrize("stale", [True, False], ids=["a moment too early", "and it is not there"])
def test_who_was_enrolled_while_keys_were_listed_gets_in(
    backed_up: InRounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    far, other = backed_up, pb.Passphrase("another one for the office")
    before = {info.name for info in far.list("keys")}
    with _open(tmp_path, "till") as repo:
        repo.enrol("owner", other, name="office")
    real, asked = far.list, list[str]()

    def early(prefix: str) -> Iterator[ObjectInfo]:
        asked.append(prefix)
        if prefix == "keys" and (not stale or asked.count("keys") == 1):
            return iter([info for info in real(prefix) if info.name in before])
        return real(prefix)

    monkeypatch.setattr(far, "list", early)
    if stale:
        with pb.Repository.open("memory://far", other, state_dir=tmp_path / "office") as repo:
            assert repo.slot == "office"
    else:
        with pytest.raises(Damaged, match="No keyring of 'office' is left"):
            pb.Repository.open("memory://far", other, state_dir=tmp_path / "office")
    assert asked.count("keys") == 2


def test_a_wrong_passphrase_is_tried_once(
    backed_up: InRounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs time on purpose: not twice of it."""
    tried, real = list[object](), passphrase_tries.tries
    monkeypatch.setattr(opening, "tries", lambda *given: tried.append(given) or real(*given))  # type: ignore[func-returns-value]
    with pytest.raises(WrongCredential):
        pb.Repository.open("memory://far", pb.Passphrase("none of them, this one"), state_dir=tmp_path / "new")
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("machine", "most"),
    [
        pytest.param("till", 3, id="one that backs up"),
        pytest.param("office", 4, id="one that reads the index each time"),
    ],
)
def test_a_restores_first_file_is_there_after_few_round_trips(
    backed_up: InRounds, tmp_path: Path, machine: str, most: int
) -> None:
    """Again and again: what one restore leaves behind makes the next no slower."""
    far = backed_up
    for again in range(2):
        out = tmp_path / f"out-{again}"
        with _open(tmp_path, machine) as repo:
            assert _first_file(far, repo, out) == most
        assert _files(out) == 10


def test_of_many_objects_folders_are_listed_side_by_side(
    backed_up: InRounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing of all is tried once a week."""
    far = backed_up
    monkeypatch.setattr(listing, "TOGETHER_MAX", 3)
    for rounds in (4, 3):
        with _open(tmp_path, "till") as repo:
            assert _first_file(far, repo, tmp_path / f"out-{rounds}") == rounds


@pytest.mark.parametrize(
    ("late", "lost"),
    [
        pytest.param(("index", "packs"), False, id="index and packs"),
        pytest.param(("packs",), False, id="packs"),
        pytest.param(("packs",), True, id="packs, of which no segment is left"),
    ],
)
def test_what_the_one_listing_came_to_too_early_is_looked_for_again(
    backed_up: InRounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: tuple[str, ...], lost: bool
) -> None:
    """It came to some folders before a backup, and to the others after it."""
    far = backed_up
    before = {info.name for info in far.list("")}
    (tmp_path / "letters" / "5").write_bytes(b"new" * 1000)
    with _open(tmp_path, "till") as repo:
        repo.backup([pb.Files(tmp_path / "letters")])
    if lost:
        far.delete([info.name for info in far.list("index") if info.name not in before])
    real = far.list

    def early(prefix: str) -> Iterator[ObjectInfo]:
        found = real(prefix)
        if prefix:
            return found
        return iter([info for info in found if info.name in before or info.name.partition("/")[0] not in late])

    monkeypatch.setattr(far, "list", early)
    with _open(tmp_path, "office") as repo:
        assert repo.restore(tmp_path / "out").state == "ok"
    assert _files(tmp_path / "out") == 11


def test_nothing_is_handed_out_before_it_is_recorded(backed_up: InRounds, tmp_path: Path) -> None:
    """The record is sent beside the first requests; content waits for it."""
    far, held = backed_up, threading.Event()
    real = far.upload

    def upload() -> object:
        up = real()
        publish = up.publish

        def later(name: str) -> object:
            if name.startswith("audit/"):
                assert held.wait(PATIENCE_S)
            return publish(name)

        up.publish = later  # type: ignore[method-assign, assignment]
        return up

    far.upload = upload  # type: ignore[method-assign, assignment]
    with _open(tmp_path, "till") as repo:
        thread = threading.Thread(target=repo.restore, args=(tmp_path / "out",))
        thread.start()
        far.settle()
        assert not (tmp_path / "out").exists()
        held.set()
        thread.join()
    assert _files(tmp_path / "out") == 10


def test_what_goes_wrong_meanwhile_is_recorded_after_the_beginning(
    backed_up: InRounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, begun = backed_up, threading.Event()

    def slow(*arguments: object, **named: object) -> object:
        if arguments[2] == "begun":
            assert begun.wait(PATIENCE_S)
        return write(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("pharmabackup.verbs.journal.write", slow)
    real = far.list

    def refusing(prefix: str) -> object:
        if not prefix.startswith("audit"):
            begun.set()
            raise StorageFailed("no", kind="unreachable", location="far", remedy="Wait.")
        return real(prefix)

    with _open(tmp_path, "till") as repo:
        monkeypatch.setattr(far, "list", refusing)
        with pytest.raises(StorageFailed):
            repo.restore(tmp_path / "out")
        monkeypatch.setattr(far, "list", real)
        assert [(record.event, record.outcome) for record in repo.audit()][-2:] == [
            ("restore", "begun"),
            ("restore", "failed"),
        ]


def test_whoever_gives_no_reason_asks_for_nothing(backed_up: InRounds, tmp_path: Path) -> None:
    with _open(tmp_path, "till") as repo:
        repo.configure(reason_required=True)
        backed_up.requests.clear()
        with pytest.raises(NotPermitted):
            repo.restore(tmp_path / "out")
        assert backed_up.requests and all(" audit/" in what for what in backed_up.requests)
