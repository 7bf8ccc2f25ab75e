"""Windows shares: `smb://host[:port]/share/path`, SMB 3 by smbprotocol, encrypted unless the option says otherwise.

An object gets its name by a hard link to the file that was sent: links never replace, while Samba's rename "without
replacing" first looks and then renames. Where the share's file system has no links (FAT, exFAT) it is that rename,
and exclusive creation is not claimed.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from smbprotocol import exceptions as raised
from smbprotocol.file_info import (
    FileLinkInformation,
    FileRenameInformation,
)
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    DirectoryAccessMask,
    FilePipePrinterAccessMask,
    Open,
    SMB2SetInfoRequest,
    SMB2SetInfoResponse,
)

from pharmabackup.errors import Error, InvalidInput
from pharmabackup.storage import failures
from pharmabackup.storage.body import Body
from pharmabackup.storage.local_uploads import UPLOADS
from pharmabackup.storage.options import Options
from pharmabackup.storage.remote_folder import Absent, Entry, RemoteFolder, Taken
from pharmabackup.storage.smb_share import ABSENT, PIECE, Message, Share, create, entry_of

PORT = 445

NO_LINKS = (
    raised.NotSupported,
    raised.InvalidDeviceRequest,
    raised.InvalidInfoClass,
    raised.InvalidParameter,
    raised.AccessDenied,
)
NO_LOGIN = (raised.SMBAuthenticationError, raised.LogonFailure, raised.WrongPassword)
QUOTA_EXCEEDED, ACCOUNT_EXPIRED, ACCOUNT_DISABLED, ACCOUNT_LOCKED = 0xC0000044, 0xC0000193, 0xC0000072, 0xC0000234
SESSION_ENDED = (0xC000035C, 0xC00000C9, 0xC000020C, 0xC0000203)  # expired; share or connection gone; logged off


class SmbStorage(RemoteFolder[Share]):
    """The objects below `path` in `share` on `host`.

    `username` (also `DOMAIN\\user`) and `password`; without them the system's Kerberos ticket is tried. `encrypt`
    (false also takes servers that cannot).
    """

    options = Options(text=("username", "password"), switches=("encrypt",))
    one_line = True
    leaves_file = True

    def __init__(self, url: str, options: Mapping[str, object], *, create: bool) -> None:
        given = self.options.checked("smb", options)
        self._text, self._encrypt = given.text, given.switches.get("encrypt", True)
        parts = urlsplit(url)
        try:
            host, self._port = parts.hostname, parts.port or PORT
        except ValueError:
            host = None
        share, _, path = parts.path.lstrip("/").partition("/")
        if not host or not share or parts.username or parts.query or parts.fragment:
            raise InvalidInput(
                "The URL is not of the form smb://host/share/path.",
                remedy="Give the host, the share and a folder there; username goes into storage_options.",
            )
        self._host, self._share = host, unquote(share)
        self._root = unquote(path).strip("/").replace("/", "\\")
        self._links = True
        place = f"[{host}]" if ":" in host else host
        place += f":{self._port}" if self._port != PORT else ""
        super().__init__(f"smb://{place}{parts.path.rstrip('/')}", create=create)

    @classmethod
    def at(cls, url: str, options: Mapping[str, object], *, create: bool) -> Self:
        """The storage at `smb://host[:port]/share/path`. InvalidInput."""
        return cls(url, options, create=create)

    def _open(self) -> Share:
        return Share(
            self._host, self._port, self._share, self._text.get("username"), self._text.get("password"), self._encrypt
        )

    def _disconnect(self, client: Share) -> None:
        client.close()

    # One request each

    def _at(self, path: str) -> str:
        return "\\".join(part for part in (self._root, path.replace("/", "\\")) if part)

    def _make_root(self, client: Share) -> None:
        parts = self._root.split("\\") if self._root else []
        for count in range(len(parts)):
            self._make(client, "\\".join(parts[: count + 1]))

    def _make_folder(self, client: Share, path: str) -> None:
        self._make(client, self._at(path))

    def _make(self, client: Share, place: str) -> None:
        folder = Open(client.tree, place)
        try:
            client.ask(
                create(
                    folder,
                    DirectoryAccessMask.FILE_READ_ATTRIBUTES,
                    CreateDisposition.FILE_CREATE,
                    CreateOptions.FILE_DIRECTORY_FILE,
                ),
                folder.close(send=False),
            )
        except raised.ObjectNameCollision:
            if not client.stat(place).is_folder:
                raise
        except ABSENT:
            raise Absent from None

    def _send(self, client: Share, path: str, body: Body) -> Entry:
        file = Open(client.tree, self._at(path))
        access = FilePipePrinterAccessMask.FILE_WRITE_DATA | FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES
        try:
            client.ask(create(file, access, CreateDisposition.FILE_CREATE, CreateOptions.FILE_NON_DIRECTORY_FILE))
        except ABSENT:
            raise Absent from None

        def pieces() -> Iterator[Message]:
            offset = 0
            while piece := body.read(min(PIECE, client.connection.max_write_size)):
                yield file.write(piece, offset, send=False)
                offset += len(piece)

        with client.closing(file):
            if sum(client.flow(pieces())) == body.size:
                client.ask(file.flush(send=False))
        return entry_of(path, file)

    def _give_name(self, client: Share, path: str, name: str) -> None:
        try:
            if self._links:
                try:
                    self._set_name(client, path, name, FileLinkInformation())
                except NO_LINKS:
                    self._set_name(client, path, name, FileRenameInformation())
                    self._links = False
            else:
                self._set_name(client, path, name, FileRenameInformation())
        except ABSENT:
            raise Absent from None
        except raised.ObjectNameCollision:
            raise Taken from None

    def _set_name(self, client: Share, path: str, name: str, new: Any) -> None:
        file = Open(client.tree, self._at(path))
        new["replace_if_exists"] = False
        new["file_name"] = self._at(name)
        request = SMB2SetInfoRequest()
        request["info_type"] = new.INFO_TYPE
        request["file_info_class"] = new.INFO_CLASS
        request["file_id"] = file.file_id
        request["buffer"] = new
        access = FilePipePrinterAccessMask.FILE_WRITE_ATTRIBUTES | FilePipePrinterAccessMask.DELETE
        client.ask(
            create(file, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_NON_DIRECTORY_FILE),
            (request, lambda answer: client.unpack(answer, SMB2SetInfoResponse())),
            file.close(send=False),
        )

    def _is_same(self, client: Share, path: str, name: str) -> bool:
        return client.number(self._at(path)) == client.number(self._at(name))

    def _can_exclude(self, client: Share) -> bool:
        here, there = (f"{UPLOADS}/{secrets.token_hex(16)}-{secrets.token_hex(4)}" for _ in range(2))
        try:
            with closing(Body()) as nothing:
                self._send_here(client, here, nothing)
            try:
                self._set_name(client, here, there, FileLinkInformation())
                self._unlink(client, there)
            finally:
                self._unlink(client, here)
        except (*NO_LINKS, raised.ObjectNameCollision):
            return False
        return True

    def _entry(self, client: Share, path: str) -> Entry:
        return client.stat(self._at(path))

    def _entries(self, client: Share, path: str) -> Iterable[Entry]:
        return client.entries(self._at(path))

    def _pieces(self, client: Share, path: str, offset: int, length: int) -> Generator[bytes, None, None]:
        file = Open(client.tree, self._at(path))
        access = FilePipePrinterAccessMask.FILE_READ_DATA | FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES
        try:
            client.ask(create(file, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_NON_DIRECTORY_FILE))
        except ABSENT:
            raise Absent from None
        piece = min(PIECE, client.connection.max_read_size)
        end = min(offset + length, file.end_of_file)
        starts = range(offset, end, piece)
        reads = (file.read(at, min(piece, end - at), send=False) for at in starts)
        with client.closing(file), closing(client.flow(reads)) as answers:
            for at, answer in zip(starts, answers, strict=True):
                if len(answer) != min(piece, end - at):
                    raise failures.cut(self.location, path)
                yield bytes(answer)

    def _unlink(self, client: Share, path: str) -> None:
        file = Open(client.tree, self._at(path))
        options = CreateOptions.FILE_NON_DIRECTORY_FILE | CreateOptions.FILE_DELETE_ON_CLOSE
        try:
            client.ask(
                create(file, FilePipePrinterAccessMask.DELETE, CreateDisposition.FILE_OPEN, options),
                file.close(send=False),
            )
        except ABSENT:
            raise Absent from None

    def _sync_folders(self, client: Share, paths: Sequence[str]) -> None:
        is_absent = False
        for path in paths:
            try:
                self._sync_folder(client, path)
            except Absent:
                is_absent = True
        if is_absent:
            raise Absent

    def _sync_folder(self, client: Share, path: str) -> None:
        folder = Open(client.tree, self._at(path))
        access = DirectoryAccessMask.FILE_ADD_FILE | DirectoryAccessMask.FILE_LIST_DIRECTORY
        try:
            client.ask(
                create(folder, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_DIRECTORY_FILE),
                folder.flush(send=False),
                folder.close(send=False),
            )
        except ABSENT:
            raise Absent from None
        except raised.SMBResponseException:
            pass  # this server flushes no folders

    # What goes wrong

    def _failure(self, error: Exception) -> Error:
        status = error.status if isinstance(error, raised.SMBResponseException) else 0
        if isinstance(error, NO_LOGIN) or status in (ACCOUNT_EXPIRED, ACCOUNT_DISABLED, ACCOUNT_LOCKED):
            return failures.denied(
                self.location,
                "let nobody in with these credentials",
                "Check username (with DOMAIN\\ if there is one) and password in storage_options.",
            )
        if isinstance(error, raised.PasswordExpired):
            return failures.expired(self.location)
        if isinstance(error, raised.AccessDenied):
            return failures.denied(self.location)
        if isinstance(error, raised.BadNetworkName):
            return failures.nowhere(self.location, "there is no such share", "Check the URL.")
        if isinstance(error, raised.DiskFull) or status == QUOTA_EXCEEDED:
            return failures.full(self.location)
        if isinstance(error, raised.SMBUnsupportedFeature) or "encryption is required" in str(error):
            return failures.nowhere(
                self.location,
                "it cannot encrypt",
                "Have SMB 3 enabled there, or set encrypt to false in storage_options.",
            )
        if status in SESSION_ENDED or isinstance(error, raised.UserSessionDeleted | raised.FileClosed):
            return failures.unreachable(self.location)
        if isinstance(error, raised.SharingViolation):
            return failures.unreachable(self.location, "another program keeps a file open there")
        if isinstance(error, raised.InsuffServerResources | raised.RequestNotAccepted):
            return failures.throttled(self.location)
        if isinstance(error, raised.SMBResponseException):
            return failures.unexpected(self.location, f"status 0x{status:08x}")
        if found := failures.from_line(error, self.location):
            return found
        if isinstance(error, raised.SMBException | OSError):  # a connection that ended, or an answer that is none
            return failures.unreachable(self.location)
        return failures.unexpected(self.location, type(error).__name__)
