"""The public surface: its names, what pickles and what refuses to, and that no secret shows."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import pharmabackup as pb

SECRET = "correct horse battery staple"
NAMES_MAX = 40
FINDING = pb.Finding(
    code="pack-damaged", severity="critical", subject="packs/00", message="It is damaged.", remedy="Run check."
)
ERRORS = [value for value in vars(pb).values() if isinstance(value, type) and issubclass(value, pb.Error)]


@pytest.fixture
def repo(tmp_path: Path, cheap_kdf: None) -> Iterator[pb.Repository]:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "file").write_text("content")
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase(SECRET)) as made:
        yield made


@pytest.fixture
def report(repo: pb.Repository, tmp_path: Path) -> pb.Report:
    return repo.backup([pb.Files(tmp_path / "documents")], reason="the evening's")


def test_there_are_few_names_and_all_are_there() -> None:
    assert len(pb.__all__) == len(set(pb.__all__)) <= NAMES_MAX
    assert all(hasattr(pb, name) for name in pb.__all__)
    assert list(pb.__all__) == sorted(pb.__all__)


@pytest.mark.parametrize("name", pb.__all__)
def test_each_name_is_documented(name: str) -> None:
    thing = getattr(pb, name)
    own = thing.__dict__.get("__doc__")  # not its base's, and not what dataclass makes up
    if issubclass(thing, pb.Error):
        import pharmabackup.errors

        described = own or next(
            (line for line in (pharmabackup.errors.__doc__ or "").splitlines() if f" {name} " in f"{line} "), None
        )
        assert described
        return
    assert own
    assert not own.startswith(f"{name}(")


@pytest.mark.parametrize("noun", [pb.Repository, pb.Snapshot])
def test_each_method_is_documented(noun: type) -> None:
    for name, method in inspect.getmembers(noun, inspect.isfunction):
        assert name.startswith("_") or method.__doc__, name


def _error(kind: type[pb.Error], report: pb.Report) -> pb.Error:
    more: dict[str, object] = {}
    if kind is pb.StorageFailed:
        more = {"retryable": True, "location": "/mnt/usb"}
    elif kind is pb.SourceFailed:
        more = {"dataset": "pmr"}
    elif kind is pb.Incomplete:
        more = {"result": report}
    return kind("It went wrong.", kind="a-kind", remedy="Do this.", findings=(FINDING,), **more)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ERRORS)
def test_errors_pickle_with_all_they_say(kind: type[pb.Error], protocol: int, report: pb.Report) -> None:
    error = _error(kind, report)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert str(again) == str(error) == "It went wrong. Do this."
    assert again.args == error.args
    assert (again.kind, again.remedy, again.findings) == ("a-kind", "Do this.", (FINDING,))
    if isinstance(error, pb.StorageFailed):
        assert (again.retryable, again.location) == (True, "/mnt/usb")
    if isinstance(error, pb.SourceFailed):
        assert again.dataset == "pmr"
    if isinstance(error, pb.Incomplete):
        assert again.result.to_dict() == report.to_dict()


def test_errors_are_what_handlers_expect() -> None:
    assert len(ERRORS) == 12
    assert issubclass(pb.InvalidInput, ValueError)
    assert issubclass(pb.NotFound, LookupError)
    for kind in ERRORS:
        assert kind.__name__ in pb.__all__


def test_what_holds_keys_refuses_to_pickle(repo: pb.Repository) -> None:
    for thing in (repo, pb.Passphrase(SECRET)):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="not pickled"):
                pickle.dumps(thing, protocol)


def test_keys_refuse_to_pickle(repo: pb.Repository) -> None:
    for thing in (repo._unlocked, repo._unlocked.keyring, repo._unlocked.opener, repo._unlocked.keyring.naming):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


def test_a_pickled_snapshot_keeps_its_facts_and_loses_its_repository(repo: pb.Repository, report: pb.Report) -> None:
    snapshot = repo.snapshot()
    data = pickle.dumps(snapshot)
    assert SECRET.encode() not in data
    for key in (repo._unlocked.naming_key, *(item.key for item in repo._unlocked.keyring.readers)):
        assert key not in data
    again = pickle.loads(data)
    assert again.to_dict() == snapshot.to_dict()
    assert (str(again), repr(again), again.findings) == (str(snapshot), repr(snapshot), snapshot.findings)
    for use in (lambda: again.open("file"), lambda: list(again.glob()), again.filesystem):
        with pytest.raises(pb.Unsupported, match="lost its repository"):
            use()


def test_results_and_events_are_ready_for_json(repo: pb.Repository, report: pb.Report, tmp_path: Path) -> None:
    events: list[pb.Event] = []
    results = [
        report,
        repo.restore(tmp_path / "out", progress=events.append),
        repo.check(read_data=1.0, progress=events.append),
        *report.datasets.values(),
        *report.findings,
        *repo.snapshots(),
        *repo.snapshot().glob(),
        repo.rules(),
        *events,
        FINDING,
    ]
    for result in results:
        told = result.to_dict()
        assert json.loads(json.dumps(told)) == told
        assert str(result)
        if not isinstance(result, pb.Snapshot):
            assert pickle.loads(pickle.dumps(result)).to_dict() == told
    assert report.to_dict()["started"].endswith("Z")  # type: ignore[attr-defined]
    assert repo.snapshot().reason == "the evening's"


def test_times_are_aware_and_in_utc(repo: pb.Repository, report: pb.Report) -> None:
    snapshot = repo.snapshot()
    for moment in (report.started, snapshot.time, snapshot.data_until, snapshot.device_time):
        assert moment.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=5)


def test_no_passphrase_shows_anywhere(
    repo: pb.Repository, report: pb.Report, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "a secret that opens nothing here"
    with caplog.at_level(logging.DEBUG):
        errors: list[pb.Error] = []
        for secret in (wrong, SECRET):
            for place in (repo.url, tmp_path / "documents", tmp_path / "nowhere"):
                try:
                    pb.Repository.open(place, pb.Passphrase(secret)).close()
                except pb.Error as error:
                    errors.append(error)
        with pytest.raises(pb.InvalidInput) as caught:
            pb.Repository.create(tmp_path / "another", pb.Passphrase("hunter2"))
        errors.append(caught.value)
        repo.backup([pb.Files(tmp_path / "documents")])
        repo.restore(tmp_path / "out")
        repo.check(read_data=1.0)
    texts = [repr(repo), str(repo), repr(pb.Passphrase(SECRET)), str(pb.Passphrase(SECRET)), repr(repo._unlocked)]
    texts += [f"{error} {error!r} {vars(error)}" for error in errors]
    texts += [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    texts += [repr(report), str(report), repr(repo.snapshot())]
    assert len(errors) >= 5
    for text in texts:
        for secret in (SECRET, wrong, "hunter2"):
            assert secret not in text
    stored = [path.read_bytes() for path in (tmp_path / "repository").rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in data for data in stored)


def test_no_key_shows_in_what_is_printed(repo: pb.Repository) -> None:
    unlocked = repo._unlocked
    keys = [unlocked.naming_key, unlocked.keyring.block_names, *(item.key for item in unlocked.keyring.readers)]
    keys += [unlocked.opener.secret, unlocked.keyring.signing or b"", unlocked.keyring.catalogue[0].key]
    inside = repr(unlocked) + repr(unlocked.keyring) + repr(unlocked.keyring.naming) + repr(unlocked.opener)
    for text in (repr(repo), str(repo), str(vars(repo.__class__)), inside):
        for key in keys:
            assert key.hex() not in text
            assert repr(key)[2:-1] not in text


def test_names_that_are_imported_late_are_seen_all_the_same() -> None:
    assert set(pb.__all__) <= set(dir(pb))
    with pytest.raises(AttributeError, match="Fils"):
        pb.Fils  # noqa: B018


def test_looking_into_a_repository_does_not_wait_for_sources() -> None:
    program = "import sys, pharmabackup; sys.exit('pharmabackup.sources' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
