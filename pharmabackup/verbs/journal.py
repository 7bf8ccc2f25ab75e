"""What one opened repository does, as its audit log tells it: one record a verb, and one for each look inside.

It knows counts, ids and codes. Paths, patterns and names of files stay out: everybody with a catalogue key reads it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import TypeVar
from weakref import WeakSet

from pharmabackup.engine import auditlocal
from pharmabackup.engine.audit import Written, write
from pharmabackup.engine.grants import READERS
from pharmabackup.engine.lanes import Beside
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import (
    Cancelled,
    Error,
    Incomplete,
    InvalidInput,
    NotPermitted,
    StorageFailed,
    WrongCredential,
)
from pharmabackup.events import Finding, worst
from pharmabackup.format.transaction import FACTS_DEPTH
from pharmabackup.format.wire import TEXT_MAX
from pharmabackup.ids import audit_name
from pharmabackup.mutex import Mutex
from pharmabackup.results import Comparison, Report

SNAPSHOTS_NAMED = 100
STOPPED = frozenset({"closed", "forked"})  # kinds of InvalidInput of what had begun
GONE = {"audit-truncated": "is gone", "audit-forked": "is another one now, or cannot be read"}
PATH_SHOWN = 200  # characters
EVENTS = frozenset({
    "open", "create", "backup", "restore", "read", "check", "copy", "compare", "forget", "prune", "repair", "reseal",
    "hold", "release", "recall", "enrol", "change-passphrase", "revoke", "rotate", "split-recovery", "configure",
    "follow", "audit-verify", "drill",
})  # fmt: skip
"""What the library itself says was done; docs/audit.md has the same."""

_log = logging.getLogger(__name__)

R = TypeVar("R")
Reported = TypeVar("Reported", bound=Report)


class Journal:
    """Of one opened repository. Any thread."""

    def __init__(self, unlocked: Unlocked) -> None:
        self._unlocked = unlocked
        self._lock = Mutex()
        self._under_way = Counter[int]()  # verbs, by how often it had been closed when they began
        self._told = False  # something is in the log already
        self._seen: set[bytes] = set()  # transactions that were looked into
        self._looks: Counter[str] = Counter()
        _all.add(self)

    def run(
        self,
        event: str,
        verb: Callable[[], R],
        *,
        subject: str = "",
        reason: str | None = None,
        facts: Mapping[str, object] | None = None,
        noted: bool = False,
    ) -> R:
        """Do it, and record what came of it. `facts` may grow meanwhile. `noted`: it records itself what was done."""
        facts = {} if facts is None else facts
        tell = self._teller(event, _cut(subject), None if reason is None else _cut(reason), facts)
        with self._closed_again():
            return self._told_of(verb, tell, noted=noted)

    def read(self, event: str, verb: Callable[[Callable[[], object]], R], *, facts: Mapping[str, object]) -> R:
        """The same of what hands out content: it needs a reason if the owner says so, and is recorded before, too.

        `verb` is given what waits for that, so that it can look meanwhile for what it will hand out.
        """
        tell = self._teller(event, "", None, facts)

        def permitted() -> R:
            self._permit()
            with Beside(self._unlocked.storage.lanes, lambda: tell("begun", {})) as begun:
                return verb(begun.result)

        with self._closed_again():
            return self._told_of(permitted, tell, reads=True)

    @contextmanager
    def _closed_again(self) -> Iterator[None]:
        """Who is in a verb during a `close` goes on to end it and to record that: storage is not left open by him."""
        threads = self._unlocked.threads
        ends = threads.ends
        with self._lock.own:
            self._under_way[ends] += 1
        try:
            yield
        finally:
            with self._lock.own:
                self._under_way[ends] -= 1
                alone = self._under_way[threads.ends] <= 0  # nobody has begun since, for whom it is open again
            if threads.ends != ends and alone:
                self._unlocked.storage.close()

    def _teller(
        self, event: str, subject: str, reason: str | None, facts: Mapping[str, object]
    ) -> Callable[[str, Mapping[str, object]], Written]:
        def tell(outcome: str, more: Mapping[str, object]) -> Written:
            self._told = True
            return write(self._unlocked, event, outcome, subject=subject, reason=reason, facts={**facts, **more})

        return tell

    def _told_of(
        self,
        verb: Callable[[], R],
        tell: Callable[[str, Mapping[str, object]], Written],
        *,
        reads: bool = False,
        noted: bool = False,
    ) -> R:
        try:
            result = verb()
        except Incomplete as error:
            error.result = self._reported(error.result, tell("incomplete", _counted(error.result)))
            error.findings = error.result.findings
            raise
        except Exception as error:
            if isinstance(error, InvalidInput) and not reads and error.kind not in STOPPED:  # it was not even begun
                raise
            tell(_outcome(error), {"error": error.kind if isinstance(error, Error) else "exception"})
            raise
        if noted:
            self._told = True
        elif isinstance(result, Report):
            return self._reported(result, tell("done", _counted(result)))
        else:
            tell("done", {})
        return result

    def unless_refused(self, event: str, asked: Callable[[], R], *, subject: str = "") -> R:
        """Do what changes nothing, such as a proposal: all that is recorded is that this role may not."""
        try:
            return asked()
        except NotPermitted as error:
            self._write(event, _outcome(error), subject=subject, facts={"error": error.kind})
            raise

    def look(self, transaction: bytes, what: str) -> None:
        """Before a snapshot's names or content are handed out; the first time it is recorded. NotPermitted."""
        self.unless_refused("read", self._permit, subject=transaction.hex())
        with self._lock.own:  # held while it is written: nobody else looks before it is
            self._looks[what] += 1
            if transaction not in self._seen:
                self._write("read", "begun", subject=transaction.hex(), facts={"what": what})
                self._seen.add(transaction)

    def _inherit(self) -> None:
        """In a forked process: what its parent has looked at, noticed and lost, the parent tells."""
        self._told = True
        self._looks.clear()
        self._under_way.clear()
        self._seen.clear()
        self._unlocked.lost_records = 0
        self._unlocked.gone_records = {}

    def copy(self, other: Journal, verb: Callable[[], Report]) -> Report:
        """A copy is recorded in both places; there with this chain's head, so that each vouches for the other's."""
        here, there = self._unlocked.repository, other._unlocked.repository
        facts: dict[str, object] = {"from": here.hex()}

        def read(begun: Callable[[], object]) -> Report:
            begun()
            return verb()

        def run() -> Report:
            try:
                if here == there:
                    return self.run("copy", verb, facts={"to": there.hex()})
                return self.read("copy", read, facts={"to": there.hex()})
            finally:
                pins = auditlocal.load(self._unlocked).get(self._unlocked.keyring.slot.hex())
                if pins:
                    slot = self._unlocked.keyring.slot.hex()
                    facts["head"] = {"slot": slot, "number": pins[-1].number, "hash": pins[-1].hash.hex()}

        return other.run("copy", run, facts=facts)

    def compare(self, other: Journal, verb: Callable[[], Comparison]) -> Comparison:
        """Recorded in both places, each with what it has and the other lacks, in numbers."""
        here: dict[str, object] = {}
        there: dict[str, object] = {}

        def run() -> Comparison:
            found = verb()
            here.update(only_here=len(found.only_here), only_there=len(found.only_there))
            there.update(only_here=len(found.only_there), only_there=len(found.only_here))
            return found

        return other.run("compare", lambda: self.run("compare", run, facts=here), facts=there)

    def record(self, event: str, facts: Mapping[str, object]) -> None:
        """What a program says. InvalidInput, StorageFailed."""
        _check_plain(facts)
        if event in EVENTS:
            raise InvalidInput(
                f"{event!r} is what the library itself records.", remedy="Give what you record another name."
            )
        written = self._write(event, "done", facts=facts, reported=True)
        if not written.kept:
            raise StorageFailed(
                f"That is recorded nowhere. {written.why}",
                kind="audit-lost",
                location=self._unlocked.storage.location,
                remedy="Make room in the repository or in the state folder, and record it again.",
            )

    def close(self) -> None:
        """How much was looked at; or that it was opened, if nothing else is told of it."""
        with self._lock.own:
            looks, self._looks = +self._looks, Counter()
            seen, self._seen = len(self._seen), set()
        if looks:
            self._write("read", "done", facts={"snapshots": seen, **looks})
        elif not self._told:
            self._write("open", "done")
        for number, code in self._unlocked.take_gone().items():
            said = "The last audit record of %s that was seen here, number %d, %s."
            _log.warning(said, self._unlocked.storage.location, number, GONE[code])
        if lost := self._unlocked.take_lost():  # no report can tell
            _log.warning("Audit records of %s that are nowhere: %d.", self._unlocked.storage.location, lost)

    def _write(
        self,
        event: str,
        outcome: str,
        *,
        subject: str = "",
        facts: Mapping[str, object] | None = None,
        reported: bool = False,
    ) -> Written:
        self._told = True
        return write(self._unlocked, event, outcome, subject=subject, facts=facts, reported=reported)

    def _permit(self) -> None:
        """NotPermitted where this role may not read, or a reason is missing that the owner asks for."""
        unlocked = self._unlocked
        if not unlocked.keyring.readers:
            raise unlocked.not_permitted("read", who=READERS)
        if unlocked.roster.policy.reason_required and not (unlocked.reason or "").strip():
            raise NotPermitted(
                "The owner's rules ask for a reason before anything is restored or looked into.",
                kind="reason-required",
                remedy="Open it with reason=… and say in a few words why.",
            )

    def _reported(self, report: Reported, written: Written) -> Reported:
        unlocked = self._unlocked
        known = {(finding.code, finding.subject, finding.location) for finding in report.findings}
        more = [item for item in told(written, unlocked) if (item.code, item.subject, item.location) not in known]
        findings = (*report.findings, *more)
        audit_id = None if written.number is None else audit_id_of(unlocked.keyring.slot, written.number)
        return dataclasses.replace(
            report, findings=findings, state=worst(findings), audit_id=report.audit_id or audit_id
        )


_all: WeakSet[Journal] = WeakSet()


def _forked() -> None:
    for journal in list(_all):
        journal._inherit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def audit_id_of(slot: bytes, number: int) -> str:
    return f"{slot.hex()[:8]}/{number}"


def told(written: Written, unlocked: Unlocked) -> list[Finding]:
    """What is wrong with where a record went."""
    found, location = [], unlocked.storage.location
    if lost := unlocked.take_lost():  # of verbs that give no report, too
        found.append(
            Finding(
                code="audit-lost",
                severity="warning",
                subject="audit",
                message=f"Records of what was done that are nowhere, not here either: {lost}. {written.why}".rstrip(),
                remedy="Write down what was done, when, by whom and why. Make room in the state folder.",
                location=location,
            )
        )
    if written.waiting:
        found.append(
            Finding(
                code="audit-queued",
                severity="warning" if unlocked.keyring.signing else "info",  # there is nothing that he could do
                subject="audit",
                message=f"Audit records that wait on this machine, and are not in storage yet: "
                f"{written.waiting}. {written.why}".rstrip(),
                remedy=_where_they_go(unlocked) + " Do not delete the state folder until then.",
                location=location,
            )
        )
    for number, code in unlocked.take_gone().items():
        found.append(
            Finding(
                code=code,
                severity="critical",
                subject=audit_name(unlocked.keyring.slot, number),
                message=f"The last audit record that this machine has seen, number {number}, {GONE[code]}.",
                remedy="Somebody deleted it or turned the storage back: find out who, and why. See audit verify.",
                location=location,
            )
        )
    return found


def _where_they_go(unlocked: Unlocked) -> str:
    if unlocked.keyring.signing is None:
        return "They go there once the keyring with this credential's signing key is whole again: see check."
    if unlocked.storage.read_only:
        return "They go there when the place is opened as it is now, here and with the same credential."
    return "They go there with this credential's next record that it takes."


def _check_plain(facts: Mapping[str, object]) -> None:
    """InvalidInput where JSON has no such value: it would come back as another, or not be exported.

    It names the key and never the value, which may be a patient's.
    """
    level: list[tuple[str, object]] = [("", facts)]
    for _ in range(FACTS_DEPTH + 1):  # what lies deeper, the format refuses
        inside: list[tuple[str, object]] = []
        for path, value in level:
            if isinstance(value, Mapping):
                inside += [(f"{path}.{key}" if path else f"{key}", item) for key, item in value.items()]
            elif isinstance(value, list | tuple) and path:
                inside += [(f"{path}.{place}", item) for place, item in enumerate(value)]
            elif not path or not _is_plain(value):
                raise InvalidInput(
                    f"The fact {path[:PATH_SHOWN]!r} is no JSON: it is a {type(value).__name__}, or out of range."
                    if path
                    else "Facts are a mapping.",
                    remedy="Give text, numbers, true, false, none, and lists or mappings of these; a time as text.",
                )
        level = inside


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, int):  # true and false too
        return -(1 << 63) <= value < 1 << 64
    return value is None or (isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value))


def _cut(text: object) -> str:
    """What a caller gave, as far as a record holds it: the verb itself says what is wrong with it."""
    return str(text).encode("utf-8", "replace").decode()[:TEXT_MAX]


def _outcome(error: Exception) -> str:
    if isinstance(error, NotPermitted | WrongCredential):
        return "refused"
    return "cancelled" if isinstance(error, Cancelled) else "failed"


def _counted(report: Report) -> dict[str, object]:
    """A report in numbers, ids and codes."""
    facts: dict[str, object] = {
        "state": report.state,
        "seconds": round(report.duration.total_seconds()),
        "bytes": report.bytes,
        "files": report.files,
    }
    if report.datasets:
        results = report.datasets.values()
        facts["datasets"] = len(results)
        facts["complete"] = sum(result.complete for result in results)
        facts["snapshots"] = [result.snapshot.id for result in results if result.snapshot][:SNAPSHOTS_NAMED]
    codes = Counter(finding.code for finding in report.findings)
    if codes:
        facts["findings"] = dict(sorted(codes.items()))
    return facts
