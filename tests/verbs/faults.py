"""A storage that dies: at the n-th call, before its effect or just after it, and from then on altogether."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from pharmabackup.errors import Error, StorageFailed
from pharmabackup.storage.base import Buffer, Capabilities, ObjectInfo, Storage, Upload

EVERY = 1 if os.environ.get("PHARMABACKUP_PROFILE") == "nightly" else 6
CALLS_MAX = 1000

near_and_far = pytest.mark.parametrize("lanes", [1, 8], ids=["near", "far"])


def any_call() -> Iterator[int]:
    """Numbers of calls at which to do something, until the caller has seen the verb end before that call.

    All at night. With every change some: the first, and each sixth from one that the test's name decides, so that
    cases of one test meet different ones, and each case the same ones every time.
    """
    first = zlib.crc32(os.environ["PYTEST_CURRENT_TEST"].encode()) % EVERY
    if first:
        yield 0
    yield from range(first, CALLS_MAX, EVERY)
    pytest.fail("it never ends")


class Dead(StorageFailed):
    """What every call says once the storage is dead."""

    def __init__(self) -> None:
        super().__init__("The storage is gone.", kind="unreachable", retryable=True, location="test")


class DyingStorage(Storage):
    """Passes calls on until call number `dies_at`; `after`: that call still has its effect."""

    def __init__(self, inner: Storage, *, deletes: bool = False, lanes: int = 1) -> None:
        self.inner = inner
        self.lanes = lanes
        self._counting = threading.Lock()
        self._deletes = deletes
        self.location = inner.location
        self.calls = 0
        self.log: list[str] = []
        self._dies_at = -1
        self._after = False

    def arm(self, dies_at: int, *, after: bool) -> None:
        """Count from here on."""
        self.calls, self._dies_at, self._after = 0, dies_at, after

    def _live(self, what: str) -> bool:
        """Whether the call may have its effect; raises when the storage died before it."""
        with self._counting:
            number, self.calls = self.calls, self.calls + 1
            self.log.append(what)
        self._before(number)
        if 0 <= self._dies_at <= number:
            if number == self._dies_at and self._after:
                return False
            raise Dead
        return True

    def _before(self, number: int) -> None:
        """What else happens before that call."""

    def _done(self, live: bool) -> None:
        if not live:
            raise Dead

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def upload(self) -> Upload:
        live = self._live("upload")
        upload = _DyingUpload(self, self.inner.upload())
        self._done(live)
        return upload

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        live = self._live(f"get_range {name}")
        data = self.inner.get_range(name, offset, length)
        self._done(live)
        return data

    def get(self, name: str, *, limit: int) -> bytes:
        live = self._live(f"get {name}")
        data = self.inner.get(name, limit=limit)
        self._done(live)
        return data

    def info(self, name: str) -> ObjectInfo:
        live = self._live(f"info {name}")
        found = self.inner.info(name)
        self._done(live)
        return found

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        live = self._live(f"list {prefix}")
        found = list(self.inner.list(prefix))
        self._done(live)
        return iter(found)

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        """One object a call, so that it dies between two of them."""
        assert self._deletes, f"a writer deletes nothing, and this one deleted {names}"
        results: dict[str, Error | None] = {}
        for name in names:
            live = self._live(f"delete {name}")
            results.update(self.inner.delete([name]))
            self._done(live)
        return results


class _DyingUpload(Upload):
    def __init__(self, storage: DyingStorage, inner: Upload) -> None:
        self._storage = storage
        self._inner = inner

    def write(self, data: Buffer) -> None:
        live = self._storage._live("write")
        self._inner.write(data)
        self._storage._done(live)

    def publish(self, name: str) -> ObjectInfo:
        live = self._storage._live(f"publish {name}")
        info = self._inner.publish(name)
        self._storage._done(live)
        return info

    def discard(self) -> None:
        self._inner.discard()


class BusyStorage(DyingStorage):
    """At one call something else is done first: what others do meanwhile."""

    def __init__(self, inner: Storage, meanwhile: Callable[[], object], *, lanes: int = 1) -> None:
        super().__init__(inner, deletes=True, lanes=lanes)
        self._meanwhile = meanwhile
        self._at = -1
        self.interrupted = False

    def interrupt(self, at: int) -> None:
        """Count from here on."""
        self.calls, self._at, self.interrupted = 0, at, False

    def _before(self, number: int) -> None:
        if number == self._at and not self.interrupted:
            self.interrupted = True
            self._meanwhile()


class Refusing(DyingStorage):
    """Takes everything but audit records, while `refuses`."""

    refuses = True

    def put_new(self, name: str, data: Buffer) -> ObjectInfo:
        if self.refuses and name.startswith("audit/"):
            raise StorageFailed("It is full.", kind="full", location="test")
        return super().put_new(name, data)
