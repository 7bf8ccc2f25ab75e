"""A repository's signed records, rosters and keyring: sections 2 and 5 to 8, 13 to 16 of docs/format.md."""

from __future__ import annotations

import json
import re
import struct
import time
import unicodedata
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from tests.reader import wire
from tests.reader.wire import FORMAT, Newer, Refused, header, key_id, require, sha256, unframe, unpack, unseal

NUMBER, HEX16, HEX32 = "(0|[1-9][0-9]{0,17})", "([0-9a-f]{32})", "([0-9a-f]{64})"
LIMITS = {"repository": 2**16, "roster": 2**24 + 4096, "keys": 2**20 + 4096, "snapshots": 2**26, "marks": 2**26}
WRITERS, CARERS = {"device", "maintainer", "owner"}, {"maintainer", "owner"}
EVERYBODY = WRITERS | {"restorer", "auditor"}


class Records:
    """A repository that was opened: everything but packs and their index."""

    def __init__(self, folder: Path, passphrase: str) -> None:
        self.folder = folder
        self.ignored: list[str] = []
        self._load_repository()
        self._load_rosters()
        self._load_keyring(passphrase)
        self._load_collections()
        self.fates = self._load_fates()
        self.forgotten = self._load_marks()
        self._load_the_rest()

    # ------------------------------------------------------------ objects and records (§2, §5)

    def _get(self, name: str) -> bytes:
        path = self.folder / name
        require(path.is_file(), f"{name} is missing")
        limit = LIMITS.get(name.split("/")[0], 2**28)
        require(path.stat().st_size <= limit, f"{name} is too large")
        return path.read_bytes()

    def _list(self, folder: str, pattern: str, strict: bool = False) -> list[re.Match[str]]:
        """Names of objects below a folder that are of the repository; §2: of the others, some stop the reader."""
        found = []
        for path in sorted((self.folder / folder).rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and re.fullmatch("[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*", name):
                match = re.fullmatch(folder + "/" + pattern, name, re.ASCII)
                require(match or not strict, f"{name} does not belong there")
                found.append(match) if match else self.ignored.append(name)
        return [match for match in found if match]

    def _associated(self, kind: int, key: bytes, more: bytes = b"") -> bytes:
        return FORMAT + self.id + bytes([kind]) + key + more

    def _verify(self, signed: Any, kind: int, name: str, public: bytes, place: tuple[bytes, int, bytes]) -> None:
        repository, roster, roster_hash = place
        message = FORMAT + b" signature" + repository + struct.pack("<BH", kind, len(name)) + name.encode("ascii")
        message += signed.slot + struct.pack("<Q", roster) + roster_hash + signed.content
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signed.signature, message)
        except (InvalidSignature, ValueError) as error:
            raise Refused(f"{name}: the signature is not its slot's") from error

    def _open(self, data: bytes, kind: int, name: str) -> tuple[Any, Any, Any]:
        """Header, key id, seal, frame, then the signature: the record, its slot, and Signed."""
        data = header(data, kind)
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
        return EVERYBODY if kind == wire.AUDIT else CARERS

    # ------------------------------------------------------------ repository, rosters, keyring (§6, §7, §8)

    def _load_repository(self) -> None:
        try:
            about = json.loads(self._get("repository").decode("utf-8"))
        except ValueError as error:
            raise Refused("repository is not JSON") from error
        version, given = about.get(FORMAT.decode()[:-2]), about.get("id")
        require(type(version) is int and version >= 1, "repository has no version")
        if version > 1 or about.get("required_features"):
            raise Newer("a newer version is needed")
        require(type(given) is str and re.fullmatch("[0-9a-fA-F]{64}", given), "repository has no id")
        self.id = bytes.fromhex(given)

    def _load_rosters(self) -> None:
        numbers = sorted(int(match[1]) for match in self._list("roster", NUMBER, strict=True))
        require(numbers and numbers == list(range(len(numbers))), "roster/ has a gap")
        self.rosters: list[Any] = []
        self.roster_hashes: list[bytes] = []
        for number in numbers:
            self._add_roster(number)
        self.slots = {slot.id: slot for slot in self.rosters[-1].slots}

    def _add_roster(self, number: int) -> None:
        name, data = f"roster/{number}", self._get(f"roster/{number}")
        sealed = wire.SignedRoster(unpack(header(data, wire.ROSTER)))
        fields = unpack(sealed.content)
        if type(fields) is list and len(fields) > 3 and fields[3]:
            raise Newer("a newer version is needed")
        roster = wire.Roster(fields)
        require(roster.number == number, f"{name} has another number")
        if number == 0:
            require(sha256(data) == self.id and roster.previous is None, "roster/0 is not this repository's")
            before, place = roster, (bytes(32), 0, bytes(32))
        else:
            before, place = self.rosters[-1], (self.id, number - 1, self.roster_hashes[-1])
            require(roster.previous == self.roster_hashes[-1], f"{name} does not follow the one before")
        signers = [
            slot for slot in before.slots if slot.id == sealed.slot and slot.role == "owner" and not slot.revoked
        ]
        require(len(signers) == 1, f"{name} is not signed by an owner")
        self._verify(sealed, wire.ROSTER, name, signers[0].signing, place)
        now = {slot.id: slot for slot in roster.slots}
        require(len(now) == len(roster.slots), f"{name} has a slot twice")
        for old in before.slots:
            new = now.get(old.id)
            same = new and (new.role, new.domain, new.credential, new.signing) == old[2:6] and new.id == old.id
            require(same and (new.revoked or not old.revoked), f"{name} changes a slot that never changes")
        require({d.id for d in before.domains} <= {d.id for d in roster.domains}, f"{name} removes a domain")
        require(roster.generations[: len(before.generations)] == before.generations, f"{name} changes a generation")
        require(
            [g.number for g in roster.generations] == list(range(len(roster.generations))), f"{name}: generations"
        )
        sizes = roster.chunker
        require(sizes.minimum < sizes.average < sizes.maximum, f"{name}: chunk sizes")
        self.rosters.append(roster)
        self.roster_hashes.append(sha256(data))

    def _load_keyring(self, passphrase: str) -> None:
        newest: dict[bytes, int] = {}
        for match in self._list("keys", f"{HEX16}/{NUMBER}", strict=True):
            slot = bytes.fromhex(match[1])
            newest[slot] = max(newest.get(slot, 0), int(match[2]))
        secret = unicodedata.normalize("NFC", passphrase).encode("utf-8")
        tried = sorted(slot for slot in newest if slot in self.slots and self.slots[slot].credential == "passphrase")
        for slot in tried[:64]:
            name = f"keys/{slot.hex()}/{newest[slot]}"
            stored = wire.SealedKeyring(unpack(header(self._get(name), wire.KEYRING)))
            require((stored.slot, stored.number) == (slot, newest[slot]), f"{name} is another slot's or number's")
            require(stored.argon2id and stored.key_id, f"{name} is not sealed by a passphrase")
            salt, memory, iterations, lanes = stored.argon2id
            require(memory >= 8 * lanes, f"{name}: Argon2id parameters out of bounds")
            stretch = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
            key = stretch.derive(secret)
            if key_id(key) == stored.key_id:
                more = slot + struct.pack("<Q", stored.number)
                body = unseal(key, stored.sealed, self._associated(wire.KEYRING, stored.key_id, more))
                self._use_keyring(wire.Keyring(unpack(wire.unpad(body))), self.slots[slot])
                return
        raise Refused("no keyring opens with this passphrase")

    def _use_keyring(self, keyring: Any, slot: Any) -> None:
        require(keyring.repository == self.id, "the keyring is another repository's")
        require((keyring.slot, keyring.role) == (slot.id, slot.role), "the keyring is another slot's or role's")
        if keyring.signing is not None:
            public = Ed25519PrivateKey.from_private_bytes(keyring.signing).public_key().public_bytes_raw()
            require(public == slot.signing, "the keyring has another signing key than its slot")
        generations = {generation.number: generation for generation in self.rosters[-1].generations}
        self.catalogue: dict[bytes, bytes] = {}
        for number, key in keyring.catalogue:
            require(
                number in generations and key_id(key) == generations[number].catalogue, "a catalogue key is wrong"
            )
            self.catalogue[key_id(key)] = key
        self.readers: dict[bytes, wire.ReaderKey] = {}
        for number, private in keyring.readers:
            reader = wire.ReaderKey(private)
            require(number in generations and reader.public == generations[number].reader, "a reader key is wrong")
            self.readers[key_id(reader.public)] = reader
        self.naming: dict[bytes, bytes] = dict(keyring.naming)
        self.block_names = keyring.block_names

    # ------------------------------------------------------------ fates, marks, collections, the rest (§13 to §16)

    def _load_fates(self) -> dict[str, Any]:
        """Snapshots that count, by transaction."""
        fates, committed, hashes = {}, {}, {}
        for match in self._list("snapshots", HEX16):
            data = self._get(match[0])
            fate, slot, _ = self._open(data, wire.FATE, match[0])
            require(fate.transaction.hex() == match[1], f"{match[0]} is another transaction's")
            parts = {fate.intent is not None, fate.snapshot is not None}
            require(parts == {fate.outcome == "commit"}, f"{match[0]}: what a fate has must be what its outcome says")
            fates[match[1]], hashes[match[1]] = (fate, slot), sha256(data)
        accepted = [s.revoked.accepted[i : i + 16] for s in self.slots.values() if s.revoked
                    for i in range(0, len(s.revoked.accepted), 16)]  # fmt: skip
        reached: set[str] = set()
        while accepted:
            fate, slot = fates.get(accepted.pop().hex(), (None, None))
            if fate and slot and slot.revoked and fate.transaction.hex() not in reached:
                reached.add(fate.transaction.hex())
                accepted += [h.transaction for h in fate.snapshot.heads if h.slot == slot.id] if fate.snapshot else []
        for transaction, (fate, slot) in fates.items():
            if fate.snapshot and (transaction in reached or not slot.revoked):
                committed[transaction] = fate.snapshot
        for transaction, snapshot in committed.items():
            name = snapshot.dataset
            require(not re.search(r'[/\\:*?"<>|\x00-\x1f]', name), f"{transaction}: a dataset's name")
            require(name not in (".", "..") and name == name.strip() and len(name) <= 100, f"{transaction}: a name")
            for head in snapshot.heads:
                known = head.transaction.hex()
                require(
                    known in committed and hashes[known] == head.hash, f"{transaction} names a head that is not there"
                )
                require(fates[known][1].id == head.slot, f"{transaction} names a head of another slot")
                require(snapshot.time >= committed[known].time, f"{transaction} is older than its head")
        return committed

    def _load_marks(self) -> set[str]:
        """Transactions that are forgotten: enough slots, long enough ago, not undone (§15)."""
        marks, since = {}, {}
        for match in self._list("marks", HEX16):
            mark, slot, _ = self._open(self._get(match[0]), wire.MARK, match[0])
            marks[match[1]], since[match[1]] = (mark, slot.id), (self.folder / match[0]).stat().st_mtime
        undone = {mark.about for mark, _ in marks.values() if mark.kind == "undo"}
        stands: dict[tuple[str, str], dict[bytes, float]] = {}
        for name, (mark, slot) in marks.items():
            first = mark.about.hex() if mark.about else name
            if mark.kind != "forget" or undone & {bytes.fromhex(first), bytes.fromhex(name)}:
                continue
            if first in marks and marks[first][0].kind == "forget" and marks[first][0].about is None:
                for at in range(0, len(mark.transactions), 16):
                    slots = stands.setdefault((first, mark.transactions[at : at + 16].hex()), {})
                    slots[slot] = min(since[name], slots.get(slot, since[name]))
        policy, now = self.rosters[-1].policy, time.time()
        listed = {name: marks[name][0].transactions.hex() for name, _ in stands}
        stands = {key: slots for key, slots in stands.items() if key[1] in _split_ids(listed[key[0]])}
        late = {key: sorted(slots.values())[policy.forget_quorum - 1 :] for key, slots in stands.items()}
        return {key[1] for key, times in late.items() if times and times[0] + policy.forget_delay <= now}

    def _load_collections(self) -> None:
        there: dict[int, dict[str, Any]] = {}
        kinds = {"condemn": wire.CONDEMN, "execute": wire.EXECUTE, "done": wire.DONE}
        for match in self._list("collections", NUMBER + "/(condemn|execute|done)", strict=True):
            content, *_ = self._open(self._get(match[0]), kinds[match[2]], match[0])
            require(content.number == int(match[1]), f"{match[0]} has another number")
            there.setdefault(int(match[1]), {})[match[2]] = content
        require(sorted(there) == list(range(1, len(there) + 1)), "collections/ has a gap")
        for number, parts in there.items():
            require("condemn" in parts and ("execute" in parts or "done" not in parts), f"collection {number}: order")
            require("done" in parts or number == len(there), f"collection {number} is not done")
            if "execute" in parts:
                lists = [_split(parts[part].packs) for part in ("execute", "condemn")]
                require(set(lists[0]) <= set(lists[1]), f"collection {number} executes what was not condemned")

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


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + 32] for at in range(0, len(hashes), 32)]


def _split_ids(text: str) -> list[str]:
    return [text[at : at + 32] for at in range(0, len(text), 32)]
