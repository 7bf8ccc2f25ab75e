"""What was brought from another replica (docs/format.md, §13.4), read by the independent reader."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.format.transaction import Carried, Carry, Fate, Mark
from pharmabackup.format.wire import Kind
from tests.reader import wire
from tests.reader.reader import Reader
from tests.reader.records import Records
from tests.reader.wire import Newer, Refused

PASSPHRASE = "correct horse battery staple"
DAY = 86400
MakeRepo = Callable[[], pb.Repository]


class Pair:
    """Two replicas, of which one has three snapshots: of one, two and three files."""

    def __init__(self, one: pb.Repository, folder: Path) -> None:
        self.one, self.here = one, Path(one.url)
        self.there = folder / "there"
        self.two = pb.Repository.create(self.there, pb.Passphrase(PASSPHRASE), replica_of=one)
        self.ids: list[str] = []
        (folder / "documents").mkdir()
        for number in range(3):
            (folder / "documents" / f"{number}").write_bytes(b"%d" % number * 3000)
            snapshot = one.backup([pb.Files(folder / "documents")]).datasets["documents"].snapshot
            assert snapshot is not None
            self.ids.append(snapshot.id)

    def copy(self, *numbers: int) -> Path:
        """Bring these, or all that count; the carry's file."""
        before = set((self.there / "snapshots").glob("*"))
        chosen = [self.one.snapshot(id=self.ids[number]) for number in numbers]
        self.one.copy(self.two, snapshots=chosen or None)
        (made,) = set((self.there / "snapshots").glob("*")) - before
        return made

    def read(self) -> Reader:
        return Reader(self.there, PASSPHRASE)

    def left(self) -> list[int]:
        """Numbers of the snapshots that can be read there, each of which is what was backed up."""
        reader = self.read()
        for transaction in reader.snapshots():
            number = self.ids.index(transaction)
            files = {path: entry.data() for path, entry in reader.restore(transaction).items() if path != b"."}
            assert files == {b"%d" % n: b"%d" % n * 3000 for n in range(number + 1)}
        return sorted(map(self.ids.index, reader.snapshots()))

    def carry(self, *items: Carried) -> str:
        """A carry that the other replica's owner signs; its object's name."""
        transaction = ids.new_id()
        name = ids.fate_name(transaction)
        self.two._unlocked.put(Kind.CARRY, name, Carry(transaction, bytes(32), items))
        return name

    def stored(self, number: int) -> Carried:
        name = f"snapshots/{self.ids[number]}"
        return Carried(name, (self.here / name).read_bytes(), False)

    def mark(self, kind: str, number: int, about: bytes | None = None) -> Carried:
        name = ids.mark_name(ids.new_id())
        mark = Mark(kind, bytes.fromhex(self.ids[number]), 1, None, None, about)  # type: ignore[arg-type]
        return Carried(name, self.one._unlocked.seal(Kind.MARK, name, mark), False)


@pytest.fixture
def pair(make_repo: MakeRepo, tmp_path: Path) -> Pair:
    return Pair(make_repo(), tmp_path)


def _age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def test_a_replica_that_was_copied_to(pair: Pair) -> None:
    carry = pair.copy()
    assert [path.name for path in (pair.there / "snapshots").iterdir()] == [carry.name]
    assert pair.left() == [0, 1, 2]
    reader = pair.read()
    assert (reader.absent, reader.gone, reader.spoilt, reader.replaced, reader.ignored) == (set(), set(), [], [], [])
    for transaction in pair.ids:
        own = (pair.here / "snapshots" / transaction).read_bytes()
        assert reader.stored[f"snapshots/{transaction}"].hash == hashlib.sha256(own).digest()


def test_what_is_absent_until_a_copy_brings_it(pair: Pair) -> None:
    pair.copy(2)
    assert pair.left() == [2]
    assert pair.read().gone == set(pair.ids[:2])
    pair.copy(0)
    assert pair.left() == [0, 2]
    pair.copy()
    assert pair.left() == [0, 1, 2]


def test_an_own_record_goes_before(pair: Pair) -> None:
    """Absent is only what no object here is: what was committed here has its content here."""
    pair.two.close()
    for folder in ("packs", "index", "snapshots"):
        (pair.there / folder).mkdir(exist_ok=True)
        for path in (pair.here / folder).rglob("*"):
            if path.is_file():
                (pair.there / path.relative_to(pair.here)).parent.mkdir(exist_ok=True)
                (pair.there / path.relative_to(pair.here)).write_bytes(path.read_bytes())
    pair.two = pb.Repository.open(pair.there, pb.Passphrase(PASSPHRASE))
    own = pair.there / "snapshots" / pair.ids[1]
    whole = own.read_bytes()
    item = pair.stored(1)
    pair.carry(Carried(item.name, item.stored, True))
    assert pair.left() == [0, 1, 2]
    own.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert pair.left() == [0, 1, 2]
    assert pair.read().replaced == [item.name]
    own.unlink()
    assert pair.left() == [0, 2]
    pair.carry(item)
    assert pair.left() == [0, 1, 2]


def test_a_damaged_record_that_nothing_stands_in_for(pair: Pair) -> None:
    carry = pair.copy()
    whole = carry.read_bytes()
    carry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Refused, match="seal is broken"):
        pair.read()
    carry.write_bytes(whole)
    carry.rename(carry.with_name("11" * 16))
    with pytest.raises(Refused, match="11111"):
        pair.read()


# ---------------------------------------------------------------- marks


def test_marks_count_from_when_they_came(pair: Pair) -> None:
    forget = pair.mark("forget", 0)
    (pair.here / "marks").mkdir(exist_ok=True)
    (pair.here / forget.name).write_bytes(forget.stored)
    _age(pair.here / forget.name, 13.9)
    carry = pair.copy()
    assert pair.left() == [0, 1, 2]
    _age(carry, 15)
    assert pair.read().gone == {pair.ids[0]}
    later = pair.carry(forget)
    assert pair.left() == [1, 2]  # of several the earliest
    _age(pair.there / later, 30)
    assert pair.left() == [1, 2]
    (pair.there / "marks").mkdir(exist_ok=True)
    (pair.there / forget.name).write_bytes(forget.stored)  # its own, from today, goes before
    assert pair.left() == [0, 1, 2]


def test_places_among_the_items_are_times(pair: Pair) -> None:
    """A hold that stands behind a forget that counts at once would be too late."""
    pair.copy()
    quorum = wire.Policy([[], 0, 1, 0, False])  # no delay
    hold, forget = pair.mark("hold", 0), pair.mark("forget", 0)
    for items, gone in (((hold, forget), set()), ((forget, hold), {pair.ids[0]})):
        carry = pair.there / pair.carry(*items)
        reader = pair.read()
        reader.rosters[-1] = reader.rosters[-1]._replace(policy=quorum)
        assert reader._gone() == gone
        carry.unlink()


def test_what_was_read_there_says_nothing_here(pair: Pair) -> None:
    assert pair.one.check(read_data=1.0).state == "ok"
    (name,) = (f"marks/{path.name}" for path in (pair.here / "marks").iterdir())
    pair.copy()
    pair.carry(Carried(name, (pair.here / name).read_bytes(), False), pair.mark("hold", 0))
    kinds = {one.record.kind for path, one in pair.read().stored.items() if path.startswith("marks/")}
    assert kinds == {"hold"}


# ---------------------------------------------------------------- what is damaged in a carry


def _renamed(item: Carried, name: str) -> Carried:
    return Carried(name, item.stored, item.gone)


def _aborted(pair: Pair) -> Carried:
    """A commit of the one replica that the other has aborted."""
    transaction = bytes.fromhex(pair.ids[1])
    pair.two._unlocked.put(Kind.FATE, ids.fate_name(transaction), Fate(transaction, "abort", None, None))
    return pair.stored(1)


def _abort(pair: Pair) -> Carried:
    transaction = ids.new_id()
    name = ids.fate_name(transaction)
    fate = Fate(transaction, "abort", None, None)
    return Carried(name, pair.one._unlocked.seal(Kind.FATE, name, fate), False)


def _carry(pair: Pair) -> Carried:
    name = pair.carry(pair.stored(1))
    data = (pair.there / name).read_bytes()
    (pair.there / name).unlink()
    return Carried(name, data, False)


def _named_as_a_carry(pair: Pair) -> Carried:
    transaction = bytes.fromhex(pair.ids[1])
    carry = Carry(transaction, bytes(32), (pair.stored(0),))
    pair.two._unlocked.put(Kind.CARRY, ids.fate_name(transaction), carry)
    return pair.stored(1)


SPOILT: dict[str, Callable[[Pair], Carried]] = {
    "nothing": lambda pair: Carried(pair.stored(1).name, b"", False),
    "a flipped byte": lambda pair: Carried(pair.stored(1).name, pair.stored(1).stored[:-1] + b"x", False),
    "under another name": lambda pair: _renamed(pair.stored(1), f"snapshots/{'11' * 16}"),
    "under no name of a fate": lambda pair: _renamed(pair.stored(1), "intents/" + pair.ids[1] + ".0"),
    "a fate as a mark": lambda pair: _renamed(pair.stored(1), f"marks/{pair.ids[1]}"),
    "what was aborted here": _aborted,
    "what is a carry here": _named_as_a_carry,
    "an abort": _abort,
    "a carry": _carry,
}


@pytest.mark.parametrize("case", SPOILT)
def test_an_item_that_is_damaged(pair: Pair, case: str) -> None:
    """The others count, before it and after it."""
    pair.copy(0)
    for path in (pair.there / "snapshots").iterdir():
        path.unlink()
    spoilt = SPOILT[case](pair)
    name = pair.carry(pair.stored(0), spoilt, pair.mark("hold", 0))
    reader = pair.read()
    assert reader.snapshots().keys() == {pair.ids[0]}
    assert [one.split(":")[0] for one in reader.spoilt] == [f"{spoilt.name} in {name}"]
    assert len([one for one in reader.stored if one.startswith("marks/")]) == 1


def test_an_item_of_a_newer_version(pair: Pair) -> None:
    item = pair.stored(1)
    pair.carry(pair.stored(0), Carried(item.name, item.stored[:4] + b"\2" + item.stored[5:], False))
    with pytest.raises(Newer):
        pair.read()


def test_who_may_sign_a_carry() -> None:
    assert Records._may_sign(wire.CARRY, None) == {"device", "maintainer", "owner"}
    with pytest.raises(Refused):
        wire.Carry([bytes(16), bytes(32), []])
