"""Failures within the shipped conformance suite show their values; a folder to store in; servers for the tests here.

Servers run once a session, however many files need them. In the nightly profile lines are cut at many more bytes.
"""

import os

import pytest

from pharmabackup.storage import remote
from pharmabackup.storage.local import LocalStorage
from pharmabackup.testing import storage_faults

if os.environ.get("PHARMABACKUP_PROFILE") == "nightly":
    storage_faults.StorageFaults.offsets = storage_faults.EVERYWHERE
    storage_faults.StorageFaults.small_offsets = tuple(range(600))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "repository"


@pytest.fixture
def storage(path):
    storage = LocalStorage.create(path)
    yield storage
    storage.close()


@pytest.fixture
def hasty(monkeypatch):
    """No waiting for what will not come."""
    for name, seconds in (("CONNECT_S", 1.0), ("SILENCE_S", 1.0), ("PATIENCE_S", 0.5)):
        monkeypatch.setattr(remote, name, seconds)


@pytest.fixture(autouse=True)
def _closed():
    """What a test leaves open is closed; otherwise a later one fails for its sockets."""
    yield
    for storage in list(remote._remotes):
        storage.close()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory):
    from tests.servers import s3

    with s3.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    from tests.servers import s3

    with s3.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory):
    from tests.servers import azure

    with azure.azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory):
    from tests.servers import gcs

    with gcs.fake_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def client(seaweedfs):
    """Of a bucket with versions and locks."""
    from tests.servers import s3

    client = seaweedfs.client()
    client.create_bucket(Bucket=s3.LOCKED, ObjectLockEnabledForBucket=True)
    yield client
    client.close()


@pytest.fixture
def options(seaweedfs, client):
    return seaweedfs.options


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(os.urandom(3 << 20))
    return folder
