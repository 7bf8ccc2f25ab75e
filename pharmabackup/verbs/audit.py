"""The audit log for who reads it: its records, its heads to be kept elsewhere, and whether it can be relied on."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial

from pharmabackup.clock import from_ns, iso, now_ns
from pharmabackup.engine.auditlocal import Pin
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, InvalidInput, NotFound
from pharmabackup.events import Finding, Progress
from pharmabackup.results import AuditAnchor, AuditHead, AuditRecord, Report
from pharmabackup.verbs.audit_chains import Chains, Witness, fork
from pharmabackup.verbs.audit_listing import Chain, list_chains
from pharmabackup.verbs.audit_reading import RecordReader, Stored, open_record, read_record
from pharmabackup.verbs.journal import audit_id_of
from pharmabackup.verbs.reporter import Reporter

EARLIER = 100  # so many in a row that are too early: those before them are, too


def records(unlocked: Unlocked, since: int | None) -> Iterator[AuditRecord]:
    """Of all slots, by time; of each in the order of its chain. A few of each are in memory at once. StorageFailed.

    `since`: nanoseconds since 1970. What cannot be read is there as a record that says so.
    """
    chains = [chain for chain in list_chains(unlocked).values() if chain.numbers]
    read = partial(_read, unlocked, RecordReader(unlocked), beside=len(chains))
    streams = (_stream(chain, read, None if since is None else from_ns(since)) for chain in chains)
    yield from heapq.merge(*streams, key=lambda record: record.time)


def _stream(
    chain: Chain, read: Callable[[Chain, Sequence[int]], Iterator[AuditRecord]], limit: datetime | None
) -> Iterator[AuditRecord]:
    places, begin, early = range(len(chain.numbers)), 0, 0
    if limit is not None:
        for place, record in zip(reversed(places), read(chain, places[::-1]), strict=True):
            early = early + 1 if record.time < limit else 0
            if early == EARLIER:
                begin = place
                break
    yield from (record for record in read(chain, places[begin:]) if limit is None or record.time >= limit)


def _read(
    unlocked: Unlocked, reader: RecordReader, chain: Chain, places: Sequence[int], *, beside: int
) -> Iterator[AuditRecord]:
    fetched = reader.fetch(((chain, place) for place in places), len(places), beside=beside)
    for place, stored in zip(places, fetched, strict=True):
        yield _shown(unlocked, chain, chain.numbers[place], stored)


def _shown(unlocked: Unlocked, chain: Chain, number: int, stored: Stored) -> AuditRecord:
    name, audit_id = chain.object(number), audit_id_of(bytes.fromhex(chain.slot), number)
    try:
        record = open_record(unlocked, name, stored)[0].record
    except (Damaged, NotFound):
        try:
            time = unlocked.storage.info(name).modified
        except NotFound:
            time = now_ns()
        return AuditRecord(
            id=audit_id,
            time=from_ns(time),
            slot=chain.name,
            actor=None,
            event="unreadable",
            outcome="damaged",
            subject="",
            reason=None,
            facts={},
        )
    return AuditRecord(
        id=audit_id,
        time=from_ns(record.time),
        slot=chain.name,
        actor=record.actor,
        event=record.event,
        outcome=record.outcome,
        subject=record.subject,
        reason=record.reason,
        facts=record.facts,
    )


def anchor(unlocked: Unlocked) -> AuditAnchor:
    """The last record of each slot's chain that can be read: what somebody put there is none. StorageFailed."""
    heads, slots = [], {slot.id.hex() for slot in unlocked.roster.slots}
    for chain in list_chains(unlocked).values():
        for number in reversed(chain.numbers) if chain.slot in slots else ():
            if (digest := _hash_of(unlocked, chain.object(number))) is not None:
                first = _hash_of(unlocked, chain.object(0))
                heads.append(AuditHead(slot=chain.name, slot_id=chain.slot, number=number, hash=digest, first=first))
                break
    return AuditAnchor(repository=unlocked.repository.hex(), time=from_ns(now_ns()), heads=tuple(heads))


def _hash_of(unlocked: Unlocked, name: str) -> str | None:
    try:
        return read_record(unlocked, name)[1].hex()
    except (Damaged, NotFound):
        return None


def verify(
    unlocked: Unlocked,
    *,
    anchors: Sequence[AuditAnchor],
    replicas: Sequence[Unlocked],
    progress: Progress | None,
    cancel: threading.Event | None,
) -> tuple[Report, int]:
    """Findings name slot and numbers; and how many records are sound. InvalidInput, StorageFailed, Cancelled."""
    reporter = Reporter("audit-verify", progress, cancel)
    witnesses = [witness for given in anchors for witness in _witnesses(unlocked, given)]
    for replica in replicas:
        if replica.repository != unlocked.repository:
            raise InvalidInput("That is another repository.", remedy="Give a replica of this one.")
    unlocked.renewed()
    chains = Chains(unlocked, reporter.look, witnesses)
    for finding in chains.findings("critical"):
        reporter.find(finding)
    for replica in replicas:
        try:
            for chain, number in fork(unlocked, replica):
                reporter.find(_forked(unlocked, replica, chain, number))
        except (Damaged, NotFound) as error:
            reporter.find(_incomparable(replica, error.message))
    return reporter.report({}), chains.records


def _witnesses(unlocked: Unlocked, given: AuditAnchor) -> Iterator[Witness]:
    if given.repository != unlocked.repository.hex():
        raise InvalidInput(
            f"The anchor of {iso(given.time)} is of another repository.", remedy="Give one that was made of this one."
        )
    for head in given.heads:
        first = None if head.first is None else bytes.fromhex(head.first)
        pin = Pin(head.number, bytes.fromhex(head.hash))
        yield Witness(head.slot_id, pin, f"The anchor of {iso(given.time)}", first)


def _forked(unlocked: Unlocked, replica: Unlocked, chain: Chain, number: int) -> Finding:
    return Finding(
        code="audit-forked",
        severity="critical",
        subject=chain.object(number),
        message=f"The chain of {chain.name} has two ends: from record {number} on, {replica.storage.location} has "
        "others than this place, though both begin as one.",
        remedy="A copied folder was written to in both places, or somebody wrote a chain anew: find out which.",
        location=unlocked.storage.location,
    )


def _incomparable(replica: Unlocked, why: str) -> Finding:
    return Finding(
        code="audit-damaged",
        severity="critical",
        subject="audit",
        message=f"The chains of two places cannot be compared: {why.rstrip('.')}.",
        remedy="Verify the log in each of the two places.",
        location=replica.storage.location,
    )
