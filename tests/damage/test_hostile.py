"""An owner who writes what no source would: it is refused in bounded time and memory, nothing outside is touched."""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import zstandard

import pharmabackup as pb
from pharmabackup import compression, ids
from pharmabackup.clock import now_ns
from pharmabackup.crypto.hashing import derive
from pharmabackup.engine import packs
from pharmabackup.engine.index import Index
from pharmabackup.engine.pieces import PieceWriter, refs
from pharmabackup.engine.transaction import Transaction, survey
from pharmabackup.format.manifest import EntryKind, Extra, ExtraField, Folder, FrameType, frame
from pharmabackup.format.pack import Block, Directory
from pharmabackup.format.transaction import Snapshot
from pharmabackup.format.wire import Kind
from tests.trees import describe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and devices are those of POSIX")
MakeRepo = Callable[[], pb.Repository]
DATA = b"sixteen bytes :-"
FILE, FOLDER, LINK = EntryKind.FILE, EntryKind.FOLDER, EntryKind.LINK
SECONDS, MEMORY_KIB = 10, 200_000
GIB = 1 << 30


@dataclass(frozen=True)
class Named:
    name: bytes
    kind: int = FILE
    size: int = 16
    stored: int = 16
    chunks: int = 1
    mode: int = 0o644
    extras: tuple[tuple[int, bytes], ...] = ()


def link(name: bytes, target: bytes) -> Named:
    return Named(name, LINK, 0, 0, 0, 0o777, ((Extra.LINK_TARGET, target),))


def below(name: bytes) -> Named:
    return Named(name, FOLDER, 0, 0, 0, 0o755)


def special(name: bytes, kind: EntryKind) -> Named:
    return Named(name, kind, 0, 0, 0)


def further(name: bytes, first: bytes) -> Named:
    return Named(name, FILE, 16, 0, 0, extras=((Extra.SAME_FILE, first),))


def sparse(*extents: tuple[int, int]) -> Named:
    raw = b"".join(struct.pack("<QQ", *extent) for extent in extents)
    return Named(b"f", FILE, 100, 16, 1, extras=((Extra.EXTENTS, raw),))


def folder(path: bytes, *entries: Named) -> bytes:
    n = len(entries)
    body = Folder(
        path=path,
        names=b"\0".join(entry.name for entry in entries),
        kinds=bytes(entry.kind for entry in entries),
        modes=struct.pack(f"<{n}I", *(entry.mode for entry in entries)),
        uids=struct.pack(f"<{n}I", *[os.getuid()] * n),
        gids=struct.pack(f"<{n}I", *[os.getgid()] * n),
        mtimes=bytes(8 * n),
        sizes=struct.pack(f"<{n}Q", *(entry.size for entry in entries)),
        chunks=struct.pack(f"<{n}I", *(entry.chunks for entry in entries)),
        extras=tuple(ExtraField(i, key, value) for i, entry in enumerate(entries) for key, value in entry.extras),
    )
    size, chunks = sum(entry.stored for entry in entries), sum(entry.chunks for entry in entries)
    return frame(FrameType.FOLDER, body, size=size, chunks=chunks)


def section(*runs: tuple[int, int, int, int], n: int | None = None) -> bytes:
    """block, first, count, bytes of each run."""
    columns = [struct.pack(f"<{len(runs)}{'Q' if at == 3 else 'I'}", *(run[at] for run in runs)) for at in range(4)]
    return struct.pack("<I", len(runs) if n is None else n) + b"".join(columns)


ONE = section((0, 0, 1, 16))
TWO = section((0, 0, 1, 16), (0, 0, 1, 16))
PLAIN = (folder(b"", Named(b"f")),)
DEVICES = (EntryKind.FIFO, EntryKind.SOCKET, EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE)
# manifest, recipe, chunks that the snapshot says it has
CASES: dict[str, tuple[Sequence[bytes], bytes, int]] = {
    "absolute name": ((folder(b"", Named(b"/f")),), ONE, 1),
    "absolute path": ((*PLAIN, folder(b"/etc", Named(b"f"))), section((0, 0, 1, 16), (0, 0, 1, 16)), 2),
    "name ..": ((folder(b"", Named(b"..")),), ONE, 1),
    "path with ..": ((folder(b"", Named(b"d", FOLDER, 0, 0, 0)), folder(b"d/../..", Named(b"f"))), ONE, 1),
    "path with NUL": ((folder(b"d\0", Named(b"f")),), ONE, 1),
    "more names than kinds": ((folder(b"", Named(b"a\0b")),), ONE, 1),
    "names out of order": ((folder(b"", Named(b"b"), Named(b"a")),), section((0, 0, 1, 16), (0, 0, 1, 16)), 2),
    "one name twice": ((folder(b"", Named(b"a"), Named(b"a")),), section((0, 0, 1, 16), (0, 0, 1, 16)), 2),
    "one name in two records": ((folder(b"", Named(b"f")), folder(b"", Named(b"f"))), TWO, 2),
    "records of a folder out of order": ((folder(b"", Named(b"g")), folder(b"", Named(b"f"))), TWO, 2),
    "folders out of order": (
        (folder(b"", below(b"a"), below(b"b")), folder(b"b", Named(b"f")), folder(b"a")), ONE, 1,
    ),
    "a folder in two places": (
        (folder(b"", below(b"a"), below(b"b")), folder(b"a"), folder(b"b"), folder(b"a", Named(b"f"))), ONE, 1,
    ),
    "folder of no entry": ((folder(b"nowhere", Named(b"f")),), ONE, 1),
    "through a link": ((folder(b"", link(b"a", b"../outside")), folder(b"a", Named(b"passwd"))), ONE, 1),
    "size of 2^60": ((folder(b"", Named(b"f", FILE, 1 << 60, 1 << 60)),), section((0, 0, 1, 1 << 60)), 1),
    "size of 2^63": ((folder(b"", Named(b"f", FILE, 1 << 63, 1 << 63)),), ONE, 1),
    "extents overlap": ((folder(b"", sparse((0, 8), (4, 8))),), ONE, 1),
    "extent is negative": ((folder(b"", sparse((0, 8), ((1 << 64) - 8, 8))),), ONE, 1),
    "extent beyond the end": ((folder(b"", sparse((96, 16))),), ONE, 1),
    "hard link to outside": ((folder(b"", Named(b"f"), further(b"g", b"../outside/secret")),), ONE, 1),
    "hard link to a path": ((folder(b"", Named(b"f"), further(b"g", b"/etc/passwd")),), ONE, 1),
    "hard link through a link": ((folder(b"", link(b"a", b"../outside"), further(b"g", b"a/secret")),), b"", 0),
    "a million chunks": ((folder(b"", Named(b"f", chunks=10**6)),), section((0, 0, 10**6, 16)), 10**6),
    "run beyond the table": (PLAIN, section((7, 0, 1, 16)), 1),
    "run beyond the block": (PLAIN, section((0, 5, 1, 16)), 1),
    "run longer than its chunks": (PLAIN, section((0, 0, 1, 17)), 1),
    "section of nothing": (PLAIN, struct.pack("<I", 0) + ONE, 1),
    "huge section": (PLAIN, section((0, 0, 1, 16), n=0xFFFFFFFF), 1),
    "recipe too short": ((folder(b"", Named(b"f", size=32, stored=32)),), ONE, 1),
    "frame cut off": ((PLAIN[0][:-3],), ONE, 1),
    "huge frame": ((struct.pack("<IBQQ", 0xFFFFFFF0, 1, 16, 1),), ONE, 1),
}  # fmt: skip
HARMLESS: dict[str, tuple[Sequence[bytes], bytes, int]] = {
    "nothing odd": (PLAIN, ONE, 1),
    "devices": ((folder(b"", *(special(b"d%d" % kind, kind) for kind in DEVICES), Named(b"f")),), ONE, 1),
    "link to outside": ((folder(b"", link(b"a", b"../outside"), Named(b"f")),), ONE, 1),
    "a folder in several records": (
        (
            folder(b"", below(b"a"), below(b"a-c")),
            folder(b"", Named(b"f")),
            folder(b"a", below(b"b")),
            folder(b"a/b"),
            folder(b"a-c"),
        ),
        ONE,
        1,
    ),
    "set-user-id": ((folder(b"", Named(b"f", mode=0o4755)),), ONE, 1),
}


def write(repo: pb.Repository, manifest: Sequence[bytes], recipe: bytes, chunks: int) -> None:
    """Commit a snapshot with this manifest and recipe over one data block that holds DATA."""
    unlocked = repo._unlocked
    index = Index(unlocked)
    transaction = Transaction(unlocked, survey(unlocked, index))
    try:
        places = {}
        for name, kind, pieces in (("data", Kind.DATA_BLOCK, [DATA]), ("manifest", Kind.MANIFEST_BLOCK, manifest)):
            writer = PieceWriter(index, transaction.blocks, kind, derive(f"{name} names", unlocked.naming_key))
            for piece in pieces:
                writer.put(piece)
            writer.finish()
            places[name] = writer.take_places()
        writer = PieceWriter(
            index, transaction.blocks, Kind.RECIPE_BLOCK, derive("recipe names", unlocked.naming_key)
        )
        if recipe:
            writer.put(recipe)
        places["recipe"] = writer.take_places()
        writer.put(index.blocks.ids[places["data"][0][0]])
        places["table"] = writer.take_places()
        writer.finish()
        transaction.publish()
        info, intent = transaction.pin({number for found in places.values() for number, _ in found})
        snapshot = Snapshot(
            run=ids.new_id(), dataset="documents", tier=3, source="files", domain=unlocked.domain, reason=None,
            time=info.modified, age=0, device_time=now_ns(), sequence=0, heads=(), files=1, size=16, added=0,
            facts={}, complete=True, findings=(), chunks=chunks, table=refs(index, places["table"]),
            recipe=refs(index, places["recipe"]), manifest=refs(index, places["manifest"]),
        )  # fmt: skip
        transaction.commit(intent, snapshot)
    finally:
        transaction.close()
        index.close()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "out" / "outside"
    (place / "folder").mkdir(parents=True)
    (place / "secret").write_bytes(b"precious")
    return place


def _bounded(outside: Path, work: Callable[[], object]) -> object:
    """What `work` returns, or the pb.Error that it raises; time, memory and what lies outside are looked at."""
    before = describe(outside), os.stat(outside).st_mtime_ns, sorted(os.listdir(outside.parent.parent))
    started, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result: object
    try:
        result = work()
    except pb.Error as error:
        assert error.message and error.remedy
        result = error
    assert time.monotonic() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEMORY_KIB
    assert (describe(outside), os.stat(outside).st_mtime_ns, sorted(os.listdir(outside.parent.parent))) == before
    assert set(os.listdir(outside.parent)) <= {"outside", "documents", "documents.restoring"}
    return result


def _refused(repo: pb.Repository, outside: Path) -> None:
    """Restoring it whole fails, and a check names it."""
    _not_restored(repo, outside)
    report = _bounded(outside, lambda: repo.check(read_data=1.0))
    assert isinstance(report, pb.Report) and report.state == "critical", report


def _not_restored(repo: pb.Repository, outside: Path) -> None:
    restored = _bounded(outside, lambda: repo.restore(outside.parent))
    assert isinstance(restored, pb.Damaged | pb.Incomplete), restored
    for look in (lambda: list(repo.snapshot().glob("**")), lambda: repo.snapshot().open("f").read()):
        result = _bounded(outside, look)
        assert isinstance(result, list | pb.Damaged | pb.NotFound | bytes | pb.InvalidInput), result
        assert not isinstance(result, bytes) or result == DATA


UNCHECKED = ("folder of no entry", "through a link", "hard link through a link")


@pytest.mark.parametrize("case", CASES)
def test_refused(make_repo: MakeRepo, outside: Path, case: str) -> None:
    repo = make_repo()
    write(repo, *CASES[case])
    (_not_restored if case in UNCHECKED else _refused)(repo, outside)


@pytest.mark.parametrize("case", UNCHECKED)
def test_check_names_paths_that_lead_nowhere(make_repo: MakeRepo, case: str) -> None:
    repo = make_repo()
    write(repo, *CASES[case])
    assert repo.check(read_data=1.0).state == "critical"


def test_check_compares_what_a_snapshot_says_of_itself(make_repo: MakeRepo, outside: Path) -> None:
    repo = make_repo()
    two = folder(b"", Named(b"f"), Named(b"g"))
    write(repo, (two,), section((0, 0, 1, 16), (0, 0, 1, 16)), 2)  # and it says that it has one file of 16 bytes
    assert repo.check().state == "critical"
    assert not isinstance(_bounded(outside, lambda: repo.restore(outside.parent)), pb.Error)


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless(make_repo: MakeRepo, outside: Path, case: str) -> None:
    repo = make_repo()
    write(repo, *HARMLESS[case])
    result = _bounded(outside, lambda: repo.restore(outside.parent))
    assert not isinstance(result, pb.Error) or isinstance(result, pb.Incomplete)
    restored = outside.parent / "documents"
    assert (restored / "f").read_bytes() == DATA
    assert {path.name for path in restored.iterdir() if not path.is_symlink() and not path.is_dir()} == {"f"}
    assert repo.check(read_data=1.0).state == "ok"


def _bomb() -> bytes:
    """A gigabyte of zeros in a frame that says so."""
    parts, zeros = [], bytes(1 << 22)
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj(size=GIB)
    parts += [compressor.compress(zeros) for _ in range(GIB // len(zeros))]
    return b"".join([*parts, compressor.flush()])


@pytest.mark.parametrize("honest", [True, False], ids=["size told", "size not told"])
@pytest.mark.parametrize("where", ["data", "manifest", "record"])
def test_bombs(make_repo: MakeRepo, outside: Path, where: str, honest: bool) -> None:
    repo, real = make_repo(), compression.compress
    silent = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
    bomb = _bomb() if honest else silent.compress(bytes(1 << 24))

    marker = {"data": DATA, "manifest": PLAIN[0], "record": b"documents"}[where]

    def compress(data: bytes | memoryview, level: int, *, checksum: bool = False) -> bytes:
        return bomb if marker in bytes(data) else real(data, level, checksum=checksum)

    with mock.patch.object(compression, "compress", compress):
        write(repo, PLAIN, ONE, 1)
    if where == "record":
        assert isinstance(_bounded(outside, lambda: repo.restore(outside.parent)), pb.NotFound | pb.Damaged)
        assert repo.check().state == "critical"
    else:
        _refused(repo, outside)


def test_a_block_without_checksum(make_repo: MakeRepo, outside: Path) -> None:
    repo, real = make_repo(), compression.compress

    def compress(data: bytes | memoryview, level: int, *, checksum: bool = False) -> bytes:
        return real(data, level, checksum=checksum and DATA not in bytes(data))

    with mock.patch.object(compression, "compress", compress):
        write(repo, PLAIN, ONE, 1)
    _refused(repo, outside)


def _moved(**changes: int) -> Callable[[Sequence[Block]], tuple[Block, ...]]:
    return lambda blocks: (replace_block(blocks[0], **changes), *blocks[1:])


def replace_block(block: Block, **changes: int) -> Block:
    facts = {name: getattr(block, name) for name in block.__struct_fields__} | changes
    return Block(**facts)


DIRECTORIES: dict[str, Callable[[Sequence[Block]], tuple[Block, ...]]] = {
    "outside its pack": _moved(offset=(1 << 28) - 1),
    "into the directory": _moved(length=8_000_000),
    "one over another": lambda blocks: (replace_block(blocks[0], offset=blocks[1].offset), *blocks[1:]),
    "another key": _moved(key=1),
    "unknown kind": _moved(kind=99),
    "more chunks than names": _moved(count=7),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_directories(make_repo: MakeRepo, outside: Path, case: str) -> None:
    repo = make_repo()

    def lie(*, blocks: Sequence[Block], **others: object) -> Directory:
        return Directory(blocks=DIRECTORIES[case](blocks), **others)  # type: ignore[arg-type]

    with mock.patch.object(packs, "Directory", lie):
        write(repo, PLAIN, ONE, 1)
    _refused(repo, outside)
