"""Copy to another repository, with other keys: what is read and verified here is cut, named and sealed anew there."""

from __future__ import annotations

import hashlib
import struct

from pharmabackup.clock import now_ns
from pharmabackup.engine.dataset import DatasetSink, open_cache
from pharmabackup.engine.filecache import Remembered
from pharmabackup.engine.grants import READERS, WRITERS
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.transaction import Overtaken, Transaction, survey
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged, InvalidInput, NotFound
from pharmabackup.format.manifest import (
    Entry,
    EntryKind,
    Folder,
    FrameType,
    ManifestFinding,
    entries,
    read_folders,
)
from pharmabackup.format.transaction import HEADS_MAX, Head, Snapshot
from pharmabackup.format.wire import decode
from pharmabackup.results import sized
from pharmabackup.sources.base import FolderColumns, Sink
from pharmabackup.sources.rows import ROW_SIZE
from pharmabackup.verbs.copy_plan import Outcome
from pharmabackup.verbs.findings import history_findings
from pharmabackup.verbs.marks import say
from pharmabackup.verbs.reporter import Reporter

ATTEMPTS = 3  # when collections overtake a transaction
ORIGIN = "copied_from"  # in a snapshot's facts: which one of which repository it is
PAGED = ("sqlite",)  # kinds of sources whose one file is cut at its pages
PAGE_SIZE_AT = struct.Struct(">16xH")  # of an SQLite database: https://www.sqlite.org/fileformat.html, 1.3.2
FINE_CHUNKS, FINE_BELOW = 8, 24 << 10  # chunks; bytes of each on average: it was cut finely


class AcrossCopy:
    """`chosen`: the only snapshots that are wanted; None: all that are not forgotten."""

    def __init__(
        self, source: Unlocked, blocks: BlockReader, target: Unlocked, reporter: Reporter, chosen: set[bytes] | None
    ) -> None:
        self._source = source
        self._blocks = blocks
        self._target = target
        self._reporter = reporter
        self._chosen = chosen
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Conflict, InvalidInput, NotPermitted, StorageFailed, Cancelled."""
        if not self._source.keyring.readers:
            raise self._source.not_permitted("read", who=READERS)
        if self._target.keyring.role not in WRITERS:
            raise self._target.not_permitted("write", who=WRITERS)
        here = load_history(self._source)
        self._there = load_history(self._target)
        for finding in history_findings(here, self._source.storage.location):
            self._reporter.find(finding)
        wanted = wanted_across(self._source, here, self._there, self._chosen)
        _check_names(wanted)
        self._heads = self._there.heads(self._target.slot.id)[:HEADS_MAX]
        self._sequence = self._there.next_sequence(self._target.slot.id)
        index = Index(self._target)
        try:
            self._ground = survey(self._target, index)
            for item in wanted:
                self._one(index, item)
            self._holds(here)
            index.save()
        finally:
            index.close()
        return self._outcome

    def _holds(self, here: History) -> None:
        """What holds here, and was not said of the copy yet: it may have been copied before it was held."""
        there, held = self._there, here.holds(now_ns())
        told = {
            (who, said.mark.reason, said.mark.until)
            for said in there.said
            if said.mark.kind == "hold"
            for who in said.transactions
        }
        gone = there.forgotten()
        for who, item in there.committed.items():
            repository, original = origin(item.snapshot) or (None, b"")
            for said in held.get(original, []) if repository == self._source.repository and who not in gone else ():
                if (who, said.mark.reason, said.mark.until) not in told:
                    say(self._target, "hold", [who], reason=said.mark.reason, until=said.mark.until)

    def _one(self, index: Index, item: Committed) -> None:
        reporter = self._reporter
        reporter.dataset, reporter.tier = item.snapshot.dataset, None
        for left in reversed(range(ATTEMPTS)):
            try:
                self._attempt(item)
                return
            except Damaged as error:
                self._outcome.failed.append((item, error))
                return
            except (Overtaken, NotFound):
                if not left:
                    raise Conflict(
                        "Collections kept overtaking the copy.",
                        kind="already-running",
                        remedy="Copy again when they have ended; what was sent is used.",
                    ) from None
                reporter.tell("retrying", "A collection was faster; this snapshot is read again.")
                self._blocks.refresh()
                self._ground = survey(self._target, index)

    def _attempt(self, item: Committed) -> None:
        source, target, record = self._source, self._target, item.snapshot
        memory = f"{record.dataset} copied from {source.repository.hex()} {record.domain.hex()}"
        remembered = self._remembered(memory)
        transaction = Transaction(target, self._ground)
        sink: DatasetSink | None = None
        try:
            sink = DatasetSink(target, transaction, record.dataset, remembered, self._reporter.step, memory=memory)
            _Dump(SnapshotReader(self._blocks, record), sink).run()
            dumped = sink.finish()
            transaction.publish()
            _, intent = transaction.pin(dumped.relied)
            heads = tuple(head for head in self._heads if self._time_of(head) <= record.time)
            snapshot = Snapshot(
                run=record.run,
                dataset=record.dataset,
                tier=record.tier,
                source=record.source,
                domain=target.domain,
                reason=record.reason,
                time=record.time,
                age=record.age,
                device_time=record.device_time,
                sequence=self._sequence,
                heads=heads,
                files=dumped.files,
                size=dumped.size,
                added=transaction.bytes_written,
                facts={**record.facts, ORIGIN: [source.repository, item.transaction]},
                complete=record.complete,
                findings=record.findings,
                chunks=dumped.chunks,
                table=dumped.table,
                recipe=dumped.recipe,
                manifest=dumped.manifest,
            )
            self._reporter.check_cancelled()
            digest = transaction.commit(intent, snapshot).hash
        except BaseException:
            if sink is not None:
                sink.cache.discard()
            transaction.abandon()
            raise
        finally:
            if remembered is not None:
                remembered.close()
        transaction.close()
        sink.remember()
        committed = Committed(transaction.id, digest, target.slot, snapshot)
        self._there.committed[transaction.id] = committed
        replaced = {head.transaction for head in heads}
        left = tuple(head for head in self._heads if head.transaction not in replaced)
        self._heads = (*left, Head(target.slot.id, transaction.id, digest))
        self._sequence += 1
        self._outcome.done.append((committed, snapshot.added))
        self._reporter.tell("committed", f"{record.dataset} is safe: {sized(snapshot.added)} added.")

    def _time_of(self, head: Head) -> int:
        return self._there.committed[head.transaction].snapshot.time

    def _remembered(self, memory: str) -> Remembered | None:
        """What the last copy of the dataset left on this machine, if that snapshot still counts."""
        found = open_cache(self._target, memory).load()
        return found if found is not None and found.transaction in self._there.committed else None


def wanted_across(source: Unlocked, here: History, there: History, chosen: set[bytes] | None) -> list[Committed]:
    """What is not forgotten here and was not copied there yet, oldest first."""
    copied = {origin(item.snapshot) for item in there.committed.values()}
    forgotten = here.forgotten()
    wanted = [
        item
        for who, item in here.committed.items()
        if (chosen is None or who in chosen) and who not in forgotten and (source.repository, who) not in copied
    ]
    return sorted(wanted, key=lambda item: (item.snapshot.time, item.snapshot.sequence))


def origin(snapshot: Snapshot) -> tuple[bytes, bytes] | None:
    """Repository and transaction that a snapshot is a copy of."""
    match snapshot.facts.get(ORIGIN):
        case [bytes(repository), bytes(transaction)]:
            return repository, transaction
    return None


def _check_names(wanted: list[Committed]) -> None:
    """InvalidInput when two devices' datasets of one name would become one history there."""
    domains: dict[str, bytes] = {}
    for item in wanted:
        record = item.snapshot
        if domains.setdefault(record.dataset, record.domain) != record.domain:
            raise InvalidInput(
                f"Several devices have a dataset named {record.dataset!r}, which would become one there.",
                remedy="Copy the snapshots of one device at a time, each into a repository of its own.",
            )


class _Dump:
    """A snapshot's content, handed to a sink as a source would."""

    def __init__(self, reader: SnapshotReader, sink: Sink) -> None:
        self._reader = reader
        self._sink = sink
        self._paged = reader.snapshot.source in PAGED

    def run(self) -> None:
        """Damaged, NotFound, StorageFailed, Cancelled."""
        self._runs, self._table = self._reader.recipe()
        self._chunk = 0  # of the content stream, where the next entry's begin
        self._run = self._in_run = 0
        for folder, frame, start in read_folders(self._reader.frames()):
            self._folder(folder, entries(folder, frame, start))
        for frame in self._reader.frames():
            if frame.kind == FrameType.FINDING:
                found = decode(frame.body, ManifestFinding)
                self._sink.finding(found.code, found.subject, found.message, found.remedy, severity=found.severity)

    def _folder(self, folder: Folder, found: list[Entry]) -> None:
        names = folder.names.split(b"\0") if found else []
        rows = [self._row(name, entry) for name, entry in zip(names, found, strict=True)]
        whole = hashlib.blake2b(b"".join((*rows, folder.path)), digest_size=32)
        for extra in folder.extras:
            whole.update(b"%d %d %d " % (extra.entry, extra.key, len(extra.value)) + extra.value)
        blob = whole.digest() + b"".join(rows)
        previous = self._sink.previous(folder.path, names)
        if previous is not None and previous.rows == blob:
            self._sink.keep_folder(previous)
            return
        known = previous.entries() if previous is not None else {}
        columns = FolderColumns(names=names)
        for place, (name, entry, row) in enumerate(zip(names, found, rows, strict=True)):
            kept, chunks, stored = known.get(name), 0, 0
            if kept is not None and kept.row == row:
                self._sink.keep_file(kept)
                chunks, stored = kept.chunks, kept.stored
            elif entry.stored:
                chunks, stored = self._content(entry)
            self._sink.check()
            columns.kinds.append(entry.kind)
            for column, value in (
                (columns.modes, entry.mode),
                (columns.uids, entry.uid),
                (columns.gids, entry.gid),
                (columns.mtimes, entry.mtime),
                (columns.sizes, entry.size),
                (columns.chunks, chunks),
                (columns.stored, stored),
            ):
                column.append(value)
            columns.extras += [(place, key, value) for key, value in entry.extras.items()]
        self._sink.folder(folder.path, columns, blob)

    def _row(self, name: bytes, entry: Entry) -> bytes:
        """What an entry and its content are like here: the same again is not read."""
        row = hashlib.blake2b(digest_size=ROW_SIZE)
        facts = (entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime, entry.size, entry.stored)
        row.update(name + b"\0" + b" ".join(b"%d" % fact for fact in facts))
        left, runs = entry.chunks, self._runs
        while left:
            taken = min(left, runs.count[self._run] - self._in_run)
            row.update(self._table[runs.block[self._run]])
            row.update(struct.pack("<II", runs.first[self._run] + self._in_run, taken))
            left -= taken
            self._in_run += taken
            if self._in_run == runs.count[self._run]:
                self._run, self._in_run = self._run + 1, 0
        return row.digest()

    def _content(self, entry: Entry) -> tuple[int, int]:
        reader, start, size = self._reader, entry.start, entry.stored
        if self._paged and entry.kind == EntryKind.FILE:
            head = reader.read(start, min(size, PAGE_SIZE_AT.size))
            page_size = PAGE_SIZE_AT.unpack(head)[0] if len(head) == PAGE_SIZE_AT.size else 0
            page_size = 65536 if page_size == 1 else page_size
            if page_size >= 512 and size % page_size == 0:

                def read_at(offset: int, view: memoryview) -> int:
                    data = reader.read(start + offset, min(len(view), size - offset))
                    view[: len(data)] = data
                    return len(data)

                return self._sink.pages(read_at, size=size, page_size=page_size)
        done = 0

        def read_into(view: memoryview) -> int:
            nonlocal done
            data = reader.read(start + done, min(len(view), size - done))
            view[: len(data)] = data
            done += len(data)
            return len(data)

        finely = entry.chunks >= FINE_CHUNKS and size < entry.chunks * FINE_BELOW  # as it is here
        return self._sink.stream(read_into, fine=finely)
