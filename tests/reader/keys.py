"""A repository's names, its record, rosters and keyrings: sections 2 and 6 to 8 of docs/format.md."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import unicodedata
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from tests.reader import wire
from tests.reader.wire import FORMAT, Newer, Refused, header, key_id, require, sha256, unpack

NUMBER, HEX16, HEX32 = "(0|[1-9][0-9]{0,17})", "([0-9a-f]{32})", "([0-9a-f]{64})"
LIMITS = {"repository": 2**16, "roster": 2**24 + 4096, "keys": 2**20 + 4096, "snapshots": 2**26, "marks": 2**26}
STRETCHINGS = 64


class Keys:
    """What a passphrase opens, or the seed of a key."""

    def __init__(self, folder: Path, secret: str | bytes) -> None:
        """`secret`: a passphrase, or the 32 bytes of a key file or of joined shares."""
        self.folder = folder
        self.ignored: list[str] = []
        self._load_repository()
        self._load_rosters()
        if isinstance(secret, str):
            self._unlock(unicodedata.normalize("NFC", secret).encode("utf-8"))
        else:
            self._unlock_with_key(secret)

    # ------------------------------------------------------------ objects and signatures (§2, §5)

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
            unrevoked = not old.revoked or (new and new.revoked == old.revoked)
            require(same and unrevoked, f"{name} changes a slot that never changes")
        for slot in roster.slots:
            require((slot.argon2id is not None) == (slot.credential == "passphrase"), f"{name}: stretching")
            if slot.argon2id:
                require(slot.argon2id.memory_kib >= 8 * slot.argon2id.lanes, f"{name}: Argon2id out of bounds")
        require(roster.domains[: len(before.domains)] == before.domains, f"{name} changes domains")
        require(roster.generations[: len(before.generations)] == before.generations, f"{name} changes a generation")
        require(
            [g.number for g in roster.generations] == list(range(len(roster.generations))), f"{name}: generations"
        )
        sizes = roster.chunker
        require(sizes.minimum < sizes.average < sizes.maximum, f"{name}: chunk sizes")
        self.rosters.append(roster)
        self.roster_hashes.append(sha256(data))

    def _keyrings(self) -> dict[bytes, list[Any]]:
        """All keyrings of each slot that the roster has, newest first."""
        found: dict[bytes, list[Any]] = {}
        for match in self._list("keys", f"{HEX16}/{NUMBER}"):
            slot, number = bytes.fromhex(match[1]), int(match[2])
            if slot not in self.slots:
                continue  # its roster may not have come yet
            try:
                stored = self._sealed(match[0], slot, number)
            except Refused:
                self.ignored.append(match[0])  # another may hold what is needed
                continue
            found.setdefault(slot, []).append(stored)
        return {slot: sorted(some, key=lambda one: -one.number) for slot, some in sorted(found.items())}

    def _sealed(self, name: str, slot: bytes, number: int) -> Any:
        stored = wire.SealedKeyring(unpack(header(self._get(name), wire.KEYRING)))
        require((stored.slot, stored.number) == (slot, number), f"{name} is another slot's or number's")
        return stored

    def _unlock(self, secret: bytes) -> None:
        """The roster says how a passphrase is stretched for each slot, and to what public key that leads."""
        stretched = sorted(
            (slot for slot in self.rosters[-1].slots if slot.argon2id), key=lambda one: one.revoked is not None
        )
        pairs = []
        for slot in stretched[:STRETCHINGS]:
            key = Argon2id(
                salt=slot.argon2id.salt, length=32, iterations=slot.argon2id.iterations,
                lanes=slot.argon2id.lanes, memory_cost=slot.argon2id.memory_kib,
            ).derive(secret)  # fmt: skip
            pairs.append((slot, wire.ReaderKey(wire.derive(" recipient", key, 96))))
        self._take([(slot, pair) for slot, pair in pairs if pair.public == slot.recipient])

    def _unlock_with_key(self, seed: bytes) -> None:
        """The roster says which slots are sealed to a key."""
        require(len(seed) == 32, "no seed of a key")
        pair = wire.ReaderKey(hashlib.shake_256(seed).digest(96))
        slots = [slot for slot in self.rosters[-1].slots if not slot.argon2id and slot.recipient == pair.public]
        self._take([(slot, pair) for slot in sorted(slots, key=lambda one: one.revoked is not None)])

    def _take(self, found: list[tuple[Any, wire.ReaderKey]]) -> None:
        """The first that is not revoked and has a keyring that is sealed to it."""
        require(found, "no slot is of this credential")
        require(not all(slot.revoked for slot, _ in found), "this credential was revoked")
        for slot, pair in found:
            sealed_to = {one.key_id for one in self._keyrings().get(slot.id, [])}
            if not slot.revoked and key_id(pair.public) in sealed_to:
                self.slot, self._pair = slot.id, pair
                self._load_keys()
                return
        raise Refused("no keyring of its slot is there")

    def _load_keys(self) -> None:
        """The keys of all keyrings that this credential opens, taken together."""
        slot = self.slots[self.slot]
        numbers = {generation.number: generation for generation in self.rosters[-1].generations}
        self.catalogue: dict[bytes, bytes] = {}
        self.readers: dict[bytes, wire.ReaderKey] = {}
        opened = [self._open_keyring(stored) for stored in self._keyrings().get(self.slot, [])]
        keyrings = [keyring for keyring in opened if keyring is not None]  # the newest first
        require(keyrings, "no keyring of its slot opens any more")
        for keyring in keyrings:
            for number, key in keyring.catalogue:  # of a change that was interrupted or came second: ignored
                if number in numbers and key_id(key) == numbers[number].catalogue:
                    self.catalogue[key_id(key)] = key
            for number, private in keyring.readers:
                reader = wire.ReaderKey(private)
                if number in numbers and reader.public == numbers[number].reader:
                    self.readers[key_id(reader.public)] = reader
        own = next((keyring for keyring in keyrings if self._public(keyring) == slot.signing), keyrings[-1])
        require(own.repository == self.id, "the keyring is another repository's")
        require((own.slot, own.role) == (slot.id, slot.role), "the keyring is another slot's or role's")
        require(self._public(own) in (None, slot.signing), "the keyring has another signing key than its slot")
        domains = {domain.id for domain in self.rosters[-1].domains}
        added = {domain: key for keyring in keyrings for domain, key in keyring.naming if key_id(key)[:16] == domain}
        naming = {**added, **dict(own.naming)}  # of others, what a domain's id commits to
        self.naming = {domain: key for domain, key in naming.items() if domain in domains}
        self.block_names = own.block_names

    @staticmethod
    def _public(keyring: Any) -> bytes | None:
        if keyring.signing is None:
            return None
        return Ed25519PrivateKey.from_private_bytes(keyring.signing).public_key().public_bytes_raw()

    def _open_keyring(self, stored: Any) -> Any:
        if stored.key_id != key_id(self._pair.public):
            return None
        more = stored.slot + struct.pack("<Q", stored.number)
        body = self._pair.open(stored.sealed, self._associated(wire.KEYRING, stored.key_id, more))
        return wire.Keyring(unpack(wire.unpad(body)))
