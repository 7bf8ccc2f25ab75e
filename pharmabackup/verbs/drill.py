"""The drill of the recovery key: do these shares bring everything back, today, on a machine that knows nothing?

The shares are what is proved, so that only they open what is looked at, whoever has opened the repository: a holder
with his share and others', or an auditor, in whose chain it is recorded that a drill failed. Nothing is handed out,
and nothing is kept on this machine.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

from pharmabackup.clock import from_ns, iso
from pharmabackup.credentials import Shares, fingerprint_of
from pharmabackup.crypto.hashing import key_id
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.engine import enrolment
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.keyrings import Opener
from pharmabackup.engine.opening import open_also
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, Incomplete, InvalidInput, NotPermitted, WrongCredential
from pharmabackup.events import Finding, Progress
from pharmabackup.format.pack import WrappedKey
from pharmabackup.format.wire import Kind
from pharmabackup.results import DatasetResult, RecoveryDrill
from pharmabackup.verbs.findings import history_findings
from pharmabackup.verbs.reporter import Reporter

NOWHERE = Path(os.devnull)  # below it nothing can be written: a machine that remembers nothing and keeps nothing
SNAPSHOTS = 32  # of a dataset that are looked into: the newest, the oldest, and as many between
BLOCKS = 2  # of about 1 MiB each, of a dataset's names and of its data, of each generation of keys
NO_GENERATION = -1
READ = (Kind.MANIFEST_BLOCK, Kind.DATA_BLOCK)  # what is sealed for the readers
REPAIR = "Restore it from another location, then run check and propose_repair."
SPLIT_AGAIN = "Split the recovery key again with an owner's credential, and drill the new shares."

if TYPE_CHECKING:
    from pharmabackup.snapshot import Snapshot

Shower = Callable[[History], Callable[[Committed], "Snapshot"]]


def drill_recovery_key(
    unlocked: Unlocked,
    shares: Shares,
    *,
    facts: MutableMapping[str, object],
    shower: Shower,
    progress: Progress | None,
    cancel: threading.Event | None,
) -> RecoveryDrill:
    """Prove that any k of these shares restore everything. `facts`: what is known of them, for the audit record.

    Incomplete when something could not be proved; WrongCredential when they do not open at all; Damaged when the list
    of who may do what was turned back; StorageFailed, Cancelled.
    """
    if not isinstance(shares, Shares):
        raise InvalidInput("Only shares are drilled.", kind="shares", remedy="Give pb.Shares(…).")
    facts.update({"shares": sorted(shares.numbers), "threshold": shares.threshold})
    reporter = Reporter("drill", progress, cancel)
    enrolment.learn(unlocked)
    opened = _opened_with(unlocked, shares, facts)
    try:
        drill = _Drill(opened, reporter)
        drill.shares(shares)
        drill.keys()
        history = load_history(opened)
        datasets = drill.data(history, shower(history))
    finally:
        opened.threads.close()
    slot, report = opened.slot, reporter.report(datasets)
    result = RecoveryDrill(
        **{name: getattr(report, name) for name in type(report).__slots__},
        slot=slot.name,
        fingerprint=fingerprint_of(slot.recipient),
        split=from_ns(slot.created),
        threshold=shares.threshold,
        shares=tuple(sorted(shares.numbers)),
    )
    wrong = [finding for finding in result.findings if finding.severity == "critical"]
    if wrong:
        raise Incomplete(
            f"Not all that these shares have to restore was proved: {wrong[0].message}",
            result=result,
            kind="drill",
            remedy=wrong[0].remedy,
        )
    return result


def _opened_with(unlocked: Unlocked, shares: Shares, facts: MutableMapping[str, object]) -> Unlocked:
    """The same repository as a machine sees it that has nothing but the shares. WrongCredential, Damaged."""
    try:
        recipient = Opener.of_seed(shares.reveal()).recipient
    except InvalidInput as error:  # recorded: it was not the caller's mistake
        raise WrongCredential(error.message, kind="shares", remedy=error.remedy) from None
    keys = [slot for slot in unlocked.roster.slots if slot.credential == "shares"]
    slot = next((slot for slot in keys if slot.recipient == recipient), None)
    if slot is None:
        raise WrongCredential(
            "These shares are not of this repository.", remedy="Look at the recovery kit: whose shares are they?"
        )
    facts["fingerprint"] = fingerprint_of(recipient)
    if slot.revoked is not None:
        raise WrongCredential(
            f"These shares are of the recovery key of {_day(slot.created)}, which was revoked "
            f"on {_day(slot.revoked.time)} ({slot.revoked.reason}).",
            kind="revoked",
            remedy="Take the shares that were printed last, and destroy these.",
        )
    try:
        return open_also(unlocked, shares, state_dir=NOWHERE)
    except Damaged as error:
        if error.kind not in ("keys", "keys-missing"):
            raise
        raise Damaged(
            "The shares are right, and the newest keys that were sealed to them are gone.",
            kind="keys",
            remedy=f"Copy keys/{slot.id.hex()} from another location. {SPLIT_AGAIN}",
        ) from None


def _day(moment: int) -> str:
    """Of a time in nanoseconds since 1970, in UTC."""
    return from_ns(moment).date().isoformat()


class _Drill:
    """What only the shares have opened."""

    def __init__(self, opened: Unlocked, reporter: Reporter) -> None:
        self._opened = opened
        self._reporter = reporter
        self._blocks = BlockReader(opened, Index(opened, chunks=False))
        self._locked: set[WrappedKey] = set()  # that do not open
        self._generations = {key_id(one.reader): one.number for one in opened.roster.generations}

    def _find(self, code: str, subject: str, message: str, remedy: str) -> None:
        location = self._opened.storage.location
        self._reporter.find(
            Finding(
                code=code, severity="critical", subject=subject, message=message, remedy=remedy, location=location
            )
        )

    # ------------------------------------------------------------ the shares and the keys

    def shares(self, shares: Shares) -> None:
        """Each belongs to the others, and their key is the one that new data is sealed to."""
        for number in shares.odd():
            self._find(
                "share-differs",
                f"share {number}",
                f"Share {number} does not belong to the others, though it looks so: it opens nothing with them.",
                SPLIT_AGAIN,
            )
        if self._opened.roster.recovery != self._opened.slot.recipient:
            self._find(
                "recovery-key-differs",
                self._opened.slot.name,
                "New data is sealed to another recovery key than that of these shares.",
                SPLIT_AGAIN,
            )

    def keys(self) -> None:
        """The keyring has all keys of the list, and opens the key of every transaction that is there."""
        roster, keyring = self._opened.roster, self._opened.keyring
        naming = {item.domain for item in keyring.naming}
        catalogue = {key_id(item.key) for item in keyring.catalogue}
        readers = {PrivateKey(item.key).public.raw for item in keyring.readers}
        lacking = [f"the names of the domain {item.name!r}" for item in roster.domains if item.id not in naming]
        for generation in roster.generations:
            if generation.catalogue not in catalogue:
                lacking.append(f"the catalogue of generation {generation.number}")
            if generation.reader not in readers:
                lacking.append(f"reading generation {generation.number}")
        for what in lacking:
            message = f"The shares open a keyring that lacks the key for {what}."
            remedy = f"Copy keys/{keyring.slot.hex()} from another location, or split the recovery key again."
            self._find("recovery-key-missing", what, message, remedy)
        self._blocks.refresh(seen=self._blocks.index)
        used = [wrapped for wrapped in self._blocks.index.blocks.keys if wrapped.wraps]  # else it is the catalogue's
        for wrapped in used:
            self._reporter.look()
            try:
                self._opened.block_key(wrapped)
            except (Damaged, NotPermitted):  # the second: there is no key to read with at all
                self._locked.add(wrapped)
        if self._locked:
            message = f"Of the {len(used)} keys that data is sealed with, the shares do not open {len(self._locked)}."
            self._find("recovery-key-missing", "transactions", message, REPAIR)

    # ------------------------------------------------------------ the data

    def data(self, history: History, show: Callable[[Committed], Snapshot]) -> dict[str, DatasetResult]:
        """Of every dataset, names and data of each generation of keys are opened, and their names computed again."""
        for finding in history_findings(history, self._opened.storage.location):
            self._reporter.find(finding)
        forgotten, live = history.forgotten(), defaultdict[str, list[Committed]](list)
        for item in history.newest():
            if item.transaction not in forgotten:
                live[item.snapshot.dataset].append(item)
        if not live:
            self._reporter.find(
                Finding(
                    code="nothing-to-restore",
                    severity="warning",
                    subject="",
                    message="The shares open this repository, and there is no snapshot that they could restore.",
                    remedy="Back up, then drill again.",
                    location=self._opened.storage.location,
                )
            )
        order = sorted(live.values(), key=lambda items: (items[0].snapshot.tier, items[0].snapshot.dataset))
        return {items[0].snapshot.dataset: self._dataset(items, show(items[0])) for items in order}

    def _dataset(self, items: Sequence[Committed], newest: Snapshot) -> DatasetResult:
        reporter, before = self._reporter, self._reporter.bytes
        reporter.dataset, reporter.tier = newest.dataset, newest.tier
        wrong, looked, blocks = False, 0, 0
        proved: dict[tuple[int, int], int] = {}  # by kind and generation: blocks
        for item in _spread(items):
            reporter.look()
            looked += 1
            try:
                blocks += self._snapshot(item, proved)
            except Damaged as error:
                wrong = True
                self._find(
                    "snapshot-damaged",
                    item.transaction.hex(),
                    f"The shares do not restore the snapshot {item.transaction.hex()[:8]} of {newest.dataset}, from "
                    f"{iso(from_ns(item.snapshot.time))}: {error.message}",
                    REPAIR,
                )
        generations = sorted({generation for _, generation in proved})
        reporter.dataset = reporter.tier = None
        return DatasetResult(
            name=newest.dataset,
            tier=newest.tier,
            snapshot=newest,
            complete=not wrong,
            bytes=reporter.bytes - before,
            files=0,
            facts={"snapshots": looked, "blocks": blocks, "generations": generations},
        )

    def _snapshot(self, item: Committed, proved: dict[tuple[int, int], int]) -> int:
        """How many blocks of it were opened, of what had not been proved enough before. Damaged."""
        record, done = item.snapshot, 0
        relied = SnapshotReader(self._blocks, record).relied()
        try:
            wanted = self._choose(relied, record.domain)
        except Damaged:  # a collection may have moved some
            self._blocks.refresh(seen=self._blocks.index)
            wanted = self._choose(relied, record.domain)
        for place, ids in wanted.items():
            for block_id in ids[: max(0, BLOCKS - proved.get(place, 0))]:
                self._reporter.step(len(self._blocks.fetch(block_id, record.domain, names=True)), 0)
                proved[place] = proved.get(place, 0) + 1
                done += 1
        return done

    def _choose(self, relied: Iterable[bytes], domain: bytes) -> dict[tuple[int, int], list[bytes]]:
        """What is sealed for readers, by kind and generation, in an order that nobody knows before. Damaged."""
        table, missing, locked = self._blocks.index.blocks, 0, 0
        found = defaultdict[tuple[int, int], list[bytes]](list)
        for block_id in relied:
            number = table.find(block_id, domain)
            if number is None:
                missing += 1
                continue
            wrapped = table.keys[table.key[number]]
            if wrapped in self._locked:
                locked += 1
            elif table.kind[number] in READ:
                generations = [self._generations.get(wrap.recipient, NO_GENERATION) for wrap in wrapped.wraps]
                found[table.kind[number], max(generations)].append(block_id)
        if missing or locked:
            why = f"{missing} blocks that it needs are not there, and {locked} are sealed with keys that do not open."
            raise Damaged(why)
        for ids in found.values():
            SystemRandom().shuffle(ids)
        return found


def _spread(items: Sequence[Committed]) -> list[Committed]:
    """The newest, the oldest, and as many as are looked into between them, all far from one another."""
    if len(items) <= SNAPSHOTS:
        return list(items)
    return [items[place * (len(items) - 1) // (SNAPSHOTS - 1)] for place in range(SNAPSHOTS)]
