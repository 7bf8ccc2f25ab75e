"""The conformance suite of storages: an adapter that passes keeps the promises of `pharmabackup.storage.base`.

    class TestMine(StorageConformance):
        @pytest.fixture(autouse=True)
        def place(self, tmp_path):
            self.path = tmp_path / "repository"

        def make(self):
            return MyStorage.create(self.path)

        def reopen(self):
            return partial(MyStorage, self.path)

`make` gives a storage with nothing in it, once a test. `reopen` gives a function that makes another client of the
same storage, in this process or another: it must survive pickling. Where objects cannot be reached from other
processes, as in memory, `reopen` gives None and the tests that need processes are skipped.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from zlib import crc32

import pytest

from pharmabackup.errors import Conflict, Damaged, InvalidInput, NotFound, StorageFailed
from pharmabackup.storage.base import Buffer, ObjectInfo, Storage
from pharmabackup.testing.storage_writers import (
    PATIENCE_S,
    WRITERS,
    Reopen,
    at_once,
    entry,
    race,
    race_process,
    write_until_killed,
)

BIG = 5 << 20
BAD_NAMES = [
    "", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", ".a", "a/.b", "-a", "A", "a b", "a\\b", "a:b", "é", "a\n",
    "a" * 201,
]  # fmt: skip


class StorageConformance(ABC):
    """Inherit from it in a class whose name begins with `Test`."""

    rounds = 25  # of each race
    kills = 10  # of a writer
    many = 300  # objects in one listing

    @abstractmethod
    def make(self) -> Storage:
        """A storage with nothing in it."""

    @abstractmethod
    def reopen(self) -> Reopen | None:
        """How to reach the same objects as another client, also from another process."""

    def is_exclusive(self, storage: Storage) -> bool:
        """Whether to hold it to exclusive creation."""
        return storage.capabilities.exclusive_create

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        storage = self.make()
        yield storage
        storage.close()

    @pytest.fixture
    def exclusive(self, storage: Storage) -> Storage:
        if not self.is_exclusive(storage):
            pytest.skip("this storage does not claim exclusive creation")
        return storage

    @pytest.fixture
    def elsewhere(self) -> Reopen:
        reopen = self.reopen()
        if reopen is None:
            pytest.skip("other processes cannot reach this storage")
        return reopen

    # Objects

    @pytest.mark.parametrize("size", [0, 1, 65536, BIG])
    def test_bytes_come_back(self, storage: Storage, size: int) -> None:
        data = random.Random(size).randbytes(size)
        made = storage.put_new("packs/ab/x", data)
        assert (made.name, made.size) == ("packs/ab/x", size)
        assert made.checksum in (None, crc32(data))
        assert storage.get("packs/ab/x", limit=size) == data
        assert_same([storage.info("packs/ab/x")], [made])
        assert storage.checksum("packs/ab/x") == (size, crc32(data))

    def test_an_object_is_what_was_written_piece_by_piece(self, storage: Storage) -> None:
        part = memoryview(bytearray(b"xthreex"))[1:-1]
        pieces: Sequence[Buffer] = [b"", b"one", bytearray(b"two"), part, bytes(600_000)]
        with storage.upload() as upload:
            for piece in pieces:
                upload.write(piece)
            upload.publish("a")
        assert storage.get("a", limit=1 << 20) == b"".join(pieces)

    def test_a_buffer_may_be_reused_after_write(self, storage: Storage) -> None:
        buffer = bytearray(b"first")
        with storage.upload() as upload:
            upload.write(buffer)
            buffer[:] = b"other"
            upload.publish("a")
        assert storage.get("a", limit=10) == b"first"

    def test_time_is_plausible(self, storage: Storage) -> None:
        made = storage.put_new("a", b"x")
        assert abs(made.modified - time.time_ns()) < 86_400 * 10**9

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_a_bad_name_is_refused(self, storage: Storage, name: str) -> None:
        attempts: Sequence[Callable[[], object]] = [
            lambda: storage.put_new(name, b"x"),
            lambda: storage.get(name, limit=1),
            lambda: storage.get_range(name, 0, 1),
            lambda: storage.info(name),
            lambda: storage.checksum(name),
            lambda: storage.delete([name]),
        ]
        for attempt in attempts:
            with pytest.raises(InvalidInput):
                attempt()
        assert listed(storage) == {}

    def test_a_long_name_works(self, storage: Storage) -> None:
        name = "packs/" + "a" * 60 + "/" + "b" * 133
        assert len(name) == 200
        storage.put_new(name, b"x")
        assert listed(storage) == {name: 1}

    # Reading

    def test_ranges_are_exact(self, storage: Storage) -> None:
        data = random.Random(1).randbytes(300_000)
        storage.put_new("a", data)
        pick = random.Random(2)
        for _ in range(50):
            offset = pick.randrange(len(data))
            length = pick.randrange(len(data) - offset + 1)
            assert storage.get_range("a", offset, length) == data[offset : offset + length]
        assert storage.get_range("a", 0, len(data)) == data
        assert storage.get_range("a", len(data), 0) == b""

    @pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (100, 1), (101, 1), (10**6, 1), (0, 1 << 60)])
    def test_a_range_past_the_end_is_damage_not_fewer_bytes(self, storage: Storage, offset: int, length: int) -> None:
        storage.put_new("a", bytes(100))
        with pytest.raises(Damaged) as caught:
            storage.get_range("a", offset, length)
        assert caught.value.kind == "object"

    def test_what_is_larger_than_the_limit_is_damage(self, storage: Storage) -> None:
        storage.put_new("a", bytes(100))
        with pytest.raises(Damaged) as caught:
            storage.get("a", limit=99)
        assert caught.value.kind == "object"

    @pytest.mark.parametrize("name", ["b", "a/b", "packs/b", "packs", "no/such/folder"])
    def test_what_is_not_there_is_not_found(self, storage: Storage, name: str) -> None:
        storage.put_new("a", b"x")
        storage.put_new("packs/a", b"x")
        attempts: Sequence[Callable[[], object]] = [
            lambda: storage.get(name, limit=1),
            lambda: storage.get_range(name, 0, 1),
            lambda: storage.get_range(name, 0, 0),
            lambda: storage.info(name),
            lambda: storage.checksum(name),
        ]
        for attempt in attempts:
            with pytest.raises(NotFound) as caught:
                attempt()
            assert caught.value.kind == "object"

    def test_many_may_read_at_once(self, storage: Storage) -> None:
        data = random.Random(3).randbytes(1 << 20)
        storage.put_new("a", data)

        def read(seed: int) -> None:
            pick = random.Random(seed)
            for _ in range(40):
                offset = pick.randrange(len(data) - 10_000)
                assert storage.get_range("a", offset, 10_000) == data[offset : offset + 10_000]
            assert storage.get("a", limit=1 << 20) == data

        at_once(read)

    # Listing

    def test_nothing_is_listed_in_an_empty_storage(self, storage: Storage) -> None:
        assert listed(storage) == {}
        assert listed(storage, "packs") == {}

    def test_a_listing_shows_exactly_what_was_published(self, storage: Storage) -> None:
        names = ["repository", "a/b/c", "a/b/d", "a/e", "ab/f", "a.b/g", "a-b", "packs/00/0", "packs/ff/1"]
        for size, name in enumerate(names):
            storage.put_new(name, bytes(size))
            assert listed(storage)[name] == size
        assert listed(storage) == {name: size for size, name in enumerate(names)}
        assert set(listed(storage, "a")) == {"a/b/c", "a/b/d", "a/e"}
        assert set(listed(storage, "a/b")) == {"a/b/c", "a/b/d"}
        assert set(listed(storage, "packs")) == {"packs/00/0", "packs/ff/1"}
        assert listed(storage, "pack") == {}
        for name in ("repository", "a/b/c"):
            with suppress(StorageFailed):  # which says that it is no folder
                assert listed(storage, name) == {}

    def test_a_listing_of_many(self, storage: Storage) -> None:
        names = {f"a/{number:04}" for number in range(self.many)}
        for name in names:
            storage.put_new(name, b"x")
        assert set(listed(storage, "a")) == names

    @pytest.mark.parametrize("prefix", ["/", "a/", "../a", "A"])
    def test_a_bad_prefix_is_refused(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(InvalidInput):
            list(storage.list(prefix))

    # Deleting

    def test_deleting_gives_a_result_for_each(self, storage: Storage) -> None:
        for name in ("a", "b/c", "b/d"):
            storage.put_new(name, b"x")
        assert storage.delete(["a", "b/c", "no", "no/such"]) == dict.fromkeys(["a", "b/c", "no", "no/such"])
        assert listed(storage) == {"b/d": 1}
        assert storage.delete([]) == {}
        with pytest.raises(NotFound):
            storage.get("a", limit=1)

    def test_a_deleted_name_is_free(self, storage: Storage) -> None:
        storage.put_new("a/b", b"first")
        storage.delete(["a/b"])
        storage.put_new("a/b", b"second")
        assert storage.get("a/b", limit=10) == b"second"

    # Uploads

    def test_an_upload_does_not_show_before_it_is_published(self, storage: Storage) -> None:
        with storage.upload() as upload:
            upload.write(bytes(1 << 20))
            assert listed(storage) == {}
            upload.publish("a")
            assert listed(storage) == {"a": 1 << 20}
            upload.discard()
        assert listed(storage) == {"a": 1 << 20}

    def test_what_is_discarded_leaves_nothing(self, storage: Storage) -> None:
        upload = storage.upload()
        upload.write(b"x")
        upload.discard()
        upload.discard()
        assert listed(storage) == {}

    def test_an_exception_publishes_nothing(self, storage: Storage) -> None:
        with pytest.raises(ZeroDivisionError), storage.upload() as upload:
            upload.write(bytes(BIG))
            raise ZeroDivisionError
        assert listed(storage) == {}

    def test_many_may_upload_at_once(self, storage: Storage) -> None:
        def write(writer: int) -> None:
            for number in range(5):
                with storage.upload() as upload:
                    for _ in range(10):
                        upload.write(bytes([writer]) * 10_000)
                    upload.publish(f"a/{writer}-{number}")

        at_once(write)
        for writer in range(WRITERS):
            for number in range(5):
                assert storage.get(f"a/{writer}-{number}", limit=100_000) == bytes([writer]) * 100_000

    def test_the_storage_may_be_used_after_close(self, storage: Storage) -> None:
        storage.put_new("a", b"x")
        storage.close()
        assert storage.get("a", limit=1) == b"x"
        storage.put_new("b", b"x")

    # Several clients

    def test_another_client_sees_the_same(self, storage: Storage, elsewhere: Reopen) -> None:
        other = elsewhere()
        assert listed(other) == {}
        made = storage.put_new("a/b", b"x")
        assert_same(list(other.list("")), [made])
        assert other.get("a/b", limit=1) == b"x"
        assert other.delete(["a/b"]) == {"a/b": None}
        assert listed(storage) == {}
        other.close()

    def test_a_name_is_created_once(self, exclusive: Storage) -> None:
        exclusive.put_new("a", b"first")
        for data in (b"second", b"first", b""):
            with pytest.raises(Conflict) as caught:
                exclusive.put_new("a", data)
            assert caught.value.kind == "object-exists"
        assert exclusive.get("a", limit=10) == b"first"
        assert listed(exclusive) == {"a": 5}

    def test_of_many_threads_one_wins(self, exclusive: Storage) -> None:
        reopen = self.reopen()
        clients = [reopen() if reopen and writer % 2 else exclusive for writer in range(WRITERS)]
        start = threading.Barrier(WRITERS)
        won = at_once(lambda writer: race(clients[writer], writer, self.rounds, start))
        self.check(exclusive, won)
        for client in clients:
            client.close()

    def test_of_many_processes_one_wins(self, exclusive: Storage, elsewhere: Reopen) -> None:
        context = multiprocessing.get_context("spawn")
        start = context.Barrier(WRITERS)
        pipes = [context.Pipe(duplex=False) for _ in range(WRITERS)]
        writers = [
            context.Process(target=race_process, args=(elsewhere, writer, self.rounds, start, pipes[writer][1]))
            for writer in range(WRITERS)
        ]
        for process, (_, send) in zip(writers, pipes, strict=True):
            process.start()
            send.close()  # so that a writer that fails ends the waiting for it
        try:
            won: list[list[int]] = []
            for receive, _ in pipes:
                assert receive.poll(PATIENCE_S), "a writer did not answer"
                won.append(receive.recv())
            self.check(exclusive, won)
        finally:
            for process, (receive, _) in zip(writers, pipes, strict=True):
                process.kill()
                process.join()
                receive.close()

    def check(self, storage: Storage, won: Sequence[Sequence[int]]) -> None:
        """One winner a round, whose bytes are the ones that are stored."""
        for number in range(self.rounds):
            winners = [writer for writer, rounds in enumerate(won) if number in rounds]
            assert len(winners) == 1, f"round {number} was won by {winners}"
            assert storage.get(f"race/{number}", limit=1 << 20) == entry(winners[0])
        assert len(listed(storage)) == self.rounds

    def test_a_killed_writer_leaves_whole_objects_or_none(self, storage: Storage, elsewhere: Reopen) -> None:
        context = multiprocessing.get_context("spawn")
        pick = random.Random(4)
        for number in range(self.kills):
            receive, send = context.Pipe(duplex=False)
            writer = context.Process(target=write_until_killed, args=(elsewhere, number, send))
            writer.start()
            send.close()
            try:
                assert receive.poll(PATIENCE_S), "the writer did not start"
                receive.recv()
                time.sleep(pick.random() * 0.1)
            finally:
                writer.kill()
                writer.join()
                receive.close()
        left = list(storage.list(""))
        for item in left:
            data = storage.get(item.name, limit=item.size)
            assert item.name == f"packs/{hashlib.sha256(data).hexdigest()}", "an object is not whole"
            assert storage.checksum(item.name) == (item.size, crc32(data))
        assert left, "no writer came to publish anything: this has tested nothing"
        storage.put_new("after", b"x")


def assert_same(found: Sequence[ObjectInfo], expected: Sequence[ObjectInfo]) -> None:
    """The same objects. Their times may differ by the 2 s that FAT counts in: a driver may touch it on a rename."""
    assert [(item.name, item.size) for item in found] == [(item.name, item.size) for item in expected]
    for one, other in zip(found, expected, strict=True):
        assert abs(one.modified - other.modified) <= 2 * 10**9


def listed(storage: Storage, prefix: str = "") -> dict[str, int]:
    """Name and size of all that is listed; each once."""
    found = [(item.name, item.size) for item in storage.list(prefix)]
    assert len(found) == len(dict(found)), "something is listed twice"
    return dict(found)
