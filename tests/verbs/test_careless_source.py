"""A vendor's source that makes mistakes: nothing is committed that could not be restored."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources import FolderColumns, Sink, View
from pharmabackup.sources.base import FILE, FOLDER

MakeRepo = Callable[[], pb.Repository]
Dump = Callable[[Sink], None]


class _Careless(pb.Source):
    kind = "careless"

    def __init__(self, dump: Dump) -> None:
        super().__init__("stock", 1)
        self.dump = dump

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:
        return nullcontext(_CarelessView(self.dump))


class _CarelessView(View):
    def __init__(self, dump: Dump) -> None:
        self._dump = dump

    def dump(self, sink: Sink) -> Mapping[str, object]:
        self._dump(sink)
        return {}


def _file(sink: Sink, name: bytes) -> tuple[int, int]:
    left = [b"of " + name, b""]

    def read_into(view: memoryview) -> int:
        data = left.pop(0)
        view[: len(data)] = data
        return len(data)

    return sink.stream(read_into)


def _hand_over(sink: Sink, path: bytes, *names: bytes, lie: int = 0, rows: bytes = b"") -> None:
    """A folder of files and, with a / at the end of a name, of folders. `lie`: a byte that it does not speak of."""
    found = [(0, 0) if name.endswith(b"/") or name == b"." else _file(sink, name) for name in names]
    n, stored = len(names), [size - lie * (size > 0) for _, size in found]
    sink.folder(
        path,
        FolderColumns(
            names=[name.rstrip(b"/") for name in names],
            kinds=bytearray(FOLDER if name.endswith(b"/") or name == b"." else FILE for name in names),
            modes=[0o755] * n, uids=[0] * n, gids=[0] * n, mtimes=[0] * n,
            sizes=stored, chunks=[chunks for chunks, _ in found], stored=stored,
        ),
        rows,
    )  # fmt: skip


def _ok(sink: Sink) -> None:
    _hand_over(sink, b"", b".", b"a/", b"a-c/", b"f")
    _hand_over(sink, b"", b"g", b"h")  # another part of it
    _hand_over(sink, b"a", b"b/")
    _hand_over(sink, b"a/b", b"f")
    _hand_over(sink, b"a-c")


def _lies(sink: Sink) -> None:
    _hand_over(sink, b"", b".", b"f", lie=1)


def _unsorted(sink: Sink) -> None:
    _hand_over(sink, b"", b".", b"g", b"f")


def _twice(sink: Sink) -> None:
    _hand_over(sink, b"", b".", b"f", b"f")


def _parts_out_of_order(sink: Sink) -> None:
    _hand_over(sink, b"", b".", b"g")
    _hand_over(sink, b"", b"f")


def _folders_out_of_order(sink: Sink) -> None:
    _hand_over(sink, b"", b".", b"a-c/", b"a/")
    _hand_over(sink, b"a-c")
    _hand_over(sink, b"a")


def _back_again(sink: Sink) -> None:
    _hand_over(sink, b"", b".", b"a/", b"b/")
    _hand_over(sink, b"a")
    _hand_over(sink, b"b")
    _hand_over(sink, b"a", b"f")


CARELESS: list[Dump] = [_lies, _unsorted, _twice, _parts_out_of_order, _folders_out_of_order, _back_again]


def test_a_careful_source_restores(tmp_path: Path, make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.backup([_Careless(_ok)])
    repo.restore(tmp_path / "out")
    stock = tmp_path / "out" / "stock"
    names = sorted(path.relative_to(stock).as_posix() for path in stock.rglob("*"))
    assert names == ["a", "a-c", "a/b", "a/b/f", "f", "g", "h"]
    assert (stock / "a" / "b" / "f").read_bytes() == b"of f"
    assert {finding.code for finding in repo.check(read_data=1.0).findings} <= {"same-device"}


@pytest.mark.parametrize("dump", CARELESS)
def test_what_could_not_be_restored_is_never_committed(tmp_path: Path, make_repo: MakeRepo, dump: Dump) -> None:
    (tmp_path / "documents").mkdir()
    repo = make_repo()
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([_Careless(dump), pb.Files(tmp_path / "documents")])
    assert caught.value.result.datasets["documents"].complete
    assert [finding.subject for finding in caught.value.findings if finding.code == "dataset-failed"] == ["stock"]
    assert [snapshot.dataset for snapshot in repo.snapshots()] == ["documents"]


def test_one_record_is_not_kept_twice(make_repo: MakeRepo) -> None:
    """Who cuts a folder into smaller parts than last time, and takes `rows` for a mere version, would double it."""

    def whole(sink: Sink) -> None:
        _hand_over(sink, b"", b".", b"f", b"g", rows=b"version 1")

    def in_parts(sink: Sink) -> None:
        for names in ([b".", b"f"], [b"g"]):
            before = sink.previous(b"", names)
            assert before is not None and before.rows == b"version 1"
            sink.keep_folder(before)

    repo = make_repo()
    repo.backup([_Careless(whole)])
    with pytest.raises(pb.Incomplete):
        repo.backup([_Careless(in_parts)])
    assert len(repo.snapshots()) == 1


def test_a_database_behind_another_file_is_its_own(tmp_path: Path, make_repo: MakeRepo) -> None:
    """What is remembered of pages is of those with which the content began."""
    content = {b"a": os.urandom(100_000), b"b.db": b"".join(os.urandom(4096) for _ in range(40))}

    def dump(sink: Sink, *, keep: bool) -> None:
        previous = sink.previous(b"", [b"a"])
        known = previous.entries() if previous is not None else {}
        sizes = []
        for name in sorted(content):
            data = content[name]
            if name == b"b.db":
                sizes.append(
                    sink.pages(lambda at, view, data=data: _copy(data, at, view), size=len(data), page_size=4096)
                )
            elif keep and name in known:
                sink.keep_file(known[name])
                sizes.append((known[name].chunks, known[name].stored))
            elif data:
                left = [data, b""]
                sizes.append(sink.stream(lambda view, left=left: _copy(left.pop(0), 0, view)))
            else:
                sizes.append((0, 0))
        n, stored = 3, [0, *(size for _, size in sizes)]
        sink.folder(
            b"",
            FolderColumns(
                names=[b".", *sorted(content)], kinds=bytearray([FOLDER, FILE, FILE]),
                modes=[0o755] * n, uids=[0] * n, gids=[0] * n, mtimes=[0] * n,
                sizes=stored, chunks=[0, *(chunks for chunks, _ in sizes)], stored=stored,
            ),
            b"rows",
        )  # fmt: skip

    repo = make_repo()
    for number, keep in enumerate((False, True, False)):
        if number == 2:
            content[b"a"] = b""
        repo.backup([_Careless(lambda sink, keep=keep: dump(sink, keep=keep))])
        repo.restore(out := tmp_path / f"out-{number}")
        for name, data in content.items():
            assert (out / "stock" / os.fsdecode(name)).read_bytes() == data, (number, name)


def _copy(data: bytes, at: int, view: memoryview) -> int:
    part = data[at : at + len(view)]
    view[: len(part)] = part
    return len(part)
