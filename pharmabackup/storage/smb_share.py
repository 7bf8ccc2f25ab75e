"""One SMB connection to one share: requests of several parts, and many on their way at once.

smbprotocol's connection is used itself, since its `smbclient` keeps connections for the whole process, and waits for
ever.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from smbprotocol import exceptions as raised
from smbprotocol.connection import Connection
from smbprotocol.file_info import FileInformationClass, FileInternalInformation
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    DirectoryAccessMask,
    FileAttributes,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
    ShareAccess,
    SMB2QueryInfoRequest,
    SMB2QueryInfoResponse,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from pharmabackup.storage import remote
from pharmabackup.storage.remote_folder import Absent, Entry

PIECE = 256 << 10  # bytes of one request, of which the server grants one "credit" for each 64 KiB
CREDITS = 4  # that one request takes at most
AHEAD = 8  # requests of one upload or read on their way at once
EVERYBODY = ShareAccess.FILE_SHARE_READ | ShareAccess.FILE_SHARE_WRITE | ShareAccess.FILE_SHARE_DELETE
LIST = FileInformationClass.FILE_DIRECTORY_INFORMATION
ABSENT = (
    raised.ObjectNameNotFound,
    raised.ObjectPathNotFound,
    raised.NoSuchFile,
    raised.FileIsADirectory,
    raised.StatusNotADirectory,
    raised.DeletePending,
)
Message = tuple[Any, Callable[[Any], Any]]  # what to send, and what reads its answer


class Share:
    """One connection to one share. Many threads may ask at once, up to what the server has granted."""

    def __init__(
        self, host: str, port: int, share: str, username: str | None, password: str | None, encrypt: bool
    ) -> None:
        self.connection = Connection(uuid.uuid4(), host, port)
        real = self.connection.receive

        def receive(
            request: Any, wait: bool = True, timeout: float | None = None, resolve_symlinks: bool = True
        ) -> Any:
            try:
                return real(request, wait, timeout or remote.SILENCE_S, resolve_symlinks)
            except raised.SMBException as error:
                if type(error) is raised.SMBException:  # what it raises when nothing came
                    raise TimeoutError from None
                raise

        self.connection.receive = receive  # its callers within the library wait for ever
        try:
            self.connection.connect(timeout=remote.CONNECT_S)
            _limit_sending(self.connection.transport._sock)
            self._session = Session(self.connection, username, password, require_encryption=encrypt)
            self._session.connect()
            self.tree = TreeConnect(self._session, rf"\\{host}\{share}")
            self.tree.connect()
            wanted = CREDITS * AHEAD * 8
            self.connection.echo(self._session.session_id, timeout=remote.SILENCE_S, credit_request=wanted)
        except BaseException:
            self.close()
            raise
        window = self.connection.sequence_window
        self._slots = threading.Semaphore(max(1, (window["high"] - window["low"]) // CREDITS))

    def close(self) -> None:
        if self.connection.transport is not None:
            with suppress(OSError):
                self.connection.disconnect(close=False)

    def ask(self, *messages: Message) -> list[Any]:
        """One request of several parts about one file, each answered. Raises the first part's error."""
        with self._slots:
            sid, tid = self._session.session_id, self.tree.tree_connect_id
            if len(messages) == 1:
                requests = [self.connection.send(messages[0][0], sid, tid)]
            else:
                requests = self.connection.send_compound([message for message, _ in messages], sid, tid, related=True)
            answers, errors = [], []
            for request, (_, read) in zip(requests, messages, strict=True):
                try:
                    answers.append(read(request))
                except raised.SMBResponseException as error:  # the others have answers that want to be fetched
                    errors.append(error)
            if errors:
                raise errors[0]
            return answers

    def flow(self, messages: Iterable[Message]) -> Generator[Any, None, None]:
        """The answers to many, of which some are on their way at once. To be closed."""
        pending: deque[tuple[Any, Callable[[Any], Any]]] = deque()

        def oldest() -> Any:
            request, read = pending.popleft()
            try:
                return read(request)
            finally:
                self._slots.release()

        try:
            for message, read in messages:
                while not self._slots.acquire(blocking=not pending):
                    yield oldest()
                try:
                    request = self.connection.send(message, self._session.session_id, self.tree.tree_connect_id)
                except BaseException:
                    self._slots.release()
                    raise
                pending.append((request, read))
                if len(pending) >= AHEAD:
                    yield oldest()
            while pending:
                yield oldest()
        finally:
            for _ in pending:
                self._slots.release()

    @contextmanager
    def closing(self, file: Open) -> Iterator[None]:
        """Close it afterwards; where the line failed, its end does that."""
        try:
            yield
        except (Exception, GeneratorExit) as error:
            if isinstance(error, raised.SMBResponseException | GeneratorExit):
                with suppress(Exception):
                    self.ask(file.close(send=False))
            raise
        self.ask(file.close(get_attributes=True, send=False))

    def unpack(self, request: Any, answer: Any) -> Any:
        answer.unpack(self.connection.receive(request)["data"].get_value())
        return answer

    def stat(self, place: str) -> Entry:
        """Absent."""
        file = Open(self.tree, place)
        try:
            self.ask(
                create(file, FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES, CreateDisposition.FILE_OPEN, 0),
                file.close(send=False),
            )
        except ABSENT:
            raise Absent from None
        return entry_of(place, file)

    def number(self, place: str) -> int:
        """The number that the server has for this file, whatever it is called. Absent."""
        file = Open(self.tree, place)
        wanted = FileInternalInformation()
        request = SMB2QueryInfoRequest()
        request["info_type"] = wanted.INFO_TYPE
        request["file_info_class"] = wanted.INFO_CLASS
        request["file_id"] = file.file_id
        request["output_buffer_length"] = len(wanted)
        try:
            answers = self.ask(
                create(file, FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES, CreateDisposition.FILE_OPEN, 0),
                (request, lambda answer: self.unpack(answer, SMB2QueryInfoResponse())),
                file.close(send=False),
            )
        except ABSENT:
            raise Absent from None
        return int(answers[1].parse_buffer(FileInternalInformation)["index_number"].get_value())

    def entries(self, place: str) -> list[Entry]:
        """Absent."""
        folder = Open(self.tree, place)
        access = DirectoryAccessMask.FILE_LIST_DIRECTORY | DirectoryAccessMask.FILE_READ_ATTRIBUTES
        try:
            self.ask(create(folder, access, CreateDisposition.FILE_OPEN, CreateOptions.FILE_DIRECTORY_FILE))
        except ABSENT:
            raise Absent from None
        size = min(PIECE, self.connection.max_transact_size)
        listed: list[Any] = []
        with self.closing(folder), suppress(raised.NoMoreFiles):
            while True:
                listed += self.ask(folder.query_directory("*", LIST, max_output=size, send=False))[0]
        found = [
            Entry(
                name=item["file_name"].get_value().decode("utf-16-le"),
                is_folder=item["file_attributes"].has_flag(FileAttributes.FILE_ATTRIBUTE_DIRECTORY),
                size=item["end_of_file"].get_value(),
                modified=_ns(item["last_write_time"].get_value()),
            )
            for item in listed
        ]
        return [entry for entry in found if entry.name not in (".", "..")]


def create(file: Open, access: int, disposition: int, options: int) -> Message:
    message: Message = file.create(
        ImpersonationLevel.Impersonation,
        access,
        FileAttributes.FILE_ATTRIBUTE_DIRECTORY
        if options & CreateOptions.FILE_DIRECTORY_FILE
        else FileAttributes.FILE_ATTRIBUTE_NORMAL,
        EVERYBODY,
        disposition,
        options,
        send=False,
    )
    return message


def entry_of(path: str, file: Open) -> Entry:
    return Entry(
        name=path.replace("\\", "/").rpartition("/")[2],
        is_folder=bool(file.file_attributes & FileAttributes.FILE_ATTRIBUTE_DIRECTORY),
        size=int(file.end_of_file),
        modified=_ns(file.last_write_time),
    )


def _ns(time: datetime) -> int:
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def _limit_sending(line: Any) -> None:
    """A server that takes nothing more: the library would wait for ever, and keep others from closing."""
    seconds = int(remote.SILENCE_S)
    limit = struct.pack("L", seconds * 1000) if sys.platform == "win32" else struct.pack("ll", seconds, 0)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
