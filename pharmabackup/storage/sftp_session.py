"""An SSH connection with the event loop that asyncssh needs, in a thread of its own; and which hosts are known."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import asyncssh

from pharmabackup.errors import InvalidInput
from pharmabackup.storage import remote

CHANNELS = 4  # in each, no more than a window of 2 MiB is on its way for a round trip; OpenSSH allows ten
SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"

T = TypeVar("T")
LoggedIn = tuple[asyncssh.SSHClientConnection, asyncssh.SFTPClient]


class Session:
    """One connection, and the event loop that it lives in."""

    def __init__(self, log_in: Callable[[], Awaitable[LoggedIn]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="pharmabackup-sftp", daemon=True)
        self._thread.start()
        self._connection: asyncssh.SSHClientConnection | None = None
        try:
            future = self.submit(log_in)
            # It has its own limit for all but the last step.
            self._connection, self.sftp = self.wait(future, 2 * remote.CONNECT_S + 3 * remote.SILENCE_S)
        except BaseException:
            self.close()
            raise
        self.server = str(self._connection.get_extra_info("server_version", ""))
        self._channels = [self.sftp]
        self._busy = Counter[asyncssh.SFTPClient]()
        self._more = CHANNELS - 1  # that may be opened

    def submit(self, work: Callable[[], Awaitable[T]]) -> Future[T]:
        """`work` is called in the loop: where that has ended, it is not begun."""
        with self._lock:
            if self._closed:
                raise ConnectionResetError
            return asyncio.run_coroutine_threadsafe(_done(work), self._loop)

    def wait(self, future: Future[T], seconds: float | None = None) -> T:
        """TimeoutError when nothing comes."""
        try:
            return future.result(remote.SILENCE_S if seconds is None else seconds)
        except TimeoutError:
            future.cancel()
            raise

    def do(self, work: Callable[[], Awaitable[T]], steps: int = 1) -> T:
        """`steps`: how many times it waits for the server."""
        return self.wait(self.submit(work), steps * remote.SILENCE_S)

    @contextmanager
    def channel(self) -> Iterator[asyncssh.SFTPClient]:
        """One for a transfer: a free one, a new one, or the least busy where the server gives no more."""
        with self._lock:
            chosen = min(self._channels, key=lambda one: self._busy[one])
            opens = self._busy[chosen] > 0 and self._more > 0
            self._more -= opens
        if opens:
            assert self._connection is not None
            try:
                chosen = self.do(self._connection.start_sftp_client, 3)
            except (asyncssh.ChannelOpenError, asyncssh.SFTPError, TimeoutError):
                self._more = 0
            else:
                self._channels.append(chosen)
        with self._lock:
            self._busy[chosen] += 1
        try:
            yield chosen
        finally:
            with self._lock:
                self._busy[chosen] -= 1

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            with suppress(Exception):
                await asyncio.wait_for(self._connection.wait_closed(), remote.SILENCE_S)
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


async def _done(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def known_hosts(given: str | None, configured: object) -> asyncssh.SSHKnownHosts:
    """What is known of hosts' keys. A configuration that wants nothing checked is not followed."""
    if given:
        paths = [given]
    elif isinstance(configured, list) and configured:
        paths = [str(path) for path in configured]
    else:
        paths = [str(Path("~/.ssh/known_hosts").expanduser()), SYSTEM_KNOWN_HOSTS]
    lines: list[str] = []
    for path in paths:
        try:
            lines.append(Path(path).expanduser().read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            if given:
                raise InvalidInput(
                    "There is no file of that name for known_hosts.", remedy="Check known_hosts in storage_options."
                ) from None
    return asyncssh.import_known_hosts("\n".join(lines))
