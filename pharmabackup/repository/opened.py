"""What every part of a repository stands on: the unlocked keys, the journal, one reader of blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING

from pharmabackup import clock
from pharmabackup.errors import InvalidInput
from pharmabackup.mutex import Mutex
from pharmabackup.snapshot import Snapshot

# The engine and the verbs are imported when they are called for: whoever imports the library, or lists snapshots,
# does not wait for what backs up.
if TYPE_CHECKING:
    from pharmabackup.engine.history import Committed, History
    from pharmabackup.engine.listing import Listing
    from pharmabackup.engine.reading import BlockReader, SnapshotReader
    from pharmabackup.engine.unlocked import Unlocked
    from pharmabackup.format.keys import Role


class Opened:
    """A repository that a credential has opened."""

    def __init__(self, unlocked: Unlocked, url: str, *, actor: str | None = None, reason: str | None = None) -> None:
        from pharmabackup.verbs.journal import Journal

        unlocked.actor, unlocked.reason = actor, reason
        self._unlocked = unlocked
        self._journal = Journal(unlocked)
        self._read_lock = Mutex()
        self._blocks: BlockReader | None = None
        self.url = url
        self.id = unlocked.repository.hex()
        self.role: Role = unlocked.keyring.role
        self.slot = unlocked.slot.name
        self.capabilities: Mapping[str, bool] = dict(unlocked.record.capabilities)

    def close(self, *, eject: bool = False) -> None:
        """Let go of files and connections. What was looked at, or that nothing was, is recorded.

        `eject` makes a removable disk safe to unplug: StorageFailed("in-use"), Unsupported when it is none.
        """
        with ExitStack() as stack:  # the last first, and all, whatever happens to one
            stack.callback(self._unlocked.storage.close)
            self._blocks = None
            stack.callback(self._journal.close)
            self._unlocked.threads.close()  # what nobody wants any more would be in the way of the last record
        if eject:
            self._unlocked.storage.eject()

    def _shower(self, history: History) -> Callable[[Committed], Snapshot]:
        """What makes snapshots of what was committed, with what was said about them."""
        from pharmabackup.verbs.standing import NOTHING, standings

        said = standings(history)
        return lambda committed: Snapshot(committed, said.get(committed.transaction, NOTHING), self._snapshot_reader)

    def _fresh_blocks(self) -> BlockReader:
        """One that knows what storage holds now."""
        return self._block_reader(fresh=True)

    def _block_reader(self, *, fresh: bool = False, listing: Listing | None = None) -> BlockReader:
        from pharmabackup.engine.index import Index
        from pharmabackup.engine.reading import BlockReader

        with self._read_lock.own:
            reader = self._blocks  # which a close on another thread takes away
            if reader is not None and reader.ended:
                reader = None
            if reader is None or fresh:
                reader = reader or BlockReader(self._unlocked, Index(self._unlocked, chunks=False))
                reader.refresh(seen=reader.index, listing=listing)
                self._blocks = reader
            return reader

    def _snapshot_reader(self, committed: Committed, what: str) -> SnapshotReader:
        self._journal.look(committed.transaction, what)
        from pharmabackup.engine.reading import SnapshotReader

        return SnapshotReader(self._block_reader(), committed.snapshot)


def to_ns(moment: datetime) -> int:
    """Nanoseconds since 1970. InvalidInput when it has no time zone."""
    try:
        return clock.to_ns(moment)
    except ValueError:
        raise InvalidInput(
            f"The time {moment} has no time zone.", kind="time-naive", remedy="Give an aware datetime."
        ) from None
