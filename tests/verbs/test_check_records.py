"""What a check says of records that no snapshot needs: a collector, or the next backup, cannot do without them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

import pharmabackup as pb
from pharmabackup.format.transaction import Audit
from pharmabackup.format.wire import Kind
from pharmabackup.testing.simulated import SimulatedStorage
from pharmabackup.testing.simulation import Simulation
from pharmabackup.verbs import check_records


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SimulatedStorage]:
    """Two collections that have ended, and a backup since."""
    (tmp_path / "documents").mkdir()
    with Simulation(tmp_path / "state") as simulation:
        made = SimulatedStorage(clock=simulation.clock)
        simulation.create(made)
        with simulation.open(made) as repo:
            for number in range(6):
                (tmp_path / "documents" / "file").write_bytes(bytes([number]) * 2000)
                repo.backup([pb.Files(tmp_path / "documents")])
                if number % 2:
                    repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
                    simulation.clock.advance(timedelta(days=15))
                    repo.apply(repo.propose_prune())
            repo.backup([pb.Files(tmp_path / "documents")])
            repo.check()
        made.open = lambda: simulation.open(made)  # type: ignore[attr-defined]
        yield made


def _findings(storage: SimulatedStorage) -> dict[str, str]:
    with storage.open() as repo:  # type: ignore[attr-defined]
        return {finding.subject: finding.code for finding in repo.check().findings}


@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_each_collections_record_is_read(storage: SimulatedStorage, how: str) -> None:
    names = [name for name in storage.names() if name.startswith("collections/")]
    last = max(re.findall(r"collections/(\d+)/", " ".join(names)))
    assert last >= "2"
    assert _findings(storage) == {}
    for name in names:
        getattr(storage, how)(name)
        found = _findings(storage)
        # Of the last one it cannot be told whether it has come to that.
        if not (how == "remove" and name == f"collections/{last}/done"):
            assert found.pop(name) in ("collection-damaged", "history-forked")
        assert set(found) <= {name.replace("condemn", "execute")}
        storage.heal()
    assert _findings(storage) == {}


def test_an_intent_is_read(storage: SimulatedStorage) -> None:
    intents = [name for name in storage.names() if name.startswith("intents/")]
    assert intents
    storage.flip(intents[-1], at=100)
    assert _findings(storage) == {intents[-1]: "intent-damaged"}


def test_a_foreign_name_among_collections_is_told(storage: SimulatedStorage) -> None:
    """It stops writers and collectors, who cannot know what it would condemn."""
    storage.put_new("collections/1/notes", b"x")
    assert _findings(storage) == {"collections/1/notes": "collection-damaged"}


def test_the_repositorys_own_record(storage: SimulatedStorage) -> None:
    data = storage.get("repository", limit=1 << 16)
    at = data.index(b'"fresh-listing"') + 3
    storage.flip("repository", at)
    assert _findings(storage) == {"repository": "repository-damaged"}


@pytest.mark.parametrize("how", ["json", "gone", "list", "large", "newer"])
def test_the_repositorys_own_record_is_damaged_while_it_is_open(
    make_repo: Callable[[], pb.Repository], how: str
) -> None:
    repo = make_repo()
    path = Path(repo.url) / "repository"
    data = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(
            {
                "json": b"\xff" + data[1:],
                "list": b"[]",
                "large": b" " * (1 << 17),
                "newer": data.replace(b'"pharmabackup": 1', b'"pharmabackup": 3'),
            }[how]
        )
    found = [item for item in repo.check().findings if item.code == "repository-damaged"]
    assert [(item.severity, item.subject) for item in found] == [("critical", "repository")]


def test_whichever_bit_of_the_repositorys_own_record_turns(make_repo: Callable[[], pb.Repository]) -> None:
    """It is told, unless it is in words or spaces that only people read."""
    repo = make_repo()
    unlocked, found = repo._unlocked, list[str]()
    path = Path(repo.url) / "repository"
    data = path.read_bytes()
    told = 0
    for at, bit in itertools.product(range(len(data)), range(8)):
        changed = bytes([*data[:at], data[at] ^ 1 << bit, *data[at + 1 :]])
        path.write_bytes(changed)
        check_records._repository(unlocked, lambda code, *_: found.append(code))
        try:
            harmless = {**json.loads(changed), "about": ""} == {**json.loads(data), "about": ""}
        except ValueError:
            harmless = False
        assert found == ([] if harmless else ["repository-damaged"]), (at, bit, changed)
        told += len(found)
        found.clear()
    assert told > 1000


def test_an_audit_record_that_its_own_slot_replaced(make_repo: Callable[[], pb.Repository]) -> None:
    """It is as it should be itself: the one after it tells."""
    repo = make_repo()
    for number in range(3):
        repo.rotate(reason=f"reason {number}")
    unlocked = repo._unlocked
    (folder,) = (Path(repo.url) / "audit").iterdir()
    name = f"audit/{folder.name}/1"
    record = unlocked.get(Kind.AUDIT, name, Audit).record
    (folder / "1").unlink()
    unlocked.put(Kind.AUDIT, name, msgspec.structs.replace(record, reason="another"))
    assert [item.subject for item in repo.check().findings if item.code == "audit-damaged"] == [
        f"audit/{folder.name}/2"
    ]


def test_an_audit_record_that_somebody_else_wrote(make_repo: Callable[[], pb.Repository], tmp_path: Path) -> None:
    """It follows, and is signed, but not by whose chain it is."""
    repo = make_repo()
    repo.rotate(reason="first")
    (folder,) = (Path(repo.url) / "audit").iterdir()
    repo.enrol("owner", pb.Passphrase("quite another passphrase"), name="second")
    number = len(list(folder.iterdir()))
    record = repo._unlocked.get(Kind.AUDIT, f"audit/{folder.name}/{number - 1}", Audit).record
    previous = hashlib.sha256((folder / str(number - 1)).read_bytes()).digest()
    with pb.Repository.open(repo.url, pb.Passphrase("quite another passphrase"), state_dir=tmp_path / "b") as other:
        added = msgspec.structs.replace(record, number=number, previous=previous)
        other._unlocked.put(Kind.AUDIT, f"audit/{folder.name}/{number}", added)
    found = [item.subject for item in repo.check().findings if item.code == "audit-damaged"]
    assert found == [f"audit/{folder.name}/{number}"]


@pytest.mark.parametrize("how", ["flip", "cut", "gone", "swapped"])
def test_audit_records(make_repo: Callable[[], pb.Repository], how: str) -> None:
    repo = make_repo()
    for number in range(3):
        repo.rotate(reason=f"reason {number}")
    (folder,) = (Path(repo.url) / "audit").iterdir()
    assert {path.name for path in folder.iterdir()} >= {"0", "1", "2"}
    assert "audit-damaged" not in {item.code for item in repo.check().findings}
    data = (folder / "1").read_bytes()
    if how == "gone":
        (folder / "1").unlink()
    else:
        changed = {
            "flip": data[:-1] + bytes([data[-1] ^ 1]),
            "cut": data[:20],
            "swapped": (folder / "2").read_bytes(),
        }
        (folder / "1").write_bytes(changed[how])
    found = {item.subject.rpartition("/")[2] for item in repo.check().findings if item.code == "audit-damaged"}
    assert found == {"1"}
