"""What replicas hold of the objects that are never deleted: lists of keys, keyrings, fates and marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from pharmabackup import ids
from pharmabackup.engine.carrying import StoredRecords
from pharmabackup.engine.history import History, load_history
from pharmabackup.engine.keyrings import KEYRING, numbered, read_sealed
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.keys import KEYRING_MAX, ROSTER_MAX
from pharmabackup.format.transaction import Fate, Mark
from pharmabackup.format.wire import Kind


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A fate or mark that is damaged or not here, and whole in a replica."""

    name: str
    location: str
    known: bool  # it was here: it is damaged, this machine has seen it, or another snapshot names it


def records_elsewhere(unlocked: Unlocked, history: History, replicas: Sequence[Unlocked]) -> list[Elsewhere]:
    """Fates and marks that can be taken from a replica: judged by the keys and the roster that are known here.

    StorageFailed.
    """
    here = {ids.fate_name(who) for who in {*history.committed, *history.aborted}}
    here |= {ids.mark_name(said.id) for said in history.said}
    known = {name for name in {*history.damaged, *history.vanished} if name.startswith(("snapshots/", "marks/"))}
    found: dict[str, Elsewhere] = {}
    for replica in replicas:
        there = load_history(replica)
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


def keys_elsewhere(unlocked: Unlocked, replicas: Sequence[Unlocked]) -> Mapping[str, bytes]:
    """Keyrings, then rosters that are not here, by name. Damaged when a replica has another history.

    Rosters were verified when the replica was opened. A keyring can only be judged by who opens it: one that is not
    what it says is passed over then.
    """
    have = {info.name for folder in ("roster", "keys") for info in unlocked.storage.list(folder)}
    found: dict[str, bytes] = {}
    rosters: dict[str, bytes] = {}
    for replica in replicas:
        if any(replica.rosters.get(number, digest) != digest for number, digest in unlocked.rosters.items()):
            raise Damaged(
                f"The lists of who may do what differ between {unlocked.storage.location} and "
                f"{replica.storage.location}.",
                kind="history-forked",
                remedy="Find out who wrote one of them, and why.",
            )
        for number, digest in sorted(replica.rosters.items()):
            name = ids.roster_name(number)
            if name not in have and name not in rosters:
                data = replica.storage.get(name, limit=ROSTER_MAX + 4096)
                if sha256(data).digest() == digest:
                    rosters[name] = data
        known = {slot.id.hex() for slot in replica.roster.slots}
        for info in replica.storage.list("keys"):
            if KEYRING.fullmatch(info.name) and info.name not in have | found.keys():
                slot = info.name.split("/")[1]
                if slot in known:
                    with suppress(Damaged, NotFound):
                        read_sealed(replica.storage, slot, numbered(info.name))
                        found[info.name] = replica.storage.get(info.name, limit=KEYRING_MAX + 4096)
    return {**found, **rosters}
