"""Passphrases and keys that change, read by the independent reader; and keyrings that it must not believe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pharmabackup as pb
from pharmabackup.crypto.recipients import PublicKey
from tests.reader import keys, wire
from tests.reader.reader import Reader
from tests.reader.wire import Refused

FIRST, SECOND, THIRD = "correct horse battery staple", "quite another passphrase", "yet another passphrase"
MakeRepo = Callable[[], pb.Repository]


class Pharmacy:
    """A repository with two owners, whose documents grow with every backup."""

    def __init__(self, repo: pb.Repository, root: Path) -> None:
        self.repo, self.root, self.days = repo, root, 0
        self.place = Path(repo.url)
        root.mkdir()
        repo.enrol("owner", pb.Passphrase(SECOND), name="second")
        self.back_up()

    def back_up(self) -> None:
        self.days += 1
        (self.root / f"{self.days}").write_bytes(b"%d" % self.days * 3000)
        self.repo.backup([pb.Files(self.root)])

    def read(self, passphrase: str) -> None:
        """Everything, each day having one file more."""
        check(Reader(self.place, passphrase), self.days)

    def keyrings(self) -> list[Path]:
        """Of the first owner, oldest first."""
        with pb.Repository.open(self.place, pb.Passphrase(SECOND)) as second:
            other = second._unlocked.slot.id.hex()
        (folder,) = (path for path in (self.place / "keys").iterdir() if path.name != other)
        return sorted(folder.iterdir(), key=lambda path: int(path.name))


def check(reader: Reader, days: int) -> None:
    read = [len(reader.restore(transaction)) for transaction in reader.snapshots()]
    assert read == [2 + day for day in range(days)]


@pytest.fixture
def pharmacy(make_repo: MakeRepo, tmp_path: Path) -> Pharmacy:
    return Pharmacy(make_repo(), tmp_path / "documents")


def test_keys_and_passphrases_that_change(pharmacy: Pharmacy) -> None:
    pharmacy.repo.rotate(reason="a laptop was lost")
    pharmacy.back_up()
    for passphrase in (FIRST, SECOND):
        pharmacy.read(passphrase)
    pharmacy.repo.change_passphrase(pb.Passphrase(THIRD))
    pharmacy.repo.rotate(reason="another one")
    pharmacy.back_up()
    for passphrase in (THIRD, SECOND):
        pharmacy.read(passphrase)
    with pytest.raises(Refused, match="no slot"):
        Reader(pharmacy.place, FIRST)


def test_what_is_open_learns_new_keys(pharmacy: Pharmacy) -> None:
    reader = Reader(pharmacy.place, SECOND)
    pharmacy.repo.rotate(reason="a laptop was lost")
    pharmacy.back_up()
    reader.refresh()
    check(reader, 2)
    assert len(reader.catalogue) == len(reader.readers) == 2


def test_a_change_of_the_passphrase_that_was_interrupted(pharmacy: Pharmacy) -> None:
    """The keyring has come and the roster has not; then the roster is there and the keyring is lost."""
    before = set(pharmacy.place.rglob("*"))
    pharmacy.repo.change_passphrase(pb.Passphrase(THIRD))
    new = {path: path.read_bytes() for path in set(pharmacy.place.rglob("*")) - before if path.is_file()}
    later = [path for path in new if "keys" not in path.parts]  # the roster, and the audit record that cites it
    assert len(later) == 2
    for path in later:
        path.unlink()
    pharmacy.read(FIRST)
    with pytest.raises(Refused, match="no slot"):
        Reader(pharmacy.place, THIRD)
    for path in later:
        path.write_bytes(new[path])
    pharmacy.read(THIRD)
    pharmacy.keyrings()[-1].unlink()
    with pytest.raises(Refused, match="no slot"):
        Reader(pharmacy.place, FIRST)
    with pytest.raises(Refused, match="no keyring"):
        Reader(pharmacy.place, THIRD)


def test_a_change_of_keys_that_was_interrupted(pharmacy: Pharmacy) -> None:
    """The keyrings have come and the roster has not."""
    before = {path.name for path in (pharmacy.place / "roster").iterdir()}
    audited = set((pharmacy.place / "audit").rglob("*"))
    pharmacy.repo.rotate(reason="a laptop was lost")
    for path in set((pharmacy.place / "audit").rglob("*")) - audited:
        if path.is_file():
            path.unlink()
    for path in (pharmacy.place / "roster").iterdir():
        if path.name not in before:
            path.unlink()
    for passphrase in (FIRST, SECOND):
        pharmacy.read(passphrase)
    assert len(Reader(pharmacy.place, FIRST).catalogue) == 1


def test_passphrases_that_change_again_and_again(pharmacy: Pharmacy) -> None:
    for number in range(3):
        with pytest.raises(Refused, match="no slot"):
            Reader(pharmacy.place, f"passphrase number {number}")
        pharmacy.repo.change_passphrase(pb.Passphrase(f"passphrase number {number}"))
        pharmacy.read(f"passphrase number {number}")
        with pytest.raises(Refused, match="no slot"):
            Reader(pharmacy.place, FIRST)


def test_so_many_stretchings_and_no_more(pharmacy: Pharmacy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are tried in the roster's order."""
    monkeypatch.setattr(keys, "STRETCHINGS", 1)
    pharmacy.read(FIRST)
    with pytest.raises(Refused, match="no slot"):
        Reader(pharmacy.place, SECOND)


# ---------------------------------------------------------------- keyrings that somebody else put there

NOT_ITS = bytes(range(32))
FOREIGN: dict[str, Callable[[list[Any]], object]] = {
    "as it was": lambda fields: None,
    "of a generation that there is not": lambda fields: fields[5].append([7, NOT_ITS]),
    "of a generation, another key": lambda fields: fields[5].append([0, NOT_ITS]),
    "another reader key": lambda fields: fields[7].append([0, bytes(range(96))]),
    "that only adds": lambda fields: fields.__setitem__(slice(3, 5), [None, []]),
    "that adds a naming key": lambda fields: fields.__setitem__(slice(3, 5), [None, [[NOT_ITS[:16], NOT_ITS]]]),
    "that only adds, with other names of blocks": lambda fields: fields.__setitem__(
        slice(3, 7), [None, [[fields[4][0][0], NOT_ITS]], fields[5], NOT_ITS]
    ),
    "another signing key": lambda fields: fields.__setitem__(3, NOT_ITS),
    "of another repository": lambda fields: fields.__setitem__(0, NOT_ITS),
    "of another slot": lambda fields: fields.__setitem__(1, NOT_ITS[:16]),
    "of another role": lambda fields: fields.__setitem__(2, "restorer"),
}
HARMLESS = list(FOREIGN)[:8]


@pytest.mark.parametrize("case", FOREIGN)
def test_a_keyring_that_anybody_could_seal(pharmacy: Pharmacy, case: str) -> None:
    """To seal one it takes a public key, which stands in the roster."""
    reader = Reader(pharmacy.place, FIRST)
    (path,) = pharmacy.keyrings()
    sealed = wire.SealedKeyring(wire.unpack(path.read_bytes()[8:]))
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(list(reader._open_keyring(sealed))))
    FOREIGN[case](fields)
    body = msgspec.msgpack.encode(fields)
    number = sealed.number + 1
    associated = reader._associated(wire.KEYRING, sealed.key_id, sealed.slot + number.to_bytes(8, "little"))
    stored = PublicKey(reader.slots[reader.slot].recipient).seal(
        len(body).to_bytes(4, "little") + body + bytes(9), associated
    )
    record = [sealed.slot, number, sealed.key_id, stored]
    (path.parent / str(number)).write_bytes(path.read_bytes()[:8] + msgspec.msgpack.encode(record))
    if case in HARMLESS:
        pharmacy.read(FIRST)
        again = Reader(pharmacy.place, FIRST)
        assert (again.catalogue, again.naming) == (reader.catalogue, reader.naming)
        assert again.readers.keys() == reader.readers.keys()
    else:
        with pytest.raises(Refused):
            Reader(pharmacy.place, FIRST)


def test_a_keyring_bound_to_its_number(pharmacy: Pharmacy) -> None:
    (path,) = pharmacy.keyrings()
    sealed = wire.SealedKeyring(wire.unpack(path.read_bytes()[8:]))
    record = [sealed.slot, 1, sealed.key_id, sealed.sealed]
    (path.parent / "1").write_bytes(path.read_bytes()[:8] + msgspec.msgpack.encode(record))
    with pytest.raises(Refused, match="seal is broken"):
        Reader(pharmacy.place, FIRST)
