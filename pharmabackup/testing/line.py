"""A line that fails as it is told: what lies between a client and a server on this machine.

    with FaultyLine("127.0.0.1", port) as line:
        storage = connect(url, storage_options={"endpoint_url": f"http://127.0.0.1:{line.port}", ...})
        line.cut_after(up=1000)     # the next connection that sends breaks after 1000 bytes
        line.latency = 0.05         # each way, on every connection

It passes bytes on and knows nothing of what they mean, so it stands before any server that speaks over TCP. A client
that is told to go to another address by the server itself gets around it.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

PIECE = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, with a reset


class FaultyLine:
    """Listens on a free port and passes each connection on to `host`:`port`. Attributes may be set at any time.

    `latency`: seconds that bytes take, each way. `refusing`: new connections end at once, old ones are ended.
    `silent`: nothing is passed on any more, and nothing closed. `lossy`: the part of connections' pieces at which
    they break, 0.01 for one in a hundred. `resetting`: a broken connection ends with a reset; otherwise it just ends,
    which clients more easily take for an answer's end. `connections`, `up`, `down`: what there was so far, bytes.
    """

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self._server = (host, port)
        self._pick = random.Random(seed)
        self._lock = threading.Lock()
        self._cut_up: int | None = None
        self._cut_down: int | None = None
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.latency = 0.0
        self.refusing = False
        self.silent = False
        self.resetting = True
        self.lossy = 0.0
        self.connections = self.up = self.down = self.cuts = 0

    def cut_after(self, *, up: int | None = None, down: int | None = None) -> None:
        """Break a connection once, when that many more bytes have gone up (to the server) or come down."""
        with self._lock:
            self._cut_up, self._cut_down = up, down

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._closing = True
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="faulty-line", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            near, _ = self._listener.accept()
            if self.refusing:
                _reset(near)
                continue
            self.connections += 1
            self._start(self._pass_on, near)

    def _pass_on(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._server, timeout=10)
        except OSError:
            _reset(near)
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent bytes, as FTP sends, pass like others
        open_ends = {near: far, far: near}
        waiting: list[tuple[float, socket.socket, bytes]] = []  # due, where to, what
        try:
            while not self._closing and not self.refusing:
                due = waiting[0][0] - time.monotonic() if waiting else 0.05
                ready = select.select(list(open_ends), [], [], max(0.0, min(due, 0.05)))[0]
                if self.silent:
                    time.sleep(0.01)
                    continue
                for end in ready:
                    piece = end.recv(PIECE)
                    other = near if end is far else far
                    waiting.append((time.monotonic() + self.latency, other, piece))
                    if not piece:
                        del open_ends[end]
                while waiting and waiting[0][0] <= time.monotonic():
                    _, end, piece = waiting.pop(0)
                    if not piece:
                        end.shutdown(socket.SHUT_WR)
                        continue
                    sent = self._let_through(piece, up=end is far)
                    end.sendall(piece[:sent])
                    if sent < len(piece):
                        return
                if not open_ends and not waiting:
                    break
        except OSError:
            pass  # one of them went: so does the other
        finally:
            _reset(far)
            if self.resetting or self.refusing:
                _reset(near)
            else:
                near.close()

    def _let_through(self, piece: bytes, *, up: bool) -> int:
        """How many bytes of this piece pass before the connection breaks: all of them, if it does not."""
        with self._lock:
            left = self._cut_up if up else self._cut_down
            passes = len(piece)
            if left is not None:
                if left < passes:
                    passes, left = left, None
                else:
                    left -= passes
                if up:
                    self._cut_up = left
                else:
                    self._cut_down = left
            elif self.lossy and self._pick.random() < self.lossy:
                passes = self._pick.randrange(passes)
            self.cuts += passes < len(piece)
            if up:
                self.up += passes
            else:
                self.down += passes
            return passes


def _reset(end: socket.socket) -> None:
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        pass
    end.close()
