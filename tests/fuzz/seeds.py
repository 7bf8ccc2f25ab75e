"""Valid inputs of every target, made from the samples: where the fuzzer begins."""

from __future__ import annotations

import hashlib
import struct

import msgspec

from pharmabackup import compression
from pharmabackup.crypto import signatures
from pharmabackup.engine import roster
from pharmabackup.format import block, index, keys, manifest, pack, recipe, transaction, wire
from pharmabackup.format.manifest import Extra, ExtraField, FrameType
from pharmabackup.format.repository import RepositoryRecord, encode_repository
from pharmabackup.format.wire import Kind, Record
from tests.format import samples as s

ALL = s.TOP + s.PARTS
SHAPES: tuple[type[Record], ...] = tuple(dict.fromkeys(type(record) for record in ALL))
RECORDS = tuple(bytes((SHAPES.index(type(record)),)) + wire.encode(record) for record in ALL)
FACTS = tuple(
    msgspec.msgpack.encode(facts)
    for facts in (s.SNAPSHOT.facts, {}, {"a": [{"b": {"c": []}}, float("nan")]}, {"n": (1 << 64) - 1, "m": -1})
)


def _directory(*blocks: pack.Block) -> pack.Directory:
    end = max((item.offset + item.length for item in blocks), default=0)
    names = pack.names_size(sum(item.count for item in blocks))
    return pack.Directory(s.ID, s.HASH, end, names, (s.WRAPPED, s.CATALOGUE_WRAP), blocks)


_directories = (s.DIRECTORY, _directory(), _directory(s.BLOCK), _directory(s.RECIPE, s.BLOCK))
DIRECTORIES = tuple(wire.encode(item) for item in _directories)
_signed = [wire.encode(wire.Signed(item, s.ID, 3, s.HASH, s.SIGNATURE)) for item in DIRECTORIES]
SEGMENTS = (
    *(wire.encode(index.Segment((index.PackEntry(s.HASH, 4096, item),))) for item in _signed),
    wire.encode(index.Segment(tuple(index.PackEntry(s.HASH, 4096, item) for item in _signed))),
    wire.encode(index.Segment(())),
)

_ATTRIBUTES = ([(b"user.a", b"b"), (b"user.c", b"")], [(b"user.a", bytes(100))], [])
ATTRIBUTES = tuple(manifest.encode_attributes(item) for item in _ATTRIBUTES)


def _rows(path: bytes, names: bytes, kinds: bytes, sizes: list[int], *extras: ExtraField) -> manifest.Folder:
    n = len(kinds)
    return manifest.Folder(
        path=path,
        names=names,
        kinds=kinds,
        modes=b"\xed\x01\0\0" * n,
        uids=bytes(4 * n),
        gids=bytes(4 * n),
        mtimes=bytes(8 * n),
        sizes=struct.pack(f"<{n}Q", *sizes),
        chunks=bytes(4 * n),
        extras=extras,
    )


_sparse = struct.pack("<4Q", 0, 4, 8, 2)
_folders = (
    (s.FOLDER, 5, 1),
    (_rows(b"", b".", b"\1", [0]), 0, 0),
    (_rows(b"", b"", b"", []), 0, 0),
    (_rows(b"", b".\0a\0b", b"\1\0\0", [0, 3, 4]), 7, 0),
    (_rows(b"a/b", b"x", b"\0", [10], ExtraField(0, Extra.EXTENTS, _sparse)), 6, 0),
    (_rows(b"a", b"x\0y", b"\0\0", [3, 3], ExtraField(1, Extra.SAME_FILE, b"a/x")), 3, 0),
    (_rows(b"a", b"l", b"\2", [0], ExtraField(0, Extra.LINK_TARGET, b"../x")), 0, 0),
    (_rows(b"a", b"v\0w", b"\0\7", [1, 9], ExtraField(0, Extra.ATTRIBUTES, ATTRIBUTES[0])), 1, 0),
)
FOLDERS = tuple(wire.encode(item) for item, _, _ in _folders)
_frames = [manifest.frame(FrameType.FOLDER, item, size=size, chunks=chunks) for item, size, chunks in _folders]
_finding = manifest.frame(FrameType.FINDING, s.FINDING)
MANIFESTS = (b"", _finding, *_frames, _finding + b"".join(_frames), _frames[3] + _finding + _frames[4])

_runs = recipe.Runs()
for _i in range(9):
    _runs.add(_i, 3 * _i, 2, 8192)
_CLAIM = struct.pack("<HH", 10, 1000)
RECIPES = (
    _CLAIM,
    _CLAIM + _runs.section(0, 1),
    _CLAIM + _runs.section(0, 9),
    _CLAIM + _runs.section(0, 4) + _runs.section(4, 9),
)

BLOCKS = (
    b"abcdefgh" + block.trailer(struct.pack("<2I", 3, 5)),
    b"x" + block.trailer(struct.pack("<I", 1)),
    b"xyz" + block.trailer(struct.pack("<4I", 1, 0, 2, 0)),
)
_CONTENTS = (b"", b"a", BLOCKS[0] * 20, bytes(range(256)), bytes(4000))
ZSTD = tuple(compression.compress(item, level) for item in _CONTENTS for level in (1, 6))
ZSTD_CHECKSUM = tuple(compression.compress(item, 3, checksum=True) for item in _CONTENTS)
HEADERS = tuple(bytes((i,)) + wire.header(kind) for i, kind in enumerate(Kind))
PADDED = tuple(wire.pad(item) for item in _CONTENTS)
OPENED = tuple(
    wire.pad(compression.compress(wire.encode(wire.Signed(wire.encode(item), s.ID, 3, s.HASH, s.SIGNATURE)), 3))
    for item in (s.FATE, s.ABORT, s.CARRY, s.MARK, s.DIRECTORY)
)
REPOSITORIES = (
    encode_repository(RepositoryRecord(pharmabackup=1, id="ab" * 32)),
    encode_repository(RepositoryRecord(pharmabackup=1, id="01234567" * 8, capabilities={"exclusive-create": True})),
    encode_repository(RepositoryRecord(pharmabackup=1, id="ab" * 32, required_features=["a"])),
    msgspec.json.encode({"pharmabackup": 1, "id": "ab" * 32, "required_features": [], "more": {"a": [1, None]}}),
)
PACK_ENDS = (bytes(40) + pack.TRAILER.pack(20, pack.TRAILER_MAGIC), pack.TRAILER.pack(0, pack.TRAILER_MAGIC))


def _first_roster() -> bytes:
    key = signatures.SigningKey(s.KEY)
    owner = keys.Slot(s.ID, "owner", "owner", None, "passphrase", key.public, s.PUBLIC, s.NOW, None, s.ARGON)
    content = wire.encode(msgspec.structs.replace(s.ROSTER, number=0, previous=None, features=(), slots=(owner,)))
    signature = key.sign(roster.roster_message(bytes(32), 0, s.ID, bytes(32), content))
    return wire.header(Kind.ROSTER) + wire.encode(keys.SignedRoster(content, s.ID, signature))


def _carried(record: transaction.Fate | transaction.Mark, *, gone: bool = False) -> transaction.Carried:
    kind, folder = (Kind.FATE, "snapshots") if isinstance(record, transaction.Fate) else (Kind.MARK, "marks")
    return transaction.Carried(f"{folder}/{s.ID.hex()}", wire.header(kind) + wire.encode(record), gone)


CARRIES = tuple(
    wire.encode(transaction.Carry(b"\x77" * 16, s.HASH, items))
    for items in (
        (_carried(s.FATE), _carried(s.MARK)),
        (_carried(s.FATE, gone=True), _carried(s.FATE)),
        (_carried(s.ABORT), *s.CARRY.items),
    )
)
ROSTERS = (_first_roster(),)
FEATURES = (wire.encode(s.ROSTER), wire.encode(msgspec.structs.replace(s.ROSTER, features=())))
KEYRINGS = tuple(
    wire.header(Kind.KEYRING) + wire.encode(item)
    for item in (s.SEALED_KEYRING, keys.SealedKeyring(s.ID, 0, s.HASH, b""))
)
_hex = hashlib.sha256(b"").hexdigest()
OBJECT_NAMES = (
    f"packs/{_hex[:2]}/{_hex}\nindex/{_hex}\nroster/0\nkeys/{_hex[:32]}/12".encode(),
    f"snapshots/{_hex[:32]}\nmarks/{_hex[:32]}\nintents/{_hex[:32]}.0\naudit/{_hex[:32]}/1".encode(),
    b"collections/1/condemn\ncollections/1/execute\ncollections/1/done\ncollections/2/condemn",
    b"",
)
FILE_NAMES = (
    b"scans/2024/a.tif",
    b"a/b c/x",
    "R\u00e9sum\u00e9.tmp".encode(),
    b"CON.txt/nul/LPT1 .",
    b"a%3Ab/50%20off/%2525",
    b"\xff\xfe/\xed\xa0\x80x",
    b"abababababcdcdcdc",
)
