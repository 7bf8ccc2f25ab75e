"""The conformance suite of storages behind a line: what they promise when the line or the server fails.

    class TestMyFaults(StorageFaults):
        server = ("127.0.0.1", 9000)

        def make(self, port):
            return connect("my://host/fresh", storage_options={"endpoint_url": f"http://127.0.0.1:{port}"})

`make` gives a storage with nothing in it that reaches `server` through `port` alone. See `FaultyLine`.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from zlib import crc32

import pytest

from pharmabackup.errors import Conflict, Error, NotFound, StorageFailed
from pharmabackup.storage import remote
from pharmabackup.storage.base import Storage
from pharmabackup.testing.line import FaultyLine
from pharmabackup.testing.storage import listed

SIZE = 300_000
WITHIN = (0, 20, 200, 400, 700, 20_000, 150_000, SIZE)
EVERYWHERE = (*range(0, 2000, 50), 20_000, 65_536, 150_000, 299_000, SIZE - 1, SIZE)  # for a nightly run
ENDINGS = pytest.mark.parametrize("resetting", [True, False], ids=["reset", "quiet"])


class StorageFaults(ABC):
    """Inherit from it in a class whose name begins with `Test`."""

    server: tuple[str, int]
    offsets: tuple[int, ...] = WITHIN  # bytes after which the line is cut
    small_offsets: tuple[int, ...] = tuple(range(0, 600, 97))  # the same, of answers that are small

    @abstractmethod
    def make(self, port: int) -> Storage:
        """A storage with nothing in it, through this port of 127.0.0.1."""

    @pytest.fixture
    def line(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyLine]:
        monkeypatch.setattr(remote, "CONNECT_S", 2.0)
        monkeypatch.setattr(remote, "SILENCE_S", 2.0)
        with FaultyLine(*self.server) as line:
            yield line

    @pytest.fixture
    def storage(self, line: FaultyLine) -> Iterator[Storage]:
        storage = self.make(line.port)
        yield storage
        storage.close()

    @ENDINGS
    @pytest.mark.parametrize("direction", ["up", "down"])
    def test_an_upload_survives_a_cut_at_any_byte(
        self, storage: Storage, line: FaultyLine, direction: str, resetting: bool
    ) -> None:
        line.resetting = resetting
        data = random.Random(5).randbytes(SIZE)
        for number, offset in enumerate(self.offsets):
            storage.close()  # so that each begins with a connection of its own
            line.cut_after(**{direction: offset})
            storage.put_new(f"a/{number}", data)
            line.cut_after()
            assert storage.checksum(f"a/{number}") == (SIZE, crc32(data))
            with pytest.raises(Conflict):
                storage.put_new(f"a/{number}", data)
        assert line.cuts >= 3, "nothing was cut: this has tested nothing"
        assert listed(storage) == {f"a/{number}": SIZE for number in range(len(self.offsets))}

    @ENDINGS
    def test_without_patience_an_upload_is_whole_or_absent(
        self, storage: Storage, line: FaultyLine, monkeypatch: pytest.MonkeyPatch, resetting: bool
    ) -> None:
        line.resetting = resetting
        monkeypatch.setattr(remote, "PATIENCE_S", -1.0)
        data = random.Random(6).randbytes(SIZE)
        failed = 0
        for number, offset in enumerate(self.offsets):
            storage.close()
            line.cut_after(up=offset)
            try:
                storage.put_new(f"a/{number}", data)
            except StorageFailed as error:
                assert error.retryable
                failed += 1
            line.cut_after()
            try:
                assert storage.get(f"a/{number}", limit=SIZE) == data
            except NotFound:
                storage.put_new(f"a/{number}", data)
        assert failed, "nothing failed: this has tested nothing"
        assert set(listed(storage).values()) == {SIZE}

    @ENDINGS
    def test_a_read_survives_a_cut_at_any_byte(self, storage: Storage, line: FaultyLine, resetting: bool) -> None:
        line.resetting = resetting
        data = random.Random(7).randbytes(SIZE)
        storage.put_new("a", data)
        for offset in self.offsets:
            storage.close()
            line.cut_after(down=offset)
            assert storage.get("a", limit=SIZE) == data
            line.cut_after(down=offset)
            assert storage.get_range("a", 1000, 200_000) == data[1000:201_000]
            line.cut_after()
        assert line.cuts >= len(self.offsets)

    @ENDINGS
    def test_what_is_small_survives_a_cut_at_any_byte(
        self, storage: Storage, line: FaultyLine, resetting: bool
    ) -> None:
        line.resetting = resetting
        storage.put_new("a/b", b"x")
        for offset in self.small_offsets:
            for attempt in ("info", "list", "missing", "delete"):
                storage.close()
                line.cut_after(down=offset)
                if attempt == "info":
                    assert storage.info("a/b").size == 1
                elif attempt == "list":
                    assert listed(storage) == {"a/b": 1}
                elif attempt == "missing":
                    with pytest.raises(NotFound):
                        storage.info("a/c")
                else:
                    assert storage.delete(["a/b", "a/c"]) == {"a/b": None, "a/c": None}
                    line.cut_after()
                    storage.put_new("a/b", b"x")
                line.cut_after()
        assert line.cuts >= 10, "nothing was cut: this has tested nothing"

    def test_a_server_that_comes_back_within_the_patience(self, storage: Storage, line: FaultyLine) -> None:
        storage.put_new("a", b"x")
        line.refusing = True
        back = threading.Timer(1.5, lambda: setattr(line, "refusing", False))
        back.start()
        try:
            assert storage.get("a", limit=1) == b"x"
            storage.put_new("b", b"x")
        finally:
            back.join()

    def test_a_server_that_stays_away_is_unreachable(
        self, storage: Storage, line: FaultyLine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "PATIENCE_S", 1.0)
        storage.put_new("a", b"x")
        line.refusing = True
        for attempt in (
            lambda: storage.get("a", limit=1),
            lambda: storage.info("no"),
            lambda: list(storage.list("")),
            lambda: storage.put_new("b", b"x"),
        ):
            with pytest.raises(StorageFailed) as caught:
                attempt()
            assert caught.value.retryable
        assert isinstance(storage.delete(["a"])["a"], StorageFailed)

    def test_a_server_that_falls_silent_is_not_waited_for_forever(
        self, storage: Storage, line: FaultyLine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "PATIENCE_S", 0.5)
        storage.put_new("a", b"x")
        line.silent = True
        try:
            with pytest.raises(StorageFailed) as caught:
                storage.get("a", limit=1)
        finally:
            line.silent = False
        assert caught.value.kind == "timeout" and caught.value.retryable
        assert storage.get("a", limit=1) == b"x"

    @ENDINGS
    def test_one_piece_in_a_hundred_breaks_the_line(
        self, storage: Storage, line: FaultyLine, resetting: bool
    ) -> None:
        line.resetting = resetting
        line.lossy = 0.01
        expected = {}
        for number in range(100):
            data = random.Random(number).randbytes(20_000)
            storage.put_new(f"a/{number}", data)
            expected[f"a/{number}"] = len(data)
            assert storage.get(f"a/{number}", limit=20_000) == data
            assert storage.checksum(f"a/{number}") == (len(data), crc32(data))
        assert listed(storage) == expected
        assert line.cuts, "nothing was cut: this has tested nothing"

    def test_a_slow_line(self, storage: Storage, line: FaultyLine) -> None:
        line.latency = 0.2
        storage.put_new("a", b"x")
        assert storage.get("a", limit=1) == b"x"
        assert listed(storage) == {"a": 1}
        outcome: Error | None = storage.delete(["a"])["a"]
        assert outcome is None
