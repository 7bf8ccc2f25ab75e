"""What verbs return. Every result is a frozen dataclass: `str()` is for a person, `to_dict()` is JSON-ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pharmabackup.clock import iso, spelled
from pharmabackup.errors import InvalidInput
from pharmabackup.events import Finding, State

if TYPE_CHECKING:
    from pharmabackup.format.keys import Role
    from pharmabackup.retention import Keep
    from pharmabackup.snapshot import Snapshot

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def sized(size: int) -> str:
    """A number of bytes for a person: 14.2 MB."""
    amount, unit = float(size), 0
    while amount >= 999.5 and unit < len(UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{size} bytes" if unit == 0 else f"{amount:.3g} {UNITS[unit]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name in a snapshot. `size` in bytes."""

    path: str
    size: int
    modified: datetime
    kind: Literal["file", "folder", "link"]

    def to_dict(self) -> dict[str, object]:
        return {"path": self.path, "size": self.size, "modified": iso(self.modified), "kind": self.kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetResult:
    """What a verb did with one dataset. `bytes` of source, `added` to storage."""

    name: str
    tier: int
    snapshot: Snapshot | None
    complete: bool
    bytes: int
    files: int
    added: int = 0
    usable_after: timedelta | None = None
    path: Path | None = None
    facts: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "tier": self.tier,
            "snapshot": self.snapshot.id if self.snapshot else None,
            "complete": self.complete,
            "bytes": self.bytes,
            "files": self.files,
            "added": self.added,
            "usable_after": self.usable_after.total_seconds() if self.usable_after else None,
            "path": str(self.path) if self.path else None,
            "facts": dict(self.facts),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verb did. `bytes` that it read, wrote or checked; `state` is the worst of the findings."""

    verb: str
    state: State
    started: datetime
    duration: timedelta
    bytes: int
    files: int
    datasets: Mapping[str, DatasetResult]
    findings: tuple[Finding, ...]
    audit_id: str | None = None

    def __str__(self) -> str:
        seconds = self.duration.total_seconds()
        lines = [f"{self.verb}: {self.state}, {self.files:,} files, {sized(self.bytes)} in {seconds:.1f} s"]
        for result in self.datasets.values():
            added = f", {sized(result.added)} added" if self.verb == "backup" else ""
            whole = "" if result.complete else ", NOT COMPLETE"
            lines.append(f"  {result.name}: {result.files:,} files, {sized(result.bytes)}{added}{whole}")
        lines += [f"  {finding}" for finding in self.findings]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        return {
            "verb": self.verb,
            "state": self.state,
            "started": iso(self.started),
            "duration": self.duration.total_seconds(),
            "bytes": self.bytes,
            "files": self.files,
            "datasets": {name: result.to_dict() for name, result in self.datasets.items()},
            "findings": [finding.to_dict() for finding in self.findings],
            "audit_id": self.audit_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What following sources came to. `failed`: runs that could not back up all, and were made again."""

    snapshots: int
    failed: int
    started: datetime
    duration: timedelta

    def __str__(self) -> str:
        seconds = self.duration.total_seconds()
        return f"follow: {self.snapshots:,} snapshots in {seconds:.0f} s, {self.failed} runs failed"

    def to_dict(self) -> dict[str, object]:
        return {
            "snapshots": self.snapshots,
            "failed": self.failed,
            "started": iso(self.started),
            "duration": self.duration.total_seconds(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryDrill(Report):
    """What shares of the recovery key were proved to bring back. `bytes`: of names and data that were opened.

    `slot`, `fingerprint` and `split`: which recovery key, as in `Slot`, and when it was made. `shares`: the numbers
    of those that were given, as they were printed; any `threshold` of them open.
    """

    slot: str
    fingerprint: str
    split: datetime
    threshold: int
    shares: tuple[int, ...]

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.shares))
        lines = [
            f"drill of the recovery key: {self.state}, shares {numbers} of {self.fingerprint}, of which any "
            f"{self.threshold} open; {sized(self.bytes)} opened in {self.duration.total_seconds():.1f} s"
        ]
        for result in self.datasets.values():
            whole = "proved" if result.complete else "NOT PROVED"
            lines.append(f"  {result.name}: {whole}, {result.facts['blocks']} blocks, {sized(result.bytes)}")
        return "\n".join([*lines, *(f"  {finding}" for finding in self.findings)])

    def to_dict(self) -> dict[str, object]:
        return Report.to_dict(self) | {
            "slot": self.slot,
            "fingerprint": self.fingerprint,
            "split": iso(self.split),
            "threshold": self.threshold,
            "shares": list(self.shares),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareCheck:
    """One share, looked at alone: it is as it was printed, and is `current` or of a recovery key that was replaced.

    `repository`, `fingerprint` and `split` are those of the place that was asked, and of the recovery key there:
    compare them with the recovery kit. `of`: when the key that the share is of was made; None: it is not known there.
    """

    state: State
    repository: str
    number: int
    threshold: int
    current: bool
    fingerprint: str
    split: datetime
    of: datetime | None

    def __str__(self) -> str:
        key = f"the recovery key {self.fingerprint} of {iso(self.split)}"
        if self.current:
            return f"Share {self.number} is as it was printed, and of {key}. {self.threshold} of these open."
        other = f"that of {iso(self.of)}, which was replaced" if self.of else "one that this repository never had"
        return f"Share {self.number} is as it was printed, but not of {key}: it is of {other}."

    def to_dict(self) -> dict[str, object]:
        facts: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return facts | {"split": iso(self.split), "of": iso(self.of) if self.of else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The owner's. `keep` by what it is for, in the order in which rules are tried; what none fits is kept."""

    keep: Mapping[str, Keep]
    forget_delay: timedelta
    forget_quorum: int
    reason_required: bool = False
    lock: timedelta = timedelta(0)  # for which places that can keep what is stored from being deleted

    def __str__(self) -> str:
        kept = [f"{pattern}: {keep}" for pattern, keep in self.keep.items()] or ["Everything is kept."]
        people = "one person" if self.forget_quorum == 1 else f"{self.forget_quorum} people"
        kept.append(f"A forget counts {spelled(self.forget_delay)} after {people} said so.")
        if self.lock:
            kept.append(f"Where that can be, nothing is deleted by anybody for {spelled(self.lock)}.")
        return "\n".join([*kept, *(["Who restores has to say why."] if self.reason_required else [])])

    def to_dict(self) -> dict[str, object]:
        return {
            "keep": {pattern: keep.to_dict() for pattern, keep in self.keep.items()},
            "forget_delay": self.forget_delay.total_seconds(),
            "forget_quorum": self.forget_quorum,
            "reason_required": self.reason_required,
            "lock": self.lock.total_seconds(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One credential that was enrolled. `fingerprint`: of the public key that its keys are sealed to."""

    name: str
    role: Role
    kind: str
    fingerprint: str
    created: datetime
    revoked: datetime | None

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "role": self.role,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "created": iso(self.created),
            "revoked": iso(self.revoked) if self.revoked else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """What a slot says that it did. `time` by its own clock; docs/audit.md lists events, outcomes and facts.

    One that cannot be read is there as an `unreadable` one, with the time that storage gave it.
    """

    id: str
    time: datetime
    slot: str
    actor: str | None
    event: str
    outcome: str
    subject: str
    reason: str | None
    facts: Mapping[str, object]

    def __str__(self) -> str:
        who = f"{self.slot} ({self.actor})" if self.actor else self.slot
        why = f": {self.reason}" if self.reason else ""
        what = f" {self.subject}" if self.subject else ""
        return f"{self.id}  {iso(self.time)}  {who}  {self.event}{what}  {self.outcome}{why}"

    def to_dict(self) -> dict[str, object]:
        facts: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return facts | {"time": iso(self.time), "facts": _plain(self.facts)}


def _plain(value: object) -> object:
    """Facts as JSON has them: bytes in hexadecimal."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """The last record of a slot's audit chain: its number, and the SHA-256 of the stored object, as `first` of the
    chain's record 0."""

    slot: str
    slot_id: str
    number: int
    hash: str
    first: str | None

    def to_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAnchor:
    """The heads of a repository's audit chains, to be kept where nobody who can write to the storage reaches."""

    repository: str
    time: datetime
    heads: tuple[AuditHead, ...]

    def __str__(self) -> str:
        lines = [f"The audit log of {self.repository[:16]} on {iso(self.time)}"]
        return "\n".join([*lines, *(f"  {head.slot}: {head.number} {head.hash}" for head in self.heads)])

    def to_dict(self) -> dict[str, object]:
        heads = [head.to_dict() for head in self.heads]
        return {"repository": self.repository, "time": iso(self.time), "heads": heads}

    @classmethod
    def from_dict(cls, facts: object) -> AuditAnchor:
        """What `to_dict` gave. InvalidInput."""
        try:
            assert isinstance(facts, Mapping)
            heads = tuple(AuditHead(**head) for head in facts["heads"])
            for head in heads:
                if not isinstance(head.number, int) or not isinstance(head.slot, str) or head.number < 0:
                    raise ValueError
                for text, size in ((head.slot_id, 16), (head.hash, 32), (head.first or head.hash, 32)):
                    if len(bytes.fromhex(text)) != size:
                        raise ValueError
            time = datetime.fromisoformat(facts["time"])
            if time.tzinfo is None or len(bytes.fromhex(facts["repository"])) != 32:
                raise ValueError
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
            raise InvalidInput(
                "That is no anchor of an audit log.",
                kind="anchor",
                remedy="Give what audit_anchor() gave, unchanged.",
            ) from None
        return cls(repository=facts["repository"], time=time, heads=heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one replica holds and the other lacks. `bytes_to_copy`: of packs that a copy to there would send."""

    only_here: tuple[Snapshot, ...]
    only_there: tuple[Snapshot, ...]
    bytes_to_copy: int

    def __str__(self) -> str:
        lines = [f"{len(self.only_here)} only here ({sized(self.bytes_to_copy)}), {len(self.only_there)} only there"]
        lines += [f"  here   {snapshot}" for snapshot in self.only_here]
        lines += [f"  there  {snapshot}" for snapshot in self.only_there]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        return {
            "only_here": [snapshot.to_dict() for snapshot in self.only_here],
            "only_there": [snapshot.to_dict() for snapshot in self.only_there],
            "bytes_to_copy": self.bytes_to_copy,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a verb that deletes would do, for a person to read; `Repository.apply` does exactly that, or refuses.

    `repository`: the id of the one that it is about. `snapshots`: what would be forgotten, or is gone for good; of a
    repair, what it makes whole again. `steps`: of a repair or reseal, what would be done, in sentences. `not_before`:
    what is forgotten is there, and can be called back, until then at least; None: as long as others have not agreed.
    `bytes_freed`: of storage, once a prune has come after that. `findings`: what it does not touch.
    """

    verb: Literal["forget", "prune", "repair", "reseal"]
    repository: str
    created: datetime
    not_before: datetime | None
    snapshots: tuple[Snapshot, ...]
    bytes_freed: int
    findings: tuple[Finding, ...]
    steps: tuple[str, ...] = ()
    wish: object = field(repr=False)  # what it was made from, to see whether it still holds

    def __str__(self) -> str:
        if self.verb in ("repair", "reseal"):
            lines = [f"{self.verb}: {len(self.steps)} steps" if self.steps else f"{self.verb}: nothing to do"]
            lines += [f"  {text}" for text in self.steps]
            lines += [f"  whole again: {snapshot}" for snapshot in self.snapshots]
            lines += [f"  {finding}" for finding in self.findings]
            return "\n".join(lines)
        if not (self.snapshots or self.bytes_freed or self.findings):
            return f"{self.verb}: nothing to do"
        count = len(self.snapshots)
        lines = [f"{self.verb}: {count} snapshot{'s' * (count != 1)}, {sized(self.bytes_freed)}"]
        lines += [f"  {snapshot}" for snapshot in self.snapshots]
        lines += [f"  {finding}" for finding in self.findings]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        return {
            "verb": self.verb,
            "repository": self.repository,
            "created": iso(self.created),
            "not_before": iso(self.not_before) if self.not_before else None,
            "snapshots": [snapshot.to_dict() for snapshot in self.snapshots],
            "bytes_freed": self.bytes_freed,
            "steps": list(self.steps),
            "findings": [finding.to_dict() for finding in self.findings],
        }
