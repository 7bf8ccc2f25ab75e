"""Upload limits. Time is a clock of the test's that moves when somebody waits: nothing here measures a real one."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.storage import connect, disks, pace
from pharmabackup.storage.body import Body
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.pace import PIECE_MIN, Pace
from tests.servers import azure, s3, sftp
from tests.verbs.site import PASSPHRASE


class Clock:
    """Monotonic seconds that go on only while somebody sleeps, for as long as the one who sleeps longest."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = list[float]()
        self.lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds
            self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


@pytest.fixture(params=["s3", "azure", "sftp", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """URL and storage_options."""
    if request.param == "s3":
        yield f"s3://{s3.BUCKET}/{secrets.token_hex(8)}", request.getfixturevalue("moto").options
    elif request.param == "azure":
        yield azure.fresh(), request.getfixturevalue("azurite").options
    elif request.param == "sftp":
        (tmp_path / "sshd").mkdir()
        with sftp.sshd(tmp_path / "sshd") as server:
            yield server.url(tmp_path / "repository"), server.options
    else:
        yield str(tmp_path / "repository"), {}


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


@pytest.mark.parametrize("limit", [0, -1, 999, lambda now: -1, lambda now: 999])
def test_a_limit_that_lets_too_little_through_is_a_mistake(clock: Clock, limit: pace.UploadLimit) -> None:
    with pytest.raises(pb.InvalidInput, match="lets too little through: it has to be 1,000 or more"):
        Pace(limit).take(1)


def test_a_function_may_say_that_nothing_goes_now_and_is_asked_again(clock: Clock) -> None:
    """Each second, so that it is soon heard when it says something else."""

    def not_in_the_first_hour(now: datetime) -> int | None:
        return 0 if clock.now < 1000 + 3600 else 100_000

    assert Pace(not_in_the_first_hour).take(1_000_000) == 10_000
    assert clock.now - 1000 == pytest.approx(3600.1)
    assert max(clock.slept) <= 1


def _ends(now: datetime) -> int:
    raise OSError(5, "the limit's own")


@pytest.mark.parametrize(
    ("limit", "error"), [(_ends, OSError), (lambda now: {}["till"], KeyError), (lambda now: -1, pb.InvalidInput)]
)
def test_what_a_limit_raises_ends_the_upload_as_it_is_and_is_not_tried_again(
    place: tuple[str, dict[str, Any]], limit: Callable[[datetime], int | None], error: type[Exception]
) -> None:
    """Clients take it for a trouble of the line: botocore wraps what a body's `read` raises."""
    url, options = place
    storage, asked = connect(url, storage_options=options, create=True), list[datetime]()

    def counted(now: datetime) -> int | None:
        asked.append(now)
        return limit(now)

    storage.pace = Pace(counted)
    with pytest.raises(error) as found:
        storage.put_new("packs/a", b"x" * 100_000)
    assert found.type is error
    assert len(asked) == 1
    storage.pace = None
    assert list(storage.list("")) == []
    storage.put_new("packs/a", b"x")
    assert storage.get("packs/a", limit=1) == b"x"
    storage.close()


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
    with pytest.raises(pb.InvalidInput, match="upload limit"):
        pb.Repository.open(tmp_path / "no repository", PASSPHRASE, state_dir=state, upload_limit=0)
