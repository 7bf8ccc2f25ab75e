"""A small repository with an object of every kind, and ways to put something else in the place of one."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from unittest import mock

from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import clock, ids
from pharmabackup.compression import compress, decompress
from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.crypto.signatures import SigningKey
from pharmabackup.engine import collection, enrolment
from pharmabackup.engine.grants import SELF_NAMED
from pharmabackup.engine.packs import directory_range
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import keys, pack, wire
from pharmabackup.format.transaction import Fate, Mark
from pharmabackup.format.wire import Kind
from pharmabackup.storage import memory
from pharmabackup.storage.base import ObjectInfo

PASSPHRASE = pb.Passphrase("correct horse battery staple")
SECOND = pb.Passphrase("the passphrase of a second owner")
DAY_NS = 86400 * 10**9
ROLES: tuple[keys.Role, ...] = ("device", "restorer", "auditor", "maintainer", "owner")
_places = count()
Objects = dict[str, bytes]


@dataclass(frozen=True)
class Signer:
    """Whoever signs, rightly or not."""

    slot: bytes
    seed: bytes = field(repr=False)


@dataclass
class Shop:
    """What storage holds, when each was made, and what the snapshots hold."""

    objects: Objects
    modified: dict[str, int]
    files: dict[str, dict[str, bytes]]  # by snapshot
    exhibits: dict[str, str]  # by what is shown: the object's name
    contents: dict[str, bytes]  # the same, as signed
    signers: dict[str, Signer]  # by role, and "revoked", "unknown", "nobody"
    rosters: list[bytes]  # their hashes
    repository: bytes
    domain: bytes
    catalogue: bytes = field(repr=False)

    def forge(
        self, kind: Kind, content: bytes, *, by: Signer, name: str, cite: int = -1, told: bytes | None = None
    ) -> bytes:
        """The stored bytes of a record that is signed for the object `name`. It cites a roster, -1: the newest."""
        number = cite if cite >= 0 else len(self.rosters) + cite
        told = told or self.rosters[min(number, len(self.rosters) - 1)]
        signed_for = SELF_NAMED.get(kind, name)
        message = wire.signed_message(self.repository, kind, signed_for, by.slot, number, told, content)
        signed = wire.Signed(content, by.slot, number, told, SigningKey(by.seed).sign(message))
        return self.seal(kind, wire.encode(signed))

    def seal(self, kind: Kind, signed: bytes) -> bytes:
        key_id = hashing.key_id(self.catalogue)
        body = wire.pad(compress(signed, 3))
        context = wire.context(self.repository, kind, key_id)
        return wire.header(kind) + key_id + SealingKey(self.catalogue).seal(body, context)


@contextmanager
def opened(shop: Shop, objects: Objects, state: Path) -> Iterator[pb.Repository]:
    """The repository as it would be with these objects, on a machine that has not seen it."""
    name = f"shop-{next(_places)}"
    storage = memory.MemoryStorage.named(name)
    now = clock.now_ns()
    for key, data in objects.items():
        info = ObjectInfo(name=key, size=len(data), modified=shop.modified.get(key, now))
        storage._objects[key] = memory._Object(data, info)
    try:
        with pb.Repository.open(f"memory://{name}", PASSPHRASE, state_dir=state / name) as repo:
            yield repo
    finally:
        memory._named.pop(name)


def packs(repo: pb.Repository) -> set[str]:
    return {info.name for info in repo._unlocked.storage.list("packs")}


def build(base: Path, seed: int) -> Shop:
    """A replica: what came by a copy, what was backed up here, and two collections. All secrets are new each time."""
    noise, root = random.Random(seed), base / "documents"
    root.mkdir(parents=True)
    files: dict[str, dict[str, bytes]] = {}

    def back_up(repo: pb.Repository) -> pb.Snapshot:
        for name in ("same", "anew") if not files else ("anew",):
            (root / name).write_bytes(noise.randbytes(3000))
        snapshot = repo.backup([pb.Files(root)]).datasets["documents"].snapshot
        assert snapshot is not None
        files[snapshot.id] = {path.name: path.read_bytes() for path in root.iterdir()}
        return snapshot

    one, two = f"first-{next(_places)}", f"second-{next(_places)}"
    with pb.Repository.create(f"memory://{one}", PASSPHRASE, state_dir=base / "1") as first:
        first.enrol("owner", SECOND, name="second")
        day = back_up(first)
        first.rotate(reason="a laptop was lost")
        first.hold(back_up(first), reason="a dispute")
        with pb.Repository.create(f"memory://{two}", PASSPHRASE, state_dir=base / "2", replica_of=first) as second:
            first.copy(second, snapshots=[day])
            first.copy(second)
            for _ in range(2):
                doomed = back_up(second)
                back_up(second)
                second.apply(second.propose_forget(snapshots=[doomed]))
                with two_weeks_later():
                    second.apply(second.propose_prune())
            second.restore(base / "out")
            second.hold(second.snapshot(), reason="another dispute")
            for _ in range(2):
                second.rotate(reason="another laptop was lost")
            signers = _enrol_roles(second._unlocked)
            back_up(second)
            back_up(second)
            shop = _shown(second._unlocked, files, signers)
    for name in (one, two):
        memory._named.pop(name)
    return shop


@contextmanager
def two_weeks_later() -> Iterator[None]:
    now, storage_now, ahead = clock.now_ns, collection.storage_now, 15 * DAY_NS
    with (
        mock.patch("pharmabackup.engine.history.now_ns", lambda: now() + ahead),
        mock.patch("pharmabackup.verbs.standing.now_ns", lambda: now() + ahead),
        mock.patch("pharmabackup.verbs.prune.storage_now", lambda unlocked: storage_now(unlocked) + ahead),
    ):
        yield


def _enrol_roles(unlocked: Unlocked) -> dict[str, Signer]:
    """A slot of each role, and one that is revoked by the newest roster. Verbs cannot make them yet."""
    signers = {name: Signer(ids.new_id(), os.urandom(32)) for name in (*ROLES[:4], "revoked", "unknown")}
    own = unlocked.keyring
    assert own.signing is not None
    signers |= {"owner": Signer(own.slot, own.signing), "nobody": Signer(own.slot, os.urandom(32))}
    made = [_slot(name, signers[name], unlocked.domain) for name in (*ROLES[:4], "revoked")]
    for slot in made:  # what nobody opens, so that none is missed
        sealed = keys.SealedKeyring(slot.id, 0, hashing.key_id(slot.recipient), b"sealed")
        stored = wire.header(Kind.KEYRING) + wire.encode(sealed)
        unlocked.storage.put_new(ids.keyring_name(slot.id, 0), stored)
    enrolment.change_roster(unlocked, lambda old: replace(old, slots=(*old.slots, *made)))
    revoked = keys.Revoked(clock.now_ns(), "stolen", b"")
    ended = [*made[:-1], replace(made[-1], revoked=revoked)]
    enrolment.change_roster(unlocked, lambda old: replace(old, slots=(*old.slots[: -len(made)], *ended)))
    return signers


def _slot(name: str, signer: Signer, domain: bytes) -> keys.Slot:
    role: keys.Role = "owner" if name == "revoked" else name  # type: ignore[assignment]
    public = SigningKey(signer.seed).public
    own = domain if role == "device" else None
    return keys.Slot(
        signer.slot,
        name,
        role,
        own,
        "recipient",
        public,
        PrivateKey.generate().public.raw,
        clock.now_ns(),
        None,
        None,
    )


def _shown(unlocked: Unlocked, files: dict[str, dict[str, bytes]], signers: dict[str, Signer]) -> Shop:
    storage = unlocked.storage
    infos = sorted(storage.list(""), key=lambda info: info.modified)
    objects = {info.name: storage.get(info.name, limit=1 << 28) for info in infos}
    names = list(objects)
    own = unlocked.keyring.slot.hex()

    def newest(start: str, test: Callable[[str], bool] = lambda _: True) -> str:
        return [name for name in names if name.startswith(start) and test(name)][-1]

    def fate(outcome: str) -> Callable[[str], bool]:
        def test(name: str) -> bool:
            if wire.is_kind(objects[name], Kind.CARRY):
                return outcome == "carry"
            record = unlocked.open(Kind.FATE, name, objects[name], Fate).record
            return record.outcome == outcome

        return test

    def said(kind: str) -> Callable[[str], bool]:
        return lambda name: unlocked.open(Kind.MARK, name, objects[name], Mark).record.kind == kind

    exhibits = {
        "repository": "repository",
        "roster": newest("roster/"),
        "keyring": newest(f"keys/{own}/"),
        "pack": newest("packs/"),
        "index": newest("index/"),
        "intent": newest("intents/"),
        "fate": newest("snapshots/", fate("commit")),
        "abort": newest("snapshots/", fate("abort")),
        "carry": newest("snapshots/", fate("carry")),
        "condemn": "collections/2/condemn",
        "execute": "collections/2/execute",
        "done": "collections/2/done",
        "hold": newest("marks/", said("hold")),
        "forget": newest("marks/", said("forget")),
        "audit": newest(f"audit/{own}/"),
    }
    contents: dict[str, bytes] = {}
    for shown, name in exhibits.items():
        if shown not in ("repository", "roster", "keyring"):
            data = objects[name]
            if shown == "pack":
                start, length = directory_range(lambda at, size: data[at : at + size], len(data))  # noqa: B023
                data = data[start : start + length]
            contents[shown] = wire.decode(unlocked.unseal(Kind(data[5]), data), wire.Signed).content
    return Shop(
        objects=objects,
        modified={info.name: info.modified for info in infos},
        files=files,
        exhibits=exhibits,
        contents=contents,
        signers=signers,
        rosters=[unlocked.rosters[number] for number in sorted(unlocked.rosters)],
        repository=unlocked.repository,
        domain=unlocked.domain,
        catalogue=unlocked.keyring.catalogue[-1].key,
    )


# ------------------------------------------------------------ inside packs


@dataclass(frozen=True)
class Parts:
    """A pack, taken apart."""

    region: bytes
    names: bytes
    filler: bytes
    directory: bytes  # sealed
    record: pack.Directory

    def joined(self) -> bytes:
        end = self.directory + pack.TRAILER.pack(len(self.directory), pack.TRAILER_MAGIC)
        return self.region + self.names + self.filler + end


def parts_of(shop: Shop, name: str) -> Parts:
    data = shop.objects[name]
    start, length = directory_range(lambda at, size: data[at : at + size], len(data))
    sealed = data[start : start + length]
    opened = SealingKey(shop.catalogue).open(sealed[40:], wire.context(shop.repository, Kind.DIRECTORY, sealed[8:40]))
    signed = wire.decode(decompress(wire.unpad(opened, "directory"), limit=1 << 26), wire.Signed)
    record = wire.decode(signed.content, pack.Directory)
    end = record.region_size + record.names_size
    return Parts(data[: record.region_size], data[record.region_size : end], data[end:start], sealed, record)


def pack_name(data: bytes) -> str:
    return ids.pack_name(hashlib.sha256(data).digest())
