"""What is parsed outside of `format`: packs' ends, rosters, keyrings, carries, names of objects and of files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from pharmabackup import ids
from pharmabackup.engine import historycarried, keyrings, roster
from pharmabackup.engine.condemned import read_condemned
from pharmabackup.engine.history import History
from pharmabackup.engine.packs import directory_range
from pharmabackup.engine.target_names import distinct_name, folded, original_name, portable_name
from pharmabackup.errors import Damaged, InvalidInput
from pharmabackup.format import keys, manifest, wire
from pharmabackup.format.repository import check_features
from pharmabackup.format.transaction import Carry, Condemn, Execute
from pharmabackup.format.wire import HEADER, Kind, Record
from pharmabackup.patterns import compile_patterns
from pharmabackup.sources.mbstream import Strange, Stream
from pharmabackup.storage.base import checked
from tests.fuzz import changes, seeds
from tests.sources.test_mbstream import chunk, whole

MBSTREAMS = (
    b"".join(whole()),
    chunk("pmr/a.ibd", b"x" * 40) + chunk("pmr/a.ren", b"pmr/b") + chunk("pmr/a.ibd", kind="E") + b"".join(whole()),
)
SLOT, CARRIER = "11" * 16, "snapshots/" + "77" * 16
PATTERNS = ("*.tmp", "a/**", "**/x", "[!a-z]?*", "a*b*c*d", "scans/20[0-9][0-9]/*.tif")
MATCHES = [compile_patterns([pattern], below=below, backslash=False) for pattern in PATTERNS for below in (0, 1)]


class OneObject:
    """A storage with these bytes under every name, and with the names that are given."""

    def __init__(self, data: bytes = b"", names: tuple[str, ...] = ()) -> None:
        self._data, self._names = data, names

    def get(self, name: str, *, limit: int) -> bytes:
        return self._data[:limit]

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self._data)
        return self._data[offset : offset + length]

    def list(self, prefix: str) -> Iterator[SimpleNamespace]:
        return iter([SimpleNamespace(name=name, size=0) for name in self._names])


def pack_end(data: bytes) -> object:
    start, length = directory_range(partial(OneObject(data).get_range, "packs/"), len(data))
    assert 0 <= start <= start + length <= len(data)
    return start, length


def first_roster(data: bytes) -> object:
    """Whatever claims to be roster 0 of the repository that is named after it: nothing else vouches for it."""
    digest = hashlib.sha256(data).digest()
    found = roster._check_roster(data, 0, digest, None, {})
    assert wire.decode(wire.encode(found), keys.Roster) == found
    return found


def features(data: bytes) -> object:
    """A roster's content whose features alone are read, whatever else it is."""
    found = keys.features_of(data)
    assert all(isinstance(feature, str) for feature in found)
    check_features(found)
    return found


def sealed_keyring(data: bytes) -> object:
    found = keyrings.read_sealed(cast("Any", OneObject(data)), SLOT, 0)
    assert wire.decode(wire.encode(found), keys.SealedKeyring) == found
    assert data[: HEADER.size] == wire.header(Kind.KEYRING)
    return found


def carry(data: bytes) -> object:
    """A carry with what it brings, of which all counts whose bytes are those of a record: seals are left out here."""
    found = wire.decode(data, Carry)
    assert wire.encode(wire.decode(wire.encode(found), Carry)) == wire.encode(found)
    known = History()
    carrier = historycarried.Carrier(CARRIER, found, cast("Any", Unsealed.slot), 0)
    historycarried.take_carried(cast("Any", Unsealed()), known, carrier, {}, {}, {})
    assert known.absent <= known.committed.keys()
    assert all(name.startswith(("snapshots/", "marks/")) for name in known.brought)
    assert len(known.brought) + len(known.damaged) <= len(found.items)
    assert known.brought.keys() <= {item.name for item in found.items}
    known.gone(1 << 60)
    return found


class Unsealed:
    """Opens records that nobody sealed or signed: as if an owner had."""

    slot = SimpleNamespace(id=bytes(16), role="owner", domain=None, revoked=None)

    @property
    def recalled(self) -> dict[object, object]:
        """Nothing is remembered, or memory would grow with every input."""
        return {}

    def open(self, kind: Kind, name: str, data: bytes, shape: type[Record]) -> SimpleNamespace:
        wire.check_header(data, kind)
        signed = wire.Signed(data[HEADER.size :], self.slot.id, 0, bytes(32), bytes(64))
        return SimpleNamespace(signed=wire.encode(signed), **vars(self.statement(kind, name, signed, shape)))

    def statement(
        self, kind: Kind, name: str, signed: wire.Signed, shape: type[Record], *, verified: bool = True
    ) -> SimpleNamespace:
        return SimpleNamespace(record=wire.decode(signed.content, shape), slot=self.slot)


def object_names(data: bytes) -> object:
    """Names that a storage lists, a line each, as every folder's reader takes them."""
    names = []
    for line in data.decode("utf-8", "replace").split("\n"):
        digest = ids.hex_tail(line)
        assert digest is None or digest.hex() == line.rpartition("/")[2]
        try:
            names.append(checked(line))
        except InvalidInput:
            continue  # no storage lists it
        wire.signed_message(bytes(32), Kind.FATE, line, bytes(16), 0, bytes(32), b"")
        _number(line)
    return _collections(tuple(names))


def _number(name: str) -> None:
    try:
        number = keyrings.numbered(name)
    except Damaged:
        return
    assert ids.roster_name(number).rpartition("/")[2] == name.rpartition("/")[2]


def _collections(names: tuple[str, ...]) -> object:
    shapes = {Kind.EXECUTE: Execute(1, bytes(32), b""), Kind.CONDEMN: Condemn(1, bytes(64), b"", b"")}
    storage = OneObject(names=tuple(name for name in names if name.startswith("collections/")))
    unlocked = SimpleNamespace(storage=storage, get=lambda kind, name, shape: SimpleNamespace(record=shapes[kind]))
    found = read_condemned(cast("Any", unlocked))
    assert found.highest <= len(names)
    return found


def file_names(data: bytes) -> object:
    """Names and paths in a manifest: matched with patterns, and made into ones that other systems take."""
    manifest.check_path(data)
    matched = [matches(data) for matches in MATCHES]
    for name in data.split(b"/"):
        portable = portable_name(name)
        assert original_name(portable) == name
        raw = portable.encode("utf-8", "surrogatepass")
        folded(raw)
        if raw:
            assert distinct_name(raw)
    return matched


def mariadb_stream(data: bytes) -> object:
    """What a restored server's files come from; cut anywhere, it is the same."""

    def read(size: int) -> list[str] | None:
        stream = Stream()
        try:
            passed = b"".join(stream.through(data[at : at + size] for at in range(0, len(data), size)))
        except Strange:
            return None
        assert passed == data
        return stream.settings

    found = read(len(data) or 1)
    assert found == read(7)
    return found


AROUND: dict[str, tuple[Callable[[bytes], object], tuple[bytes, ...], changes.Change]] = {
    "pack-end": (pack_end, seeds.PACK_ENDS, changes.of_bytes),
    "roster": (first_roster, seeds.ROSTERS, changes.after(HEADER.size, changes.of_record)),
    "features": (features, seeds.FEATURES, changes.of_record),
    "keyring": (sealed_keyring, seeds.KEYRINGS, changes.after(HEADER.size, changes.of_record)),
    "carry": (carry, seeds.CARRIES, changes.of_record),
    "object-names": (object_names, seeds.OBJECT_NAMES, changes.of_bytes),
    "mariadb-stream": (mariadb_stream, MBSTREAMS, changes.of_bytes),
    "file-names": (file_names, seeds.FILE_NAMES, changes.of_bytes),
}
