"""A line that counts the HTTP requests that go up it. It is slow: nothing is timed through it."""

import re
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

REQUEST = re.compile(rb"(?:GET|PUT|POST|HEAD|DELETE) [!-~]+ HTTP/1\.1\r\n")  # a body may come just before it
PIECE = 1 << 16
LONGEST = 8192  # bytes of a request's first line


class Counting:
    """Listens on a free port and passes on to `host`:`port`. A body that looks like a request would count as one.

    With `tls`, a server's certificate and key, it speaks for that server and speaks TLS with it.
    """

    def __init__(self, host: str, port: int, *, tls: tuple[Path, Path] | None = None) -> None:
        self._server = (host, port)
        self._near = self._far = None
        if tls is not None:
            self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._near.load_cert_chain(*tls)
            self._far = ssl.create_default_context(cafile=tls[0])
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.requests = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with suppress(OSError):
            far = socket.create_connection(self._server)
            if self._near is not None and self._far is not None:
                near = self._near.wrap_socket(near, server_side=True)
                far = self._far.wrap_socket(far, server_hostname=self._server[0])
            threading.Thread(target=self._pass_on, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(far, near, False), daemon=True).start()

    def _pass_on(self, here: socket.socket, there: socket.socket, up: bool) -> None:
        rest = b""
        try:
            while piece := here.recv(PIECE):
                if up:
                    rest = self._count(rest + piece)
                there.sendall(piece)
            there.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one of them went

    def _count(self, data: bytes) -> bytes:
        """Count the requests that are whole in it; what may be the beginning of another."""
        end = 0
        for found in REQUEST.finditer(data):
            with self._lock:
                self.requests += 1
            end = found.end()
        return data[max(end, len(data) - LONGEST) :]
