"""Manifests: frames in any pieces, folder records and their rules, names that must not lead anywhere else."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pharmabackup.errors import Damaged
from pharmabackup.format import manifest as m
from pharmabackup.format import wire
from pharmabackup.format.manifest import Entry, EntryKind, Extra, ExtraField, Folder, FrameType
from tests.format import samples as s


def folder(
    path: bytes = b"",
    *,
    names: tuple[bytes, ...] = (b"a",),
    kinds: tuple[int, ...] | None = None,
    modes: tuple[int, ...] | None = None,
    sizes: tuple[int, ...] | None = None,
    chunks: tuple[int, ...] | None = None,
    extras: tuple[ExtraField, ...] = (),
) -> Folder:
    n = len(names)
    return Folder(
        path=path,
        names=b"\0".join(names),
        kinds=bytes(kinds or (0,) * n),
        modes=struct.pack(f"<{n}I", *(modes or (0o644,) * n)),
        uids=struct.pack(f"<{n}I", *range(n)),
        gids=struct.pack(f"<{n}I", *range(n)),
        mtimes=struct.pack(f"<{n}q", *(-1 - i for i in range(n))),
        sizes=struct.pack(f"<{n}Q", *(sizes or (0,) * n)),
        chunks=struct.pack(f"<{n}I", *(chunks or (0,) * n)),
        extras=extras,
    )


def read(body: Folder, *, size: int = 0, chunks: int = 0, start: int = 0) -> list[Entry]:
    """The entries of a folder record that went through bytes."""
    (frame,) = m.read_frames([m.frame(FrameType.FOLDER, body, size=size, chunks=chunks)])
    return m.entries(m.decode_folder(frame), frame, start)


def refused(body: Folder, *, size: int = 0, chunks: int = 0) -> None:
    with pytest.raises(Damaged):
        read(body, size=size, chunks=chunks)


# ------------------------------------------------------------ frames

FRAMES = [
    m.frame(FrameType.FOLDER, s.FOLDER, size=5, chunks=1),
    m.frame(FrameType.FINDING, s.FINDING),
    m.frame(FrameType.FOLDER, folder(names=()), size=0, chunks=0),
]


@given(st.lists(st.sampled_from(FRAMES), max_size=6), st.lists(st.integers(0, 2000), max_size=8))
def test_frames_come_in_any_pieces(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [memoryview(data)[a:b] for a, b in itertools.pairwise(ends)]
    found = [(frame.kind, frame.size, frame.chunks, bytes(frame.body)) for frame in m.read_frames(pieces)]
    whole = [(frame.kind, frame.size, frame.chunks, bytes(frame.body)) for frame in m.read_frames([data])]
    assert found == whole
    assert len(found) == len(frames)


def test_a_frame_as_the_text_has_it() -> None:
    raw = FRAMES[0]
    body = wire.encode(s.FOLDER)
    assert raw == struct.pack("<IBQQ", 17 + len(body), 1, 5, 1) + body
    assert FRAMES[1][:21] == struct.pack("<IBQQ", len(FRAMES[1]) - 4, 2, 0, 0)


@pytest.mark.parametrize("cut", [1, 4, 20, 21, 22, len(FRAMES[0]) - 1])
def test_a_frame_that_is_cut_off(cut: int) -> None:
    with pytest.raises(Damaged):
        list(m.read_frames([FRAMES[1], FRAMES[0][:cut]]))


@pytest.mark.parametrize(
    "head",
    [
        *((16, 1, 0, 0), (0, 1, 0, 0), ((1 << 26) + 1, 1, 0, 0), (0xFFFFFFFF, 1, 0, 0)),
        *((17, 0, 0, 0), (17, 3, 0, 0), (17, 255, 0, 0), (17, 1, (1 << 62) + 1, 0), (17, 1, 0, (1 << 62) + 1)),
    ],
)
def test_an_impossible_frame_is_refused_before_its_body_is_there(head: tuple[int, int, int, int]) -> None:
    def pieces() -> Iterator[bytes]:
        yield struct.pack("<IBQQ", *head)
        raise AssertionError("no more than the head is read")

    with pytest.raises(Damaged):
        list(m.read_frames(pieces()))


def test_the_largest_frame() -> None:
    body = bytes((1 << 26) - 17)
    (frame,) = m.read_frames([struct.pack("<IBQQ", 1 << 26, 1, 1 << 62, 1 << 62), body])
    assert len(frame.body) == len(body)


# ------------------------------------------------------------ folders


def test_entries_are_as_written() -> None:
    body = folder(
        b"docs/new",
        names=(b"a", b"b", b"c"),
        kinds=(0, 1, 2),
        modes=(0o7777, 0o755, 0o777),
        sizes=(7, 4096, 0),
        chunks=(2, 0, 0),
        extras=(ExtraField(2, Extra.LINK_TARGET, b"../x"), ExtraField(0, 200, b"unknown")),
    )
    a, b, c = read(body, size=7, chunks=2, start=100)
    assert (a.path, a.kind, a.mode, a.uid, a.gid, a.mtime) == (b"docs/new/a", EntryKind.FILE, 0o7777, 0, 0, -1)
    assert (a.size, a.chunks, a.start, a.stored) == (7, 2, 100, 7)
    assert (a.extents, a.same_file, a.attributes, a.link_target) == (None, None, [], b"")
    assert (b.kind, b.stored, b.start, b.uid) == (EntryKind.FOLDER, 0, 107, 1)
    assert (c.kind, c.link_target, c.start) == (EntryKind.LINK, b"../x", 107)
    assert read(folder(b"empty", names=())) == []


def test_the_root_is_an_entry_of_its_own_record() -> None:
    root, a = read(folder(names=(b".", b"a"), kinds=(1, 0)))
    assert (root.path, a.path) == (b"", b"a")


COLUMNS = ("kinds", "modes", "uids", "gids", "mtimes", "sizes", "chunks")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("change", [b"", b"\0", bytes(4), bytes(8)])
def test_columns_have_exactly_as_many_values_as_names(column: str, change: bytes) -> None:
    body = folder(names=(b"a", b"b"))
    raw = getattr(body, column)
    read(body)
    refused(replace(body, **{column: raw + change if change else raw[:-1]}))
    refused(replace(body, **{column: b""}))


def test_names_that_do_not_fit_their_columns() -> None:
    refused(replace(folder(), names=b"a\0b"))
    refused(replace(folder(names=(b"a", b"b")), names=b"a"))
    refused(replace(folder(names=()), kinds=b"\0"))


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"\0" not in name and b"/" not in name and name not in (b".", b"..")
)


@given(st.sets(NAMES, min_size=1, max_size=20), st.lists(NAMES, max_size=3))
def test_any_bytes_are_a_name(names: set[bytes], path: list[bytes]) -> None:
    at = b"/".join(path)
    ordered = tuple(sorted(names))
    assert [entry.path for entry in read(folder(at, names=ordered))] == [
        (at + b"/" if at else b"") + name for name in ordered
    ]


@pytest.mark.parametrize("name", [b"", b"..", b"a/b", b"/", b"/etc", b"../x", b"x" * 4097])
def test_a_name_that_leads_elsewhere(name: bytes) -> None:
    for path in (b"", b"a"):
        refused(folder(path, names=(name,)))


def test_the_longest_name_and_path() -> None:
    assert read(folder(names=(b"x" * 4096,)))[0].path == b"x" * 4096
    path = b"/".join([b"x" * 4095] * 16)
    assert len(path) == 65535
    assert read(folder(path))[0].path == path + b"/a"
    refused(folder(path + b"/a"))


def test_a_dot_is_the_root_and_nothing_else() -> None:
    refused(folder(b"a", names=(b".",)))


@pytest.mark.parametrize("path", [b"/", b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"./a", b"a/.", b"a\0b"])
def test_a_path_that_leads_elsewhere(path: bytes) -> None:
    refused(folder(path))
    with pytest.raises(Damaged):
        m.check_path(path)


@pytest.mark.parametrize("names", [(b"b", b"a"), (b"a", b"a"), (b"a", b"b", b"B"), (b"\xff", b"a")])
def test_names_ascend(names: tuple[bytes, ...]) -> None:
    refused(folder(names=names))


def test_kinds_modes_and_sizes() -> None:
    for kind in range(8):
        assert read(folder(kinds=(kind,)))[0].kind == kind
    for kind in (8, 255):
        refused(folder(kinds=(kind,)))
    refused(folder(modes=(0o10000,)))
    refused(folder(modes=(0o100644,)))
    assert read(folder(sizes=(1 << 62,)), size=1 << 62)[0].stored == 1 << 62
    refused(folder(sizes=((1 << 62) + 1,)), size=1 << 62)
    for kind in range(1, 8):
        assert read(folder(kinds=(kind,), sizes=(9,)))[0].stored == 0


def test_a_folders_sums_are_those_of_its_entries() -> None:
    body = folder(names=(b"a", b"b"), sizes=(5, 6), chunks=(1, 2))
    assert [entry.start for entry in read(body, size=11, chunks=3)] == [0, 5]
    for size, chunks in ((10, 3), (12, 3), (11, 2), (11, 4), (0, 0)):
        refused(body, size=size, chunks=chunks)


def test_the_largest_record() -> None:
    n = 1 << 16
    names = tuple(struct.pack(">I", 0x01010101 + i).replace(b"\0", b"~").replace(b"/", b"~~") for i in range(n))
    ordered = tuple(sorted({name + b"%d" % i for i, name in enumerate(names)}))
    assert len(read(folder(names=ordered))) == n
    refused(folder(names=(*ordered, b"\xff" * 9)))


# ------------------------------------------------------------ extras


def extents(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *pair) for pair in pairs)


def with_extra(key: int, value: bytes, *, size: int = 100, entry: int = 0) -> Folder:
    return folder(sizes=(size,), extras=(ExtraField(entry, key, value),))


@pytest.mark.parametrize(
    ("pairs", "stored"),
    [((), 0), (((0, 100),), 100), (((0, 1), (1, 1)), 2), (((90, 10),), 10), (((0, 0), (0, 5), (100, 0)), 5)],
)
def test_a_sparse_file(pairs: tuple[tuple[int, int], ...], stored: int) -> None:
    (entry,) = read(with_extra(Extra.EXTENTS, extents(*pairs)), size=stored)
    assert (entry.extents, entry.stored, entry.size) == (list(pairs), stored, 100)


@pytest.mark.parametrize(
    "raw",
    [
        *(b"x", bytes(15), bytes(17)),
        *(extents((0, 101)), extents((100, 1)), extents((101, 0)), extents((5, 5), (9, 1)), extents((5, 5), (0, 1))),
        *(extents((1 << 63, 1 << 63)), extents((0, 1 << 63)), extents(((1 << 64) - 1, 1))),
    ],
)
def test_extents_out_of_order_or_out_of_bounds(raw: bytes) -> None:
    for size in (0, 1, 100):
        refused(with_extra(Extra.EXTENTS, raw), size=size)


@pytest.mark.parametrize("kind", [kind for kind in EntryKind if kind != EntryKind.FILE])
@pytest.mark.parametrize("raw", [b"", bytes(5), extents((0, 1))])
def test_only_a_file_has_extents(kind: EntryKind, raw: bytes) -> None:
    refused(replace(with_extra(Extra.EXTENTS, raw), kinds=bytes((kind,))))


def test_a_further_names_extents_are_judged_too() -> None:
    same = ExtraField(0, Extra.SAME_FILE, b"first")
    for raw in (bytes(5), extents((0, 101)), extents((5, 5), (0, 1))):
        body = with_extra(Extra.EXTENTS, raw)
        refused(replace(body, extras=(*body.extras, same)))


def test_a_further_name_has_no_content_of_its_own() -> None:
    (entry,) = read(with_extra(Extra.SAME_FILE, b"first"))
    assert (entry.same_file, entry.stored, entry.size) == (b"first", 0, 100)
    refused(with_extra(Extra.SAME_FILE, b"first"), size=100)


def test_extras_belong_to_an_entry_and_are_bounded() -> None:
    refused(with_extra(Extra.LINK_TARGET, b"", entry=1, size=0))
    largest = replace(s.EXTRA, value=bytes(1 << 24), entry=65535, key=255)
    assert wire.decode(wire.encode(largest), ExtraField) == largest
    for changes in ({"value": bytes((1 << 24) + 1)}, {"entry": 65536}, {"entry": -1}, {"key": 256}, {"key": -1}):
        with pytest.raises(Damaged):
            wire.decode(wire.encode(replace(s.EXTRA, **changes)), ExtraField)
    most = replace(s.FOLDER, extras=(s.EXTRA,) * (1 << 18))
    assert len(wire.decode(wire.encode(most), Folder).extras) == 1 << 18
    with pytest.raises(Damaged):
        wire.decode(wire.encode(replace(most, extras=(*most.extras, s.EXTRA))), Folder)


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=5))
def test_attributes(pairs: list[tuple[bytes, bytes]]) -> None:
    (entry,) = read(with_extra(Extra.ATTRIBUTES, m.encode_attributes(pairs), size=0))
    assert entry.attributes == pairs


@pytest.mark.parametrize(
    "raw", [b"", b"\x91\xc0", b"\x91\x91\xc4\0", b"\x91\x92\xa1a\xc4\0", b"\xdd\xff\xff\xff\xff"]
)
def test_attributes_that_are_none(raw: bytes) -> None:
    (entry,) = read(with_extra(Extra.ATTRIBUTES, raw, size=0))
    with pytest.raises(Damaged):
        _ = entry.attributes


# ------------------------------------------------------------ findings


@pytest.mark.parametrize(
    ("field", "longest"),
    [
        ("code", "c" * 100),
        ("severity", "s" * 20),
        ("subject", b"p" * 65536),
        ("message", "m" * 4000),
        ("remedy", "r" * 4000),
    ],
)
def test_findings(field: str, longest: str | bytes) -> None:
    finding = replace(s.FINDING, **{field: longest})
    (frame,) = m.read_frames([m.frame(FrameType.FINDING, finding)])
    assert wire.decode(frame.body, m.ManifestFinding) == finding
    with pytest.raises(Damaged):
        wire.decode(wire.encode(replace(finding, **{field: longest + longest[:1]})), m.ManifestFinding)


# ---------------------------------------- what docs/format.md §17, §22 asks for and nothing checks yet


def test_an_extra_twice() -> None:
    refused(folder(extras=(ExtraField(0, 1, b"a"), ExtraField(0, 1, b"b"))))


def test_the_root_is_a_folder() -> None:
    refused(folder(names=(b".",), kinds=(0,)))


def test_a_finding_has_no_content() -> None:
    with pytest.raises(Damaged):
        list(m.read_frames([m.frame(FrameType.FINDING, s.FINDING, size=1)]))


@pytest.mark.parametrize(("kind", "path"), [(0, b"../x"), (0, b"/etc/passwd"), (0, b""), (1, b"a")])
def test_where_a_further_name_leads(kind: int, path: bytes) -> None:
    refused(replace(with_extra(Extra.SAME_FILE, path, size=0), kinds=bytes([kind])))


def test_small_pieces_take_linear_time() -> None:
    """Copied bytes are counted, not seconds: every piece that is joined to all before it shows."""
    joined = 0

    class Piece(bytes):
        def __radd__(self, left: bytes) -> bytes:
            nonlocal joined
            joined += len(left)
            return left + bytes(self)

    data = m.frame(FrameType.FOLDER, replace(s.FOLDER, names=bytes(1 << 17)))
    pieces = [Piece(data[i : i + 64]) for i in range(0, len(data), 64)]
    list(m.read_frames(pieces))
    assert joined <= 4 * len(data)


def test_msgspec_is_strict_about_arrays() -> None:
    """What the format relies on: an array of another length is refused, and maps are never taken for records."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(b"\x90", type=Folder)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"number": 1}), type=type(s.DONE))


paths = st.lists(st.lists(st.sampled_from([b"a", b"a-", b"a.", b"b"]), max_size=3), max_size=6)


@given(paths)
def test_folders_come_in_the_order_of_their_components(found: list[list[bytes]]) -> None:
    order = m.RecordOrder()
    fits = [order.takes(b"/".join(path), b"", b"") for path in found]
    assert fits == [i == 0 or path >= found[i - 1] for i, path in enumerate(found)]


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), unique=True).map(sorted), max_size=5))
def test_names_of_a_folder_ascend_over_its_records(found: list[list[bytes]]) -> None:
    order = m.RecordOrder()
    fits = all([order.takes(b"x", names[0] if names else b"", names[-1] if names else b"") for names in found])
    together = [name for names in found for name in names]
    assert fits == (together == sorted(set(together)) and len(set(together)) == len(together))
