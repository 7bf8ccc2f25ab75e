"""AzureStorage's immutability policies and versions, on canned answers: Azurite has neither.

They are written by hand in the form that Microsoft documents ("Put Blob", "Set Blob Immutability Policy", "List
Blobs", "Get Container Properties"): they show what is asked and what is made of an answer, not that Azure gives it.
"""

from __future__ import annotations

import time
from email.utils import formatdate, parsedate_to_datetime

import pytest

from pharmabackup.errors import NotFound, Unsupported
from pharmabackup.storage import connect
from pharmabackup.storage.base import Version
from tests.servers.canned import answer, canned, in_turn

HOUR = 3600
MODIFIED = "Thu, 26 Nov 2026 19:00:00 GMT"
UNTIL = "x-ms-immutability-policy-until-date"
ABSENT = answer(404, {"x-ms-error-code": "BlobNotFound"})
IMMUTABLE = answer(409, {"x-ms-error-code": "BlobImmutableDueToPolicy"})


@pytest.fixture(scope="module")
def server():
    with canned() as server:
        yield server


@pytest.fixture
def azure(server):
    made = []

    def azure(**options):
        account = {"account_name": "a", "account_key": "aaaa", "account_url": server.url}
        made.append(connect("azure://container/p", storage_options=account | options))
        return made[-1]

    server.requests.clear()
    yield azure
    for storage in made:
        storage.close()


def seconds(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()


def version(name: str, number: int, *, current: bool = False, hour: int = 19) -> str:
    return (
        f"<Blob><Name>p/{name}</Name><VersionId>2026-11-26T{hour}:00:00.000000{number}Z</VersionId>"
        f"{'<IsCurrentVersion>true</IsCurrentVersion>' if current else ''}<Properties><Content-Length>{number}"
        f"</Content-Length><Last-Modified>Thu, 26 Nov 2026 {hour}:00:00 GMT</Last-Modified></Properties></Blob>"
    )


VERSION = Version(name="packs/a", id="2026-11-26T19:00:00.0000001Z", modified=1)


def listing(*blobs: str, more: str = "") -> bytes:
    said = f"<EnumerationResults><Blobs>{''.join(blobs)}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>"
    return answer(200, {}, said.encode())


def test_what_is_stored_is_locked_by_the_services_clock(server, azure):
    ahead = 500
    server.respond = in_turn(
        answer(200, {"Date": formatdate(time.time() + ahead, usegmt=True)}, listing().partition(b"\r\n\r\n")[2]),
        answer(201, {"Last-Modified": MODIFIED}),
        answer(201, {"Last-Modified": MODIFIED}),
    )
    storage = azure(immutable="1h")
    assert list(storage.list("")) == []
    storage.put_new("packs/a", b"x")
    storage.put_new("intents/a.0", b"x")
    _, locked, passing = server.requests
    assert seconds(locked.headers[UNTIL]) == pytest.approx(time.time() + ahead + 1.5 * HOUR, abs=60)
    assert locked.headers["x-ms-immutability-policy-mode"] == "Locked"
    assert UNTIL not in passing.headers


def test_a_lock_is_made_longer(server, azure):
    server.respond = in_turn(answer(200, {UNTIL: formatdate(time.time(), usegmt=True)}), answer(200))
    until = (int(time.time()) + 9 * HOUR) * 10**9
    assert azure(immutable="1h", lock_mode="unlocked").keep([VERSION], until=until - 1) == [None]
    looked, asked = server.requests  # such a policy could be made shorter
    assert looked.method == "HEAD"
    assert asked.method == "PUT" and "comp=immutabilityPolicies" in asked.target and "versionid=2026" in asked.target
    assert seconds(asked.headers[UNTIL]) * 10**9 == until
    assert asked.headers["x-ms-immutability-policy-mode"] == "Unlocked"


@pytest.mark.parametrize("hours", [10, 8])
def test_what_is_locked_for_longer_already_stays_so(server, azure, hours):
    later = formatdate(time.time() + hours * HOUR, usegmt=True)
    server.respond = in_turn(IMMUTABLE, answer(200, {UNTIL: later}))
    until = int((time.time() + 9 * HOUR) * 10**9)
    (error,) = azure(immutable="1h").keep([VERSION], until=until)
    assert error is None if hours > 9 else error.kind == "locked"


def test_what_is_not_there_cannot_be_kept(server, azure):
    storage = azure(immutable="1h")
    server.respond = in_turn(ABSENT)
    assert isinstance(storage.keep([VERSION], until=1)[0], NotFound)
    server.respond = in_turn(ABSENT)
    assert isinstance(storage.kept_until([VERSION])[0], NotFound)
    server.respond = in_turn(answer(200, {"Last-Modified": MODIFIED}))
    assert storage.kept_until([VERSION]) == [0]


@pytest.mark.parametrize("said", ["true", "false", None])
def test_whether_a_container_can_lock_is_asked(server, azure, said):
    head = {} if said is None else {"x-ms-immutable-storage-with-versioning-enabled": said}
    server.respond = in_turn(answer(200, head))
    storage = azure(immutable="1h")
    assert storage.can_lock() == (said == "true")


def test_what_was_there_at_a_time_is_read(server, azure):
    pages = [
        listing(version("packs/a", 1, hour=10), version("packs/a", 2, hour=12), more="next"),
        listing(version("packs/a", 3, hour=14, current=True), version("packs/b", 4, hour=14, current=True)),
    ]
    content = answer(206, {"Last-Modified": MODIFIED, "Content-Range": "bytes 0-1/2"}, b"ab")
    server.respond = in_turn(*pages, content)
    storage = azure(as_of="2026-11-26T13:00:00Z")
    assert [(info.name, info.size) for info in storage.list("")] == [("packs/a", 2)]
    assert storage.get_range("packs/a", 0, 2) == b"ab"
    assert [("marker=next" in request.target) for request in server.requests] == [False, True, False]
    assert "include=versions" in server.requests[0].target
    assert "versionid=2026-11-26T12%3A00%3A00.0000002Z" in server.requests[2].target
    with pytest.raises(NotFound):
        storage.get("packs/b", limit=9)
    with pytest.raises(Unsupported, match="as of"):
        storage.put_new("packs/c", b"x")


def test_what_is_older_than_the_versions_of_a_place_is_read_too(server, azure):
    """Versions were switched on later: the last object has none, and the others have."""
    old = version("packs/z", 4, hour=10, current=True)
    old = old.partition("<VersionId>")[0] + old.partition("</VersionId>")[2]
    content = answer(206, {"Last-Modified": MODIFIED, "Content-Range": "bytes 0-3/4"}, b"abcd")
    server.respond = in_turn(listing(version("packs/a", 1, hour=10, current=True), old), content)
    storage = azure(as_of="2026-11-26T13:00:00Z")
    assert [info.name for info in storage.list("")] == ["packs/a", "packs/z"]
    assert storage.get_range("packs/z", 0, 4) == b"abcd" and "versionid" not in server.requests[-1].target


def test_versions_are_told_and_let_go(server, azure):
    blobs = version("packs/a", 1), version("packs/a", 2), version("packs/b", 3, current=True)
    server.respond = in_turn(listing(*blobs))
    storage = azure()
    there = list(storage.versions("packs/"))
    assert [(each.name, each.size, each.newest) for each in there] == [
        ("packs/a", 1, False), ("packs/a", 2, False), ("packs/b", 3, True)
    ]  # fmt: skip
    server.requests.clear()
    storage.lanes = 1  # so that answers come in order
    server.respond = in_turn(answer(202), IMMUTABLE, ABSENT)
    gone, locked, missing = storage.clear(there)
    assert gone is None and missing is None and locked.kind == "locked"
    assert [request.target.partition("?")[2] for request in server.requests] == [
        f"versionid=2026-11-26T19%3A00%3A00.000000{number}Z" for number in (1, 2, 3)
    ]
