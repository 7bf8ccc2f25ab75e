"""A storage that is far away: few requests, several at once, and the same comes of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine import ahead, listing, opening, packs
from pharmabackup.engine.creating import create
from pharmabackup.errors import Damaged, StorageFailed
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import ObjectInfo
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.verbs import check_packs, drill
from tests.benchmarks.distant import DistantStorage
from tests.sources.databases import make
from tests.threads import threads_left
from tests.verbs.site import PASSPHRASE

PATIENCE_S = 60
Open = Callable[..., pb.Repository]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, tmp_path: Path) -> DistantStorage:
    """A pharmacy's storage with nothing in it but a repository."""
    storage = DistantStorage(MemoryStorage("far"))
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    pb.Repository.create("memory://far", PASSPHRASE).close()
    return storage


@pytest.fixture
def pharmacy(tmp_path: Path) -> list[pb.Source]:
    """Two datasets."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(60):
        (documents / f"{number:02}").write_bytes(os.urandom(200_000))
    make(tmp_path / "shop.db", rows=500)
    return [pb.SQLite(tmp_path / "shop.db"), pb.Files(documents)]


def _open(tmp_path: Path, state: str = "state") -> pb.Repository:
    return pb.Repository.open("memory://far", PASSPHRASE, state_dir=tmp_path / state)


def _same(one: Path, other: Path) -> bool:
    def found(root: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in root.iterdir()}

    return found(one) == found(other)


# ------------------------------------------------------------ few requests


@pytest.mark.parametrize(("answers", "most"), [(True, 10), (False, 15)])
def test_a_backup_in_which_nothing_changed_needs_few_requests(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], answers: bool, most: int
) -> None:
    """In a repository that is open; five if it is not. `answers`: of a write, with the checksum of what is stored."""
    far.answers = answers
    with _open(tmp_path) as repo:
        for _ in range(3):
            repo.backup(pharmacy)
        far.requests.clear()
        repo.backup(pharmacy)
        assert len(far.requests) == most, far.requests
    far.requests.clear()
    with _open(tmp_path) as repo:
        assert len(far.requests) == 5, far.requests
        repo.backup(pharmacy)
        assert len(far.requests) == most + 5, far.requests
        assert len(repo.snapshots()) == 10
        assert repo.check(read_data=1.0).findings == ()


def test_of_many_objects_each_folder_is_listed(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side. This machine remembers for a week that there were too many, and asks no more for all of them."""
    monkeypatch.setattr(listing, "TOGETHER_MAX", 3)

    def lists() -> list[str]:
        with _open(tmp_path) as repo:
            far.requests.clear()
            repo.backup(pharmacy)
            return [what for what in far.requests if what.startswith("list")]

    folders = {f"list {folder}" for folder in listing.FOLDERS}
    first = lists()
    assert first[0] == "list " and set(first[1:7]) == folders and first.count("list index") == 1
    second = lists()
    assert set(second[:6]) == folders and "list " not in second
    (remembered,) = (tmp_path / "state").rglob(listing.TOO_MANY)
    os.utime(remembered, ns=(0, now_ns() - 8 * 86_400 * 10**9))
    assert lists()[0] == "list "
    os.utime(remembered, ns=(0, now_ns() - 8 * 86_400 * 10**9))
    monkeypatch.setattr(listing, "TOGETHER_MAX", 5000)
    assert lists()[0] == "list " and lists()[0] == "list "


def test_what_another_process_commits_after_the_one_listing_is_not_gone(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path) as repo, _open(tmp_path) as other:
        repo.backup(pharmacy)
        real, listed = far.list, list[str]()

        def then_the_other_commits(folder: str) -> list[ObjectInfo]:
            found = list(real(folder))
            if not listed:
                listed.append(folder)
                other.backup(pharmacy)
            return found

        monkeypatch.setattr(far, "list", then_the_other_commits)
        assert not [finding for finding in repo.backup(pharmacy).findings if finding.code == "history-forked"]
        assert listed == [""]
        assert len(repo.snapshots()) == 6


def test_blocks_of_a_restore_come_together(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 MB in pieces of 4, instead of block after block; and no more than that is ahead."""
    monkeypatch.setattr(ahead, "PIECE", 4 << 20)
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 8 << 20)
    held, most, real = 0, 0, ahead.Ahead._go_on

    def watched(self: ahead.Ahead) -> None:
        nonlocal held, most
        real(self)
        most = max(most, self._bytes)

    monkeypatch.setattr(ahead.Ahead, "_go_on", watched)
    with _open(tmp_path) as repo:
        repo.backup(pharmacy)
        far.requests.clear()
        repo.restore(tmp_path / "out")
    blocks = [what for what in far.requests if what.startswith("get_range packs/")]
    assert len(blocks) <= 5 + 8, far.requests  # pieces of content; tables, recipes and manifests
    assert 4 << 20 <= most <= 8 << 20
    assert _same(tmp_path / "documents", tmp_path / "out" / "documents")
    assert not [
        one for one in threading.enumerate() if one.name.startswith(("pharmabackup-ahead", "pharmabackup-la"))
    ]


def test_a_restore_is_the_same_though_all_that_is_fetched_ahead_is_damaged(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path) as repo:
        repo.backup(pharmacy)
        real = DistantStorage.get_range

        def cut(self: DistantStorage, name: str, offset: int, length: int) -> bytes:
            if threading.current_thread().name.startswith("pharmabackup-ahead"):
                raise Damaged("It ends before that.", kind="object", remedy="Run check.")
            return real(self, name, offset, length)

        monkeypatch.setattr(DistantStorage, "get_range", cut)
        repo.restore(tmp_path / "out")
    assert _same(tmp_path / "documents", tmp_path / "out" / "documents")


def test_a_check_reads_packs_in_pieces(tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source]) -> None:
    with _open(tmp_path) as repo:
        repo.backup(pharmacy)
        far.requests.clear()
        assert repo.check(read_data=1.0).findings == ()
        size = sum(info.size for info in far.list("packs"))
    ranges = [what for what in far.requests if what.startswith("get_range packs/")]
    assert len(ranges) < size / check_packs.COPY_SIZE + 30
    assert far.most_under_way > 1


def test_of_a_pack_that_is_cut_only_what_is_lost_is_bad(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source]
) -> None:
    """Though blocks are read together: the first of its pieces can be had."""
    with _open(tmp_path) as repo:
        repo.backup(pharmacy)
        inner = far.inner
        assert isinstance(inner, MemoryStorage)
        name = max(inner.list("packs"), key=lambda info: info.size).name
        whole = inner._objects[name]
        inner._objects[name] = replace(whole, data=whole.data[: len(whole.data) // 2])
        assert "pack-damaged" in {finding.code for finding in repo.check(read_data=1.0).findings}
        table = repo._block_reader(fresh=True).index.blocks
        reading = check_packs.PackReading(repo._unlocked, repo._block_reader().index, _Nobody())
        pack = next(number for number, digest in enumerate(table.packs) if digest.hex() in name)
        bad = reading.read([pack])[pack].bad
    own = [number for number, place in enumerate(table.pack) if place == pack]
    ends = {number: table.offset[number] + table.length[number] for number in own}
    assert bad == {number for number, end in ends.items() if end > len(whole.data) // 2}
    assert 0 < len(bad) < len(own)


class _Nobody:
    """Looks on."""

    def step(self, *_: object) -> None: ...

    def look(self) -> None: ...


# ------------------------------------------------------------ several at once


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_TARGET", 1 << 19)
    monkeypatch.setattr(packs, "PACK_SLACK", 0)


def test_packs_are_sent_several_at_once_and_all_are_there_before_anything_relies_on_them(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], small_packs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits until four are on their way."""
    lock, together, most, now = threading.Lock(), threading.Barrier(4), 0, 0
    real, left = MemoryStorage._publish, 4

    def publish(self: MemoryStorage, name: str, data: bytes) -> ObjectInfo:
        nonlocal most, now, left
        if not name.startswith("packs/"):
            return real(self, name, data)
        with lock:
            now, waits = now + 1, left > 0
            most, left = max(most, now), left - 1
        if waits:
            together.wait(PATIENCE_S)
        try:
            return real(self, name, data)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(MemoryStorage, "_publish", publish)
    with _open(tmp_path) as repo:
        far.requests.clear()
        repo.backup(pharmacy[1:])
        requests = list(far.requests)
        assert repo.check(read_data=1.0).findings == ()
    assert most == packs.COMMITTERS == 4
    sent = [at for at, what in enumerate(requests) if what.startswith("checksum packs/")]
    assert len(sent) > 8
    last = max(at for at, what in enumerate(requests) if what.startswith("publish index/"))
    intent = max(at for at, what in enumerate(requests) if what.startswith("checksum intents/"))
    looked = max(at for at, what in enumerate(requests) if what == "list collections")
    fate = next(at for at, what in enumerate(requests) if what.startswith("publish snapshots/"))
    assert max(sent) < last < intent < looked < fate


@pytest.mark.parametrize("which", [0, 3, 7])
def test_a_pack_that_cannot_be_sent_stops_the_backup_and_the_others_are_used(
    tmp_path: Path,
    far: DistantStorage,
    pharmacy: list[pb.Source],
    small_packs: None,
    monkeypatch: pytest.MonkeyPatch,
    which: int,
) -> None:
    real, lock, sent = MemoryStorage._publish, threading.Lock(), list[str]()

    def publish(self: MemoryStorage, name: str, data: bytes) -> ObjectInfo:
        if name.startswith("packs/"):
            with lock:
                sent.append(name)
                if len(sent) == which + 1:
                    raise StorageFailed("The line dropped.", kind="unreachable", location="there")
        return real(self, name, data)

    with _open(tmp_path) as repo:
        with monkeypatch.context() as patch:
            patch.setattr(MemoryStorage, "_publish", publish)
            with pytest.raises(StorageFailed, match="The line dropped"):
                repo.backup(pharmacy[1:])
        assert not repo.snapshots()
        there = sum(info.size for info in far.list("packs"))
        added = repo.backup(pharmacy[1:]).datasets["documents"].added
        assert added < 12_000_000 - there + 3_000_000
        assert repo.check(read_data=1.0).findings == ()
        repo.restore(tmp_path / "out")
    assert _same(tmp_path / "documents", tmp_path / "out" / "documents")
    assert not threads_left("pharmabackup-commit")


def test_records_that_this_machine_does_not_know_are_read_several_at_once(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path) as repo:
        for _ in range(4):
            repo.backup(pharmacy)
    together, real, waits = threading.Barrier(8), MemoryStorage.get, [8]

    def get(self: MemoryStorage, name: str, *, limit: int) -> bytes:
        if name.startswith("snapshots/") and waits[0] > 0:
            waits[0] -= 1
            together.wait(PATIENCE_S)
        return real(self, name, limit=limit)

    monkeypatch.setattr(MemoryStorage, "get", get)
    with _open(tmp_path, "other machine") as repo:
        assert len(repo.snapshots()) == 8


def test_a_copy_sends_packs_several_at_once(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], small_packs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path) as repo:
        repo.backup(pharmacy[1:])
        there = DistantStorage(MemoryStorage("there"))
        monkeypatch.setattr(opening, "connect", lambda *_, **__: there)
        replica = pb.Repository.create("memory://there", PASSPHRASE, replica_of=repo, state_dir=tmp_path / "state")
        with replica:
            together, real, left = threading.Barrier(4), MemoryStorage._publish, [4]

            def publish(self: MemoryStorage, name: str, data: bytes) -> ObjectInfo:
                if name.startswith("packs/") and left[0] > 0:
                    left[0] -= 1
                    together.wait(PATIENCE_S)
                return real(self, name, data)

            monkeypatch.setattr(MemoryStorage, "_publish", publish)
            seen: list[pb.Event] = []
            repo.copy(replica, progress=seen.append)
            assert {info.name for info in there.list("packs")} == {info.name for info in far.list("packs")}
            assert replica.check(read_data=1.0).findings == ()
            replica.restore(tmp_path / "out")
    assert _same(tmp_path / "documents", tmp_path / "out" / "documents")
    assert max(event.bytes_done for event in seen) >= 12_000_000


def test_a_copy_of_a_damaged_pack_says_so_and_brings_the_rest(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], small_packs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path) as repo:
        inner = far.inner
        assert isinstance(inner, MemoryStorage)
        repo.backup(pharmacy[:1])
        before = {info.name for info in inner.list("packs")}
        repo.backup(pharmacy[1:])
        blocks = repo._block_reader(fresh=True).index.blocks
        lists = {
            ids.pack_name(blocks.packs[pack])
            for pack, kind in zip(blocks.pack, blocks.kind, strict=True)
            if kind != Kind.DATA_BLOCK
        }
        name = min({info.name for info in inner.list("packs")} - before - lists)
        data = bytearray(inner._objects[name].data)
        data[1000] ^= 1
        inner._objects[name] = replace(inner._objects[name], data=bytes(data))
        there = DistantStorage(MemoryStorage("there"))
        monkeypatch.setattr(opening, "connect", lambda *_, **__: there)
        replica = pb.Repository.create("memory://there", PASSPHRASE, replica_of=repo, state_dir=tmp_path / "state")
        with replica:
            with pytest.raises(pb.Incomplete):
                repo.copy(replica)
            packs_there = {info.name for info in there.list("packs")}
            assert name not in packs_there and len(packs_there) > 2
            replica.restore(tmp_path / "out", only=["shop"])


# ------------------------------------------------------------ what a storage answers


@pytest.mark.parametrize("wrong", ["checksum", "size"])
def test_an_answer_that_is_not_what_was_sent_is_a_lost_write(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = DistantStorage(MemoryStorage(), answers=True)
    assert create(storage, "a", b"content").checksum is not None
    assert storage.requests == ["publish a"]
    real = DistantStorage.put_new

    def lies(self: DistantStorage, name: str, data: Any) -> ObjectInfo:
        info = real(self, name, data)
        return replace(info, **{wrong: getattr(info, wrong) ^ 1})

    monkeypatch.setattr(DistantStorage, "put_new", lies)
    with pytest.raises(StorageFailed) as found:
        create(storage, "b", b"content")
    assert found.value.kind == "lost-write"


def test_nothing_is_asked_of_a_storage_after_close_though_somebody_gave_up_reading(
    tmp_path: Path, far: DistantStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that fetched ahead of him are waited for."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(9000):
        (many / f"a-name-that-does-not-shrink-{os.urandom(40).hex()}-{number}").touch()
    with _open(tmp_path) as repo:
        repo.backup([pb.Files(many)])
        for number in range(60):
            repo.record("tick", {"number": number})
    closed, late, real = threading.Event(), list[str](), DistantStorage.get_range
    whole = DistantStorage.get

    def get_range(self: DistantStorage, name: str, offset: int, length: int) -> bytes:
        time.sleep(0.02)
        if closed.is_set():
            late.append(name)
        return real(self, name, offset, length)

    def get(self: DistantStorage, name: str, *, limit: int) -> bytes:
        time.sleep(0.02)
        if closed.is_set():
            late.append(name)
        return whole(self, name, limit=limit)

    monkeypatch.setattr(DistantStorage, "get_range", get_range)
    monkeypatch.setattr(DistantStorage, "get", get)
    with _open(tmp_path, "fresh") as repo:
        for _ in repo.snapshot("many").glob("*"):
            break
        for _ in repo.audit():
            break
    closed.set()
    assert not threads_left("pharmabackup")
    assert late == []


def test_who_does_not_get_in_leaves_no_connection(tmp_path: Path, far: DistantStorage) -> None:
    closed = list[bool]()
    far.close = lambda: closed.append(True)  # type: ignore[method-assign]
    with pytest.raises(pb.WrongCredential):
        pb.Repository.open("memory://far", pb.Passphrase("none of them, this one"), state_dir=tmp_path / "x")
    with pytest.raises(Damaged, match="another repository"):
        pb.Repository.open("memory://far", PASSPHRASE, state_dir=tmp_path / "x", repository="0" * 16)
    far.inner.delete(["repository"])
    with pytest.raises(Damaged, match="has lost its object"):
        pb.Repository.open("memory://far", PASSPHRASE, state_dir=tmp_path / "x")
    assert closed == [True] * 3


def test_a_line_that_fails_at_the_end_is_let_go_all_the_same(
    tmp_path: Path, far: DistantStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = list[bool]()
    repo = _open(tmp_path)
    monkeypatch.setattr(far, "close", lambda: closed.append(True))

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repo._journal, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repo.close()
    assert closed == [True] and repo._unlocked.threads.ends == 1


def test_a_drill_ends_the_threads_of_what_the_shares_opened(
    tmp_path: Path, far: DistantStorage, pharmacy: list[pb.Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = list[Any](), drill.open_also
    monkeypatch.setattr(drill, "open_also", lambda *a, **k: opened.append(real(*a, **k)) or opened[-1])  # type: ignore[func-returns-value]
    with _open(tmp_path) as repo:
        shares = repo.split_recovery()
        repo.backup(pharmacy)
        assert repo.drill_recovery_key(pb.Shares(*shares[:2])).state == "ok"
    assert [each.threads.ends for each in opened] == [1]
    assert not threads_left("pharmabackup")
