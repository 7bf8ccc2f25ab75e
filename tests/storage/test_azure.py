"""AzureStorage on Azurite."""

from __future__ import annotations

import base64
import hmac
import logging
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import quote

import pytest

from pharmabackup.errors import Conflict, InvalidInput, NotFound, StorageFailed
from pharmabackup.storage import azure as module
from pharmabackup.storage import connect
from pharmabackup.testing.storage import StorageConformance
from pharmabackup.testing.storage_faults import StorageFaults
from tests.servers import azure
from tests.servers.azure import fresh


class TestAzurite(StorageConformance):
    rounds = 10
    kills = 4

    @pytest.fixture(autouse=True)
    def place(self, azurite):
        self.options = azurite.options

    def make(self):
        self.url = fresh()
        return connect(self.url, storage_options=self.options, create=True)

    def reopen(self):
        return partial(connect, self.url, storage_options=self.options)


class TestAzuriteBehindALine(StorageFaults):
    @pytest.fixture(autouse=True)
    def place(self, azurite):
        self.server = ("127.0.0.1", azurite.port)
        self.options = azurite.options

    def make(self, port):
        url = f"http://127.0.0.1:{port}/{azure.ACCOUNT}"
        return connect(fresh(), storage_options=self.options | {"account_url": url})


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
def storage(azurite, connected):
    return connected(azurite.options)


def attempts(storage):
    return (
        lambda: storage.get("a", limit=1),
        lambda: storage.info("a"),
        lambda: list(storage.list("")),
        lambda: storage.put_new("a", b"x"),
    )


def sas(until: datetime, permissions: str = "rwdlac") -> str:
    """An account's signature: https://learn.microsoft.com/rest/api/storageservices/create-account-sas"""
    end = until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = [azure.ACCOUNT, permissions, "b", "sco", "", end, "", "", module.VERSION, "", ""]
    signature = hmac.digest(base64.b64decode(azure.KEY), "\n".join(fields).encode(), "sha256")
    query = {"sv": module.VERSION, "ss": "b", "srt": "sco", "sp": permissions, "se": end}
    return (
        "&".join(f"{name}={quote(value)}" for name, value in query.items())
        + "&sig="
        + quote(base64.b64encode(signature).decode(), safe="")
    )


def with_sas(azurite, text: str):
    return {"account_url": azurite.options["account_url"], "account_name": azure.ACCOUNT, "sas_token": text}


def test_a_wrong_key_is_said_to_be_wrong(azurite, connected):
    storage = connected(azurite.options | {"account_key": base64.b64encode(b"geheim").decode()})
    for attempt in attempts(storage):
        with pytest.raises(StorageFailed) as caught:
            attempt()
        assert caught.value.kind == "storage-denied" and not caught.value.retryable
    assert isinstance(storage.delete(["a"])["a"], StorageFailed)


def test_a_signature_of_its_own_is_enough_and_no_log_shows_it(azurite, caplog, connected):
    token = sas(datetime.now(UTC) + timedelta(hours=1))
    with caplog.at_level(logging.DEBUG):
        storage = connected(with_sas(azurite, "?" + token))
        storage.put_new("a", b"x")
        assert storage.get("a", limit=1) == b"x"
        assert [item.name for item in storage.list("")] == ["a"]
        assert storage.delete(["a"]) == {"a": None}
    assert token[-20:] not in caplog.text and "sig=" not in caplog.text


def test_a_signature_that_has_expired_is_said_to_have(azurite, connected):
    storage = connected(with_sas(azurite, sas(datetime.now(UTC) - timedelta(hours=1))))
    with pytest.raises(StorageFailed, match="expired") as caught:
        storage.get("a", limit=1)
    assert caught.value.kind == "storage-denied"


def test_a_signature_that_may_not_delete_may_write(azurite, connected):
    storage = connected(with_sas(azurite, sas(datetime.now(UTC) + timedelta(hours=1), "rlac")))
    storage.put_new("a", b"x")
    assert storage.delete(["a"])["a"].kind == "storage-denied"
    assert storage.get("a", limit=1) == b"x"


def test_a_connection_string_says_it_all(azurite, connected):
    said = ";".join(
        f"{name}={value}"
        for name, value in {
            "DefaultEndpointsProtocol": "http",
            "AccountName": azure.ACCOUNT,
            "AccountKey": azure.KEY,
            "BlobEndpoint": azurite.options["account_url"],
        }.items()
    )
    storage = connected({"connection_string": said})
    storage.put_new("a", b"x")
    assert storage.get("a", limit=1) == b"x"


def test_credentials_from_the_environment(azurite, monkeypatch, connected):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", azure.ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure.KEY)
    storage = connected({"account_url": azurite.options["account_url"]})
    storage.put_new("a", b"x")
    assert storage.get("a", limit=1) == b"x"


def test_a_container_that_is_not_there_is_no_empty_storage(azurite, connected):
    storage = connected(azurite.options, "azure://nowhere/x")
    for attempt in attempts(storage):
        with pytest.raises(StorageFailed, match="no such container"):
            attempt()


def test_what_arrives_changed_is_not_stored(storage, monkeypatch):
    monkeypatch.setattr(module, "pieces", lambda body: iter([b"y"]))  # after its MD5 was taken
    with pytest.raises(StorageFailed):
        storage.put_new("a", b"x")
    assert list(storage.list("")) == []


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


def test_a_listing_of_several_pages(storage, monkeypatch):
    for number in range(7):
        storage.put_new(f"a/{number}", b"x")
    real = type(storage)._ask
    asked = []

    def few(self, client, method, url, **how):
        if "query" in how:
            how["query"] = how["query"] | {"maxresults": "3"}
            asked.append(how["query"].get("marker"))
        return real(self, client, method, url, **how)

    monkeypatch.setattr(type(storage), "_ask", few)
    assert sorted(item.name for item in storage.list("")) == [f"a/{number}" for number in range(7)]
    assert len(asked) == 3 and asked[0] is None


def test_what_lies_beside_and_what_others_put_there_is_not_listed(azurite, storage):
    storage.put_new("a/b", b"x")
    below = storage.location.removeprefix("azure://")
    for key in (f"{below}-2/a/b", f"{below}/README.txt", f"{below}/a/B"):
        azurite.ask("PUT", key, headers={"x-ms-blob-type": "BlockBlob", "Content-Length": "0"}, good=(201,))
    assert [item.name for item in storage.list("")] == ["a/b"]
    with pytest.raises(NotFound):
        storage.get("b", limit=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "account is missing"),
        ({"account_name": "a", "account_key": "geheim!"}, "account_key"),
        ({"account_name": "a", "client_id": "geheim"}, "some are missing"),
        ({"account_url": "geheim"}, "no URL"),
        ({"sekret": "geheim"}, "no option sekret"),
    ],
)
def test_options_are_checked(options, match, monkeypatch):
    for name in module.FROM_ENVIRONMENT.values():
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidInput, match=match) as caught:
        connect("azure://container/x", storage_options=options)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["azure://", "azure:///x", "az://C/x", "abfs://c/x?sig=geheim", "az://c@elsewhere/x"])
def test_urls_are_checked(url):
    with pytest.raises(InvalidInput) as caught:
        connect(url, storage_options={"account_name": "a", "account_key": "aaaa"})
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("abfs://files@myaccount.dfs.core.windows.net/x", "https://myaccount.blob.core.windows.net"),
        ("az://files@myaccount.blob.core.windows.net/x", "https://myaccount.blob.core.windows.net"),
    ],
)
def test_an_account_may_stand_in_the_url(url, base):
    storage = connect(url, storage_options={"sas_token": "x"})
    assert storage._base == base and storage.location == "azure://files/x"
