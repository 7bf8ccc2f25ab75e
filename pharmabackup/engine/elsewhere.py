"""What replicas hold of the objects that are never deleted: lists of keys, keyrings, fates and marks."""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from pharmabackup import ids
from pharmabackup.engine.carrying import StoredRecords
from pharmabackup.engine.history import History
from pharmabackup.engine.keyrings import KEYRING
from pharmabackup.engine.keyrings_taken import Taken, keyrings_to_take
from pharmabackup.engine.roster import read_rosters
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.keys import ROSTER_MAX
from pharmabackup.format.transaction import Fate, Mark
from pharmabackup.format.wire import Kind


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A fate or mark that is damaged or not here, and whole in a replica."""

    name: str
    location: str
    known: bool  # it was here: it is damaged, this machine has seen it, or another snapshot names it


def records_elsewhere(
    unlocked: Unlocked, history: History, replicas: Sequence[tuple[Unlocked, History]]
) -> list[Elsewhere]:
    """Fates and marks that can be taken from a replica: judged by the keys and the roster that are known here.

    StorageFailed.
    """
    here = {ids.fate_name(who) for who in {*history.committed, *history.aborted}}
    here |= {ids.mark_name(said.id) for said in history.said}
    known = {name for name in {*history.damaged, *history.vanished} if name.startswith(("snapshots/", "marks/"))}
    found: dict[str, Elsewhere] = {}
    for replica, there in replicas:
        records = StoredRecords(replica, there)
        names = {ids.fate_name(who) for who in there.committed if who not in there.absent}
        names |= {ids.mark_name(said.id) for said in there.said if said.mark.kind != "verified"}
        for name in names - here - set(found):
            with suppress(Damaged, NotFound):
                data = records.get(name)
                if name.startswith("snapshots/"):
                    unlocked.open(Kind.FATE, name, data, Fate)
                else:
                    unlocked.open(Kind.MARK, name, data, Mark)
                found[name] = Elsewhere(name, replica.storage.location, name in known)
    return [found[name] for name in sorted(found)]


def keys_elsewhere(unlocked: Unlocked, replicas: Sequence[Unlocked]) -> Taken:
    """Keyrings, then rosters that are not here. Damaged when a replica has another history, StorageFailed.

    Rosters were verified when the replica was opened. Keyrings come for a slot that has none here, or together with
    a roster, which may name others; or when they can be opened, and so are what they say.
    """
    have = {info.name for folder in ("roster", "keys") for info in unlocked.storage.list(folder)}
    slots_here = {name.split("/")[1] for name in have if KEYRING.fullmatch(name)}
    rosters: dict[str, bytes] = {}
    keyrings = Taken()
    for replica in replicas:
        if any(replica.rosters.get(number, digest) != digest for number, digest in unlocked.rosters.items()):
            raise Damaged(
                f"The lists of who may do what differ between {unlocked.storage.location} and "
                f"{replica.storage.location}.",
                kind="history-forked",
                remedy="Find out who wrote one of them, and why.",
            )
        new = _rosters(replica, have | rosters.keys())
        rosters |= new
        newer = max(unlocked, replica, key=lambda one: one.roster.number)
        lists = read_rosters(newer.storage, newer.repository)
        own = {replica.keyring.slot: replica.opener}
        if not new:
            own[unlocked.keyring.slot] = unlocked.opener
        before = {name.split("/")[1] for name in keyrings.objects}  # each slot's come from one replica
        for name, data in keyrings_to_take(replica.storage, unlocked.storage, lists, own, unlocked.repository):
            slot = name.split("/")[1]
            if data is None:
                keyrings.refused.append(name)
            elif slot not in before and (new or slot not in slots_here or bytes.fromhex(slot) in own):
                keyrings.objects[name] = data
    keyrings.objects |= rosters
    return keyrings


def _rosters(replica: Unlocked, have: Set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number, digest in sorted(replica.rosters.items()):
        name = ids.roster_name(number)
        if name not in have:
            data = replica.storage.get(name, limit=ROSTER_MAX + 4096)
            if sha256(data).digest() == digest:
                found[name] = data
    return found
