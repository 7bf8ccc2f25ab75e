"""A storage that is far away: each request takes a while, several may be under way, and all are counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pharmabackup.errors import Error
from pharmabackup.storage.base import Buffer, Capabilities, ObjectInfo, Storage, Upload


class DistantStorage(Storage):
    """Passes everything on, after `seconds` for each request. `requests`: what was asked, in order.

    An object that is sent is one request, whatever its size, and so are a listing, and a checksum, which storages of
    this kind compute themselves. `answers`: the answer to a write has it already.
    """

    def __init__(self, inner: Storage, *, seconds: float = 0.0, lanes: int = 8, answers: bool = False) -> None:
        self.inner = inner
        self.location = inner.location
        self.lanes = lanes
        self.seconds = seconds
        self.answers = answers
        self.requests: list[str] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def kinds(self) -> Counter[str]:
        """How many requests of each kind there were: "get index", "list", "publish packs"."""
        return Counter(what if what.startswith("list") else what.partition("/")[0] for what in self.requests)

    def _request(self, what: str) -> _Request:
        return _Request(self, what)

    def upload(self) -> Upload:
        return _DistantUpload(self, self.inner.upload())

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        with self._request(f"get_range {name}"):
            return self.inner.get_range(name, offset, length)

    def get(self, name: str, *, limit: int) -> bytes:
        with self._request(f"get {name}"):
            return self.inner.get(name, limit=limit)

    def info(self, name: str) -> ObjectInfo:
        with self._request(f"info {name}"):
            return self.inner.info(name)

    def checksum(self, name: str) -> tuple[int, int]:
        with self._request(f"checksum {name}"):
            return self.inner.checksum(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._request(f"list {prefix}"):
            return iter(list(self.inner.list(prefix)))

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        with self._request("delete"):
            return self.inner.delete(names)


class _Request:
    def __init__(self, storage: DistantStorage, what: str) -> None:
        self._storage = storage
        self._what = what

    def __enter__(self) -> None:
        storage = self._storage
        with storage._lock:
            storage.requests.append(self._what)
            storage.under_way += 1
            storage.most_under_way = max(storage.most_under_way, storage.under_way)
        time.sleep(storage.seconds)

    def __exit__(self, *_: object) -> None:
        with self._storage._lock:
            self._storage.under_way -= 1


class _DistantUpload(Upload):
    def __init__(self, storage: DistantStorage, inner: Upload) -> None:
        self._storage = storage
        self._inner = inner

    def write(self, data: Buffer) -> None:
        self._inner.write(data)

    def publish(self, name: str) -> ObjectInfo:
        with self._storage._request(f"publish {name}"):
            info = self._inner.publish(name)
            if self._storage.answers:
                return replace(info, checksum=self._storage.inner.checksum(name)[1])
            return info

    def discard(self) -> None:
        self._inner.discard()
