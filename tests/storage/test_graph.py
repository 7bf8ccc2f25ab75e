"""GraphStorage on a stand-in that gives the answers which Microsoft Graph's documentation describes.

No server of Microsoft's was asked. See tests/servers/graph.py for what that shows and what it does not.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from functools import partial

import pytest

from pharmabackup.errors import Conflict, InvalidInput, NotFound, StorageFailed
from pharmabackup.storage import connect, remote
from pharmabackup.storage import graph as module
from pharmabackup.testing.storage import StorageConformance
from pharmabackup.testing.storage_faults import StorageFaults
from tests.servers import graph
from tests.servers.canned import answer, canned, in_turn
from tests.servers.graph import fresh


@pytest.fixture(scope="module")
def drive():
    with graph.graph() as drive:
        yield drive


class TestGraph(StorageConformance):
    rounds = 10
    kills = 4

    @pytest.fixture(autouse=True)
    def place(self, drive):
        self.options = drive.options

    def make(self):
        self.url = fresh()
        return connect(self.url, storage_options=self.options, create=True)

    def reopen(self):
        return partial(connect, self.url, storage_options=self.options)


class TestGraphBehindALine(StorageFaults):
    @pytest.fixture(autouse=True)
    def place(self, drive):
        self.server = ("127.0.0.1", drive.port)
        self.options = drive.options

    def make(self, port):
        return connect(fresh(), storage_options=self.options | {"endpoint_url": f"http://127.0.0.1:{port}/v1.0"})


@pytest.fixture
def connected():
    """`connect`, and all that it gave is closed in the end."""
    with ExitStack() as stack:

        def connected(options, url=""):
            storage = connect(url or fresh(), storage_options=options)
            stack.callback(storage.close)
            return storage

        yield connected


@pytest.fixture
def storage(drive, connected):
    return connected(drive.options)


def raised(error):
    if error is not None:
        raise error


def attempts(storage):
    return (
        lambda: storage.get("a", limit=1),
        lambda: storage.info("a"),
        lambda: list(storage.list("")),
        lambda: storage.put_new("a", b"x"),
        lambda: storage.put_new("a", bytes(5 << 20)),
        lambda: raised(storage.delete(["a"])["a"]),
    )


def test_a_large_object_is_sent_in_parts_and_shows_with_the_last(drive, storage, monkeypatch):
    monkeypatch.setattr(module, "PART", 2 << 20)
    drive.requests.clear()
    data = bytes(range(256)) * (5 << 12)
    storage.put_new("a", data)
    parts = [target for method, target, _ in drive.requests if method == "PUT"]
    assert len(parts) == 3 and all("/upload/" in target for target in parts)
    assert storage.get("a", limit=len(data)) == data
    with pytest.raises(Conflict):
        storage.put_new("a", data)


def test_a_session_that_fails_leaves_nothing(drive, storage, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", -1.0)
    real = type(storage)._ask
    sent = []

    def failing(self, client, method, url, **how):
        if "/upload/" in url and method == "PUT":
            sent.append(url)
            if len(sent) == 2:
                raise ConnectionResetError
        return real(self, client, method, url, **how)

    monkeypatch.setattr(module, "PART", 2 << 20)
    monkeypatch.setattr(type(storage), "_ask", failing)
    with pytest.raises(StorageFailed):
        storage.put_new("a", bytes(5 << 20))
    assert drive.sessions == {} and list(storage.list("")) == []


def test_a_library_of_a_site_is_found(drive, connected):
    url = "sharepoint://contoso.sharepoint.com/pharmacy/documents/backup"
    storage = connected(drive.options, url)
    storage.put_new("a/b", b"x")
    assert [item.name for item in storage.list("")] == ["a/b"]
    assert "backup/a/b" in drive.files


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("onedrive://b!none/x", "no such drive"),
        ("sharepoint://contoso.sharepoint.com/nobody/Documents", "no such site"),
        ("sharepoint://contoso.sharepoint.com/pharmacy/Nothing", "no such library"),
    ],
)
def test_a_drive_that_is_not_there_is_no_empty_storage(drive, connected, url, match):
    for attempt in attempts(connected(drive.options, url)):
        with pytest.raises(StorageFailed, match=match):
            attempt()


def test_a_token_that_is_not_taken_is_said_to_have_expired(drive, connected):
    for attempt in attempts(connected(drive.options | {"token": "geheim"})):
        with pytest.raises(StorageFailed, match="expired") as caught:
            attempt()
        assert caught.value.kind == "storage-denied" and not caught.value.retryable


def test_no_log_shows_what_opens_a_file_and_its_address_gets_no_token(drive, storage, caplog):
    drive.requests.clear()
    with caplog.at_level(logging.DEBUG):
        storage.put_new("a", bytes(5 << 20))
        assert storage.get_range("a", 0, 1) == b"\0"
    assert "geheim" not in caplog.text and graph.TOKEN not in caplog.text
    shown = {target.split("/")[1]: token for _, target, token in drive.requests}
    assert shown == {"v1.0": f"Bearer {graph.TOKEN}", "upload": "", "download": ""}


def test_an_object_of_an_own_lost_answer_is_ones_own(storage, monkeypatch):
    real = type(storage)._put
    tries = []

    def lost(self, client, name, body, mark):
        real(self, client, name, body, mark)
        if not tries:
            tries.append(name)
            raise ConnectionResetError

    monkeypatch.setattr(type(storage), "_put", lost)
    assert storage.put_new("a", b"x").size == 1
    with pytest.raises(Conflict):
        storage.put_new("a", b"x")


def test_what_others_put_there_is_not_listed(drive, storage):
    storage.put_new("a/b", b"x")
    folder = storage.location.removeprefix(f"onedrive://{graph.DRIVE}/")
    for path in (f"{folder}-2/a/b", f"{folder}/README.txt", f"{folder}/a/B", f"{folder}/Photos/a"):
        drive.create(path, b"x")
    assert [item.name for item in storage.list("")] == ["a/b"]
    with pytest.raises(NotFound):
        storage.get("b", limit=1)


@pytest.mark.parametrize("options", [{"sekret": "geheim"}, {"client_id": "geheim"}, {"endpoint_url": "geheim"}])
def test_options_are_checked(options):
    with pytest.raises(InvalidInput) as caught:
        connect("onedrive://drive/x", storage_options=options)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["onedrive://", "sharepoint://host/site", "onedrive://d/x?geheim", "onedrive://geheim@d"]
)
def test_urls_are_checked(url):
    with pytest.raises(InvalidInput) as caught:
        connect(url)
    assert "geheim" not in str(caught.value)


# Canned answers, for what the stand-in does not do


def refusal(code: str, status: int, **headers: str) -> bytes:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(status, more, json.dumps({"error": {"code": code, "message": "geheim"}}).encode())


@pytest.fixture(scope="module")
def server():
    with canned() as server:
        yield server


@pytest.fixture
def answered(server, connected, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    server.requests.clear()
    return connected({"token": "t", "endpoint_url": f"{server.url}/v1.0"}, "onedrive://d/p")


ITEM = {"name": "a", "size": 1, "lastModifiedDateTime": "2026-11-26T20:00:00Z", "file": {}}
MADE = answer(201, {}, json.dumps(ITEM).encode())


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("accessDenied", 403, "storage-denied"),
        ("quotaLimitReached", 507, "full"),
        ("quotaLimitReached", 403, "full"),
        ("insufficientStorage", 507, "full"),
    ],
)
def test_what_graph_refuses_is_said_at_once(server, answered, code, status, kind):
    server.respond = in_turn(refusal(code, status))
    with pytest.raises(StorageFailed) as caught:
        answered.put_new("a", b"x")
    assert caught.value.kind == kind and not caught.value.retryable
    assert "geheim" not in str(caught.value) and len(server.requests) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [("activityLimitReached", 429), ("serviceNotAvailable", 503), ("x", 509), ("resourceLocked", 423), ("x", 504)],
)
def test_what_passes_is_asked_again(server, answered, code, status):
    server.respond = in_turn(refusal(code, status, Retry_After="0"), MADE)
    assert answered.put_new("a", b"x").size == 1
    assert len(server.requests) == 2
    assert "conflictBehavior=fail" in server.requests[1].target


def test_a_storage_that_asks_for_an_hour_is_not_waited_for(server, answered):
    server.respond = in_turn(refusal("activityLimitReached", 429, Retry_After="3600"))
    with pytest.raises(StorageFailed) as caught:
        answered.get("a", limit=1)
    assert caught.value.kind == "throttled" and caught.value.after == 3600 and len(server.requests) == 1


def test_a_folder_that_two_make_at_once_is_no_conflict(server, answered):
    drive = answer(200, {}, b'{"id": "d"}')
    server.respond = in_turn(refusal("nameAlreadyExists", 409), refusal("itemNotFound", 404), drive, MADE)
    assert answered.put_new("a/b", b"x").size == 1
    assert [request.method for request in server.requests] == ["PUT", "GET", "GET", "PUT"]


def test_a_listing_that_goes_on_elsewhere_gets_no_token(server, answered):
    page = {"value": [ITEM], "@odata.nextLink": "http://elsewhere.invalid/v1.0/x"}
    server.respond = in_turn(answer(200, {}, json.dumps(page).encode()))
    with pytest.raises(StorageFailed, match="another address"):
        list(answered.list(""))
