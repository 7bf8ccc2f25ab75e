"""A whole MariaDB server, as its files: what `mariadb-backup` gives (https://mariadb.com/kb/en/mariadb-backup/)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pharmabackup.errors import InvalidInput, SourceFailed
from pharmabackup.sources.base import Content, Sink, StrPath, View
from pharmabackup.sources.flat import put_bytes, put_files
from pharmabackup.sources.mariadb_unpack import BACKUP, refuse, runs, unpack
from pharmabackup.sources.mbstream import Strange, Stream
from pharmabackup.sources.mysql_server import Server, run, version
from pharmabackup.sources.mysql_tools import Tools
from pharmabackup.sources.program import Program
from pharmabackup.sources.server_files import ServerFiles
from pharmabackup.sources.tools import trouble

if TYPE_CHECKING:
    from pharmabackup.sources.mysql_server import Connection

BASE, ABOUT = b"base.mbstream", b"server.json"
SECONDS = 24 * 3600
LOCK_WAIT_S = 600  # for those who hold tables by LOCK TABLES
GRANT = "GRANT RELOAD, PROCESS, LOCK TABLES, BINLOG MONITOR ON *.* to it."
THERE = "Run this on the server's own machine, as an account that may read its files."
SIGNS = (
    (b"missing required privilege", "permission", "its user may not copy the server", GRANT),
    (b"Access denied; you need", "permission", "its user may not copy the server", GRANT),
    (b"Access denied for user", "login", "the server does not let this user in", "Check user and password."),
    (b"Failed to connect to", "unreachable", "the server cannot be reached", "Check that it runs."),
    (b"Can't change dir to", "missing", "the server's files are not here, or may not be read", THERE),
    (b"rrcode: 13", "permission", "the server's files may not be read", THERE),
    (b"ermission denied", "permission", "the server's files may not be read", THERE),
    (b"rrcode: 28", "full", "its disk is full", "Free some space there."),
    (b"No space left", "full", "its disk is full", "Free some space there."),
    (b"page corruption", "damaged", "the server's files are damaged",
     "Restore an earlier backup, and check its disk."),
    (b"Lock wait timeout", "locked", "somebody holds a table of it by LOCK TABLES", "Let that program finish."),
)  # fmt: skip
# What has to be as it was for these files to be read. Where they lie, unless in the data folder, is refused.
SETTINGS = (
    "innodb_page_size",
    "innodb_data_file_path",
    "innodb_undo_tablespaces",
    "innodb_checksum_algorithm",
    "lower_case_table_names",
)
PLACES = ("innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory", "aria_log_dir_path")


class MariaDBInstance(ServerFiles):
    """All databases of a MariaDB server, as its files. Restored, it is the same server again, of the same version.

    `url`: such as "mariadb://backup@localhost", of a user with RELOAD, PROCESS, LOCK TABLES and BINLOG MONITOR; on
    the server's own machine, by an account that may read its files. A snapshot is as of the end of its dump. `tools`:
    the folder of mariadb-backup, which has to be of the server's version.

    To restore into, give `data` in place of `url`: the folder that becomes the server's, which is not there or empty;
    with `overwrite`, what is there is kept. All is unpacked beside it, brought to one moment by mariadb-backup, each
    page compared with its checksum by innochecksum, and renamed.
    """

    kind = "mariadb-instance"
    stop = "Stop it, and restore as its account."

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str,
        tier: int = 3,
        password: str | None = None,
        tools: StrPath | None = None,
        data: StrPath | None = None,
    ) -> None:
        self._server = None if url is None else Server(url, password, whole=True)
        super().__init__(name, tier, server=self._server, data=data)
        self._tools = Tools(tools)

    @property
    def runs(self) -> Callable[[Path], bool]:
        return runs

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:
        return self._view(scratch)

    @contextmanager
    def _view(self, scratch: Path) -> Iterator[View]:
        if self._server is None:
            raise InvalidInput("A server is backed up by its url.", remedy="Give it.")
        with self._server.connected(self.name, None) as connection:
            about = self._about(connection)
            server = version(connection)
        program, own = self._tools.program(BACKUP, server, self.name)
        if own != server:
            raise SourceFailed(
                f"{os.path.basename(program)} is of version {own}, and the server of {server}.",
                kind="tool-missing",
                remedy=f"Install that of {server}, or name its folder as `tools`.",
                dataset=self.name,
            )
        yield _Instance(self.name, self._server, program, about, scratch)

    def _about(self, connection: Connection) -> dict[str, object]:
        server = version(connection)
        if not server.mariadb:
            raise self._refused(f"{server.product}'s files cannot be copied by MariaDB's program.")
        said = {str(name): str(value) for name, value in run(connection, "SHOW GLOBAL VARIABLES")}
        home = os.path.normpath(said["datadir"])
        places = {os.path.normpath(os.path.join(home, said.get(place, ""))) for place in PLACES}
        if places != {home} or set(said["innodb_data_file_path"]) & {"/", "\\"}:
            raise self._refused("The server keeps files outside of its data folder.")
        return {
            "product": server.product,
            "server": said["version"],
            "major": server.major,
            "minor": server.minor,
            "settings": {name: said[name] for name in SETTINGS if name in said},
        }

    def _refused(self, what: str) -> SourceFailed:
        return SourceFailed(what, kind="operation", remedy="Back up its databases one by one.", dataset=self.name)

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:
        refuse(facts, self._tools, self.name)
        self.target().refuse(overwrite=overwrite)

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:
        return unpack(self.target(), content, BASE, self._tools, self.name, overwrite=overwrite)


class _Instance(View):
    def __init__(
        self, dataset: str, server: Server, program: str, about: Mapping[str, object], scratch: Path
    ) -> None:
        self._dataset = dataset
        self._server = server
        self._program = program
        self._about = about
        self._scratch = scratch

    def dump(self, sink: Sink) -> Mapping[str, object]:
        command = [
            self._program,
            *self._server.reached(mariadb=True),
            "--backup",
            "--stream=mbstream",
            f"--target-dir={self._scratch}",  # has to be there; nothing comes into it
            f"--ftwrl-wait-timeout={LOCK_WAIT_S}",
        ]
        with Program(
            command,
            dataset=self._dataset,
            seconds=SECONDS,
            env=self._server.environment(),
            trouble=lambda code, errors: trouble(SIGNS, "mariadb-backup", code, errors),
        ) as program:
            stream, read_into = Stream(), program.output(sink.check)
            failed: list[Strange] = []

            def looked_at(view: memoryview) -> int:
                size = read_into(view)
                try:
                    stream.feed(view[:size])
                except Strange as error:  # what was stored cannot be taken back: it ends early, and is refused
                    failed.append(error)
                    return 0
                return size

            chunks, stored = sink.stream(looked_at, fine=True)
            try:
                if failed:
                    raise failed[0]
                program.finish(sink.check)
                stream.end()
            except Strange as error:
                raise SourceFailed(
                    f"The server of {self._dataset} could not be restored from its files: the copy has {error}.",
                    kind="operation",
                    remedy="Back up its databases one by one.",
                    dataset=self._dataset,
                ) from None
        about = json.dumps(dict(self._about), indent=1).encode()
        put_files(sink, [(BASE, chunks, stored), (ABOUT, *put_bytes(sink, about))])
        return self._about
