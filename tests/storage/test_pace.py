"""Upload limits. Time is a clock of the test's that moves when somebody waits: nothing here measures a real one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.storage import disks, pace
from pharmabackup.storage.body import Body
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.pace import PIECE_MIN, Pace
from tests.verbs.site import PASSPHRASE


class Clock:
    """Monotonic seconds that go on only while somebody sleeps, for as long as the one who sleeps longest."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def _send(allowance: Pace, size: int) -> list[int]:
    pieces = []
    while size:
        pieces.append(allowance.take(size))
        size -= pieces[-1]
    return pieces


def test_bytes_go_no_faster_than_that_and_in_small_pieces(clock: Clock) -> None:
    pieces = _send(Pace(100_000), 1_000_000)
    assert clock.now - 1000 == pytest.approx(10)
    assert sum(pieces) == 1_000_000
    assert max(pieces) == 10_000


def test_what_was_not_used_is_not_saved_up(clock: Clock) -> None:
    allowance = Pace(100_000)
    _send(allowance, 100_000)
    clock.now += 3600
    _send(allowance, 100_000)
    assert clock.now - 1000 == pytest.approx(3602)


def test_threads_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told when its turn is; the last turn is when all of it may have gone."""
    waits = list[float]()

    class Still:
        monotonic = staticmethod(lambda: 0.0)
        sleep = staticmethod(waits.append)

    monkeypatch.setattr(pace, "time", Still)
    allowance = Pace(100_000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: _send(allowance, 50_000), range(4)))
    assert max(waits) == pytest.approx(2)


def test_it_may_depend_on_the_time_of_day(clock: Clock) -> None:
    asked = list[datetime]()

    def by_night(now: datetime) -> int | None:
        asked.append(now)
        return None if len(asked) > 5 else 100_000

    assert _send(Pace(by_night), 1_000_000) == [10_000] * 5 + [950_000]
    assert all(now.tzinfo is not None for now in asked)
    assert clock.now - 1000 == pytest.approx(0.5)


@pytest.mark.parametrize("limit", [0, -1, lambda now: 0])
def test_a_limit_that_lets_nothing_through_is_a_mistake(clock: Clock, limit: pace.UploadLimit) -> None:
    with pytest.raises(pb.InvalidInput, match="lets nothing through"):
        Pace(limit).take(1)


@pytest.mark.parametrize("wanted", [-1, None, 1 << 20, 3000])
def test_a_body_is_paced_while_it_is_sent_and_comes_whole(clock: Clock, wanted: int | None) -> None:
    data = bytes(range(256)) * 400
    body = Body()
    body.write(data)
    body.seek(0)
    body.pace, body.sending = Pace(PIECE_MIN), False
    assert body.read() == data  # for a signature
    assert clock.now == 1000
    body.seek(0)
    body.sending = True
    sent = b""
    while piece := body.read(wanted):
        sent += piece
    assert sent == data
    assert clock.now - 1000 == pytest.approx(len(data) / PIECE_MIN)
    body.close()


def test_a_folder_is_paced_too(clock: Clock, tmp_path: Path) -> None:
    """It may be a share behind the same line."""
    storage = LocalStorage(tmp_path)
    storage.pace = Pace(100_000)
    storage.put_new("packs/a", b"x" * 200_000)
    assert clock.now - 1000 == pytest.approx(2)
    assert storage.get("packs/a", limit=1 << 20) == b"x" * 200_000


@pytest.mark.parametrize("place", ["a share", "a disk"])
def test_a_repository_behind_a_line_is_opened_with_a_limit(
    tmp_path: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A disk of this computer is not held back: it goes first, and the line is the others'."""
    taken, where, state = list[int](), tmp_path / "repository", tmp_path / "state"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "scan").write_bytes(bytes(range(256)) * 1000)
    pb.Repository.create(where, PASSPHRASE, state_dir=state).close()
    monkeypatch.setattr(Pace, "take", lambda self, size: taken.append(size) or size)
    hardware = None if place == "a share" else frozenset({"sda"})
    monkeypatch.setattr(disks, "hardware", lambda path: hardware)
    with pb.Repository.open(where, PASSPHRASE, state_dir=state, upload_limit=9_000) as repo:
        repo.backup([pb.Files(tmp_path / "site")])
    stored = sum(path.stat().st_size for path in (where / "packs").rglob("*") if path.is_file())
    assert stored > 0
    assert sum(taken) > stored if place == "a share" else not taken
    with pytest.raises(pb.InvalidInput):
        pb.Repository.open(where, PASSPHRASE, state_dir=state, upload_limit=0)
