"""Repository: open, authorise, run a verb; its keys, its keeping and its audit log are parts of their own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from pharmabackup.credentials import Credential
from pharmabackup.errors import InvalidInput, NotFound
from pharmabackup.events import Progress
from pharmabackup.repository.keeping import Keeping
from pharmabackup.repository.keys import Keys
from pharmabackup.repository.log import AuditLog
from pharmabackup.repository.opened import to_ns
from pharmabackup.results import Comparison, Followed, Report
from pharmabackup.snapshot import Snapshot

if TYPE_CHECKING:
    from pharmabackup.engine.packs import Sent
    from pharmabackup.sources.base import Source, StrPath
    from pharmabackup.storage.pace import UploadLimit


class Repository(Keys, Keeping, AuditLog):
    """Everything under one storage URL. Any method from any thread at once, `close` excepted."""

    @classmethod
    def create(
        cls,
        url: StrPath,
        credential: Credential,
        *,
        storage_options: Mapping[str, object] | None = None,
        state_dir: StrPath | None = None,
        replica_of: Repository | None = None,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Repository:
        """Make a repository whose owner holds `credential`, and open it. Conflict, Unsupported, InvalidInput.

        `replica_of`: the same repository at another place, which the same credentials open; `copy` fills it.
        `actor` and `reason` are those of `open`.
        """
        _check_words(actor, reason)
        from pharmabackup.engine import opening

        if replica_of is not None:
            of = replica_of._unlocked
            unlocked = opening.create_replica(
                url, credential, of=of, storage_options=storage_options, state_dir=state_dir
            )
        else:
            unlocked = opening.create(url, credential, storage_options=storage_options, state_dir=state_dir)
        made = cls(unlocked, os.fspath(url), actor=actor, reason=reason)
        made._journal.run("create", lambda: None, facts={"replica": replica_of is not None})
        return made

    @classmethod
    def open(
        cls,
        url: StrPath,
        credential: Credential,
        *,
        storage_options: Mapping[str, object] | None = None,
        state_dir: StrPath | None = None,
        actor: str | None = None,
        reason: str | None = None,
        upload_limit: UploadLimit | None = None,
        repository: str | None = None,
    ) -> Repository:
        """Open a repository. NotFound, WrongCredential, Unsupported, Damaged, InvalidInput.

        `actor`: the person; `reason`: why. Both go into the audit records of what is done with it (docs/audit.md).
        `upload_limit`: bytes a second that go there at most, 1,000 or more; or a function that says so of a local
        time. None: no limit then; 0: nothing goes until it says something else, and a server may end a line on which
        nothing comes: what was being sent is sent again then. What the function raises ends the upload. What goes to
        a disk of this computer is not held back.
        `repository`: its id, or at least the first 16 digits, where this machine comes for the first time: another
        one may have been put there. One that was there before remembers it.
        """
        _check_words(actor, reason)
        from pharmabackup.engine import opening

        pace = None
        if upload_limit is not None:
            from pharmabackup.storage.pace import Pace

            pace = Pace(upload_limit)
        unlocked = opening.open_repository(
            url,
            credential,
            storage_options=storage_options,
            state_dir=state_dir,
            expected=repository,
            meanwhile=_import_verbs,
        )
        if pace is not None:
            from pharmabackup.storage.disks import hardware

            root = unlocked.storage.local_root()
            unlocked.storage.pace = pace if root is None or hardware(root) is None else None
        return cls(unlocked, os.fspath(url), actor=actor, reason=reason)

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Repository {self.id[:8]}, opened as {self.role}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A repository is not pickled: it holds keys. Open it where it is needed.")

    def backup(
        self,
        sources: Sequence[Source],
        *,
        replicas: Sequence[Repository] = (),
        reason: str | None = None,
        freeze: AbstractContextManager[object] | None = None,
        freeze_timeout: timedelta = timedelta(minutes=1),
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """One snapshot of each source, tier by tier. Incomplete, InvalidInput, StorageFailed, Cancelled.

        `replicas`: other places, which get sealed packs while it runs, and then all else that they lack. What goes
        wrong there is the finding `location-behind`. `freeze` is entered before the first view is taken and left
        after the last, by another thread if that takes longer than `freeze_timeout` (the finding `freeze-ended`).
        """
        from pharmabackup.engine.history import History
        from pharmabackup.verbs.backup import backup

        def run(sent: Sent | None = None) -> Report:
            return self._journal.run(
                "backup",
                lambda: backup(
                    self._unlocked,
                    sources,
                    show=self._shower(History()),
                    reason=reason,
                    freeze=freeze,
                    freeze_timeout=freeze_timeout,
                    progress=progress,
                    cancel=cancel,
                    sent=sent,
                ),
                reason=reason,
            )

        if not replicas:
            return run()
        from pharmabackup.verbs.spread import Place, spread

        places = [Place(other._unlocked, partial(self.copy, other, cancel=cancel)) for other in replicas]
        return spread(self._unlocked, places, run)

    def follow(
        self,
        sources: Sequence[Source],
        *,
        cancel: threading.Event,
        replicas: Sequence[Repository] = (),
        every: timedelta = timedelta(seconds=5),
        reason: str | None = None,
        progress: Progress | None = None,
    ) -> Followed:
        """Back up what has changed, again and again until `cancel` is set: `every` so often at most (docs/minute.md).

        A source that cannot tell whether it has changed is backed up each time. What fails is tried again, sooner at
        first and then every half minute; `progress` hears of it. StorageFailed that no retry mends, InvalidInput.
        """
        from pharmabackup.repository.follow import follow

        return follow(self, sources, replicas=replicas, every=every, reason=reason, progress=progress, cancel=cancel)

    def snapshots(self, dataset: str | None = None, *, before: datetime | None = None) -> list[Snapshot]:
        """All snapshots, newest first. Damaged, StorageFailed."""
        from pharmabackup.engine.historyreader import load_history

        history = load_history(self._unlocked)
        limit = None if before is None else to_ns(before)
        show = self._shower(history)
        return [
            show(committed)
            for committed in history.newest()
            if dataset in (None, committed.snapshot.dataset) and (limit is None or committed.snapshot.time < limit)
        ]

    def snapshot(
        self, dataset: str | None = None, *, id: str | None = None, before: datetime | None = None
    ) -> Snapshot:
        """The newest; of a dataset, before a moment, or the one whose id begins so. NotFound, InvalidInput."""
        found = self.snapshots(dataset, before=before)
        if id is not None:
            found = [snapshot for snapshot in found if snapshot.id.startswith(id.lower())]
            if len(found) > 1:
                raise InvalidInput(
                    f"{len(found)} snapshots have an id that begins with {id}.", remedy="Give more of it."
                )
        found = [snapshot for snapshot in found if id is not None or not snapshot.forgotten]
        if not found:
            what = f"a snapshot {id}" if id else f"a snapshot of {dataset}" if dataset else "a snapshot"
            raise NotFound(
                f"There is no such thing here as {what}{' from before that time' if before else ''}.",
                kind="snapshot",
                remedy="List what there is with snapshots().",
            )
        return found[0]

    def restore(
        self,
        target: StrPath | None = None,
        *,
        before: datetime | None = None,
        only: Sequence[str] = (),
        snapshots: Sequence[Snapshot] = (),
        into: Mapping[str, Source] | None = None,
        overwrite: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """The newest of each dataset, or those named, into `target/<dataset>`. Incomplete, Conflict, NotFound.

        `dry_run`: only look. The report says what would come back, and its findings what would be in the way:
        versions, names that are taken, blocks that are missing, too little room.
        """
        from pharmabackup.engine.historyreader import load_history
        from pharmabackup.engine.lanes import Beside
        from pharmabackup.engine.listing import one_listing
        from pharmabackup.verbs.restore import restore

        def run(begun: Callable[[], object]) -> Report:
            storage = self._unlocked.storage
            listing = one_listing(storage, self._unlocked.state)
            with Beside(storage.lanes, lambda: self._block_reader(listing=listing)) as reader:
                history = load_history(self._unlocked, listing=listing)
                blocks = reader.result()
            return restore(
                self._unlocked,
                blocks,
                history,
                listing,
                begun=begun,
                show=self._shower(history),
                target=None if target is None else Path(target),
                before=None if before is None else to_ns(before),
                only=only,
                chosen=[snapshot._committed for snapshot in snapshots],
                into=into or {},
                overwrite=overwrite,
                dry_run=dry_run,
                progress=progress,
                cancel=cancel,
            )

        facts = {
            "patterns": len(only),
            "chosen": len(snapshots),
            "into": len(into or {}),
            "overwrite": bool(overwrite),
            "dry_run": bool(dry_run),
        }
        return self._journal.read("restore", run, facts=facts)

    def check(
        self,
        *,
        read_data: float = 0.0,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Structure, references and signatures; and a share (0-1) of the data. Findings, not exceptions, judge.

        Audit records that this machine has verified are listed, and read again by that share (docs/audit.md).
        """
        if not 0.0 <= read_data <= 1.0:
            raise InvalidInput(f"read_data is {read_data}.", remedy="Give a fraction from 0 to 1.")
        from pharmabackup.verbs.check import check

        return self._journal.run(
            "check",
            lambda: check(self._unlocked, read_data=read_data, progress=progress, cancel=cancel),
            facts={"read_data": read_data},
        )

    def copy(
        self,
        other: Repository,
        *,
        snapshots: Sequence[Snapshot] | None = None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Bring to `other` what it lacks: all that is not forgotten, or these. Run again, it goes on.

        To a replica sealed packs move, which needs no reading key here, and a maintainer's or owner's there; a device
        brings what it backed up itself. To another repository all is read here and sealed anew there.
        Incomplete, Conflict, NotPermitted, StorageFailed.
        """
        from pharmabackup.engine.historyreader import load_history
        from pharmabackup.verbs.copy import copy

        def run() -> Report:
            return copy(
                self._unlocked,
                self._block_reader(),
                other._unlocked,
                chosen=None if snapshots is None else [snapshot._committed for snapshot in snapshots],
                shower=lambda: other._shower(load_history(other._unlocked)),
                progress=progress,
                cancel=cancel,
            )

        return self._journal.copy(other._journal, run)

    def compare(self, other: Repository) -> Comparison:
        """What one of two replicas holds and the other lacks. InvalidInput, Damaged, StorageFailed."""
        from pharmabackup.verbs.compare import compare

        def run() -> Comparison:
            return compare(
                self._unlocked,
                self._block_reader(),
                other._unlocked,
                show_here=self._shower,
                show_there=other._shower,
            )

        return self._journal.compare(other._journal, run)


def _import_verbs() -> None:
    """While the passphrase is stretched, which takes a while and one core: what will be called next."""
    for name in ("sources", "verbs.backup"):
        import_module(f"pharmabackup.{name}")


def _check_words(actor: str | None, reason: str | None) -> None:
    """InvalidInput. Audit records hold them, and no verb shall fail for it when it has done its work."""
    from pharmabackup.format.wire import TEXT_MAX

    for what, text in (("actor", actor), ("reason", reason)):
        if text is None:
            continue
        if (
            not isinstance(text, str)
            or len(text) > TEXT_MAX
            or any("\ud800" <= letter <= "\udfff" for letter in text)
        ):
            raise InvalidInput(
                f"The {what} cannot be recorded.", remedy=f"Give Unicode text of {TEXT_MAX} characters at most."
            )
