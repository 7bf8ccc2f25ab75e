"""Repository: open, authorise, run a verb."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from pharmabackup import clock
from pharmabackup.credentials import Credential, KeyFile, Passphrase, Recipient, Vault
from pharmabackup.errors import InvalidInput, NotFound
from pharmabackup.events import Progress
from pharmabackup.results import AuditAnchor, AuditRecord, Comparison, Proposal, Report, Rules, Slot
from pharmabackup.retention import Keep
from pharmabackup.snapshot import Snapshot

# The engine and the verbs are imported when they are called for: whoever imports the library, or lists snapshots,
# does not wait for what backs up.
if TYPE_CHECKING:
    from pharmabackup.engine.history import Committed, History
    from pharmabackup.engine.reading import BlockReader, SnapshotReader
    from pharmabackup.engine.unlocked import Unlocked
    from pharmabackup.format.keys import Role
    from pharmabackup.sources.base import Source, StrPath


WORDS_MAX = 4000  # characters of an audit record's texts, as the format has it


class Repository:
    """Everything under one storage URL. Any method from any thread at once, `close` excepted."""

    def __init__(self, unlocked: Unlocked, url: str, *, actor: str | None = None, reason: str | None = None) -> None:
        from pharmabackup.verbs.journal import Journal

        unlocked.actor, unlocked.reason = actor, reason
        self._unlocked = unlocked
        self._journal = Journal(unlocked)
        self._read_lock = threading.Lock()
        self._blocks: BlockReader | None = None
        self.url = url
        self.id = unlocked.repository.hex()
        self.role: Role = unlocked.keyring.role
        self.slot = unlocked.slot.name
        self.capabilities: Mapping[str, bool] = dict(unlocked.record.capabilities)

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
    ) -> Repository:
        """Open a repository. NotFound, WrongCredential, Unsupported, Damaged, InvalidInput.

        `actor`: the person; `reason`: why. Both go into the audit records of what is done with it (docs/audit.md).
        """
        _check_words(actor, reason)
        from pharmabackup.engine import opening

        unlocked = opening.open_repository(
            url, credential, storage_options=storage_options, state_dir=state_dir, meanwhile=_import_verbs
        )
        return cls(unlocked, os.fspath(url), actor=actor, reason=reason)

    def close(self) -> None:
        """Let go of files and connections. What was looked at, or that nothing was, is recorded."""
        self._journal.close()
        if self._blocks is not None:
            self._blocks.index.close()
            self._blocks = None
        self._unlocked.storage.close()

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

    # ------------------------------------------------------------ verbs

    def backup(
        self,
        sources: Sequence[Source],
        *,
        reason: str | None = None,
        freeze: AbstractContextManager[object] | None = None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """One snapshot of each source, tier by tier. Incomplete, InvalidInput, StorageFailed, Cancelled."""
        from pharmabackup.engine.history import History
        from pharmabackup.verbs.backup import backup

        return self._journal.run(
            "backup",
            lambda: backup(
                self._unlocked,
                sources,
                show=self._shower(History()),
                reason=reason,
                freeze=freeze,
                progress=progress,
                cancel=cancel,
            ),
            reason=reason,
        )

    def snapshots(self, dataset: str | None = None, *, before: datetime | None = None) -> list[Snapshot]:
        """All snapshots, newest first. Damaged, StorageFailed."""
        from pharmabackup.engine.history import load_history

        history = load_history(self._unlocked)
        limit = None if before is None else _nanoseconds(before)
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
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """The newest of each dataset, or those named, into `target/<dataset>`. Incomplete, Conflict, NotFound."""
        from pharmabackup.engine.history import load_history
        from pharmabackup.verbs.restore import restore

        def run() -> Report:
            history = load_history(self._unlocked)
            return restore(
                self._unlocked,
                self._block_reader(),
                history,
                show=self._shower(history),
                target=None if target is None else Path(target),
                before=None if before is None else _nanoseconds(before),
                only=only,
                chosen=[snapshot._committed for snapshot in snapshots],
                into=into or {},
                overwrite=overwrite,
                progress=progress,
                cancel=cancel,
            )

        facts = {
            "patterns": len(only),
            "chosen": len(snapshots),
            "into": len(into or {}),
            "overwrite": bool(overwrite),
        }
        return self._journal.run("restore", run, facts=facts, reads=True)

    def check(
        self,
        *,
        read_data: float = 0.0,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Structure, references and signatures; and a share (0-1) of the data. Findings, not exceptions, judge."""
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

        To a replica sealed packs move, which needs no reading key here, and a maintainer's or owner's there. To
        another repository all is read here and sealed anew there. Incomplete, Conflict, NotPermitted, StorageFailed.
        """
        from pharmabackup.engine.history import load_history
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

        return compare(
            self._unlocked, self._block_reader(), other._unlocked, show_here=self._shower, show_there=other._shower
        )

    def propose_forget(
        self, keep: Mapping[str, Keep] | None = None, *, snapshots: Sequence[Snapshot] = (), time_zone: str = "UTC"
    ) -> Proposal:
        """What would be forgotten: by these rules, by the owner's, or what is named. Nothing is changed.

        `keep` says of what as `[device/]dataset[:label]`, each a name or a pattern; the first that fits holds, and
        what none fits is kept. `time_zone`: where days begin. InvalidInput, Damaged, NotPermitted, StorageFailed.
        """
        from pharmabackup.verbs.forget import Wish, propose_forget

        names = tuple(snapshot.id for snapshot in snapshots)
        wish = Wish(None if keep is None else dict(keep), names, time_zone)
        return propose_forget(self._unlocked, wish, blocks=self._fresh_blocks, shower=self._shower)

    def propose_prune(self) -> Proposal:
        """What could be deleted since nothing needs it, and what that frees. NotPermitted, Unsupported, Damaged."""
        from pharmabackup.verbs.prune import propose_prune

        return propose_prune(self._unlocked, shower=self._shower)

    def propose_repair(
        self,
        *,
        replicas: Sequence[Repository] = (),
        sources: Sequence[Source] = (),
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Proposal:
        """What is damaged, what of it can be mended, and what is lost. All packs are read; nothing is changed.

        `replicas`: the same repository elsewhere. `sources`: what may still have lost data, as it is backed up.
        InvalidInput, NotPermitted, Damaged, StorageFailed, Cancelled.
        """
        from pharmabackup.verbs.repair_proposal import propose_repair

        others = [replica._unlocked for replica in replicas]
        return propose_repair(self._unlocked, others, sources, shower=self._shower, progress=progress, cancel=cancel)

    def apply(
        self, proposal: Proposal, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> Report:
        """Do exactly what was proposed. Conflict("proposal-stale") when that is no longer true; Incomplete."""
        from pharmabackup.verbs.apply import apply

        return self._journal.run(
            proposal.verb,
            lambda: apply(self._unlocked, proposal, blocks=self._fresh_blocks, progress=progress, cancel=cancel),
            facts={"proposed": len(proposal.snapshots)},
        )

    def recall(self, snapshot: Snapshot, *, reason: str) -> None:
        """Call a snapshot back that somebody said to forget, while it is there. NotFound, NotPermitted."""
        from pharmabackup.verbs.marks import recall

        self._journal.run(
            "recall",
            lambda: recall(self._unlocked, snapshot._committed, reason=reason),
            subject=snapshot.id,
            reason=reason,
        )

    def hold(self, snapshot: Snapshot, *, reason: str, until: datetime | None = None) -> None:
        """Keep a snapshot whatever the rules say, until then or until it is released. NotPermitted, InvalidInput."""
        from pharmabackup.verbs.marks import hold

        def run() -> None:
            end = None if until is None else _nanoseconds(until)
            hold(self._unlocked, snapshot._committed, reason=reason, until=end)

        self._journal.run("hold", run, subject=snapshot.id, reason=reason)

    def release(self, snapshot: Snapshot, *, reason: str) -> None:
        """End the holds of a snapshot. NotFound, NotPermitted."""
        from pharmabackup.verbs.marks import release

        self._journal.run(
            "release",
            lambda: release(self._unlocked, snapshot._committed, reason=reason),
            subject=snapshot.id,
            reason=reason,
        )

    def slots(self) -> list[Slot]:
        """Who is enrolled, and who ever was. Damaged, StorageFailed."""
        from pharmabackup.verbs.keys import slots

        return slots(self._unlocked)

    def enrol(
        self,
        role: Role,
        who: Recipient | KeyFile | Vault | Passphrase,
        *,
        name: str,
        domain: str | None = None,
    ) -> None:
        """Let one more credential open this repository, with the keys of its role alone.

        `domain`: of a device: those of one domain trust each other's chunks. None: the owner's own.
        Conflict("name-taken"), InvalidInput, NotFound, NotPermitted, StorageFailed.
        """
        from pharmabackup.verbs.keys import enrol

        self._journal.run(
            "enrol",
            lambda: enrol(self._unlocked, role, who, name=name, domain=domain),
            subject=name,
            noted=True,
        )

    def revoke(self, name: str, *, reason: str, replicas: Sequence[Repository] = ()) -> None:
        """A slot opens nothing any more, and what it signs does not count; what it has backed up stays.

        New keys are made, since it knows those that are in use.
        `replicas`: where it has backed up to directly, so that this stays too.
        NotFound, Conflict, InvalidInput, NotPermitted, StorageFailed.
        """
        from pharmabackup.verbs.keys import revoke

        elsewhere = [other._unlocked for other in replicas]
        self._journal.run(
            "revoke",
            lambda: revoke(self._unlocked, name, reason=reason, elsewhere=elsewhere),
            subject=name,
            reason=reason,
            noted=True,
        )

    def split_recovery(self, *, threshold: int = 2, shares: int = 3) -> tuple[str, ...]:
        """Shares of a new recovery key, of which `threshold` open as an owner; they replace older ones. Shown once.

        InvalidInput, NotPermitted, Conflict, StorageFailed.
        """
        from pharmabackup.verbs.keys import split_recovery

        return self._journal.run(
            "split-recovery",
            lambda: split_recovery(self._unlocked, threshold=threshold, shares=shares),
            noted=True,
        )

    def change_passphrase(self, new: Passphrase) -> None:
        """From now on this slot opens with `new`. NotPermitted, InvalidInput, Conflict, StorageFailed."""
        from pharmabackup.verbs.keys import change_passphrase

        self._journal.run("change-passphrase", lambda: change_passphrase(self._unlocked, new), noted=True)

    def rotate(self, *, reason: str) -> None:
        """New keys for what is written from now on; old data keeps its own. NotPermitted, Conflict, StorageFailed."""
        from pharmabackup.verbs.keys import rotate

        self._journal.run("rotate", lambda: rotate(self._unlocked, reason=reason), reason=reason, noted=True)

    def configure(
        self,
        *,
        keep: Mapping[str, Keep] | None = None,
        forget_delay: timedelta | None = None,
        forget_quorum: int | None = None,
        reason_required: bool | None = None,
    ) -> None:
        """The owner's rules: for `propose_forget()`, how long a forget waits, how many must agree, whether a restore
        needs a reason. None: as it is.

        InvalidInput, NotPermitted, Conflict, Damaged, StorageFailed.
        """
        from pharmabackup.verbs.configure import Wish, configure

        wish = Wish(keep, forget_delay, forget_quorum, reason_required)
        self._journal.run("configure", lambda: configure(self._unlocked, wish), noted=True)

    def rules(self) -> Rules:
        """What `configure` has set. Damaged, StorageFailed."""
        from pharmabackup.verbs.configure import rules

        return rules(self._unlocked)

    def propose_reseal(self) -> Proposal:
        """What is sealed for older keys, and would be sealed for the newest. NotPermitted, Unsupported, Damaged."""
        from pharmabackup.verbs.reseal import propose_reseal

        return propose_reseal(self._unlocked)

    # ------------------------------------------------------------ the audit log (docs/audit.md)

    def audit(self, *, since: datetime | None = None) -> Iterator[AuditRecord]:
        """What everybody did here, by time; each slot's in the order of its chain. Damaged, StorageFailed."""
        from pharmabackup.verbs.audit import records

        return records(self._unlocked, None if since is None else _nanoseconds(since))

    def record(self, event: str, facts: Mapping[str, object]) -> None:
        """Your own entry, such as a drill's. No patient data: everybody who can open this repository can read it.

        `facts`: text, numbers, bytes, and lists and mappings of these. InvalidInput; StorageFailed when neither
        storage nor this machine can keep it.
        """
        self._journal.record(event, facts)

    def audit_anchor(self) -> AuditAnchor:
        """The log as it is now, in a few lines to be kept elsewhere. Damaged, StorageFailed."""
        from pharmabackup.verbs.audit import anchor

        return anchor(self._unlocked)

    def audit_verify(
        self,
        *,
        anchors: Sequence[AuditAnchor] = (),
        replicas: Sequence[Repository] = (),
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Whether the log is whole: nothing deleted, edited, moved, cut off or forked. Findings judge.

        `anchors`: what `audit_anchor` once gave of this place. `replicas`: other places, in case one is a copy of
        this one's folder. InvalidInput, StorageFailed, Cancelled.
        """
        from pharmabackup.verbs.audit import verify

        facts: dict[str, object] = {"anchors": len(anchors), "replicas": len(replicas)}
        others = [replica._unlocked for replica in replicas]

        def run() -> Report:
            report, facts["records"] = verify(
                self._unlocked, anchors=anchors, replicas=others, progress=progress, cancel=cancel
            )
            return report

        return self._journal.run("audit-verify", run, facts=facts)

    # ------------------------------------------------------------ inside

    def _shower(self, history: History) -> Callable[[Committed], Snapshot]:
        """What makes snapshots of what was committed, with what was said about them."""
        from pharmabackup.verbs.standing import NOTHING, standings

        said = standings(history)
        return lambda committed: Snapshot(committed, said.get(committed.transaction, NOTHING), self._snapshot_reader)

    def _fresh_blocks(self) -> BlockReader:
        """One that knows what storage holds now."""
        return self._block_reader(fresh=True)

    def _block_reader(self, *, fresh: bool = False) -> BlockReader:
        from pharmabackup.engine.index import Index
        from pharmabackup.engine.reading import BlockReader

        with self._read_lock:
            if self._blocks is None or fresh:
                reader = self._blocks or BlockReader(self._unlocked, Index(self._unlocked, chunks=False))
                reader.refresh(seen=reader.index)
                self._blocks = reader
            return self._blocks

    def _snapshot_reader(self, committed: Committed, what: str) -> SnapshotReader:
        self._journal.look(committed.transaction, what)
        from pharmabackup.engine.reading import SnapshotReader

        return SnapshotReader(self._block_reader(), committed.snapshot)


def _import_verbs() -> None:
    """While the passphrase is stretched, which takes a while and one core: what will be called next."""
    for name in ("sources", "verbs.backup"):
        import_module(f"pharmabackup.{name}")


def _check_words(actor: str | None, reason: str | None) -> None:
    """InvalidInput. Audit records hold them, and no verb shall fail for it when it has done its work."""
    for what, text in (("actor", actor), ("reason", reason)):
        if text is None:
            continue
        if (
            not isinstance(text, str)
            or len(text) > WORDS_MAX
            or any("\ud800" <= letter <= "\udfff" for letter in text)
        ):
            raise InvalidInput(
                f"The {what} cannot be recorded.", remedy=f"Give Unicode text of {WORDS_MAX} characters at most."
            )


def _nanoseconds(moment: datetime) -> int:
    try:
        return clock.to_ns(moment)
    except ValueError:
        raise InvalidInput(
            f"The time {moment} has no time zone.", kind="time-naive", remedy="Give an aware datetime."
        ) from None
