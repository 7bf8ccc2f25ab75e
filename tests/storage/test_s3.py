"""S3Storage on SeaweedFS and on moto."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial

import botocore.httpsession
import pytest

import pharmabackup as pb
from pharmabackup.errors import Conflict, InvalidInput, NotFound, StorageFailed
from pharmabackup.storage import connect
from pharmabackup.testing.storage import StorageConformance
from pharmabackup.testing.storage_faults import StorageFaults
from tests.servers import s3
from tests.servers.webdav import certificate


def fresh() -> str:
    """A place that nobody has used."""
    return f"s3://{s3.BUCKET}/{secrets.token_hex(8)}/repository"


class _OnServer(StorageConformance):
    rounds = 10
    kills = 4

    def make(self):
        self.url = fresh()
        return connect(self.url, storage_options=self.server.options, create=True)

    def reopen(self):
        return partial(connect, self.url, storage_options=self.server.options)


class TestSeaweedFS(_OnServer):
    @pytest.fixture(autouse=True)
    def place(self, seaweedfs):
        self.server = seaweedfs


class TestMoto(_OnServer):
    # moto looks whether a name is there, and then writes, without a lock: two may win. SeaweedFS is held to both.
    test_of_many_threads_one_wins = None
    test_of_many_processes_one_wins = None

    @pytest.fixture(autouse=True)
    def place(self, moto):
        self.server = moto


# What botocore makes of an answer that was cut within a date, or cannot be parsed: test_s3_answers.py.
@pytest.mark.filterwarnings("ignore:tzname G:dateutil.parser.UnknownTimezoneWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
class _BehindALine(StorageFaults):
    @property
    def server(self):
        return ("127.0.0.1", self.real.port)

    def make(self, port):
        return connect(fresh(), storage_options=self.real.options | {"endpoint_url": f"http://127.0.0.1:{port}"})


class TestSeaweedFSBehindALine(_BehindALine):
    @pytest.fixture(autouse=True)
    def place(self, seaweedfs):
        self.real = seaweedfs


@pytest.fixture
def options(seaweedfs):
    return seaweedfs.options


@pytest.fixture
def storage(options):
    storage = connect(fresh(), storage_options=options)
    yield storage
    storage.close()


# What goes wrong


@pytest.mark.parametrize("wrong", [{"secret": "geheim"}, {"key": "nobody"}])
def test_wrong_credentials_are_said_to_be_wrong(options, wrong):
    storage = connect(fresh(), storage_options=options | wrong)
    for attempt in (
        lambda: storage.get("a", limit=1),
        lambda: storage.info("a"),
        lambda: list(storage.list("")),
        lambda: storage.put_new("a", b"x"),
        lambda: storage.put_new("a", bytes(20 << 20)),
    ):
        with pytest.raises(StorageFailed) as caught:
            attempt()
        assert caught.value.kind == "storage-denied" and not caught.value.retryable
        assert "geheim" not in str(caught.value) and "geheim" not in repr(caught.value.__cause__)
    assert storage.delete(["a"])["a"].kind == "storage-denied"


def test_a_key_that_may_only_read(storage, options):
    storage.put_new("a", b"x")
    url = storage.location
    reader = connect(url, storage_options=options | {"key": s3.READER, "secret": s3.READER_SECRET})
    assert reader.get("a", limit=1) == b"x"
    with pytest.raises(StorageFailed) as caught:
        reader.put_new("b", b"x")
    assert caught.value.kind == "storage-denied"
    assert reader.delete(["a"])["a"].kind == "storage-denied"
    assert storage.get("a", limit=1) == b"x"


@pytest.mark.parametrize("server", ["seaweedfs", "moto"])
def test_a_bucket_that_is_not_there_is_not_an_absent_object(request, server):
    storage = connect("s3://no-such-bucket/x", storage_options=request.getfixturevalue(server).options)
    attempts = [lambda: storage.get("a", limit=1), lambda: storage.info("a"), lambda: list(storage.list(""))]
    if server == "moto":  # SeaweedFS makes the bucket when one puts into it
        attempts.append(lambda: storage.put_new("a", b"x"))
    for attempt in attempts:
        with pytest.raises(StorageFailed, match="no such bucket"):
            attempt()


def test_a_host_that_is_not_known(options):
    storage = connect(fresh(), storage_options=options | {"endpoint_url": "http://s3.invalid"})
    with pytest.raises(StorageFailed, match="host is not known"):
        storage.get("a", limit=1)


def test_a_port_on_which_nothing_listens(options, hasty):
    storage = connect(fresh(), storage_options=options | {"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(StorageFailed, match="nothing listens") as caught:
        storage.get("a", limit=1)
    assert caught.value.kind == "unreachable" and caught.value.retryable


def test_a_server_that_speaks_no_tls(seaweedfs, options):
    storage = connect(fresh(), storage_options=options | {"endpoint_url": f"https://127.0.0.1:{seaweedfs.port}"})
    with pytest.raises(StorageFailed, match="TLS") as caught:
        storage.get("a", limit=1)
    assert caught.value.kind == "unreachable" and not caught.value.retryable


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_over_tls_that_it_trusts_a_body_is_not_signed_as_well(tmp_path, monkeypatch, hasty):
    """The server compares its checksum all the same, and elsewhere everything is signed."""
    signed, real = [], botocore.httpsession.URLLib3Session.send

    def send(self, prepared):
        if prepared.method == "PUT":
            signed.append(prepared.headers["X-Amz-Content-SHA256"].decode())
        return real(self, prepared)

    monkeypatch.setattr(botocore.httpsession.URLLib3Session, "send", send)
    content = os.urandom(3 << 20)
    with s3.seaweedfs(tmp_path, certificate=certificate(tmp_path)) as server:
        stranger = {name: value for name, value in server.options.items() if name != "ca_bundle"}
        for told, as_signed in (
            (server.options, "UNSIGNED-PAYLOAD"),
            (server.options | {"sign_content": "true"}, hashlib.sha256(content).hexdigest()),
            (stranger | {"verify": "false"}, hashlib.sha256(content).hexdigest()),
        ):
            storage = connect(fresh(), storage_options=told, create=True)
            signed.clear()
            storage.put_new("a", content)
            assert set(signed) == {as_signed}
            assert storage.get("a", limit=len(content)) == content
            with monkeypatch.context() as changed, pytest.raises(StorageFailed):
                changed.setattr("pharmabackup.storage.body.crc32", lambda *_: 1)
                storage.put_new("b", content)
            storage.close()
        storage = connect(fresh(), storage_options=stranger)
        with pytest.raises(StorageFailed, match="certificate is not trusted"):
            storage.get("a", limit=1)


def test_an_address_without_tls_from_the_environment_is_told_by_the_client(options, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", options["endpoint_url"])
    told = {name: value for name, value in options.items() if name != "endpoint_url"}
    storage = connect(fresh(), storage_options=told)
    client = storage._connect()
    assert client.meta.config.s3["payload_signing_enabled"]
    client.close()
    storage.close()


def test_no_credentials(options, monkeypatch, tmp_path):
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    storage = connect(fresh(), storage_options={"endpoint_url": options["endpoint_url"]})
    with pytest.raises(StorageFailed) as caught:
        storage.get("a", limit=1)
    assert caught.value.kind == "storage-denied" and "storage_options" in caught.value.remedy


def test_credentials_from_the_environment(options, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    storage = connect(fresh(), storage_options={"endpoint_url": options["endpoint_url"]})
    storage.put_new("a", b"x")
    assert storage.get("a", limit=1) == b"x"


def test_a_clock_that_is_wrong(storage, monkeypatch):
    import botocore.auth

    real = botocore.auth.get_current_datetime
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a: real(*a).replace(year=2001))
    with pytest.raises(StorageFailed) as caught:
        storage.get("a", limit=1)
    assert caught.value.kind == "clock"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sekret": "hunter2"}, "no option sekret.*endpoint_url"),
        ({"key": "hunter2"}, "one is missing"),
        ({"anon": "hunter2"}, "switch"),
        ({"region": 1}, "no text"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(InvalidInput, match=match) as caught:
        connect("s3://bucket/x", storage_options=options)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///x", "s3://bucket/x?a=b", "s3://hunter2@bucket/x", "s3://k:hunter2@b/x"]
)
def test_urls_are_checked(url):
    with pytest.raises(InvalidInput) as caught:
        connect(url)
    assert "hunter2" not in str(caught.value)


# Promises


def test_the_server_keeps_the_checksum(storage):
    storage.put_new("a", b"hello")
    stored = storage._stored("a")
    assert stored.crc32 == 0x3610A686 or stored.crc32 is None
    assert storage.checksum("a") == (5, 0x3610A686)


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
    assert tries == ["a"]
    with pytest.raises(Conflict):
        storage.put_new("a", b"x")


def test_what_lies_beside_and_what_others_put_there_is_not_listed(seaweedfs, storage):
    storage.put_new("a/b", b"x")
    client = seaweedfs.client()
    below = storage.location.removeprefix(f"s3://{s3.BUCKET}/")
    for key in (f"{below}-2/a/b", f"{below}/README.txt", f"{below}/a/B"):
        client.put_object(Bucket=s3.BUCKET, Key=key, Body=b"x")
    client.close()
    assert [item.name for item in storage.list("")] == ["a/b"]
    with pytest.raises(NotFound):
        storage.get("b", limit=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_connections_of_its_own(options):
    # In a process of its own: pytest's has threads.
    code = f"""
import hashlib
import os
from pharmabackup.storage import connect
storage = connect({fresh()!r}, storage_options={options!r})
storage.put_new("a", b"x" * 100_000)
held = storage._held
for _ in range(3):
    if not (child := os.fork()):
        ok = storage._held is None and storage.get("a", limit=1 << 20) == b"x" * 100_000 and storage._held is not held
        storage.close()
        os._exit(0 if ok else 1)
    assert storage.get("a", limit=1 << 20) == b"x" * 100_000
    assert os.waitpid(child, 0)[1] == 0
assert storage._held is held
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_repository_from_first_backup_to_prune(options, tmp_path):
    url, who = fresh(), pb.Passphrase("correct horse battery staple")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(os.urandom(3 << 20))
    with pb.Repository.create(url, who, storage_options=options, state_dir=tmp_path / "state") as repo:
        repo.backup([pb.Files(folder, name="data")])
        (folder / "a").unlink()
        (folder / "b").write_bytes(os.urandom(1 << 20))
        repo.backup([pb.Files(folder, name="data")])
    with pb.Repository.open(url, who, storage_options=options, state_dir=tmp_path / "elsewhere") as repo:
        assert repo.check(read_data=1.0).findings == ()
        repo.restore(tmp_path / "restored")
        assert (tmp_path / "restored" / "data" / "b").read_bytes() == (folder / "b").read_bytes()
        repo.configure(forget_delay=timedelta(0))
        repo.apply(repo.propose_forget(snapshots=[repo.snapshots()[-1]]))
        time.sleep(1.1)  # S3 counts in seconds, and a forget takes effect after its own
        (gone,) = repo.propose_prune().snapshots
        assert gone.id == repo.snapshots()[-1].id
        repo.apply(repo.propose_prune())
        assert repo.check(read_data=1.0).findings == ()
