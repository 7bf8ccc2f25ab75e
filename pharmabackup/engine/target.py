"""The writer of restored files. It never leaves its folder, whatever names, links or files there are.

A path is accepted only if the folder it lies in was made, or found and entered, as a folder of this restore; a
folder is entered one component after the other, never through a link (`target_folders`). So a link in the manifest
can lead anywhere: nothing is written through it.

A file that fails is a finding, and the restore goes on; a disk that is full, write-protected or failing stops it.
Running the restore again goes on from there: what is already right stays.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from pathlib import Path
from typing import NamedTuple

from pharmabackup.engine.target_files import GrowingFiles, Identity, WholeFiles
from pharmabackup.engine.target_folders import BY_PATH, CREATE, Folder, Folders, is_folder, probe
from pharmabackup.engine.target_layout import write_all
from pharmabackup.engine.target_links import note_special, note_unread, put_link, put_name
from pharmabackup.engine.target_metadata import Dresser, Look, Notes, printable
from pharmabackup.engine.target_names import LocalNames
from pharmabackup.engine.target_trouble import concerns_disk, refused, stopped, trouble
from pharmabackup.errors import Conflict
from pharmabackup.events import Finding
from pharmabackup.format.manifest import Entry, EntryKind, Extra, decode_attributes

SLASH = 0x2F
NOT_NAMES = frozenset((b"", b".", b".."))
TIME_STEP = 2_000_000_000  # ns: FAT keeps even seconds, and no time at which a file was written last
LOOK = struct.Struct("<HIIq")
SALVAGED = b".salvaged"
FAILED = b"failed"  # as a folder's look: it could not be made, so nothing in it can be
MADE = b"made"  # made on the way to something below it
FOUND = b"found"  # entered on the way to something below it, and not ours to change


class Salvaged(NamedTuple):
    """What came of a file that is not whole: its name in the file's folder, and what it is known by."""

    name: bytes
    identity: Identity | None  # None: something else has that name, and nothing was written


class Target:
    """Restores one dataset into one folder. `folder`, `parents`, `special`: from one thread; the others: any."""

    def __init__(self, root: Path, *, merge: bool, sync: bool = False, by_path: bool = BY_PATH) -> None:
        """`merge`: much may be there already. `sync`: each file is on disk before it has its name."""
        self.written = 0  # files and links
        self.kept = 0  # of them, how many were already right and not written again
        self.missing = 0  # entries that did not come back
        self._root = root
        self._merge = merge
        self._by_path = by_path
        self._sync = sync
        self._lock = threading.Lock()
        self._notes = Notes()
        self._looks: dict[bytes, bytes] = {b"": FOUND}
        self._lost: set[bytes] = set()
        try:
            found = _make_root(root)
            self._folders = Folders(root, by_path=by_path)
            if found:
                self._folders.root.sweep()
            rules = probe(self._folders.root)
            self._started = os.stat(root).st_mtime_ns  # by the clock of the disk, which was just written to
        except OSError as error:
            raise stopped(error, root) from error
        if rules:
            self._folders.names = LocalNames(rules, self._notes.renamed)
        self._dresser = Dresser(self._notes, by_path=by_path)
        self._whole = WholeFiles(self._dresser, sync=sync, by_path=by_path)
        self._growing = GrowingFiles(self._folders, self._dresser, sync=sync, by_path=by_path)
        self._quick = not by_path

    @property
    def findings(self) -> list[Finding]:
        return self._notes.findings

    # ------------------------------------------------------------ folders

    def folder(self, entry: Entry) -> None:
        """Make a folder. Nobody else can enter it until `close` gives it its own mode."""
        attributes = entry.extras.get(Extra.ATTRIBUTES, b"")
        if attributes:
            decode_attributes(attributes)
        look = LOOK.pack(entry.mode, entry.uid, entry.gid, entry.mtime) + attributes
        if self._looks.get(entry.path) in (None, FAILED):
            self._make(entry.path)
        if self._looks[entry.path] != FAILED:
            self._looks[entry.path] = look

    def parents(self, entry: Entry) -> None:
        """Make the folders on the way to an entry, of those that were not asked for."""
        above = entry.path.rpartition(b"/")[0]
        if above in self._looks:
            return
        end = above.find(b"/")
        while end >= 0:
            if above[:end] not in self._looks:
                self._make(above[:end])
            end = above.find(b"/", end + 1)
        self._make(above)

    def _make(self, path: bytes) -> None:
        found = FAILED
        if self._place(path, folder=True) is not None:
            try:
                found = FOUND if self._folders.make(path) else MADE
            except OSError as error:
                self._failed(path, error)
        self._looks[path] = found

    # ------------------------------------------------------------ files

    def whole(self, entry: Entry, data: memoryview) -> None:
        """Write a file all of whose stored content is here."""
        place = self._place(entry.path)
        if place is None:
            return
        folder, name = place
        try:
            if self._sync or (self._merge and folder.look(name) is not None):
                kept = self._whole.put(entry, folder, name, data)
            elif self._quick and not folder.strict and self._dresser.is_plain(entry):
                kept = self._write(entry, folder, name, data)
            else:
                kept = self._put(entry, folder, name, data)
        except OSError as error:
            self._failed(entry.path, error, entry.stored)
        else:
            self._count(kept)

    def begin(self, entry: Entry) -> None:
        """Make ready for a file whose content comes in parts; the first part does it too."""
        place = self._place(entry.path)
        if place is not None:
            try:
                self._growing.begin(entry, place[1])
            except OSError as error:
                self._failed(entry.path, error, entry.stored)

    def parts(self, entry: Entry, pieces: list[tuple[int, memoryview]]) -> None:
        """Write parts of a file's stored content, each at its offset there."""
        place = self._place(entry.path)
        if place is not None:
            try:
                self._growing.parts(entry, place[1], pieces)
            except OSError as error:
                self._failed(entry.path, error, entry.stored)

    def finish(self, entry: Entry) -> None:
        """All parts of that file were written: it gets its size, looks and name."""
        place = self._place(entry.path)
        if place is not None:
            try:
                kept = self._growing.finish(entry, place[1])
            except OSError as error:
                self._failed(entry.path, error, entry.stored)
            else:
                if kept is not None:
                    self._count(kept)

    def salvage(self, entry: Entry, *, over: Identity | None = None) -> Salvaged | None:
        """Put what came of a file that is not whole beside where that would be. None: there is nothing.

        Never under the file's own name, nor in the place of anything but `over`, which an earlier restore put there:
        nobody may take it for whole, or lose what he has.
        """
        place = self._place(entry.path)
        if place is None:
            return None
        try:
            here = self._beside(entry)
            if not self._growing.salvage(entry, here, over):
                return None
            found = place[0].look(here)
            return None if found is None else Salvaged(here, Identity.of(found))
        except FileExistsError:
            return Salvaged(here, None)
        except OSError as error:
            if concerns_disk(error, self._root, 0):
                raise stopped(error, self._root) from error
            return None  # its name is too long

    def salvaged(self, entry: Entry) -> Identity | None:
        """What is beside a file under the name that `salvage` gives."""
        place = self._place(entry.path)
        try:
            found = None if place is None else place[0].look(self._beside(entry))
        except OSError:
            return None
        return None if found is None else Identity.of(found)

    def _beside(self, entry: Entry) -> bytes:
        parent, _, own = entry.path.rpartition(b"/")
        return self._folders.local(parent, own + SALVAGED)

    def _write(self, entry: Entry, folder: Folder, name: bytes, data: memoryview) -> bool:
        """The way of most files: new, and as the system makes it. What happens here happens 30,000 times a second."""
        try:
            fd = os.open(name, CREATE, entry.mode, dir_fd=folder.fd)
        except FileExistsError:
            return self._whole.put(entry, folder, name, data)
        try:
            try:
                if data:
                    done = os.write(fd, data)
                    if done < len(data):
                        write_all(fd, data[done:])
                try:
                    os.utime(fd, ns=(entry.mtime, entry.mtime))
                except (OverflowError, OSError):
                    self._dresser.times(fd, entry.path, entry.mtime)
            finally:
                os.close(fd)
        except BaseException:
            folder.unlink(name)
            raise
        return False

    def _put(self, entry: Entry, folder: Folder, name: bytes, data: memoryview) -> bool:
        try:
            fd = os.open(folder.prefix + name, CREATE, 0o600, dir_fd=folder.fd)
        except FileExistsError:
            return self._whole.put(entry, folder, name, data)
        self._whole.fill(fd, entry, folder, name, data)
        return False

    # ------------------------------------------------------------ everything else

    def special(self, entry: Entry) -> None:
        """Whatever has no stored content. A further name of a file comes after the file."""
        if entry.kind == EntryKind.FOLDER:
            self.folder(entry)
            return
        place = self._place(entry.path)
        if place is None:
            return
        if entry.kind == EntryKind.UNREAD:
            note_unread(entry, self._notes)
            self._lose(entry.path)
            return
        if entry.kind not in (EntryKind.FILE, EntryKind.LINK):
            note_special(entry, self._notes)
            return
        folder, name = place
        try:
            if entry.kind == EntryKind.LINK:
                kept = put_link(entry, folder, name, self._dresser, to_folder=self._leads_to_folder(entry))
            elif entry.same_file is not None:
                source = self._source(entry, entry.same_file)
                kept = put_name(entry, source, folder, name, self._dresser, self._notes)
            else:
                self.whole(entry, memoryview(b""))
                return
        except OSError as error:
            self._failed(entry.path, error, entry.stored)
        else:
            self._count(kept)

    def _source(self, entry: Entry, first: bytes) -> tuple[Folder, bytes]:
        """The file that has the content already. Only one of this restore, and only as it should be."""
        place = self._place(first)
        found = place[0].look(place[1]) if place is not None and first not in self._lost else None
        if found is not None:
            same = found.st_size == entry.size and abs(found.st_mtime_ns - entry.mtime) <= TIME_STEP
            if same or found.st_ctime_ns >= self._started:
                assert place is not None
                return place
        raise FileNotFoundError(errno.ENOENT, "the file whose content it shares did not come back")

    def _leads_to_folder(self, entry: Entry) -> bool:
        """Windows has two kinds of links; of the folders that come later it is not known yet."""
        path = os.path.normpath(os.path.join(os.path.dirname(entry.path), entry.link_target))
        return path.replace(b"\\", b"/") in self._looks

    def local(self, path: bytes) -> bytes:
        """The name that something at the top has here."""
        return self._folders.local(b"", path)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Folders get what they should look like, the deepest first. What was not finished is removed."""
        self._growing.abandon()
        for path in sorted(self._looks, reverse=True):
            packed = self._looks[path]
            if packed in (FAILED, FOUND) and not self._sync:
                continue
            try:
                self._dress_folder(path, packed)
            except PermissionError:
                self._notes.mode(path)
            except OSError as error:
                self._failed(path, error)
        self._folders.close()

    def abandon(self) -> None:
        """Cancelled: whole files stay, half-written ones are removed."""
        self._growing.abandon()
        self._folders.close()

    def _dress_folder(self, path: bytes, packed: bytes) -> None:
        if packed == FAILED:
            return
        folder = self._folders.get(path)
        if self._by_path:
            if packed not in (MADE, FOUND):
                self._dresser.dress_by_path(folder, b"", path, _unpack(packed))
            return
        assert folder.fd is not None
        if packed == MADE:
            os.fchmod(folder.fd, 0o700 | self._dresser.usual_bits)
        elif packed != FOUND:
            self._dresser.dress(folder.fd, path, _unpack(packed), fresh=False)
        if self._sync:
            os.fsync(folder.fd)

    # ------------------------------------------------------------ what all have in common

    def _place(self, path: bytes, *, folder: bool = False) -> tuple[Folder, bytes] | None:
        """The folder it lies in and its name there; None when that folder could not be made. Damaged."""
        parent, _, name = path.rpartition(b"/")
        look = self._looks.get(parent)
        if (
            look is None
            or name in NOT_NAMES
            or b"\0" in name
            or path[0] == SLASH
            or (path in self._looks and not folder)
        ):
            raise refused(path)
        if look == FAILED:
            self._lose(path)
            return None
        try:
            above = self._folders.get(parent)
        except OSError as error:
            self._failed(path, error)
            return None
        names = self._folders.names
        return above, name if names is None else names.local(parent, name)

    def _count(self, kept: bool) -> None:
        with self._lock:
            if kept:
                self.kept += 1
            else:
                self.written += 1

    def _lose(self, path: bytes) -> None:
        with self._lock:
            if path not in self._lost:
                self._lost.add(path)
                self.missing += 1

    def _failed(self, path: bytes, error: OSError, size: int = 0) -> None:
        """What concerns one path is a finding. StorageFailed when the disk itself is the trouble."""
        if concerns_disk(error, self._root, size):
            raise stopped(error, self._root, size) from error
        self._lose(path)
        code, reason, remedy = trouble(error)
        self._notes.add(code, "critical", path, f"{printable(path)} did not come back: {reason}.", remedy)


def _make_root(root: Path) -> bool:
    """True: it was there. Conflict when something else has its name."""
    os.makedirs(root.parent, exist_ok=True)
    try:
        os.mkdir(root, 0o700)
    except FileExistsError:
        found = os.lstat(root)
        if not is_folder(found):
            what = "a link" if os.path.islink(root) else "no folder"
            raise Conflict(
                f"{root} is {what}, and a restore writes only into a folder of its own.",
                remedy="Move it away, or choose another target folder.",
            ) from None
        return True
    return False


def _unpack(packed: bytes) -> Look:
    attributes = packed[LOOK.size :]
    mode, uid, gid, mtime = LOOK.unpack_from(packed)
    return Look(mode, uid, gid, mtime, decode_attributes(attributes) if attributes else [])
