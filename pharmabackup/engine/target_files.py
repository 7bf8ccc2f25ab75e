"""The content of restored files: in one piece, or in parts that come in any order from several threads.

What is there already is compared first. If it differs, a new file grows beside it under a name of its own and
takes the place of the old one in one step, so that a crash leaves the old file or the new one whole.

A file with several names (hard links) always gets a new one: its other names may lie outside the folder, and what
is changed about it would be changed there.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import NamedTuple

from pharmabackup.engine.target_folders import CREATE, READ, WRITE, Folder, Folders, is_file, scratch_name
from pharmabackup.engine.target_layout import PIECE, Layout, read_at, write_at
from pharmabackup.engine.target_metadata import Dresser, look_of
from pharmabackup.format.manifest import Entry

OPEN_MAX = 256


class Identity(NamedTuple):
    """What a file is known by: it is another one after somebody changed or replaced it."""

    inode: int
    size: int
    modified: int  # ns
    changed: int  # ns

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class WholeFiles:
    """Writes files all of whose content is at hand, where something is there already."""

    def __init__(self, dresser: Dresser, *, sync: bool, by_path: bool) -> None:
        self._dresser = dresser
        self._sync = sync
        self._by_path = by_path

    def put(self, entry: Entry, folder: Folder, name: bytes, data: memoryview) -> bool:
        """True: it was already right, and only what it looks like was put right."""
        found = folder.look(name)
        if found is not None and _may_stay(found, entry) and self._stays(found, entry, folder, name, data):
            return True
        if found is not None:
            folder.make_way(name, found)
        scratch = scratch_name()
        self.fill(os.open(folder.prefix + scratch, CREATE, 0o600, dir_fd=folder.fd), entry, folder, scratch, data)
        try:
            folder.replace(scratch, name)
        except BaseException:
            folder.unlink(scratch)
            raise
        return False

    def _stays(self, found: os.stat_result, entry: Entry, folder: Folder, name: bytes, data: memoryview) -> bool:
        try:
            fd = os.open(folder.prefix + name, READ, dir_fd=folder.fd)
            try:
                layout = Layout(entry.extents)
                same = os.path.samestat(os.fstat(fd), found) and layout.equals(fd, data)
                if not same or not layout.holes_are_empty(fd, entry.size):
                    return False
                if not self._by_path:
                    self._dresser.dress(fd, entry.path, look_of(entry), fresh=False)
            finally:
                os.close(fd)
            if self._by_path:
                self._dresser.dress_by_path(folder, name, entry.path, look_of(entry))
        except PermissionError:
            return False  # another user's, and may be replaced all the same
        return True

    def fill(self, fd: int, entry: Entry, folder: Folder, name: bytes, data: memoryview) -> None:
        """Give a new file its content and everything else. If that fails, it is removed."""
        try:
            try:
                Layout(entry.extents).write(fd, data)
                if entry.size != len(data):
                    os.ftruncate(fd, entry.size)
                if not self._by_path:
                    self._dresser.dress(fd, entry.path, look_of(entry), fresh=not folder.strict)
                if self._sync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if self._by_path:
                self._dresser.dress_by_path(folder, name, entry.path, look_of(entry))
        except BaseException:
            folder.unlink(name)
            raise


class _Open:
    """An open file, closed when nobody uses it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class _Growing:
    """A file whose parts are coming in."""

    def __init__(self, entry: Entry, name: bytes) -> None:
        self.entry = entry
        self.name = name
        self.layout = Layout(entry.extents)
        self.lock = threading.Lock()
        self.begun = False
        self.failed = False
        self.current = b""  # the name of the file that is compared or written
        self.identity: tuple[int, int] | None = None
        self.comparing = False
        self.equal: list[tuple[int, int]] = []  # stored content that the old file has too
        self.got = 0


class GrowingFiles:
    """Writes files whose content comes in parts. Only as many are open at once as the system bears."""

    def __init__(self, folders: Folders, dresser: Dresser, *, sync: bool, by_path: bool) -> None:
        self._folders = folders
        self._dresser = dresser
        self._sync = sync
        self._by_path = by_path
        self._lock = threading.Lock()
        self._files: dict[bytes, _Growing] = {}
        self._open: dict[bytes, _Open] = {}

    def begin(self, entry: Entry, name: bytes) -> None:
        self._begun(entry, name)

    def parts(self, entry: Entry, name: bytes, pieces: list[tuple[int, memoryview]]) -> None:
        state = self._begun(entry, name)
        try:
            with state.lock:
                if state.failed:
                    return
                state.got += sum([len(data) for _, data in pieces])
                if state.comparing:
                    same = 0
                    while same < len(pieces) and self._equals(state, *pieces[same]):
                        same += 1
                    pieces = pieces[same:]
                    if not pieces:
                        return
                    self._diverge(state)
                file = self._reach(state)
                # By one thread at a time: systems let no two write to a file at once, and to wait here costs less
                # than to wait in thousands of calls.
                state.layout.write_pieces(file.fd, pieces)
        except BaseException:
            self._fail(state)
            raise

    def finish(self, entry: Entry, name: bytes) -> bool | None:
        """True: it was already right. None: it has failed before."""
        state = self._begun(entry, name)
        with self._lock:
            del self._files[entry.path]
        if state.got < entry.stored:  # its folder could not be reached for a part, which was told then
            self._fail(state)
        if state.failed:
            return None
        try:
            if state.comparing and not state.layout.holes_are_empty(self._reach(state).fd, entry.size):
                self._diverge(state)
            try:
                self._complete(state)
            except PermissionError:
                if not state.comparing:
                    raise
                self._diverge(state)  # another user's, and may be replaced all the same
                self._complete(state)
        except BaseException:
            self._fail(state)
            raise
        return state.comparing

    def salvage(self, entry: Entry, name: bytes, over: Identity | None) -> bool:
        """Give what came of a file another name, zeros where nothing came. False: nothing did, or it has failed.

        FileExistsError when something else than `over` has that name.
        """
        with self._lock:
            state = self._files.pop(entry.path, None)
        if state is None:
            return False
        try:
            if state.failed or not state.got:
                self._fail(state)
                return False
            found = self._folder(state).look(name)
            if found is not None and not (is_file(found) and Identity.of(found) == over):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if state.comparing:
                self._diverge(state)
            state.name = name
            self._complete(state)
        except BaseException:
            self._fail(state)
            raise
        return True

    def abandon(self) -> None:
        """Remove what is not finished."""
        with self._lock:
            unfinished = list(self._files.values())
            self._files.clear()
        for state in unfinished:
            self._fail(state)

    def _begun(self, entry: Entry, name: bytes) -> _Growing:
        state = self._files.get(entry.path)
        if state is None:
            with self._lock:
                state = self._files.setdefault(entry.path, _Growing(entry, name))
        with state.lock:
            if not state.begun:
                state.begun = True
                try:
                    self._start(state)
                except BaseException:
                    state.failed = True
                    raise
        return state

    def _start(self, state: _Growing) -> None:
        folder = self._folder(state)
        found = folder.look(state.name)
        if found is not None and _may_stay(found, state.entry):
            state.current, state.comparing = state.name, True
            state.identity = (found.st_dev, found.st_ino)
            return
        if found is not None:
            folder.make_way(state.name, found)
        self._create(state, folder)

    def _create(self, state: _Growing, folder: Folder) -> _Open:
        scratch = scratch_name()
        file = _Open(os.open(folder.prefix + scratch, CREATE, 0o600, dir_fd=folder.fd))
        found = os.fstat(file.fd)
        state.current, state.comparing = scratch, False
        state.identity = (found.st_dev, found.st_ino)
        self._keep(state, file)
        return file

    def _equals(self, state: _Growing, offset: int, data: memoryview) -> bool:
        try:
            fd = self._reach(state).fd
        except PermissionError:
            return False
        if not state.layout.equals(fd, data, offset):
            return False
        if state.equal and sum(state.equal[-1]) == offset:
            state.equal[-1] = (state.equal[-1][0], state.equal[-1][1] + len(data))
        else:
            state.equal.append((offset, len(data)))
        return True

    def _diverge(self, state: _Growing) -> None:
        """The old file is not the one that is wanted: go on with a new one, from what they share."""
        old = self._reach(state) if state.equal else None
        new = self._create(state, self._folder(state))
        for offset, size in state.equal:
            assert old is not None
            for place, begin, end in state.layout.spans(offset, size):
                for at in range(place, place + end - begin, PIECE):
                    wanted = min(PIECE, place + end - begin - at)
                    piece = read_at(old.fd, wanted, at)
                    if len(piece) != wanted:
                        raise OSError(errno.EBUSY, "another program changes the file that is replaced")
                    write_at(new.fd, memoryview(piece), at)

    def _complete(self, state: _Growing) -> None:
        entry, folder = state.entry, self._folder(state)
        file = self._reach(state)
        fresh = not state.comparing and not folder.strict
        if not state.comparing and os.fstat(file.fd).st_size != entry.size:
            os.ftruncate(file.fd, entry.size)  # some drivers refuse even what changes nothing
        if not self._by_path:
            self._dresser.dress(file.fd, entry.path, look_of(entry), fresh=fresh)
        if self._sync and not state.comparing:
            os.fsync(file.fd)
        del file
        self._drop(state)
        if self._by_path:
            self._dresser.dress_by_path(folder, state.current, entry.path, look_of(entry))
        if not state.comparing:
            folder.replace(state.current, state.name)

    def _fail(self, state: _Growing) -> None:
        with state.lock:
            state.failed = True
            self._drop(state)
            if state.current and not state.comparing:
                try:
                    self._folder(state).unlink(state.current)
                except OSError:
                    pass  # what made it fail may be in the way of this too
                state.current = b""

    def _folder(self, state: _Growing) -> Folder:
        return self._folders.get(state.entry.path.rpartition(b"/")[0])

    def _reach(self, state: _Growing) -> _Open:
        """The file that is compared or written, opened again if others were needed more."""
        path = state.entry.path
        with self._lock:
            file = self._open.pop(path, None)
            if file is not None:
                self._open[path] = file
                return file
        folder = self._folder(state)
        flags = READ if state.comparing else WRITE
        file = _Open(os.open(folder.prefix + state.current, flags, dir_fd=folder.fd))
        found = os.fstat(file.fd)
        if (found.st_dev, found.st_ino) != state.identity:
            raise OSError(errno.EBUSY, "another program changes the files that are restored")
        self._keep(state, file)
        return file

    def _keep(self, state: _Growing, file: _Open) -> None:
        with self._lock:
            self._open[state.entry.path] = file
            if len(self._open) > OPEN_MAX:
                del self._open[next(iter(self._open))]

    def _drop(self, state: _Growing) -> None:
        with self._lock:
            self._open.pop(state.entry.path, None)


def _may_stay(found: os.stat_result, entry: Entry) -> bool:
    return is_file(found) and found.st_size == entry.size and found.st_nlink == 1
