"""A repository's signed records: sections 5 and 13 to 16 of docs/format.md."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.reader import marks, wire
from tests.reader.keys import HEX16, NUMBER, Keys
from tests.reader.wire import Newer, Refused, header, require, sha256, unframe, unpack, unseal

WRITERS, CARERS = {"device", "maintainer", "owner"}, {"maintainer", "owner"}
EVERYBODY = WRITERS | {"restorer", "auditor"}


class Stored(NamedTuple):
    """A fate or mark that is whole, when it came by the storage's clock (ns), and who vouches for it."""

    record: Any
    slot: Any
    hash: bytes
    time: int
    vouched: bool  # by a carry of a slot that is not revoked

    @property
    def rank(self) -> int:
        """0: of a slot that is not revoked; 1: of one that is, and the owner accepted it; 2: any other."""
        if not self.slot.revoked:
            return 0
        return 1 if self.hash in _split(self.slot.revoked.accepted) else 2

    @property
    def keeps(self) -> bool:
        return getattr(self.record, "kind", "") in ("hold", "undo")


class Records(Keys):
    """A repository that was opened: everything but packs and their index."""

    def __init__(self, folder: Path, secret: str | bytes) -> None:
        super().__init__(folder, secret)
        self.refresh()

    def refresh(self) -> None:
        """Read again what storage holds now."""
        self.ignored.clear()
        self.replaced: list[str] = []  # damaged here, and brought whole by a carry
        self.spoilt: list[str] = []  # damaged in a carry
        self.contested: list[str] = []  # names that two records have
        self.beside: list[tuple[str, Stored]] = []  # marks that count as well as others of their names
        self.void: list[
            str
        ] = []  # marks of revoked signers, and what a device brought that is not its own: they do not count
        self._load_collections()
        self._load_fates_and_marks()
        self.fates = self._committed()
        self.gone = self._gone()
        self._load_the_rest()

    # ------------------------------------------------------------ signed records (§5)

    def _open(self, data: bytes, kind: int, name: str) -> tuple[Any, Any, Any]:
        """Header, key id, seal, frame, then the signature: the record, its slot, and Signed."""
        data = header(data, kind)
        if data[:32] not in self.catalogue:
            self._load_rosters()  # an owner may have changed the keys since
            self._load_keys()
        require(data[:32] in self.catalogue, f"{name}: sealed under a key that this credential does not have")
        body = wire.unpad(unseal(self.catalogue[data[:32]], data[32:], self._associated(kind, data[:32])))
        return self._signed(unframe(body, 2**28), kind, name)

    def _signed(self, data: bytes, kind: int, name: str) -> tuple[Any, Any, Any]:
        signed = wire.Signed(unpack(data))
        if signed.roster >= len(self.roster_hashes):
            self._load_rosters()  # somebody may have added one since
        require(signed.roster < len(self.roster_hashes), f"{name} cites a roster that is not there: turned back?")
        require(self.roster_hashes[signed.roster] == signed.roster_hash, f"{name} cites another roster")
        require(signed.slot in self.slots, f"{name}: no such slot")
        slot = self.slots[signed.slot]
        self._verify(signed, kind, name, slot.signing, (self.id, signed.roster, signed.roster_hash))
        content = wire.RECORDS[kind](unpack(signed.content))
        if slot.revoked and kind not in (wire.FATE, wire.DIRECTORY, wire.INDEX):  # §7.2; fates are judged together
            then = {old.id: old for old in self.rosters[signed.roster].slots}.get(slot.id)
            require(then and not then.revoked, f"{name}: signed by a revoked slot")
        require(slot.role in self._may_sign(kind, content), f"{name}: a {slot.role} may not sign this")
        if slot.role == "device" and kind == wire.FATE and content.snapshot:
            require(content.snapshot.domain == slot.domain, f"{name}: another domain than its signer's")
        if slot.role == "device" and kind == wire.DIRECTORY:
            require(content.domain == slot.domain, f"{name}: another domain than its signer's")
        return content, slot, signed

    @staticmethod
    def _may_sign(kind: int, content: Any) -> set[str]:
        if kind in (wire.DIRECTORY, wire.INDEX):
            return WRITERS
        if kind == wire.INTENT:
            return EVERYBODY if content.kind == "hold" else WRITERS
        if kind == wire.FATE:
            return {"device", "owner"} if content.outcome == "commit" else CARERS
        if kind == wire.MARK:
            return {"hold": EVERYBODY - {"auditor"}, "verified": EVERYBODY}.get(content.kind, CARERS)
        if kind == wire.CARRY:
            return CARERS | {"device"}
        return EVERYBODY if kind == wire.AUDIT else CARERS

    # ------------------------------------------------------------ fates and marks, carried ones too (§13, §15)

    def _load_fates_and_marks(self) -> None:
        own: dict[str, Stored] = {}
        carries: dict[str, tuple[Any, int, Any]] = {}
        damaged: dict[str, Refused] = {}
        for match in [*self._list("snapshots", HEX16), *self._list("marks", HEX16)]:
            try:
                data, moment = self._get(match[0]), (self.folder / match[0]).stat().st_mtime_ns
                if data[:6] == b"PHBK\1" + bytes([wire.CARRY]):
                    carry, slot, _ = self._open(data, wire.CARRY, match[0])
                    require(carry.transaction.hex() == match[1], f"{match[0]} is another transaction's")
                    carries[match[0]] = carry.items, moment, slot
                elif self._counts(one := self._whole(data, match[0], moment), match[0]):
                    own[match[0]] = one
            except Newer:
                raise
            except Refused as error:
                damaged[match[0]] = error
        self.stored, self.absent = dict(own), set[str]()
        for name, brought in self._brought(own, carries, set(damaged)).items():
            best = min((one for one, _ in brought), key=lambda one: (one.rank, one.time))
            every = [*(one for one, _ in brought), own.get(name, best)]
            rivals = {one.hash for one in every if one.rank < 2 or name.startswith("marks/")}
            if len(rivals) > 1 and own.get(name, best).rank == 0:
                self.contested.append(name)
            keeping = [one for one in every if one.keeps and any(other.slot.revoked for other in every)]
            self.beside += [(name, one) for one in keeping]  # none of them ends what another one keeps
            if keeping and best not in keeping:
                best = min(keeping, key=lambda one: (one.rank, one.time))
            if name not in own or (best in keeping and own[name] not in keeping) or _gives_way(own[name], best):
                self.stored[name] = best
                if name not in damaged and all(gone for _, gone in brought):
                    self.absent.add(name)
        for name, error in damaged.items():
            if name not in self.stored:
                raise error
            self.replaced.append(name)

    def _whole(self, data: bytes, name: str, moment: int, vouched: bool = False) -> Stored:
        """A fate or mark, wherever it lies, by its name."""
        folder, _, id_ = name.partition("/")
        record, slot, _ = self._open(data, wire.FATE if folder == "snapshots" else wire.MARK, name)
        if folder == "snapshots":
            require(record.transaction.hex() == id_, f"{name} is another transaction's")
            parts = {record.intent is not None, record.snapshot is not None}
            require(parts == {record.outcome == "commit"}, f"{name}: what a fate has must be what its outcome says")
        return Stored(record, slot, sha256(data), moment, vouched)

    def _counts(self, one: Stored, name: str) -> bool:
        """Whether a mark of a revoked slot does: all else is judged later."""
        if one.rank == 2 and getattr(one.record, "kind", "hold") in ("forget", "undo", "release"):
            self.void.append(name)
            return False
        return True

    def _brought(
        self, own: dict[str, Stored], carries: dict[str, Any], damaged: set[str]
    ) -> dict[str, list[tuple[Stored, bool]]]:
        """What carries bring, and whether without content. Of a carry, items that are damaged do not count."""
        brought: dict[str, list[tuple[Stored, bool]]] = {}
        for carry, (items, moment, slot) in sorted(carries.items(), key=lambda item: item[1][2].role not in CARERS):
            carer = slot.role in CARERS
            vouched = carer and not slot.revoked
            for position, item in enumerate(items):
                try:
                    require(re.fullmatch("(snapshots|marks)/" + HEX16, item.name, re.ASCII), "no name of these")
                    require(item.name not in carries, "it is that of a carry here")
                    one = self._whole(item.stored, item.name, moment + position, vouched)
                    if not carer:  # a device brings its own, where nothing else is
                        known = [own[item.name]] if item.name in own else []
                        known += [other for other, _ in brought.get(item.name, [])]
                        own_one = item.name.startswith("snapshots/") and one.slot.id == slot.id
                        require(own_one and item.name not in damaged, "not its own")
                        if any(other.hash != one.hash for other in known):
                            require(
                                not slot.revoked and not any(other.slot.revoked for other in known), "not its own"
                            )
                            self.contested.append(item.name)
                            continue
                    if item.name.startswith("snapshots/"):
                        require(one.record.outcome == "commit", "an abort is not carried")
                        here = own.get(item.name)
                        aborted = here and here.record.outcome == "abort"
                        require(not aborted or _gives_way(here, one), "it was aborted here")
                    elif one.record.kind == "verified" or not self._counts(one, item.name):
                        continue
                    brought.setdefault(item.name, []).append((one, item.gone))
                except Newer:
                    raise
                except Refused as error:
                    (self.spoilt if carer else self.void).append(f"{item.name} in {carry}: {error}")
        return brought

    def _committed(self) -> dict[str, Any]:
        """Snapshots that count, by transaction."""
        committed = {}
        there = {name.partition("/")[2]: one for name, one in self.stored.items() if name.startswith("snapshots/")}
        fates = {transaction: (one.record, one.slot) for transaction, one in there.items()}
        by_hash = {one.hash: (one.record, one.slot) for one in there.values()}
        reached: set[bytes] = set()
        for revoked in (slot for slot in self.slots.values() if slot.revoked):
            accepted = _split(revoked.revoked.accepted)
            while accepted:
                fate, slot = by_hash.get((digest := accepted.pop()), (None, None))
                if fate and fate.snapshot and slot == revoked and digest not in reached:
                    reached.add(digest)
                    accepted += [head.hash for head in fate.snapshot.heads if head.slot == slot.id]
        for transaction, (fate, slot) in fates.items():
            if fate.snapshot and (there[transaction].hash in reached or not slot.revoked):
                committed[transaction] = fate.snapshot
        self.revoked = {transaction for transaction, (fate, _) in fates.items() if fate.snapshot} - committed.keys()
        for transaction, snapshot in committed.items():
            name = snapshot.dataset
            require(not re.search(r'[/\\:*?"<>|\x00-\x1f]', name), f"{transaction}: a dataset's name")
            require(name not in (".", "..") and name == name.strip() and len(name) <= 100, f"{transaction}: a name")
            for head in snapshot.heads:
                known = head.transaction.hex()
                require(
                    known in committed and there[known].hash == head.hash,
                    f"{transaction} names a head that is not there",
                )
                require(fates[known][1].id == head.slot, f"{transaction} names a head of another slot")
                require(snapshot.time >= committed[known].time, f"{transaction} is older than its head")
        return committed

    def _gone(self) -> set[str]:
        """Transactions that may be deleted, or are (§15)."""
        said, beside = ([(bytes.fromhex(name.partition("/")[2]), marks.Said(one.record, one.slot.id, one.time))
                         for name, one in found if name.startswith("marks/")]
                        for found in (self.stored.items(), self.beside))  # fmt: skip
        self.said = [one for _, one in (*said, *beside)]
        forgotten = marks.gone(dict(said), self.rosters[-1].policy, time.time_ns(), beside)
        return {one.hex() for one in forgotten | self.collected} | {name.partition("/")[2] for name in self.absent}

    # ------------------------------------------------------------ collections, the rest (§14, §16)

    def _load_collections(self) -> None:
        there: dict[int, dict[str, Any]] = {}
        kinds = {"condemn": wire.CONDEMN, "execute": wire.EXECUTE, "done": wire.DONE}
        for match in self._list("collections", NUMBER + "/(condemn|execute|done)", strict=True):
            content, slot, _ = self._open(self._get(match[0]), kinds[match[2]], match[0])
            require(content.number == int(match[1]), f"{match[0]} has another number")
            if match[2] == "condemn" and slot.revoked:
                content = content._replace(snapshots=b"")  # only marks say what is forgotten
            there.setdefault(int(match[1]), {})[match[2]] = content
        self.collected: set[bytes] = set()
        require(sorted(there) == list(range(1, len(there) + 1)), "collections/ has a gap")
        for number, parts in there.items():
            require("condemn" in parts, f"collection {number}: order")
            require({"execute", "done"} <= set(parts) or number == len(there), f"collection {number} is not done")
            if "execute" in parts:
                lists = [_split(parts[part].packs) for part in ("execute", "condemn")]
                require(set(lists[0]) <= set(lists[1]), f"collection {number} executes what was not condemned")
                self.collected |= set(_split(parts["condemn"].snapshots, 16))

    def _load_the_rest(self) -> None:
        """Intents and audit records: nothing is read by them, but they have to be sound."""
        for match in self._list("intents", HEX16 + r"\." + NUMBER):
            intent, *_ = self._open(self._get(match[0]), wire.INTENT, match[0])
            require((intent.transaction.hex(), str(intent.number)) == match.groups(), f"{match[0]} is another's")
        for match in self._list("audit", f"{HEX16}/{NUMBER}"):
            event, slot, _ = self._open(self._get(match[0]), wire.AUDIT, match[0])
            require((slot.id.hex(), str(event.number)) == match.groups(), f"{match[0]} is another's")
            before = sha256(self._get(f"audit/{match[1]}/{event.number - 1}")) if event.number else None
            require(event.previous == before, f"{match[0]} does not follow the one before")


def _gives_way(own: Stored, carried: Stored) -> bool:
    """Whether a thief may have put this record before another that a carry brings (§7.2, §13.4)."""
    if own.hash == carried.hash:
        return False
    if not own.slot.revoked:
        return carried.rank == 0 and carried.vouched and getattr(own.record, "outcome", "commit") == "commit"
    if carried.rank == 0 or getattr(own.record, "outcome", "commit") == "abort":
        return True
    return own.rank == 2 and (carried.rank == 1 or carried.vouched)


def _split(hashes: bytes, size: int = 32) -> list[bytes]:
    return [hashes[at : at + size] for at in range(0, len(hashes), size)]
