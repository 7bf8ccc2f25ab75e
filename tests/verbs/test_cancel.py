"""Stopping a verb: by `cancel`, or by an exception in `progress`, at any moment."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pharmabackup as pb
from tests.trees import describe

SECRET = "correct horse battery staple"
PROMPT_S = 30  # what is under way may take so long to end
Run = Callable[..., pb.Report]


class Stop(Exception):
    """What a caller's own progress raises."""


class Heard:
    """Every event and the thread that brought it; stops the verb at event number `at`, unless that is the last."""

    def __init__(self, at: int = -1, act: Callable[[], object] = bool) -> None:
        self.events: list[pb.Event] = []
        self.threads: set[int] = set()
        self.times: list[float] = []
        self._at = at
        self._act = act

    def __call__(self, event: pb.Event) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())
        self.times.append(time.monotonic())
        if len(self.events) == self._at and event.kind != "finished":
            self._act()

    def follows_the_rules(self, *, ended: bool) -> None:
        assert self.threads <= {threading.get_ident()}
        kinds = [event.kind for event in self.events]
        assert kinds.count("started") == 1
        assert kinds[0] == "started"
        assert kinds.count("finished") == ended
        if ended:
            assert kinds[-1] == "finished"
        for counter in ("bytes_done", "files_done"):
            values = [getattr(event, counter) for event in self.events]
            assert values == sorted(values)
        tiers = [event.tier for event in self.events if event.tier is not None]
        assert tiers == sorted(tiers)

    def is_seldom(self) -> None:
        """At most ten times a second."""
        frequent = [at for at, event in zip(self.times, self.events, strict=True) if event.kind == "progress"]
        for begin in frequent:  # ten, both ends counted, and the one that some verbs end with
            assert sum(begin <= at < begin + 1 for at in frequent) <= 12


def _fill(folder: Path, seed: int, size: int = 3_000_000) -> None:
    chance = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "deep").mkdir(parents=True)
    (folder / "large").write_bytes(chance.randbytes(size))
    for number in range(150):
        (folder / "deep" / f"{number}").write_bytes(chance.randbytes(size // 300))


@pytest.fixture
def sources(tmp_path: Path) -> list[pb.Files]:
    for tier in range(3):
        _fill(tmp_path / f"tier-{tier}", tier)
    return [pb.Files(tmp_path / f"tier-{tier}", tier=tier) for tier in (2, 0, 1)]


@pytest.fixture
def repo(tmp_path: Path, cheap_kdf: None) -> Iterator[pb.Repository]:
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase(SECRET)) as made:
        yield made


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more moments to stop at than ten a second."""
    monkeypatch.setattr("pharmabackup.verbs.reporter.BETWEEN_PROGRESS_S", 0.0)
    monkeypatch.setattr("pharmabackup.verbs.restore_content.LOOK_EVERY_S", 0.001)


def _whole(repo: pb.Repository, base: Path) -> None:
    """All snapshots that are there restore exactly, and nothing is wrong."""
    assert repo.check(read_data=1.0).state == "ok"
    for snapshot in repo.snapshots():
        repo.restore(base / "whole", snapshots=[snapshot])
        assert describe(base / "whole" / snapshot.dataset) == describe(base / snapshot.dataset)
        shutil.rmtree(base / "whole")


def test_events_follow_the_rules(tmp_path: Path, repo: pb.Repository, sources: list[pb.Files]) -> None:
    runs: list[Run] = [
        lambda **options: repo.backup(sources, **options),
        lambda **options: repo.backup(sources, **options),
        lambda **options: repo.restore(tmp_path / "out", **options),
        lambda **options: repo.check(**options),
        lambda **options: repo.check(read_data=1.0, **options),
    ]
    for run in runs:
        heard = Heard()
        run(progress=heard)
        heard.follows_the_rules(ended=True)
        heard.is_seldom()


def test_progress_comes_at_most_ten_times_a_second(tmp_path: Path, repo: pb.Repository) -> None:
    (tmp_path / "many").mkdir()
    for number in range(6000):
        (tmp_path / "many" / f"{number}").write_bytes(b"%d" % number * 200)
    heard = Heard()
    repo.backup([pb.Files(tmp_path / "many")], progress=heard)
    heard.follows_the_rules(ended=True)
    heard.is_seldom()


@pytest.mark.parametrize("verb", ["backup", "restore", "check"])
def test_a_cancel_that_is_set_before_stops_before_anything_is_done(
    tmp_path: Path, repo: pb.Repository, sources: list[pb.Files], verb: str
) -> None:
    if verb != "backup":
        repo.backup(sources)
    cancel = threading.Event()
    cancel.set()
    verbs: dict[str, Run] = {
        "backup": lambda **options: repo.backup(sources, **options),
        "restore": lambda **options: repo.restore(tmp_path / "out", **options),
        "check": lambda **options: repo.check(read_data=1.0, **options),
    }
    before = sorted(tmp_path.glob("repository/snapshots/*"))
    with pytest.raises(pb.Cancelled) as caught:
        verbs[verb](cancel=cancel)
    assert caught.value.kind == "cancelled"
    assert "again" in caught.value.remedy
    assert sorted(tmp_path.glob("repository/snapshots/*")) == before


def _moments(run: Run) -> Iterator[int]:
    """Up to six event numbers, spread over what a whole run tells."""
    heard = Heard()
    run(progress=heard)
    total = len(heard.events)
    yield from sorted({1, 2, total - 1, *(1 + total * i // 4 for i in range(1, 4))})


@pytest.mark.parametrize("how", ["cancel", "exception"])
def test_a_backup_is_stopped_at_many_moments(
    tmp_path: Path, repo: pb.Repository, sources: list[pb.Files], often: None, how: str
) -> None:
    with pb.Repository.create(tmp_path / "trial", pb.Passphrase(SECRET)) as trial:
        moments = list(_moments(lambda **options: trial.backup(sources, **options)))
    stopped = 0
    for number, at in enumerate(moments):
        with pb.Repository.create(tmp_path / f"repository-{number}", pb.Passphrase(SECRET)) as one:
            stopped += _is_stopped(lambda one=one, **options: one.backup(sources, **options), at, how)
            kept = {snapshot.dataset for snapshot in one.snapshots()}
            assert kept in (set(), {"tier-0"}, {"tier-0", "tier-1"}, {"tier-0", "tier-1", "tier-2"})
            _whole(one, tmp_path)
            again = one.backup(sources)
            assert all(again.datasets[name].added < 10_000 for name in kept)
            assert {snapshot.dataset for snapshot in one.snapshots()} == {"tier-0", "tier-1", "tier-2"}
            _whole(one, tmp_path)
        shutil.rmtree(tmp_path / f"repository-{number}")
    assert stopped >= 2  # the first two; how many more events there are depends on how fast it is


def _is_stopped(run: Run, at: int, how: str) -> bool:
    """Stop it at event `at`; whether it had not ended before."""
    cancel = threading.Event()
    moment: list[float] = []
    problem = Stop("the caller's own")

    def act() -> None:
        moment.append(time.monotonic())
        if how == "exception":
            raise problem
        cancel.set()

    heard = Heard(at, act)
    try:
        run(progress=heard, cancel=cancel)
    except (pb.Cancelled, Stop) as error:
        assert time.monotonic() - moment[0] < PROMPT_S
        heard.follows_the_rules(ended=False)
        if how == "exception":
            assert error is problem
            assert len(heard.events) == at  # it is not called again
        else:
            assert isinstance(error, pb.Cancelled)
        return True
    assert how == "cancel" or not moment
    heard.follows_the_rules(ended=True)
    return False


@pytest.mark.parametrize("how", ["cancel", "exception"])
def test_a_restore_is_stopped_at_many_moments(
    tmp_path: Path, repo: pb.Repository, sources: list[pb.Files], often: None, how: str
) -> None:
    repo.backup(sources)
    out, stopped = tmp_path / "out", 0
    moments = list(_moments(lambda **options: repo.restore(tmp_path / "trial", **options)))
    for at in moments:
        stopped += _is_stopped(lambda **options: repo.restore(out, **options), at, how)
        for source in sources:
            restored, original = out / source.name, tmp_path / source.name
            for path in restored.rglob("*"):
                if path.is_file():  # whole files only
                    assert path.read_bytes() == (original / path.relative_to(restored)).read_bytes()
            if restored.exists() and describe(restored) != describe(original):
                assert (out / f"{source.name}.restoring").exists()
        done = [source for source in sources if _is_done(out, source.name)]
        for source in done:
            shutil.rmtree(out / source.name)
        repo.restore(out)
        for source in sources:
            assert describe(out / source.name) == describe(tmp_path / source.name)
        assert sorted(path.name for path in out.iterdir()) == ["tier-0", "tier-1", "tier-2"]
        shutil.rmtree(out)
    assert stopped >= 2  # the first two; how many more events there are depends on how fast it is


def _is_done(out: Path, name: str) -> bool:
    return (out / name).exists() and not (out / f"{name}.restoring").exists()


def test_the_same_restore_call_completes_after_some_datasets_were_done(
    tmp_path: Path, repo: pb.Repository, sources: list[pb.Files]
) -> None:
    """api.md: "Run it again to go on from here"."""
    repo.backup(sources)
    cancel = threading.Event()

    def progress(event: pb.Event) -> None:
        if event.kind == "usable":
            cancel.set()

    with pytest.raises(pb.Cancelled):
        repo.restore(tmp_path / "out", progress=progress, cancel=cancel)
    assert (tmp_path / "out" / "tier-0").exists()
    repo.restore(tmp_path / "out")
    for source in sources:
        assert describe(tmp_path / "out" / source.name) == describe(tmp_path / source.name)


@pytest.mark.parametrize("how", ["cancel", "exception"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_check_is_stopped_at_many_moments(
    repo: pb.Repository, sources: list[pb.Files], often: None, how: str, share: float
) -> None:
    repo.backup(sources)
    stopped = 0
    moments = list(_moments(lambda **options: repo.check(read_data=share, **options)))
    for at in moments:
        stopped += _is_stopped(lambda **options: repo.check(read_data=share, **options), at, how)
    assert stopped >= 2
    assert repo.check(read_data=1.0).state == "ok"
    assert all(snapshot.verified for snapshot in repo.snapshots())


def test_another_thread_cancels(tmp_path: Path, repo: pb.Repository) -> None:
    chance = random.Random(7)
    _fill(tmp_path / "data", 1, size=30_000_000)
    source = pb.Files(tmp_path / "data")
    raised = 0
    for number in range(8):
        cancel = threading.Event()
        timer = threading.Timer(0.3 * chance.random(), cancel.set)
        with pb.Repository.create(tmp_path / f"repository-{number}", pb.Passphrase(SECRET)) as one:
            timer.start()
            try:
                one.backup([source], cancel=cancel)
            except pb.Cancelled:
                raised += 1
                assert one.snapshots() == []
            timer.cancel()
            timer.join()
            assert one.check().state == "ok"
        shutil.rmtree(tmp_path / f"repository-{number}")
    assert raised
    repo.backup([source])
    raised = 0
    for attempt in range(5):
        cancel = threading.Event()
        timer = threading.Timer(0.01 * attempt * chance.random(), cancel.set)
        timer.start()
        try:
            repo.restore(tmp_path / "out", cancel=cancel)
            timer.cancel()
            break
        except pb.Cancelled:
            raised += 1
    else:
        repo.restore(tmp_path / "out")
    assert raised
    assert describe(tmp_path / "out" / "data") == describe(tmp_path / "data")
