"""One valid record of every shape, and how arbitrary and spoilt encodings of it are made."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from pharmabackup.format import index, keys, manifest, pack, transaction, wire
from pharmabackup.format.wire import Record

ID, HASH, KEY = b"\x11" * 16, b"\x22" * 32, b"\x33" * 32
PUBLIC, SIGNATURE = b"\x44" * 1216, b"\x55" * 64
NOW = 1_700_000_000_000_000_000

REVOKED = keys.Revoked(NOW, "stolen", HASH * 2)
SLOT = keys.Slot(ID, "till 1", "device", ID, "recipient", KEY, PUBLIC, NOW, REVOKED, None)
DOMAIN = keys.Domain(ID, "shop")
GENERATION = keys.Generation(0, HASH, PUBLIC)
KEEP = keys.KeepRule("*", 3, 86400, 24, 7, 4, 12, 7)
POLICY = keys.Policy((KEEP,), 86400, 2, 0, True)
CHUNKER = keys.ContentChunker(16 << 10, 64 << 10, 256 << 10, 1)
ROSTER = keys.Roster(3, HASH, NOW, ("a",), (SLOT,), (DOMAIN,), (GENERATION,), PUBLIC, POLICY, CHUNKER, 4)
SIGNED_ROSTER = keys.SignedRoster(b"content", ID, SIGNATURE)
ARGON = keys.Argon2id(b"s" * 16, 65536, 3, 4)
SEALED_KEYRING = keys.SealedKeyring(ID, 0, HASH, b"sealed")
NAMING = keys.NamingKey(ID, KEY)
CATALOGUE = keys.CatalogueKey(0, KEY)
READER = keys.ReaderKey(0, b"\x66" * 96)
KEYRING = keys.Keyring(HASH, ID, "owner", KEY, (NAMING,), (CATALOGUE,), KEY, (READER,))

WRAP = pack.Wrap(HASH, b"sealed")
WRAPPED = pack.WrappedKey(HASH, (WRAP,))
CATALOGUE_WRAP = pack.WrappedKey(KEY, ())
BLOCK = pack.Block(HASH, 16, 0, 0, 100, 2)
RECIPE = pack.Block(KEY, 18, 1, 100, 50, 1)
DIRECTORY = pack.Directory(ID, HASH, 150, 80 + 32 * 3, (WRAPPED, CATALOGUE_WRAP), (BLOCK, RECIPE))
ENTRY = index.PackEntry(HASH, 4096, wire.encode(DIRECTORY))
SEGMENT = index.Segment((ENTRY,))

SIGNED = wire.Signed(b"content", ID, 3, HASH, SIGNATURE)
INTENT = transaction.Intent(ID, 0, "write", HASH * 3, NOW)
REF = transaction.Ref(HASH, 3, 4)
HEAD = transaction.Head(ID, ID, HASH)
FINDINGS = transaction.FindingCount("file-changed", "warning", 3)
SNAPSHOT = transaction.Snapshot(
    run=ID,
    dataset="pmr",
    tier=0,
    source="sqlite",
    domain=ID,
    reason="before 9.2",
    time=NOW,
    age=5_000_000_000,
    device_time=NOW,
    sequence=7,
    heads=(HEAD,),
    files=1,
    size=4096,
    added=8192,
    facts={"rows": {"patient": 12}, "version": "3.45", "ratio": 0.5, "none": None, "list": [1, b"x"]},
    complete=True,
    findings=(FINDINGS,),
    chunks=1,
    table=(REF,),
    recipe=(REF,),
    manifest=(REF,),
)
FATE = transaction.Fate(ID, "commit", HASH, SNAPSHOT)
ABORT = transaction.Fate(ID, "abort", None, None)
CARRIED = transaction.Carried("snapshots/" + ID.hex(), b"stored", True)
CARRY = transaction.Carry(ID, HASH, (CARRIED, transaction.Carried("marks/" + ID.hex(), b"", False)))
CONDEMN = transaction.Condemn(1, HASH, ID, ID)
EXECUTE = transaction.Execute(1, HASH, HASH)
DONE = transaction.Done(1)
MARK = transaction.Mark("hold", ID, NOW, "audit", NOW, ID)
AUDIT = transaction.Audit(1, HASH, NOW, "Jaya", "restore", "ok", "pmr", None, {"bytes": 1})
FINDING = manifest.ManifestFinding("file-changed", "warning", b"a/b", "It changed.", "Look.")
EXTRA = manifest.ExtraField(0, 4, b"\x90")
FOLDER = manifest.Folder(
    path=b"a",
    names=b"x\0y",
    kinds=b"\0\1",
    modes=b"\xed\x01\0\0" * 2,
    uids=bytes(8),
    gids=bytes(8),
    mtimes=bytes(16),
    sizes=b"\x05" + bytes(15),
    chunks=b"\1" + bytes(7),
    extras=(EXTRA,),
)

TOP: tuple[Record, ...] = (
    *(ROSTER, SIGNED_ROSTER, SEALED_KEYRING, KEYRING, DIRECTORY, SEGMENT, SIGNED, INTENT, FATE, ABORT, CARRY),
    *(CONDEMN, EXECUTE, DONE, MARK, AUDIT, FINDING, FOLDER),
)
PARTS: tuple[Record, ...] = (
    *(REVOKED, SLOT, DOMAIN, GENERATION, KEEP, POLICY, CHUNKER, ARGON, NAMING, CATALOGUE, READER),
    *(WRAP, WRAPPED, BLOCK, RECIPE, ENTRY, REF, HEAD, FINDINGS, SNAPSHOT, CARRIED, EXTRA),
)


def label(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


@st.composite
def spoilt(draw: Callable[..., bytes], valid: bytes) -> bytes:
    """A valid encoding with one to four changes: bits flipped, cut off, longer, or with a piece put elsewhere."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        change = draw(st.sampled_from(("flip", "set", "cut", "extend", "insert", "remove", "splice")))
        if change == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "set":
            data[at] = draw(st.sampled_from((0, 0x7F, 0x80, 0x91, 0xC0, 0xC6, 0xDB, 0xDD, 0xDF, 0xFF)))
        elif change == "cut":
            del data[at:]
        elif change == "extend":
            data += draw(st.binary(max_size=40))
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif change == "remove":
            del data[at : at + draw(st.integers(1, 9))]
        else:
            start = draw(st.integers(0, len(data) - 1))
            data[at:at] = data[start : start + draw(st.integers(1, 64))]
    return bytes(data)
