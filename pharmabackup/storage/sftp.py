"""SFTP: `sftp://[user@]host[:port]/path`, through asyncssh, whose event loop runs in a thread of the client's own.

The server's key has to be known: there is no option that accepts any. An object gets its name by SFTP's rename, which
replaces nothing (draft-ietf-secsh-filexfer-02, 6.5); OpenSSH does it by a hard link where the file system has those,
so that of several one wins. Files are synced by OpenSSH's extension fsync@openssh.com, folders too, where the server
opens them like files.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from stat import S_ISDIR, S_ISREG
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import asyncssh

from pharmabackup.errors import Error, InvalidInput
from pharmabackup.storage import failures, remote
from pharmabackup.storage.body import Body
from pharmabackup.storage.local_uploads import UPLOADS
from pharmabackup.storage.options import Options
from pharmabackup.storage.remote_folder import Absent, Entry, RemoteFolder, Taken
from pharmabackup.storage.sftp_session import LoggedIn, Session, known_hosts

PIECE = 256 << 10  # bytes that one wait is for; asyncssh cuts them into requests
AHEAD = 8  # pieces on their way at once
KEY_KINDS = (
    "ssh-ed25519",
    *(f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)),
    *(f"rsa-sha2-{bits}" for bits in (256, 512)),
)
ABSENT = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory)
NO_SYNC = (asyncssh.SFTPOpUnsupported, asyncssh.SFTPFailure, asyncssh.SFTPPermissionDenied)  # of folders, or at all
NO_ROOM = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
LOST = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, asyncssh.ConnectionLost, CancelledError)
NO_KEY = (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, asyncssh.ConfigParseError, OSError)
NO_LOGIN = (asyncssh.PermissionDenied, asyncssh.IllegalUserName)


class SftpStorage(RemoteFolder[Session]):
    """The objects below `path` on `host`. What no option names comes from the SSH agent and `~/.ssh/config`.

    `username`, `password`, `client_keys` (a file with a private key), `passphrase` (of that key), `known_hosts` (a
    file) and `config` (a file like `~/.ssh/config`).
    """

    options = Options(text=("username", "password", "client_keys", "passphrase", "known_hosts", "config"))
    one_line = True

    def __init__(self, url: str, options: Mapping[str, object], *, create: bool) -> None:
        self._text = self.options.checked("sftp", options).text
        parts = urlsplit(url)
        try:
            self._host, self._port = parts.hostname, parts.port
        except ValueError:
            self._host = None
        if not self._host or len(parts.path) < 2 or parts.query or parts.fragment:
            raise InvalidInput(
                "The URL is not of the form sftp://host:port/path.",
                remedy="Give the host and the whole path of a folder there.",
            )
        self._user = self._text.get("username") or (unquote(parts.username) if parts.username else None)
        self._root = unquote(parts.path).rstrip("/") or "/"
        host = f"[{self._host}]" if ":" in self._host else self._host
        place = f"{host}:{self._port}" if self._port else host
        super().__init__(f"sftp://{place}{parts.path.rstrip('/')}", create=create)

    @classmethod
    def at(cls, url: str, options: Mapping[str, object], *, create: bool) -> Self:
        """The storage at `sftp://[user@]host[:port]/path`. InvalidInput."""
        return cls(url, options, create=create)

    # The connection

    def _open(self) -> Session:
        return Session(self._log_in)

    def _disconnect(self, client: Session) -> None:
        client.close()

    async def _log_in(self) -> LoggedIn:
        text, assert_host = self._text, self._host
        assert assert_host is not None
        given: dict[str, Any] = {}
        if self._port:
            given["port"] = self._port
        if self._user:
            given["username"] = self._user
        if config := text.get("config"):
            given["config"] = [config]
        if keys := text.get("client_keys"):
            given["client_keys"] = [keys]
        for name in ("password", "passphrase"):
            if text.get(name):
                given[name] = text[name]
        limit = 2 * (
            remote.CONNECT_S + remote.SILENCE_S
        )  # of all that comes before the first request: ten round trips
        try:
            # Loads keys, too; in here so that what goes wrong with them is said as what it is.
            options = asyncssh.SSHClientConnectionOptions(
                **given, host=assert_host, connect_timeout=limit, login_timeout=limit
            )
        except NO_KEY as error:
            raise InvalidInput(
                f"The private key or the configuration for {self.location} cannot be read ({type(error).__name__}).",
                remedy="Check client_keys, passphrase and config in storage_options.",
            ) from None
        hosts = known_hosts(text.get("known_hosts"), options.known_hosts)
        found: list[bool] = []

        def known(host: str, addr: str, port: int | None) -> Any:
            keys = hosts.match(host, addr, port)
            found.append(any(keys))
            return keys

        # The kinds that are known come first; the others, so that a key of another kind is seen to be another.
        named = hosts.match(options.host_key_alias or options.host, "", None if options.port == 22 else options.port)
        # Of what may be used, AES-GCM first: half as fast again here as what asyncssh prefers, ChaCha20.
        ciphers = [cipher.decode() for cipher in options.encryption_algs]
        orders: dict[str, Any] = {"encryption_algs": sorted(ciphers, key=lambda cipher: "gcm" not in cipher)}
        if not named[1]:  # what authorities sign has kinds of its own
            first = [kind.decode() for key in named[0] for kind in key.sig_algorithms]
            orders["server_host_key_algs"] = list(dict.fromkeys([*first, *KEY_KINDS]))
        try:
            connection = await asyncssh.connect(
                assert_host, options=asyncssh.SSHClientConnectionOptions(options, known_hosts=known, **orders)
            )
        except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
            if isinstance(error, asyncssh.KeyExchangeFailed) and not any(found):
                raise
            raise self._not_known(any(found)) from None
        try:
            return connection, await connection.start_sftp_client()
        except BaseException:
            connection.abort()
            raise

    def _not_known(self, is_changed: bool) -> Error:
        host, port = self._host, f"-p {self._port} " if self._port else ""
        if is_changed:
            return failures.denied(
                self.location,
                "HAS ANOTHER KEY THAN THE ONE THAT IS KNOWN. Somebody may stand between this computer and the server"
                " and read what is sent",
                "Send nothing. Ask whoever runs the server by telephone whether its key was changed; only if it was,"
                " and the fingerprints agree, remove the old one (ssh-keygen -R) and add the new one to known_hosts.",
            )
        return failures.denied(
            self.location,
            "has a key that this computer does not know",
            f"Run `ssh-keyscan {port}{host}`, compare the fingerprint (ssh-keygen -lf) by telephone with whoever runs"
            " the server, and add the line to ~/.ssh/known_hosts or the file that known_hosts names.",
        )

    # One request each

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}" if path else self._root

    def _make_root(self, client: Session) -> None:
        client.do(lambda: client.sftp.makedirs(self._root, exist_ok=True), 1 + self._root.count("/"))

    def _make_folder(self, client: Session, path: str) -> None:
        try:
            client.do(lambda: client.sftp.mkdir(self._at(path)))
        except ABSENT:
            raise Absent from None
        except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
            if not self._entry(client, path).is_folder:
                raise
        else:
            return

    def _send(self, client: Session, path: str, body: Body) -> Entry:
        async def finish() -> asyncssh.SFTPAttrs:
            # A server answers what is asked of one file in order.
            asked = (file.fsync(), file.stat(), file.close())
            synced, attributes, closed = await asyncio.gather(*asked, return_exceptions=True)
            for each in (synced, attributes, closed):
                if isinstance(each, BaseException) and not (
                    each is synced and isinstance(each, asyncssh.SFTPOpUnsupported)
                ):
                    raise each
            assert isinstance(attributes, asyncssh.SFTPAttrs)
            return attributes

        try:
            with client.channel() as sftp:
                file = client.do(lambda: sftp.open(self._at(path), "xb"))
                pending: deque[Future[int]] = deque()
                offset = 0
                while piece := body.read(PIECE):
                    pending.append(client.submit(partial(file.write, piece, offset)))
                    offset += len(piece)
                    if len(pending) >= AHEAD:
                        client.wait(pending.popleft())
                while pending:
                    client.wait(pending.popleft())
                attributes = client.do(finish, 3)
        except ABSENT:
            raise Absent from None
        except asyncssh.SFTPFailure:
            if self._is_full(client, body):
                raise failures.full(self.location) from None
            raise
        return _entry(path, attributes)

    def _is_full(self, client: Session, body: Body) -> bool:
        """SFTP says no more than "failure"."""
        try:
            room = client.do(lambda: client.sftp.statvfs(self._at(UPLOADS)))
        except asyncssh.SFTPError:
            return False
        return bool(room.bavail * room.frsize < body.size or (not room.favail and room.files))

    def _give_name(self, client: Session, path: str, name: str) -> None:
        try:
            client.do(lambda: client.sftp.rename(self._at(path), self._at(name)))
        except ABSENT:
            raise Absent from None
        except asyncssh.SFTPFileAlreadyExists:
            raise Taken from None
        except asyncssh.SFTPFailure:
            with suppress(Absent):
                self._entry(client, name)
                raise Taken from None
            raise

    def _can_exclude(self, client: Session) -> bool:
        if "OpenSSH" not in client.server:  # others look, and then rename
            return False
        here = self._at(f"{UPLOADS}/{secrets.token_hex(16)}-{secrets.token_hex(4)}")

        sftp = client.sftp
        try:
            client.do(client.do(lambda: sftp.open(here, "xb")).close)
            try:
                client.do(lambda: sftp.link(here, f"{here[:-1]}x"))
                client.do(lambda: sftp.remove(f"{here[:-1]}x"))
            finally:
                client.do(lambda: sftp.remove(here))
        except ABSENT:
            self._look(client)
            self._make_folder(client, UPLOADS)
            return self._can_exclude(client)
        except (asyncssh.SFTPOpUnsupported, asyncssh.SFTPFailure, asyncssh.SFTPPermissionDenied):
            return False
        return True

    def _entry(self, client: Session, path: str) -> Entry:
        try:
            return _entry(path, client.do(lambda: client.sftp.stat(self._at(path))))
        except ABSENT:
            raise Absent from None

    def _entries(self, client: Session, path: str) -> Iterable[Entry]:
        try:
            names = client.do(lambda: client.sftp.readdir(self._at(path)))
        except ABSENT:
            raise Absent from None
        found = ((str(name.filename), name.attrs) for name in names)
        return [
            _entry(name, attributes)
            for name, attributes in found
            if name not in (".", "..") and (S_ISREG(_mode(attributes)) or S_ISDIR(_mode(attributes)))
        ]

    def _pieces(self, client: Session, path: str, offset: int, length: int) -> Generator[bytes, None, None]:
        with client.channel() as sftp:
            yield from self._pieces_of(client, sftp, path, offset, length)

    def _pieces_of(
        self, client: Session, sftp: asyncssh.SFTPClient, path: str, offset: int, length: int
    ) -> Generator[bytes, None, None]:
        async def begin() -> tuple[Any, Any, Any]:
            file = await sftp.open(self._at(path), "rb")
            first = file.read(min(PIECE, length), offset)
            return file, *await asyncio.gather(file.stat(), first, return_exceptions=True)

        try:
            file, attributes, first = client.do(begin, 2)
        except ABSENT:
            raise Absent from None
        pending: deque[Future[bytes]] = deque()
        try:
            if isinstance(attributes, BaseException):
                raise attributes
            if S_ISDIR(_mode(attributes)):
                raise Absent
            if isinstance(first, BaseException):
                raise first
            end = min(offset + length, attributes.size or 0)
            at = offset + PIECE
            expected = max(0, end - offset)
            while True:
                while at < end and len(pending) < AHEAD:
                    pending.append(client.submit(partial(file.read, min(PIECE, end - at), at)))
                    at += PIECE
                expected -= len(first)
                if len(first) < min(PIECE, expected + len(first)):
                    raise failures.cut(self.location, path)
                if first:
                    yield first
                if not pending:
                    return
                first = client.wait(pending.popleft())
        finally:
            for each in pending:
                each.cancel()
            client.submit(file.close)  # nobody waits for that

    def _unlink(self, client: Session, path: str) -> None:
        try:
            client.do(lambda: client.sftp.remove(self._at(path)))
        except ABSENT:
            raise Absent from None
        except asyncssh.SFTPFailure:
            if self._entry(client, path).is_folder:
                raise Absent from None
            raise

    def _sync_folders(self, client: Session, paths: Sequence[str]) -> None:
        async def sync(path: str) -> None:
            file = await client.sftp.open(self._at(path), "rb")
            synced, _ = await asyncio.gather(file.fsync(), file.close(), return_exceptions=True)
            if isinstance(synced, BaseException):
                raise synced

        async def all_of_them() -> list[BaseException | None]:
            return await asyncio.gather(*map(sync, paths), return_exceptions=True)

        errors = [error for error in client.do(all_of_them, 3) if error is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, ABSENT)):
            if isinstance(error, ABSENT):
                raise Absent from None
            if not isinstance(error, NO_SYNC):
                raise error

    # What goes wrong

    def _failure(self, error: Exception) -> Error:
        if isinstance(error, LOST):
            return failures.unreachable(self.location)
        if isinstance(error, NO_LOGIN):
            return failures.denied(
                self.location,
                "let nobody in with these credentials",
                "Check username, client_keys or password, and that the server knows the key (authorized_keys).",
            )
        if isinstance(error, asyncssh.SFTPPermissionDenied | asyncssh.SFTPWriteProtect):
            return failures.denied(self.location)
        if isinstance(error, NO_ROOM):
            return failures.full(self.location)
        if isinstance(error, asyncssh.ChannelOpenError):
            return failures.unreachable(self.location, "the server opens no SFTP session")
        if found := failures.from_line(error, self.location):
            return found
        if isinstance(error, asyncssh.DisconnectError):
            return failures.unreachable(self.location, f"the connection ended ({type(error).__name__})")
        return failures.unexpected(self.location, type(error).__name__)


def _entry(path: str, attributes: asyncssh.SFTPAttrs) -> Entry:
    return Entry(
        name=os.path.basename(path),
        is_folder=S_ISDIR(_mode(attributes)),
        size=attributes.size or 0,
        modified=(attributes.mtime or 0) * 10**9 + (attributes.mtime_ns or 0),
    )


def _mode(attributes: asyncssh.SFTPAttrs) -> int:
    return attributes.permissions or 0
