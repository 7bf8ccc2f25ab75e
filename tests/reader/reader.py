"""A second reader of the storage format, written from docs/format.md alone; it shares no code with the library.

It opens a folder with a passphrase, refuses what section 22 says, and gives every snapshot's entries with their content.
It is for small repositories: packs are read whole, and everything that can be verified is verified at once.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from tests.reader import wire
from tests.reader.wire import FORMAT, Newer, Refused, blake3, header, key_id, require, sha256, unframe, unpack, unseal

NUMBER, HEX16, HEX32 = "(0|[1-9][0-9]{0,17})", "([0-9a-f]{32})", "([0-9a-f]{64})"
LIMITS = {"repository": 2**16, "roster": 2**24 + 4096, "keys": 2**20 + 4096, "snapshots": 2**26, "marks": 2**26}
WRITERS, CARERS = {"device", "maintainer", "owner"}, {"maintainer", "owner"}
EVERYBODY = WRITERS | {"restorer", "auditor"}


@dataclass
class Entry:
    """What a snapshot has under one path; `pieces` are (offset, bytes) in zeros, and nothing for a further name."""

    path: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    target: bytes | None = None
    same_file: bytes | None = None
    extents: list[tuple[int, int]] | None = None
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[tuple[int, bytes]] = field(default_factory=list)

    def data(self) -> bytes:
        whole = bytearray(self.size)
        for offset, piece in self.pieces:
            whole[offset : offset + len(piece)] = piece
        return bytes(whole)


class Reader:
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
        self._load_index()
        self._pack = lru_cache(4)(self._read_pack)
        self._block = lru_cache(16)(self._read_block)

    # ------------------------------------------------------------ objects and records (§2, §5)

    def _get(self, name: str) -> bytes:
        path = self.folder / name
        require(path.is_file(), f"{name} is missing")
        limit = LIMITS.get(name.split("/")[0], 2**28)
        require(path.stat().st_size <= limit, f"{name} is too large")
        return path.read_bytes()

    def _list(self, folder: str, pattern: str, strict: bool = False) -> list[re.Match[str]]:
        """Names below a folder that are of the repository; §2: of the others, some stop the reader."""
        found = []
        for path in sorted((self.folder / folder).rglob("*")):
            if path.is_file():
                name = path.relative_to(self.folder).as_posix()
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
            return {"device", "owner"} if content.outcome == "commit" else WRITERS
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
            self._add_roster(number, number == numbers[-1])
        self.slots = {slot.id: slot for slot in self.rosters[-1].slots}

    def _add_roster(self, number: int, newest: bool) -> None:
        name, data = f"roster/{number}", self._get(f"roster/{number}")
        sealed = wire.SignedRoster(unpack(header(data, wire.ROSTER)))
        fields = unpack(sealed.content)
        if newest and type(fields) is list and len(fields) > 3 and fields[3]:
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
        places = Counter()
        for transaction, (fate, slot) in fates.items():
            if fate.snapshot and (transaction in reached or not slot.revoked):
                committed[transaction] = fate.snapshot
                places[slot.id, fate.snapshot.sequence] += 1
        require(all(times == 1 for times in places.values()), "history was forked: a sequence number twice")
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
            if mark.kind == "forget" and bytes.fromhex(first) not in undone and bytes.fromhex(name) not in undone:
                for at in range(0, len(mark.transactions), 16):
                    slots = stands.setdefault((first, mark.transactions[at : at + 16].hex()), {})
                    slots[slot] = min(since[name], slots.get(slot, since[name]))
        policy, now = self.rosters[-1].policy, time.time()
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

    # ------------------------------------------------------------ index, packs, blocks (§10 to §12)

    def _load_index(self) -> None:
        listed = {bytes.fromhex(m[2]) for m in self._list("packs", f"([0-9a-f]{{2}})/{HEX32}") if m[2][:2] == m[1]}
        entries: dict[bytes, set[Any]] = {}
        for match in self._list("index", HEX32):
            data = self._get(match[0])
            require(sha256(data).hex() == match[1], f"{match[0]} is damaged")
            segment, slot, _ = self._open(data, wire.INDEX, "index/")
            for entry in segment.packs:
                directory, *_ = self._signed(entry.directory, wire.DIRECTORY, "packs/")
                if entry.pack in listed and (slot.role != "device" or slot.domain == directory.domain):
                    entries.setdefault(entry.pack, set()).add(entry)
        self.instances: dict[bytes, list[tuple[bytes, bytes, int]]] = {}  # block: (domain, pack, position)
        self.entries = {pack: next(iter(some)) for pack, some in entries.items() if len(some) == 1}
        for pack in sorted(listed):
            if pack in self.entries:
                directory, *_ = self._signed(self.entries[pack].directory, wire.DIRECTORY, "packs/")
                self._check_directory(directory, self.entries[pack].size)
            else:
                directory = self._read_pack(pack)[1]
            for position, block in enumerate(directory.blocks):
                self.instances.setdefault(block.id, []).append((directory.domain, pack, position))

    def _check_directory(self, directory: Any, room: int) -> None:
        require(directory.region_size <= room, "a pack's region is larger than its place")
        end = 0
        for block in directory.blocks:
            require(block.key < len(directory.keys), "a block of no key")
            require(len(block.names) // 32 == len(block.lengths) // 4, "a block with other names than lengths")
            lengths = _column("I", block.lengths, len(block.lengths) // 4)
            require(max(lengths) <= 2**22 and sum(lengths) <= 2**23, "a chunk or block is too large")
            require(end <= block.offset, "blocks overlap or are out of order")
            end = block.offset + block.length
            key = directory.keys[block.key]
            of_catalogue = not key.wraps
            require(of_catalogue == (block.kind == wire.RECIPE), "a block under a key of the wrong sort")
            require(of_catalogue or key.key_id not in self.catalogue, "a block under a key of the wrong sort")
        require(end <= directory.region_size, "a block outside of its pack's region")

    def _read_pack(self, pack: bytes) -> tuple[bytes, Any]:
        data, name = self._get(f"packs/{pack.hex()[:2]}/{pack.hex()}"), f"pack {pack.hex()}"
        require(sha256(data) == pack, f"{name} is damaged")
        require(len(data) >= 8 and data[-4:] == b"PHBP", f"{name} has no trailer")
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        require(start >= 0 and len(data) - 8 - start <= 2**26, f"{name}: its directory lies outside of it")
        directory, _, signed = self._open(data[start:-8], wire.DIRECTORY, "packs/")
        self._check_directory(directory, start)
        require(sha256(data[: directory.region_size]) == directory.region, f"{name}: another region")
        if entry := self.entries.get(pack):
            same = entry.size == len(data) and wire.Signed(unpack(entry.directory)) == signed
            require(same, f"{name}: the index says something else")
        return data, directory

    def _read_block(self, id_: bytes, kind: int, domain: bytes) -> list[bytes]:
        """The chunks of a block: the first instance in the snapshot's domain that verifies (§23)."""
        problem = Refused(f"block {id_.hex()} is missing")
        for its_domain, pack, position in self.instances.get(id_, []):
            if its_domain == domain:
                try:
                    return self._read_instance(id_, kind, domain, pack, position)
                except Refused as error:
                    problem = error
        raise problem

    def _read_instance(self, id_: bytes, kind: int, domain: bytes, pack: bytes, position: int) -> list[bytes]:
        data, directory = self._pack(pack)
        block = directory.blocks[position]
        require((block.id, block.kind) == (id_, kind), "a block of another kind")
        wrapped = directory.keys[block.key]
        key = self._block_key(wrapped)
        sealed = data[block.offset : block.offset + block.length]
        plain = unseal(key, sealed, self._associated(kind, wrapped.key_id, id_))
        content = unframe(plain[32:], wire.MAX_CONTENT)
        require(blake3(content).digest() == plain[:32], "a block's digest is wrong")
        n = int.from_bytes(content[-4:], "little")
        require(len(content) >= 4 and 1 <= n <= 65536 and len(content) >= 4 * n + 4, "a block's lengths are cut off")
        column = content[-4 - 4 * n : -4]
        lengths = _column("I", column, n)
        require(column == block.lengths and sum(lengths) == len(content) - 4 * n - 4, "a block's lengths are wrong")
        ends = list(itertools.accumulate(lengths))
        chunks = [content[end - size : end] for end, size in zip(ends, lengths, strict=True)]
        require(domain in self.naming, "this credential has no naming key of the domain")
        naming = wire.derive(wire.NAMES_OF[kind], self.naming[domain])
        names = b"".join(blake3(chunk, key=naming).digest() for chunk in chunks)
        require(names == block.names, "a chunk has another name than the directory says")
        require(blake3(bytes([kind]) + names, key=self.block_names).digest() == id_, "a block with another's id")
        return chunks

    def _block_key(self, wrapped: Any) -> bytes:
        if not wrapped.wraps:
            require(wrapped.key_id in self.catalogue, "a recipe block under an unknown key")
            return self.catalogue[wrapped.key_id]
        for wrap in wrapped.wraps:
            if wrap.recipient in self.readers:
                info = self._associated(wire.WRAPPED, wrapped.key_id)
                key = self.readers[wrap.recipient].open(wrap.sealed, info)
                require(len(key) == 32 and key_id(key) == wrapped.key_id, "a wrapped key is another")
                return key
        raise Refused("a block's key is wrapped for somebody else")

    # ------------------------------------------------------------ snapshots and files (§17 to §19)

    def snapshots(self) -> dict[str, Any]:
        """Committed and not forgotten, oldest first."""
        left = [item for item in self.fates.items() if item[0] not in self.forgotten]
        return dict(sorted(left, key=lambda item: (item[1].time, item[1].sequence)))

    def _chunks(self, refs: list[Any], kind: int, domain: bytes) -> Iterator[bytes]:
        for ref in refs:
            chunks = self._block(ref.block, kind, domain)
            require(ref.first + ref.count <= len(chunks), "a Ref names chunks that its block does not have")
            yield from chunks[ref.first : ref.first + ref.count]

    def _content(self, snapshot: Any) -> Iterator[bytes]:
        """The content stream, chunk by chunk (§18)."""
        table = b"".join(self._chunks(snapshot.table, wire.RECIPE, snapshot.domain))
        require(len(table) % 32 == 0, "a block table that does not divide by 32")
        total = 0
        for section in self._chunks(snapshot.recipe, wire.RECIPE, snapshot.domain):
            at = 0
            while at < len(section):
                n = int.from_bytes(section[at : at + 4], "little")
                require(1 <= n <= 65536 and at + 4 + 20 * n <= len(section), "a recipe's section is cut off")
                columns = [_column("I", section[at + 4 + i * 4 * n : at + 4 + (i + 1) * 4 * n], n) for i in range(3)]
                columns.append(_column("Q", section[at + 4 + 12 * n : at + 4 + 20 * n], n))
                at += 4 + 20 * n
                for place, first, count, size in zip(*columns, strict=True):
                    id_ = table[32 * place : 32 * place + 32]
                    require(len(id_) == 32 and id_ != bytes(32), "a run names no place of the table")
                    require(first < 65536 and 1 <= count <= 65536 and size <= 2**23, "a run out of bounds")
                    total += count
                    require(total <= snapshot.chunks, "a recipe with more chunks than the snapshot")
                    chunks = self._block(id_, wire.DATA, snapshot.domain)
                    require(first + count <= len(chunks), "a run names chunks that its block does not have")
                    run = chunks[first : first + count]
                    require(sum(map(len, run)) == size, "a run's bytes are not those of its chunks")
                    yield from run
        require(total == snapshot.chunks, "a recipe with fewer chunks than the snapshot")

    def _frames(self, snapshot: Any) -> Iterator[tuple[int, int, int, Any]]:
        buffer = b""
        for chunk in self._chunks(snapshot.manifest, wire.MANIFEST, snapshot.domain):
            buffer += chunk
            while len(buffer) >= 4 and len(buffer) >= 4 + (n := int.from_bytes(buffer[:4], "little")):
                require(17 <= n <= 2**26, "a manifest's frame of an impossible length")
                type_, content, chunks = struct.unpack("<BQQ", buffer[4:21])
                require(type_ in (1, 2) and max(content, chunks) <= 2**62, "a manifest's frame of an unknown type")
                require(type_ == 1 or content == chunks == 0, "a finding with content")
                yield type_, content, chunks, unpack(buffer[21 : 4 + n])
                buffer = buffer[4 + n :]
        require(not buffer, "a manifest's frame is cut off")

    def entries_of(self, transaction: str, findings: list[Any] | None = None) -> Iterator[Entry]:
        """Every entry of a snapshot in the manifest's order, with its content."""
        snapshot = self.snapshots()[transaction]
        stream, rest = self._content(snapshot), b""
        walk, sums = _Walk(), Counter()
        for type_, content, chunks, fields in self._frames(snapshot):
            if type_ == 2:
                found = wire.Finding(fields)
                findings.append(found) if findings is not None else None
                continue
            entries, of_chunks = walk.folder(wire.Folder(fields))
            extents = [_extents(entry) for entry in entries]
            require(sum(size for some in extents for _, size in some) == content, "a folder's sum of bytes is wrong")
            require(sum(of_chunks) == chunks, "a folder's sum of chunks is wrong")
            sums.update(chunks=chunks, files=sum(entry.kind == wire.FILE for entry in entries))
            sums.update(size=sum(entry.size for entry in entries))
            for entry, some in zip(entries, extents, strict=True):
                for offset, size in some:
                    parts, have = [rest], len(rest)
                    while have < size:
                        parts.append(next(stream, b""))
                        require(parts[-1], "the recipe has less than the manifest")
                        have += len(parts[-1])
                    joined = b"".join(parts)
                    rest = joined[size:]
                    entry.pieces.append((offset, joined[:size]))
                yield entry
        require(not rest and next(stream, None) is None, "the recipe has more than the manifest")
        said = {"chunks": snapshot.chunks, "files": snapshot.files, "size": snapshot.size}
        require(
            all(sums[name] == value for name, value in said.items()), "a snapshot with other sums than its manifest"
        )
        walk.end()

    def restore(self, transaction: str) -> dict[bytes, Entry]:
        """A snapshot as a dictionary of paths; further names have the content of the file that they name."""
        found = {entry.path: entry for entry in self.entries_of(transaction)}
        for entry in found.values():
            if entry.same_file is not None:
                first = found.get(entry.same_file)
                require(first and first.kind == wire.FILE and first.same_file is None, "a further name of no file")
                entry.pieces = first.pieces if first else []
        return found


class _Walk:
    """The order of folders in a manifest, and the entries of each (§17.1)."""

    def __init__(self) -> None:
        self._path: bytes | None = None
        self._last, self._inside, self._waiting = b"", [], [b""]

    def folder(self, folder: Any) -> tuple[list[Entry], tuple[int, ...]]:
        if folder.path != self._path or self._path is None:
            self._waiting += reversed(self._inside)
            require(self._waiting and self._waiting.pop() == folder.path, "a folder that is not the next one")
            self._path, self._last, self._inside = folder.path, b"", []
        require(all(_proper(part) for part in folder.path.split(b"/") if folder.path), "a path")
        names = folder.names.split(b"\0") if folder.names else []
        n = len(names)
        require(n <= 65536, "a folder's record with too many entries")
        kinds, modes = _column("B", folder.kinds, n), _column("I", folder.modes, n)
        uids, gids, mtimes = (
            _column("I", folder.uids, n),
            _column("I", folder.gids, n),
            _column("q", folder.mtimes, n),
        )
        sizes, chunks = _column("Q", folder.sizes, n), _column("I", folder.chunks, n)
        entries = []
        for name, kind, mode, uid, gid, mtime, size in zip(
            names, kinds, modes, uids, gids, mtimes, sizes, strict=True
        ):
            root = name == b"." and not folder.path and kind == wire.FOLDER
            require(root or _proper(name), f"a name that may not be: {name!r}")
            require(name > self._last, "names that do not ascend")
            require(kind <= wire.UNREAD and mode <= 0o7777 and size <= 2**62, "an entry out of bounds")
            self._last = name
            path = folder.path + b"/" + name if folder.path else name
            if kind == wire.FOLDER and not root:
                self._inside.append(path)
            entries.append(Entry(path, kind, mode, uid, gid, mtime, size if kind == wire.FILE else 0))
        seen = set()
        for extra in folder.extras:
            require(extra.entry < n and (extra.entry, extra.key) not in seen, "an extra of no entry, or twice")
            seen.add((extra.entry, extra.key))
            _add_extra(entries[extra.entry], extra.key, extra.value)
        return entries, chunks

    def end(self) -> None:
        require(not self._waiting and not self._inside, "a folder without a record")


def _add_extra(entry: Entry, key: int, value: bytes) -> None:
    if key == wire.LINK_TARGET:
        require(entry.kind == wire.LINK and b"\0" not in value, "a target that may not be")
        entry.target = value
    elif key == wire.SAME_FILE:
        require(entry.kind == wire.FILE and all(map(_proper, value.split(b"/"))), "a further name of no path")
        entry.same_file = value
    elif key == wire.EXTENTS:
        require(entry.kind == wire.FILE and len(value) % 16 == 0, "extents that do not fit")
        entry.extents = list(struct.iter_unpack("<QQ", value))
        ends = [0, *itertools.chain(*((at, at + size) for at, size in entry.extents)), entry.size]
        require(ends == sorted(ends), "extents out of order or outside of the file")
    elif key == wire.ATTRIBUTES:
        entry.attributes = dict(wire.Attributes(unpack(value)))


def _extents(entry: Entry) -> list[tuple[int, int]]:
    if entry.kind != wire.FILE or entry.same_file is not None:
        return []
    return [(0, entry.size)] if entry.extents is None else entry.extents


def _proper(name: bytes) -> bool:
    return 1 <= len(name) <= 4096 and name not in (b".", b"..") and not {0, 0x2F} & set(name)


def _column(letter: str, data: bytes, n: int) -> tuple[int, ...]:
    require(len(data) == n * struct.calcsize("<" + letter), "a column that does not fit")
    return struct.unpack(f"<{n}{letter}", data)


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
