"""What may not be read or written, what is in the way, and what is no repository that can be opened."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import pharmabackup as pb
from tests.trees import describe, sample

SECRET = "correct horse battery staple"
NOBODY = 54_321
AS_NOBODY = """
import json, os, sys, tempfile
import pharmabackup as pb
secret, url, state, verb, place, user = sys.argv[1:]
with tempfile.TemporaryDirectory() as base:  # loads all modules: the user may not be allowed to read them
    os.mkdir(base + "/data")
    with pb.Repository.create("memory://warm", pb.Passphrase(secret), state_dir=base) as repo:
        repo.backup([pb.Files(base + "/data")])
        repo.restore(base + "/out")
        repo.check(read_data=1.0)
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
told = {}
try:
    with pb.Repository.open(url, pb.Passphrase(secret), state_dir=state) as repo:
        if verb == "backup":
            told = repo.backup([pb.Files(place, name="documents")]).to_dict()
        elif verb == "restore":
            told = repo.restore(place).to_dict()
        else:
            told = repo.check(read_data=1.0).to_dict()
except pb.Error as error:
    told = getattr(error, "result", None)
    told = {"report": told.to_dict() if told else None, "kind": error.kind, "remedy": error.remedy}
    told |= {"error": type(error).__name__, "text": str(error)}
except Exception as error:
    told = {"error": type(error).__name__, "kind": "raw", "text": str(error)}
print(json.dumps(told))
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that another user may enter, unlike pytest's own."""
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip("becoming another user needs root on POSIX")
    where = Path(tempfile.mkdtemp(prefix="pharmabackup-"))
    os.chmod(where, 0o755)
    (where / "state").mkdir()
    os.chown(where / "state", NOBODY, NOBODY)
    yield where
    shutil.rmtree(where)


def _as_nobody(shared: Path, verb: str, place: Path) -> dict[str, object]:
    """What a user without rights is told."""
    command = [sys.executable, "-c", AS_NOBODY, SECRET, shared / "repository", shared / "state", verb, place, NOBODY]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    told: dict[str, object] = json.loads(done.stdout)
    return told


def _give(folder: Path, owner: int = NOBODY) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, owner, owner, follow_symlinks=False)


def _sources(shared: Path) -> Path:
    source = shared / "documents"
    source.mkdir()
    for name in ("one", "two", "three"):
        (source / name).mkdir()
        (source / name / "file").write_text(name)
        (source / f"{name}.txt").write_text(name)
    _give(source)
    return source


def _repository(shared: Path) -> pb.Repository:
    return pb.Repository.create(shared / "repository", pb.Passphrase(SECRET), state_dir=shared / "state-of-root")


def test_a_repository_that_may_not_be_read(shared: Path, cheap_kdf: None) -> None:
    _repository(shared).close()
    os.chmod(shared / "repository", 0o700)
    for verb in ("backup", "restore", "check"):
        told = _as_nobody(shared, verb, _sources(shared) if verb == "backup" else shared / "state" / "out")
        assert (told["error"], told["kind"]) == ("StorageFailed", "storage-denied")
        assert "user" in str(told["remedy"])


def test_a_repository_that_may_not_be_written(shared: Path, cheap_kdf: None) -> None:
    source = _sources(shared)
    with _repository(shared) as repo:
        repo.backup([pb.Files(source)])
    for folder, folders, files in os.walk(shared / "repository"):
        for name in folders:
            os.chmod(os.path.join(folder, name), 0o755)
        for name in files:
            os.chmod(os.path.join(folder, name), 0o644)
    os.chmod(shared / "repository", 0o755)
    objects = {path: path.stat().st_mtime_ns for path in (shared / "repository").rglob("*")}
    (source / "new").write_text("new")
    told = _as_nobody(shared, "backup", source)
    assert (told["error"], told["kind"]) == ("StorageFailed", "storage-denied")
    told = _as_nobody(shared, "restore", shared / "state" / "out")  # reading goes on
    assert told.get("verb") == "restore"
    told = _as_nobody(shared, "check", source)
    assert "error" not in told
    assert {path: path.stat().st_mtime_ns for path in (shared / "repository").rglob("*")} == objects


def test_what_may_not_be_read_is_named(shared: Path, cheap_kdf: None) -> None:
    source = _sources(shared)
    _repository(shared).close()
    _give(shared / "repository")
    os.chown(source / "two.txt", 0, 0)
    os.chmod(source / "two.txt", 0o600)
    os.chown(source / "three", 0, 0)
    os.chmod(source / "three", 0o700)
    told = _as_nobody(shared, "backup", source)
    assert (told["error"], told["kind"]) == ("Incomplete", "backup")
    report = told["report"]
    assert isinstance(report, dict)
    assert not report["datasets"]["documents"]["complete"]
    found = {(finding["code"], finding["subject"]) for finding in report["findings"]}
    subjects = {subject for code, subject in found if code.endswith("-unreadable")}
    assert {subject.removeprefix("documents/") for subject in subjects} == {"two.txt", "three"}
    with pb.Repository.open(shared / "repository", pb.Passphrase(SECRET)) as repo:
        (snapshot,) = repo.snapshots()
        assert not snapshot.complete
        assert sum(finding.code.endswith("-unreadable") for finding in snapshot.findings) >= 2
        assert repo.check(read_data=1.0).state == "ok"
        assert {"one/file", "one.txt", "three.txt", "two/file"} <= {entry.path for entry in snapshot.glob()}
    os.chown(source / "two.txt", NOBODY, NOBODY)
    os.chown(source / "three", NOBODY, NOBODY)
    _give(shared / "repository")
    told = _as_nobody(shared, "backup", source)
    assert told.get("error") is None
    with pb.Repository.open(shared / "repository", pb.Passphrase(SECRET)) as repo:
        assert repo.snapshot().complete


@pytest.mark.parametrize("place", ["parent", "target", "dataset"])
def test_a_target_that_may_not_be_written(shared: Path, cheap_kdf: None, place: str) -> None:
    source = _sources(shared)
    with _repository(shared) as repo:
        repo.backup([pb.Files(source)])
    _give(shared / "repository")
    target = shared / "closed" / "out"
    if place == "parent":
        (shared / "closed").mkdir(mode=0o755)
    elif place == "target":
        target.mkdir(parents=True, mode=0o755)
    else:
        (target / "documents").mkdir(parents=True, mode=0o700)
        os.chown(target, NOBODY, NOBODY)
    told = _as_nobody(shared, "restore", target)
    assert told["error"] in ("StorageFailed", "Conflict")
    assert told["remedy"]
    assert [path for path in (shared / "closed").rglob("*") if path.is_file()] == []


def test_looking_at_the_target_lets_go_of_its_folder(tmp_path: Path, cheap_kdf: None) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "out" / "source").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "out" / "source" / name).write_text("mine")
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase(SECRET)) as repo:
        repo.backup([pb.Files(tmp_path / "source")])
        gc.collect()
        heard: list[str] = []
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("error", ResourceWarning)
            patch.setattr(sys, "unraisablehook", lambda about: heard.append(str(about.exc_value)))
            with pytest.raises(pb.Conflict):
                repo.restore(tmp_path / "out")
            gc.collect()
        assert heard == []


# ---------------------------------------------------------------- what is in the way


def test_a_file_where_the_repository_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        for act in (pb.Repository.create, pb.Repository.open):
            with pytest.raises((pb.InvalidInput, pb.NotFound, pb.StorageFailed)) as caught:
                act(place, pb.Passphrase(SECRET))
            assert caught.value.remedy
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def backed_up(tmp_path: Path, cheap_kdf: None) -> Iterator[pb.Repository]:
    sample(tmp_path / "documents")
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase(SECRET)) as repo:
        repo.backup([pb.Files(tmp_path / "documents")])
        yield repo


@pytest.mark.parametrize("place", ["out", "out/documents"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_where_a_target_folder_should_be(
    tmp_path: Path, backed_up: pb.Repository, place: str, overwrite: bool
) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")

    def there() -> list[Path]:
        return sorted(path for path in tmp_path.rglob("*") if "audit" not in path.parts)

    before = there()
    with pytest.raises(pb.Conflict) as caught:
        backed_up.restore(tmp_path / "out", overwrite=overwrite)
    assert caught.value.remedy
    assert (tmp_path / place).read_text() == "mine"
    assert there() == before


def test_a_target_that_is_not_empty(tmp_path: Path, backed_up: pb.Repository) -> None:
    (tmp_path / "out" / "documents" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "documents" / "deep" / "mine").write_text("mine")
    before = describe(tmp_path / "out")
    with pytest.raises(pb.Conflict) as caught:
        backed_up.restore(tmp_path / "out")
    assert caught.value.kind == "target-not-empty"
    assert "overwrite" in caught.value.remedy
    assert describe(tmp_path / "out") == before


# ---------------------------------------------------------------- what cannot be opened


def _contents(where: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in where.rglob("*") if path.is_file()}


def test_a_wrong_passphrase(tmp_path: Path, backed_up: pb.Repository) -> None:
    before = _contents(tmp_path / "repository")
    for secret in ("wrong horse battery staple", "", "short", SECRET + " "):
        with pytest.raises(pb.WrongCredential) as caught:
            pb.Repository.open(backed_up.url, pb.Passphrase(secret))
        assert caught.value.kind == "no-slot"
        assert caught.value.remedy
        assert not secret or secret not in str(caught.value)
    assert _contents(tmp_path / "repository") == before


def test_what_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("mine")
    with pytest.raises(pb.NotFound) as caught:
        pb.Repository.open(tmp_path / "folder", pb.Passphrase(SECRET))
    assert caught.value.kind == "repository"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["letter.txt"]
    with pytest.raises((pb.NotFound, pb.StorageFailed)) as gone:
        pb.Repository.open(tmp_path / "nowhere", pb.Passphrase(SECRET))
    assert gone.value.remedy
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(pb.Conflict):
        pb.Repository.create(tmp_path / "folder", pb.Passphrase(SECRET))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("change", [{"pharmabackup": 2}, {"required_features": ["holograms"]}])
def test_a_repository_of_a_later_version(tmp_path: Path, backed_up: pb.Repository, change: dict[str, object]) -> None:
    record = tmp_path / "repository" / "repository"
    os.chmod(record, 0o600)
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    before = _contents(tmp_path / "repository")
    with pytest.raises(pb.Unsupported) as caught:
        pb.Repository.open(backed_up.url, pb.Passphrase(SECRET))
    assert caught.value.kind == "format-newer"
    assert caught.value.remedy
    assert _contents(tmp_path / "repository") == before


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"pharmabackup": 1}', b'{"pharmabackup": "x"}', b"\xff"]
)
def test_a_record_that_is_no_record(tmp_path: Path, backed_up: pb.Repository, text: bytes) -> None:
    record = tmp_path / "repository" / "repository"
    os.chmod(record, 0o600)
    record.write_bytes(text)
    with pytest.raises(pb.Damaged) as caught:
        pb.Repository.open(backed_up.url, pb.Passphrase(SECRET))
    assert caught.value.remedy
