"""A stand-in for Microsoft Graph on this machine: it gives the answers that Graph's documentation describes.

It is ours, not Microsoft's: it holds one drive in memory, and shows what the adapter makes of documented answers, not
that Graph gives them. Sources: driveItem (get, children, content, createUploadSession, delete), "Error resource type"
and "Throttling" of https://learn.microsoft.com/graph.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, DRIVE, SITE = "a token of this test", "b!drive", "contoso.sharepoint.com,site,web"
PAGE = 200  # children in one answer


@dataclass
class Drive:
    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # path: what it holds, and since when
    sessions: dict[str, tuple[str, bytearray]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, target, Authorization
    lock: threading.RLock = field(default_factory=threading.RLock)
    port: int = 0

    @property
    def options(self) -> dict[str, object]:
        return {"token": TOKEN, "endpoint_url": f"http://127.0.0.1:{self.port}/v1.0"}

    def item(self, path: str) -> dict[str, object] | None:
        name = path.rpartition("/")[2]
        if path in self.files:
            data, since = self.files[path]
            return {"name": name, "size": len(data), "lastModifiedDateTime": since, "file": {"mimeType": "x/y"}}
        if not path or any(each.startswith(f"{path}/") for each in self.files):
            return {
                "name": name,
                "size": 0,
                "lastModifiedDateTime": "2026-01-01T00:00:00Z",
                "folder": {"childCount": 1},
            }
        return None

    def create(self, path: str, data: bytes) -> dict[str, object] | None:
        """None when the name is in use."""
        if self.item(path) is not None:
            return None
        self.files[path] = (data, datetime.now(UTC).isoformat().replace("+00:00", "Z"))
        return self.item(path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    drive: Drive

    def log_message(self, *_: object) -> None:
        pass

    def say(self, status: int, what: object = None, **headers: str) -> None:
        body = b"" if what is None else what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.say(status, {"error": {"code": code, "message": "said for people", "innerError": {}}}, **headers)

    def answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return  # the line broke: what did not arrive whole is nothing
        target, shown = urlsplit(self.path), self.headers.get("authorization", "")
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        with self.drive.lock:
            self.drive.requests.append((self.command, self.path, shown))
            kind, _, rest = unquote(target.path).lstrip("/").partition("/")
            if kind == "upload":
                self.part(rest, body)
            elif kind == "download":
                self.bytes(rest)
            elif shown != f"Bearer {TOKEN}":
                self.refuse(401, "InvalidAuthenticationToken")
            else:
                self.of_graph(rest, query, body)

    do_GET = do_PUT = do_POST = do_DELETE = answer

    def of_graph(self, path: str, query: dict[str, str], body: bytes) -> None:
        here = f"http://{self.headers['host']}"
        if path == "sites/contoso.sharepoint.com:/sites/pharmacy":
            return self.say(200, {"id": SITE})
        if path == f"sites/{SITE}/drives":
            return self.say(200, {"value": [{"id": "b!other", "name": "Pages"}, {"id": DRIVE, "name": "Documents"}]})
        if not path.startswith(f"drives/{DRIVE}"):
            return self.refuse(404, "itemNotFound")
        rest = path.removeprefix(f"drives/{DRIVE}")
        if not rest:
            return self.say(200, {"id": DRIVE})
        where, _, what = rest.removeprefix("/root").removeprefix(":/").partition(":/")
        if rest == "/root/children":
            where, what = "", "children"
        item = self.drive.item(where)
        if what == "content" and self.command == "PUT":
            self.created(where, body, query.get("@microsoft.graph.conflictBehavior"))
        elif what == "createUploadSession":
            if json.loads(body)["item"]["@microsoft.graph.conflictBehavior"] != "fail" or item is not None:
                return self.refuse(409, "nameAlreadyExists")
            session = secrets.token_hex(8)
            self.drive.sessions[session] = (where, bytearray())
            self.say(
                200, {"uploadUrl": f"{here}/upload/{session}?tempauth=geheim", "expirationDateTime": "2027-01-01"}
            )
        elif item is None:
            self.refuse(404, "itemNotFound")
        elif what == "content":
            link = secrets.token_hex(8)
            self.drive.links[link] = where
            self.say(302, Location=f"{here}/download/{link}?tempauth=geheim")
        elif what == "children":
            self.children(where, int(query.get("$skiptoken", 0)), f"{here}{urlsplit(self.path).path}")
        elif self.command == "DELETE":
            for each in [each for each in self.drive.files if each == where or each.startswith(f"{where}/")]:
                del self.drive.files[each]
            self.say(204)
        else:
            self.say(200, item)
        return None

    def children(self, where: str, skip: int, link: str) -> None:
        below = f"{where}/" if where else ""
        names = {each.removeprefix(below).split("/")[0] for each in self.drive.files if each.startswith(below)}
        page = sorted(names)[skip : skip + PAGE]
        more = {"@odata.nextLink": f"{link}?$skiptoken={skip + PAGE}"} if skip + PAGE < len(names) else {}
        self.say(200, {"value": [self.drive.item(below + name) for name in page]} | more)

    def created(self, path: str, data: bytes, behaviour: str | None) -> None:
        if behaviour != "fail":
            self.drive.files.pop(path, None)  # what it does by default: it replaces
        item = self.drive.create(path, data)
        self.refuse(409, "nameAlreadyExists") if item is None else self.say(201, item)

    def part(self, session: str, body: bytes) -> None:
        if session not in self.drive.sessions:
            return self.refuse(404, "itemNotFound")
        if self.command == "DELETE":
            del self.drive.sessions[session]
            return self.say(204)
        path, got = self.drive.sessions[session]
        span, _, size = self.headers["content-range"].removeprefix("bytes ").partition("/")
        if int(span.split("-")[0]) != len(got):
            return self.refuse(416, "invalidRange")
        got += body
        if len(got) < int(size):
            return self.say(202, {"nextExpectedRanges": [f"{len(got)}-"]})
        del self.drive.sessions[session]
        return self.created(path, bytes(got), "fail")

    def bytes(self, link: str) -> None:
        path = self.drive.links.get(link, "")
        if path not in self.drive.files:
            return self.refuse(404, "itemNotFound")
        data, _ = self.drive.files[path]
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            return self.refuse(416, "invalidRange", Content_Range=f"bytes */{len(data)}")
        end = min(int(last) + 1, len(data))
        said = f"bytes {first}-{end - 1}/{len(data)}"
        return self.say(206, data[int(first) : end], Content_Range=said)


@contextmanager
def graph() -> Iterator[Drive]:
    drive = Drive()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"drive": drive})) as server:
        server.daemon_threads = True
        drive.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield drive
        finally:
            server.shutdown()
            thread.join()


def fresh() -> str:
    return f"onedrive://{DRIVE}/{secrets.token_hex(8)}/repository"
