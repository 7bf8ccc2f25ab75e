"""SftpStorage on OpenSSH."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import asyncssh
import pytest

from pharmabackup.errors import Conflict, InvalidInput, StorageFailed
from pharmabackup.storage import connect
from pharmabackup.storage.sftp_session import CHANNELS
from pharmabackup.testing.line import FaultyLine
from tests.servers import sftp
from tests.storage.folders import BehindALine, OnServer, Promises, fills_up, syncs_in_order
from tests.storage.mounts import tmpfs


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with sftp.sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def disk(server, tmp_path):
    return tmp_path


class _OnSshd:
    @pytest.fixture(autouse=True)
    def place(self, server, tmp_path):
        self.real, self.disk = server, tmp_path

    def where(self, folder, port=None):
        return self.real.url(self.disk / folder, port)


class TestOpenSSH(_OnSshd, OnServer):
    def test_it_claims_exclusive_creation(self, storage):
        assert storage.capabilities.exclusive_create


class TestOpenSSHBehindALine(_OnSshd, BehindALine):
    def options(self, port):
        return self.real.options | {"known_hosts": str(self.real.known_hosts(port))}


class TestPromises(_OnSshd, Promises):
    pass


def test_what_comes_after_the_end_of_a_line_is_not_begun(server, tmp_path):
    """Another thread found it broken, and closed it."""
    storage = connect(server.url(tmp_path / "r"), storage_options=server.options, create=True)
    with closing(storage):
        session = storage._client()
        session.close()
        with pytest.raises(ConnectionResetError):
            session.do(lambda: session.sftp.open(str(tmp_path / "a"), "xb"))
        gc.collect()  # "was never awaited" would be told here


def test_what_is_stored_was_synced(server, tmp_path):
    storage = connect(server.url(tmp_path / "r"), storage_options=server.options, create=True)
    syncs_in_order(storage, tmp_path)
    storage.close()


@pytest.mark.parametrize("sessions", [1, 100])
def test_several_transfers_at_once_have_a_channel_each_where_the_server_lets_them(tmp_path, sessions):
    (tmp_path / "sshd").mkdir()
    contents = {f"packs/{n:02x}": os.urandom(3 << 20) for n in range(12)}
    with sftp.sshd(tmp_path / "sshd", sessions=sessions) as server, FaultyLine("127.0.0.1", server.port) as line:
        line.latency = 0.02
        options = server.options | {"known_hosts": str(server.known_hosts(line.port))}
        storage = connect(server.url(tmp_path / "r", line.port), storage_options=options, create=True)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: storage.put_new(name, contents[name]), contents))
            found = threads.map(lambda name: storage.get(name, limit=1 << 24), contents)
            assert dict(zip(contents, found, strict=True)) == contents
        held = storage._held
        assert len(held._channels) == (1 if sessions == 1 else CHANNELS)
        assert not any(held._busy.values())
        storage.close()


def test_a_full_disk(server):
    with tmpfs("4m") as disk:
        storage = connect(server.url(disk / "r"), storage_options=server.options, create=True)
        fills_up(storage, disk)
        storage.close()


def refused(url, options):
    storage = connect(url, storage_options=options)
    for attempt in (
        lambda: storage.get("a", limit=1),
        lambda: storage.put_new("a", b"x"),
        lambda: list(storage.list("")),
    ):
        with pytest.raises(StorageFailed) as caught:
            attempt()
        assert caught.value.kind == "storage-denied" and not caught.value.retryable
        assert "geheim" not in str(caught.value) + repr(caught.value.__cause__)
    storage.close()
    return caught.value


def test_a_key_that_the_server_does_not_know(server, tmp_path):
    key = sftp.make_key(tmp_path / "key")
    error = refused(server.url(tmp_path), server.options | {"client_keys": str(key)})
    assert "authorized_keys" in error.remedy


def test_a_wrong_password(server, tmp_path):
    options = {"known_hosts": server.options["known_hosts"], "password": "geheim"}
    refused(server.url(tmp_path), options)


@contextmanager
def another_server(server, folder):
    """asyncssh's own server, which is not OpenSSH's: it looks whether a name is taken, and then renames."""

    class Passwords(asyncssh.SSHServer):
        def begin_auth(self, username):
            return True

        def password_auth_supported(self):
            return True

        def validate_password(self, username, password):
            return (username, password) == ("till", "geheim")

    async def serve():
        listening = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Passwords, server_host_keys=[str(server.folder / "host")],
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(folder).encode()),
        )  # fmt: skip
        return listening, listening.get_port()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listening, port = asyncio.run_coroutine_threadsafe(serve(), loop).result()

    async def end():
        listening.close()
        await listening.wait_closed()

    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_server_that_is_not_openssh_and_wants_a_password(server, tmp_path):
    with another_server(server, tmp_path) as port:
        options = {"known_hosts": str(server.known_hosts(port)), "username": "till", "password": "geheim"}
        storage = connect(f"sftp://127.0.0.1:{port}/r", storage_options=options, create=True)
        assert not storage.capabilities.exclusive_create
        storage.put_new("a/b", bytes(3 << 20))
        with pytest.raises(Conflict):
            storage.put_new("a/b", b"y")
        assert storage.get("a/b", limit=3 << 20) == bytes(3 << 20)
        assert [item.name for item in storage.list("")] == ["a/b"]
        assert storage.delete(["a/b", "a"]) == {"a/b": None, "a": None}
        storage.close()
        assert str(refused(f"sftp://127.0.0.1:{port}/r", options | {"password": "geheim2"}))


def test_a_host_whose_key_is_not_known(server, tmp_path):
    (tmp_path / "known_hosts").write_text("")
    error = refused(server.url(tmp_path), server.options | {"known_hosts": str(tmp_path / "known_hosts")})
    assert "does not know" in str(error) and f"ssh-keyscan -p {server.port} 127.0.0.1" in error.remedy
    assert "telephone" in error.remedy


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_host_whose_key_has_changed_is_alarming(server, tmp_path, kind):
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(tmp_path / "other")], check=True)
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'other.pub').read_text()}")
    error = refused(server.url(tmp_path), server.options | {"known_hosts": str(known)})
    assert "ANOTHER KEY" in str(error) and "Send nothing" in error.remedy


def test_a_configuration_cannot_switch_the_check_off(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config").write_text("Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    options = {"client_keys": server.options["client_keys"], "config": str(tmp_path / "config")}
    assert "does not know" in str(refused(server.url(tmp_path), options))


def test_host_user_key_and_known_hosts_from_the_configuration(server, tmp_path):
    (tmp_path / "config").write_text(
        f"Host backup\n  HostName 127.0.0.1\n  Port {server.port}\n  User root\n  IdentityFile {server.folder}/key\n"
        f"  UserKnownHostsFile {server.known_hosts(server.port)}\n"
    )
    storage = connect(f"sftp://backup{tmp_path}/r", storage_options={"config": str(tmp_path / "config")}, create=True)
    storage.put_new("a", b"x")
    assert (tmp_path / "r" / "a").read_bytes() == b"x"
    storage.close()


def test_a_key_with_a_passphrase(server, tmp_path):
    shutil.copy(server.folder / "key", tmp_path / "key")
    (tmp_path / "key").chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "geheim", "-f", str(tmp_path / "key")], check=True)
    options = server.options | {"client_keys": str(tmp_path / "key")}
    storage = connect(server.url(tmp_path / "r"), storage_options=options | {"passphrase": "geheim"}, create=True)
    storage.put_new("a", b"x")
    storage.close()
    for wrong in ({"passphrase": "geheim2"}, {}):
        storage = connect(server.url(tmp_path / "r"), storage_options=options | wrong)
        with pytest.raises(InvalidInput, match="private key") as caught:
            storage.get("a", limit=1)
        assert "geheim" not in str(caught.value)


def test_a_folder_that_may_not_be_written_to(server, tmp_path):
    storage = connect(server.url("/proc/none"), storage_options=server.options, create=True)
    with pytest.raises(StorageFailed):
        storage.put_new("a", b"x")


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("sftp://host/x", {"sekret": "hunter2"}, "no option sekret.*known_hosts"),
        ("sftp://host/x", {"password": 1}, "no text"),
        ("sftp://host", {}, "not of the form"),
        ("sftp:///x", {}, "not of the form"),
        ("sftp://host/x?hunter2", {}, "not of the form"),
        ("sftp://host:hunter2/x", {}, "not of the form"),
        ("sftp://me:hunter2@host/x", {}, "holds a password"),
    ],
)
def test_urls_and_options_are_checked(url, options, match):
    with pytest.raises(InvalidInput, match=match) as caught:
        connect(url, storage_options=options)
    assert "hunter2" not in str(caught.value)


def test_a_known_hosts_that_is_not_there(server, tmp_path):
    storage = connect(server.url(tmp_path), storage_options=server.options | {"known_hosts": str(tmp_path / "no")})
    with pytest.raises(InvalidInput, match="known_hosts"):
        storage.get("a", limit=1)
