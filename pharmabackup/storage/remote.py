"""What every storage behind a line has in common: tries, patience, lost answers, processes that fork.

An adapter gives single requests; the base makes promises of them (docs/design/009-lines.md). A hook makes one request
and does not try again: the client's own retries are switched off. It is handed the client that `_connect` made, and
may be called from several threads at once with the same one. It raises what `failures` makes, or lets its client's
exceptions pass, which `_failure` then translates. A hook never calls a public method, so that tries never nest.
"""

from __future__ import annotations

import os
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Generic, TypeVar
from weakref import WeakSet
from zlib import crc32

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from pharmabackup.errors import Conflict, Error, NotFound, StorageFailed
from pharmabackup.mutex import Mutex
from pharmabackup.storage import failures
from pharmabackup.storage.base import Buffer, ObjectInfo, Storage, Upload, checked
from pharmabackup.storage.body import Body
from pharmabackup.storage.unlogged import unlogged

CONNECT_S = 10.0  # for a connection to be made; adapters read both when they connect
SILENCE_S = 30.0  # for the next byte of an answer
PATIENCE_S = 20.0  # of one call, from its first failure; time in which bytes flow is not counted
FIRST_WAIT_S = 0.2  # at most, before the second try: a random time below it, that doubles
LONGEST_WAIT_S = 5.0

Client = TypeVar("Client")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a storage says about an object without sending it.

    `modified`: its own clock, ns since 1970 UTC. `mark`: the upload's, "" for an object without one, None where the
    storage keeps none. `crc32`: of what it holds (as in zlib), None where it does not say.
    """

    size: int
    modified: int
    mark: str | None = None
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """What the answer to a put says of the new object.

    `modified` as in `Stored`, None where it does not say. `proved`: the storage computed a checksum of what it has
    stored, and it is the body's, so that nobody has to ask again.
    """

    modified: int | None = None
    proved: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of a listing: objects, and what to ask for next, each a request of its own (`_page`'s `at`)."""

    items: Sequence[ObjectInfo]
    more: Sequence[object] = ()


class RemoteStorage(Storage, Generic[Client]):
    """Objects behind a line. `Client` is whatever `_connect` makes; one a process, shared by its threads."""

    lanes = 8
    one_line = False  # the client is one connection: a line that fails ends it, and the next try needs a new one
    reads_first = False  # the client reads a body once before it sends it, and the adapter sets `sending` then
    remove_together = 1  # names that one `_remove` takes

    def __init__(self, location: str) -> None:
        self.location = location
        self._lock = Mutex()  # of the client
        self._held: Client | None = None
        _remotes.add(self)

    # What an adapter does: one request each, without a second try

    @abstractmethod
    def _connect(self) -> Client:
        """A client, with CONNECT_S and SILENCE_S as they are now, its own retries switched off."""

    def _disconnect(self, client: Client) -> None:
        """Close it. Never called for one that another process made."""

    @abstractmethod
    def _put(self, client: Client, name: str, body: Body, mark: str) -> Created:
        """Create `name`, whole or not at all; `body` stands at its start. `failures.exists` when it is there.

        `mark` goes into the object's metadata, where there are any.
        """

    @abstractmethod
    def _read(self, client: Client, name: str, offset: int, length: int) -> Generator[bytes, None, None]:
        """Pieces of the `length` (>= 1) bytes from `offset`; fewer only where the object ends, none past its end.

        The adapter compares what came with what the answer announced and raises `failures.cut` when it is less: an
        answer that announces no length is cut, too. `failures.missing`.
        """

    @abstractmethod
    def _head(self, client: Client, name: str) -> Stored:
        """`failures.missing`."""

    @abstractmethod
    def _page(self, client: Client, prefix: str, at: object) -> Page:
        """Part of the objects below the folder `prefix`, names complete. `at`: None, or one of a page's `more`.

        A folder that is not there has no objects; a place (bucket, share) that is not there is an error.
        """

    @abstractmethod
    def _remove(self, client: Client, names: Sequence[str]) -> Mapping[str, Error | None]:
        """Delete up to `remove_together`; a result for each. What was not there is None."""

    @abstractmethod
    def _failure(self, error: Exception) -> Error:
        """An exception of the client in our words: `failures.from_line`, `failures.from_status`."""

    # What everybody gets from it

    def upload(self) -> Upload:
        return _RemoteUpload(self)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        checked(name)
        if not length:
            if self._stored(name).size < offset:
                raise failures.damaged(self.location, name, f"ends before byte {offset}")
            return b""
        data = self._bytes(name, offset, length)
        if len(data) < length:
            raise failures.damaged(self.location, name, f"ends before byte {offset + length}")
        return data

    def get(self, name: str, *, limit: int) -> bytes:
        data = self._bytes(checked(name), 0, limit + 1)
        if len(data) > limit:
            raise failures.damaged(self.location, name, f"is larger than {limit} bytes")
        return data

    def info(self, name: str) -> ObjectInfo:
        stored = self._stored(checked(name))
        return ObjectInfo(name=name, size=stored.size, modified=stored.modified)

    def checksum(self, name: str) -> tuple[int, int]:
        stored = self._stored(checked(name))
        if stored.crc32 is not None:
            return stored.size, stored.crc32
        if not stored.size:
            return 0, 0

        def fold(client: Client, tries: _Tries) -> tuple[int, int]:
            size = check = 0
            with closing(self._read(client, name, 0, stored.size)) as coming:
                for piece in coming:
                    tries.moved_at = time.monotonic()
                    size, check = size + len(piece), crc32(piece, check)
            return size, check

        return self._call(fold)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._walk(checked(prefix) if prefix else "")

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        waiting: list[object] = [None]
        while waiting:
            at = waiting.pop()
            page = self._call(lambda client, _, at=at: self._page(client, prefix, at))  # type: ignore[misc]
            yield from page.items
            waiting += page.more

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        each = list(dict.fromkeys(checked(name) for name in names))
        shares = [each[start : start + self.remove_together] for start in range(0, len(each), self.remove_together)]
        results: dict[str, Error | None] = {}
        with ThreadPoolExecutor(self.lanes, "pharmabackup-delete") as pool:  # of no threads until one is needed
            for result in (map if len(shares) < 2 else pool.map)(self._delete, shares):
                results |= result
        return results

    def _delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        results: dict[str, Error | None] = {}

        def remove(client: Client, _: _Tries) -> None:
            left = [name for name in names if results.get(name, _UNASKED) is not None]
            results.update(self._remove(client, left))
            for error in results.values():
                if isinstance(error, StorageFailed) and error.retryable:
                    raise error

        try:
            self._call(remove)
        except Error as error:
            results = {name: results.get(name, error) for name in names}
        return results

    def close(self) -> None:
        with self._lock.own:
            client, self._held = self._held, None
        if client is not None:
            self._disconnect(client)

    # How

    def publish(self, name: str, body: Body) -> ObjectInfo:
        """Create `name` from `body`; whose it is when it turns out to be there is settled by its mark.

        What the upload limit raises is raised as it is.
        """
        mark = secrets.token_hex(16)

        def put(client: Client, tries: _Tries) -> Created | None:
            body.seek(0)
            body.moved_at = 0.0
            body.pace, body.sending = self.pace, not self.reads_first
            try:
                return self._put(client, name, body, mark)
            except Exception:
                if body.refused is None:
                    raise
                if self.one_line:
                    self._drop(client)
                return None  # no other try
            finally:
                tries.moved_at = body.moved_at

        tries = _Tries()
        try:
            made = self._call(put, tries)
        except Conflict:
            # An answer that was lost, or a client that sends again unasked, meets its own object.
            if not self._is_own(name, body, mark, lost_an_answer=tries.failures > 0):
                raise
            made = Created()
        if made is None:
            assert body.refused is not None
            raise body.refused
        if made.modified is None:
            return self.info(name)
        proved = body.crc32 if made.proved else None
        return ObjectInfo(name=name, size=body.size, modified=made.modified, checksum=proved)

    def _is_own(self, name: str, body: Body, mark: str, *, lost_an_answer: bool) -> bool:
        try:
            stored = self._stored(name)
            if stored.mark == "":  # a cut within an answer's headers passes for their end: look once more
                stored = self._stored(name)
            if stored.mark is not None:
                return stored.mark == mark
            return lost_an_answer and self.checksum(name) == (body.size, body.crc32)
        except NotFound:
            return False  # somebody's, and gone meanwhile

    def _stored(self, name: str) -> Stored:
        return self._call(lambda client, _: self._head(client, name))

    def _bytes(self, name: str, offset: int, length: int) -> bytes:
        def read(client: Client, tries: _Tries) -> bytes:
            come = BytesIO()  # pieces that were joined at the end would be in memory twice
            with closing(self._read(client, name, offset, length)) as coming:
                for piece in coming:
                    tries.moved_at = time.monotonic()
                    come.write(piece)
            if come.tell() > length:
                raise failures.unexpected(self.location, "it sent more than it was asked for")
            return come.getvalue()

        return self._call(read)

    def _call(self, request: Callable[[Client, _Tries], Answer], tries: _Tries | None = None) -> Answer:
        """What `request` gives, in as many tries as the patience allows. Our errors alone."""
        tries = tries or _Tries()

        def once() -> Answer:
            tries.begin()
            client = None
            try:
                with unlogged():
                    client = self._client()
                    return request(client, tries)
            except Exception as error:
                ours = error if isinstance(error, Error) else self._failure(error)
                if client is not None and self.one_line and isinstance(ours, StorageFailed) and ours.retryable:
                    self._drop(client)
                if ours is error:
                    raise
                raise ours from None  # the client's own words may hold secrets

        return Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, StorageFailed) and error.retryable),
            wait=tries.wait,
            stop=tries.is_over,
            reraise=True,
        )(once)

    def _client(self) -> Client:
        with self._lock.own:
            if self._held is None:
                self._held = self._connect()
            return self._held

    def _drop(self, client: Client) -> None:
        with self._lock.own:
            if self._held is not client:
                return  # another thread has done it
            self._held = None
        self._disconnect(client)

    def _after_fork(self) -> None:
        # The parent's connections are the parent's: they are kept, unused, so that nothing closes them.
        if self._held is not None:
            inherited.append(self._held)
            self._held = None


class _Tries:
    """The tries of one call: how long it may go on, and when the next one comes."""

    def __init__(self) -> None:
        self.failures = 0
        self.moved_at = 0.0  # when bytes last moved in this try
        self._began = 0.0
        self._waited = 0.0  # since the first failure, with nothing moving
        self._jitter = wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)

    def begin(self) -> None:
        self._began = time.monotonic()
        self.moved_at = 0.0

    def wait(self, state: RetryCallState) -> float:
        """Seconds until the next try. tenacity asks for it once after each failure, before it asks `is_over`."""
        if self.failures:  # what came before the first failure is not counted
            self._waited += time.monotonic() - max(self._began, self.moved_at)
        self.failures += 1
        error = state.outcome.exception() if state.outcome else None
        after = error.after if isinstance(error, failures.Throttled) else 0.0
        wait = after + self._jitter(state)
        self._waited += wait
        return wait

    def is_over(self, _: RetryCallState) -> bool:
        """Whether the next try would begin after the patience's end."""
        return self._waited > PATIENCE_S


class _RemoteUpload(Upload):
    def __init__(self, storage: RemoteStorage[Any]) -> None:
        self._storage = storage
        self._body = Body()

    def write(self, data: Buffer) -> None:
        try:
            self._body.write(data)
        except OSError as error:
            raise StorageFailed(
                f"The folder for temporary files cannot take what is to be sent: {error.strerror}.",
                kind="full",
                remedy="Free some space on this computer's own disk, or set TMPDIR to a folder that has some.",
                location=self._storage.location,
            ) from error

    def publish(self, name: str) -> ObjectInfo:
        info = self._storage.publish(checked(name), self._body)
        self._body.close()
        return info

    def discard(self) -> None:
        self._body.close()


_UNASKED = StorageFailed("not asked yet")
_remotes: WeakSet[RemoteStorage[Any]] = WeakSet()
inherited: list[object] = []  # what `_after_fork` keeps


def _forked() -> None:
    for storage in list(_remotes):
        storage._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
