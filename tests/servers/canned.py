"""A server on this machine that gives the answers it is told: what services document and no server here says."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

REASONS = {200: "OK", 201: "Created", 206: "Partial Content", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"}


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes


@dataclass
class Canned:
    """`respond` may be set at any time."""

    respond: Callable[[Request], bytes]
    port: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answer(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """An answer as it goes over the line, the only one on its connection. `headers` stand over the two of its own."""
    lines = {"Content-Length": str(len(body)), "Connection": "close"} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n{head}\r\n".encode() + body


@contextmanager
def canned(respond: Callable[[Request], bytes] = lambda _: b"") -> Iterator[Canned]:
    """Answers each request with the bytes that `respond` gives for it, then ends the connection without a reset."""
    said = Canned(respond)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            method, target, _ = self.rfile.readline().decode().split(" ")
            headers = {}
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers.get("content-length", 0)))
            request = Request(method, target, headers, body)
            said.requests.append(request)
            self.wfile.write(said.respond(request))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        said.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield said
        finally:
            server.shutdown()
            thread.join()


def in_turn(*answers: bytes) -> Callable[[Request], bytes]:
    """The first answer to the first request, and so on; the last one to all that follow."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]
