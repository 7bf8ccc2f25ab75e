"""Which URL leads to which storage."""

from __future__ import annotations

import sys

import pytest

from pharmabackup.errors import InvalidInput, StorageFailed, Unsupported
from pharmabackup.storage import SCHEME, connect
from pharmabackup.storage.local import LocalStorage


def test_a_path(tmp_path):
    for place in (tmp_path, str(tmp_path)):
        storage = connect(place)
        assert isinstance(storage, LocalStorage)
        assert storage.location == str(tmp_path)


def test_only_create_makes_the_folder(tmp_path):
    with pytest.raises(StorageFailed):
        connect(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    connect(tmp_path / "new", create=True)
    assert (tmp_path / "new").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="paths of other systems")
@pytest.mark.parametrize("start", ["file://", "file://localhost", "FILE://"])
def test_a_file_url(tmp_path, start):
    (tmp_path / "a b#c").mkdir()
    assert connect(f"{start}{tmp_path}/a%20b#c").location == str(tmp_path / "a b#c")


@pytest.mark.skipif(sys.platform == "win32", reason="it is a share there")
def test_a_file_url_of_another_computer():
    with pytest.raises(InvalidInput, match="another computer, server"):
        connect("file://server/share")


@pytest.mark.parametrize("path", ["C:\\backup", "C:/backup", "D://backup", "\\\\server\\share", "/a/b", "a", "a:b"])
def test_no_scheme(path):
    assert SCHEME.match(path) is None


@pytest.mark.parametrize("url", ["nosuch://bucket", "zip://host/x", "simplecache::s3://bucket"])
def test_what_no_adapter_is_there_for(url):
    with pytest.raises(Unsupported) as caught:
        connect(url, create=True)
    assert caught.value.kind == "capability"


@pytest.mark.parametrize(
    ("url", "client", "extra"),
    [
        ("sftp://host/x", "asyncssh", "sftp"),
        ("smb://host/share", "smbprotocol", "smb"),
        ("webdav://host/x", "httpx", "webdav"),
        ("webdavs://host/x", "defusedxml", "webdav"),
    ],
)
def test_a_client_that_is_not_installed_is_named_by_its_extra(url, client, extra, monkeypatch):
    for module in [name for name in sys.modules if name.startswith(("pharmabackup.storage.", client))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, client, None)
    with pytest.raises(Unsupported, match="not installed") as caught:
        connect(url)
    assert caught.value.remedy == f'pip install "pharmabackup[{extra}]".'


def test_options_that_mean_nothing_are_not_ignored(tmp_path):
    with pytest.raises(InvalidInput, match="given key") as caught:
        connect(tmp_path, storage_options={"key": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_an_empty_url():
    with pytest.raises(InvalidInput):
        connect("")
