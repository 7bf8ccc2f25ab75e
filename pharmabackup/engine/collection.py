"""One collection, step by step as docs/format.md, §21, has it. Any number of writers go on meanwhile.

Whoever finds one unfinished finishes it. What decides is created exclusively: of two collectors one begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.condemned import read_condemned
from pharmabackup.engine.creating import lost_write
from pharmabackup.engine.garbage import Garbage, Look, list_intents, pinned_by, still_needed
from pharmabackup.engine.historyreader import sound_history
from pharmabackup.engine.index import known_segments
from pharmabackup.engine.moving import Proved, publish
from pharmabackup.engine.packs import check_region, read_directory
from pharmabackup.engine.segments import CHANGED, read_segments
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Conflict, Damaged, NotFound, Unsupported
from pharmabackup.format import pack as layout
from pharmabackup.format.index import PackEntry
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import RECORD_MAX, Condemn, Done, Execute, Fate, Intent
from pharmabackup.format.wire import Kind, Signed, decode, is_kind, malformed, split
from pharmabackup.storage.probe import one_wins

DELETE_AT_ONCE = 1000
TRIED = 3  # objects of one name, to see that one is created
NOT_EXCLUSIVE = "cannot create an object exclusively, so that two collections could not be told apart"


def _require(unlocked: Unlocked) -> None:
    """Unsupported where two collectors could not be told apart, or do not see what was written before they looked.

    What `repository` says is of where it was made. Its objects may have been copied to a storage that can do less.
    """
    claimed = unlocked.storage.capabilities
    for capability, problem, holds in (
        ("exclusive-create", NOT_EXCLUSIVE, claimed.exclusive_create),
        (
            "fresh-listing",
            "may list what was there some time ago, so that what is needed could be missed",
            claimed.fresh_listing,
        ),
    ):
        if not holds or not unlocked.record.capabilities.get(capability, False):
            raise _unable(problem)


def _unable(problem: str) -> Unsupported:
    return Unsupported(
        f"This storage {problem}.", kind="capability", remedy="Copy the repository to a storage that can."
    )


def storage_now(unlocked: Unlocked) -> int:
    """The storage's time: that of an object made for it, which pins nothing and is taken away.

    Two create it at once, and one after them: Unsupported where more than one succeeds. StorageFailed.
    """
    _require(unlocked)
    created = _created_once(unlocked)
    if created is None:
        # A storage that loses what it stored shows the same, but not twice.
        created = _created_once(unlocked)
        raise _unable(NOT_EXCLUSIVE) if created is None else lost_write(unlocked.storage, "what was just tried")
    return created


def _created_once(unlocked: Unlocked) -> int | None:
    """When an object was made that several created; None when more than one did. StorageFailed."""
    transaction = ids.new_id()
    name = ids.intent_name(transaction, 0)
    hold = Intent(transaction, 0, "hold", b"", now_ns())
    contents = [unlocked.seal(Kind.INTENT, name, hold) for _ in range(TRIED)]  # each has a nonce of its own
    try:
        stored = one_wins(unlocked.storage, name, contents)
        if stored is not None and stored not in contents:
            raise lost_write(unlocked.storage, name)
        return None if stored is None else unlocked.storage.info(name).modified
    except NotFound:
        raise lost_write(unlocked.storage, name) from None
    finally:
        unlocked.storage.delete([name])  # what stays is taken for the intent of somebody who died


def condemn(unlocked: Unlocked, garbage: Garbage, packs: Collection[bytes]) -> bool:
    """Step 3: from now on nobody may rely on these packs. False: another collection has begun since the look."""
    new = garbage.gone - garbage.history.deleted
    record = Condemn(
        garbage.number, b"".join(sorted(packs)), b"".join(sorted(garbage.decided)), b"".join(sorted(new))
    )
    try:
        unlocked.put(Kind.CONDEMN, ids.collection_name(garbage.number, "condemn"), record)
    except Conflict:
        return False
    return True


def finish(
    unlocked: Unlocked,
    now: int,
    look: Look,
    *,
    proved: Mapping[bytes, Proved] | None = None,
    refused: set[bytes] | None = None,
) -> set[bytes] | None:
    """Carry a collection that was begun to its end, whoever began it; the packs that it deleted.

    One that a revoked slot began, or came to execute, ends without deleting: what it names may be a thief's choice.
    Then it gives None, and what was to be deleted has to begin anew.
    `proved`: what packs hold that this collector has just written and read back; others are read when it matters.
    `refused` takes packs that the storage has locked.
    NotFound when another collection goes on, Damaged, StorageFailed.
    """
    state = read_condemned(unlocked)
    if not state.unfinished:
        return set()
    number = state.first
    begun = unlocked.get(Kind.CONDEMN, ids.collection_name(number, "condemn"), Condemn)
    try:
        executed = unlocked.get(Kind.EXECUTE, ids.collection_name(number, "execute"), Execute)
        execute, signer = executed.record, executed.slot
    except NotFound:
        execute, signer = _execute(unlocked, begun, now, look, proved or {})
    if _any_revoked(unlocked, begun.slot, signer):
        _end(unlocked, number)
        return None
    packs, segments = split(execute.packs, 32, "collection"), split(execute.segments, 32, "collection")
    if not set(packs) <= set(split(begun.record.packs, 32, "collection")):
        raise malformed("collection", f"number {number} deletes what it has not condemned")
    names = [ids.pack_name(pack) for pack in packs] + [ids.index_name(segment) for segment in segments]
    locked = _delete(unlocked, names, look)
    left = {pack for pack in packs if ids.pack_name(pack) in locked}
    if refused is not None:
        refused |= left
    listed = set(split(begun.record.transactions, ids.ID_SIZE, "collection"))
    _delete(
        unlocked,
        [name for who, own in list_intents(unlocked).items() if who in listed for name in own.names],
        look,
    )
    _end(unlocked, number)
    return set(packs) - left


def _end(unlocked: Unlocked, number: int) -> None:
    with suppress(Conflict):  # another collector has finished it too
        unlocked.put(Kind.DONE, ids.collection_name(number, "done"), Done(number))


def _any_revoked(unlocked: Unlocked, *signers: Slot) -> bool:
    """Asked after what they signed was read: it lists roster/, so that who was revoked before he signed is known."""
    unlocked.renewed()
    return any(signer.id in unlocked.revoked_in for signer in signers)


def _execute(
    unlocked: Unlocked, begun: Statement[Condemn], now: int, look: Look, proved: Mapping[bytes, Proved]
) -> tuple[Execute, Slot]:
    """Steps 4 and 5: what survives, which segments go, and the record that decides it, by whomever it is."""
    condemned, number = begun.record, begun.record.number
    packs = set(split(b"" if _any_revoked(unlocked, begun.slot) else condemned.packs, 32, "collection"))
    if packs:
        packs = packs - _survivors(unlocked, condemned, now)
        gone = set(split(condemned.snapshots, ids.ID_SIZE, "collection"))
        packs -= still_needed(unlocked, packs, gone, look, proved)
    segments = _replace_segments(unlocked, packs, look)
    record = Execute(number, b"".join(sorted(packs)), b"".join(sorted(segments)))
    name = ids.collection_name(number, "execute")
    try:
        unlocked.put(Kind.EXECUTE, name, record)
    except Conflict:
        other = unlocked.get(Kind.EXECUTE, name, Execute)
        return other.record, other.slot
    return record, unlocked.slot


def _survivors(unlocked: Unlocked, condemned: Condemn, now: int) -> set[bytes]:
    """Packs of transactions that the collector did not know to be decided when it looked."""
    listed = set(split(condemned.transactions, ids.ID_SIZE, "collection"))
    intents = {who: own for who, own in list_intents(unlocked).items() if who not in listed}
    history = sound_history(unlocked)
    found: set[bytes] = set()
    for who, own in intents.items():
        if who not in history.decided and own.abandoned(now) and _abort(unlocked, who):
            continue
        if who not in history.aborted:
            found |= pinned_by(unlocked, own).keys()
    return found


def _abort(unlocked: Unlocked, transaction: bytes) -> bool:
    """Decide that it never commits; False when it was decided otherwise just now."""
    name = ids.fate_name(transaction)
    try:
        unlocked.put(Kind.FATE, name, Fate(transaction, "abort", None, None))
    except Conflict:
        stored = unlocked.storage.get(name, limit=RECORD_MAX)
        return (
            not is_kind(stored, Kind.CARRY) and unlocked.open(Kind.FATE, name, stored, Fate).record.outcome == "abort"
        )
    return True


def _replace_segments(unlocked: Unlocked, packs: set[bytes], look: Look) -> set[bytes]:
    """Publish what stays of the segments that name one of these packs, or a pack that is gone; those segments.

    Segments whose bytes have changed go as well: what they said is read from the packs. Those that cannot be judged
    are left alone: they may cite a roster that is missing here.
    """
    names = {info.name: info.size for info in unlocked.storage.list("index")}
    sizes = {ids.hex_tail(info.name) or b"": info.size for info in unlocked.storage.list("packs")}
    there = set(sizes) - packs
    going, changed, known, verified = set[bytes](), set[bytes](), set[bytes](), known_segments(unlocked)
    staying: dict[PackEntry, None] = {}
    digests = sorted(filter(None, map(ids.hex_tail, names)))
    own = [
        digest for digest in digests if len(digest) == 32 and ids.index_name(digest) in names
    ]  # check names others
    listed = {digest: names[ids.index_name(digest)] for digest in own}
    with read_segments(unlocked, listed, verified=verified) as segments:
        for digest, get in segments:
            look()
            try:
                segment = get()
            except NotFound:  # another collector, which finishes this collection too, has deleted it
                continue
            except Damaged as error:
                if error.kind == CHANGED:
                    changed.add(digest)
                continue
            known.update(entry.pack for entry in segment.record.packs)
            if any(entry.pack not in there for entry in segment.record.packs):
                going.add(digest)
                stay = (
                    entry for entry in segment.record.packs if entry.pack in there and _counts(segment.slot, entry)
                )
                staying.update(dict.fromkeys(stay))
    if changed:
        staying.update(dict.fromkeys(own_entries(unlocked, there - known, sizes, look)))
    publish(unlocked, list(staying))
    return going | changed


def _counts(slot: Slot, entry: PackEntry) -> bool:
    """Whether an entry is of its publisher's domain. Others would begin to count when a collector publishes them."""
    try:
        return slot.domain in (None, decode(decode(entry.directory, Signed).content, layout.Directory).domain)
    except Damaged:
        return False


def own_entries(
    unlocked: Unlocked, packs: Iterable[bytes], sizes: Mapping[bytes, int], look: Look
) -> list[PackEntry]:
    """What packs say of themselves: those that are by whom they say, and hold the blocks that they say."""
    found: list[PackEntry] = []
    for pack in sorted(packs):
        look()
        with suppress(Damaged, NotFound):
            entry, directory = read_directory(unlocked, pack, sizes[pack])
            check_region(unlocked.storage, pack, directory)
            found.append(entry)
    return found


def _delete(unlocked: Unlocked, names: list[str], look: Look) -> set[str]:
    """StorageFailed when one is still there: then the collection is not finished.

    But for what is locked, which it gives. That is left to later prunes (`Garbage.left`): nobody relies on it,
    whether it is there or not.
    """
    locked = set[str]()
    for start in range(0, len(names), DELETE_AT_ONCE):
        look()
        results = unlocked.storage.delete(names[start : start + DELETE_AT_ONCE])
        failed = {name: error for name, error in results.items() if error is not None}
        locked |= {name for name, error in failed.items() if error.kind == "locked"}
        for name, problem in failed.items():
            if name not in locked:
                raise problem
    return locked
