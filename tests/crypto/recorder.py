"""Writes down under which key and nonce something was sealed, and every random byte that the library asked for.

As a program it works on a repository in processes of its own: `python -m tests.crypto.recorder DEED FOLDER SCRATCH`,
and prints what it wrote down.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.crypto.recipients import PublicKey
from pharmabackup.crypto.sealing import NONCE_SIZE, SealingKey
from pharmabackup.format.wire import Kind

PASSPHRASE = pb.Passphrase("correct horse battery staple")
LONG = 8  # bytes: what is shorter is no secret and no name, and may come twice
PREFIX = b"pharmabackup/1"
CACHES = (b"file cache", b"index cache", b"history cache", b"check schedule")
RECORDS, BLOCKS = "records, names and recipes", "data and manifests"


@dataclass(repr=False)
class Record:
    """Hashes in hexadecimal, so that no key is written down."""

    sealed: list[tuple[str, str, str, str]] = field(default_factory=list)  # key, nonce, what for, by which object
    encapsulations: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)

    def __iadd__(self, other: Record) -> Record:
        for name in ("sealed", "encapsulations", "random"):
            getattr(self, name).extend(getattr(other, name))
        return self

    def problems(self) -> list[str]:
        """What came twice."""
        found = [f"sealed under one key and nonce: {pair}" for pair in _twice(item[:2] for item in self.sealed)]
        found += [f"nonce: {nonce}" for nonce in _twice(item[1] for item in self.sealed)]
        found += [f"encapsulation: {item}" for item in _twice(self.encapsulations)]
        found += [f"random bytes: {item}" for item in _twice(self.random)]
        uses: dict[str, set[str]] = {}
        holders: dict[str, set[str]] = {}
        for key, _, use, holder in self.sealed:
            uses.setdefault(key, set()).add(use)
            if use == BLOCKS:
                holders.setdefault(key, set()).add(holder)
        found += [f"a key for two things: {sorted(use)}" for use in uses.values() if len(use) > 1]
        fresh = set(self.random)
        found += [f"a transaction's key that is not fresh: {key}" for key in holders if key not in fresh]
        found += [f"a transaction's key in two transactions: {key}" for key, own in holders.items() if len(own) > 1]
        return found


def _twice(items: Any) -> list[Any]:
    return [item for item, times in Counter(items).items() if times > 1]


def _use(context: bytes) -> str:
    """What a key is for, by what is sealed under it (docs/format.md, sections 2.2 and 3)."""
    if context[: len(PREFIX)] == PREFIX:
        return {16: BLOCKS, 17: BLOCKS, 32: "keyring"}.get(context[46], RECORDS)
    if context in CACHES:
        return context.decode()
    return "file cache" if b".folders" in context else "pile" if len(context) == 32 else repr(context)


@contextmanager
def recording(into: Record) -> Iterator[Record]:
    real_init, real_seal, real_into = SealingKey.__init__, SealingKey.seal, SealingKey.seal_into
    real_public, real_random = PublicKey.seal, os.urandom

    def short(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()[:32]

    def init(self: SealingKey, key: bytes) -> None:
        real_init(self, key)
        self.known_as = short(key)  # type: ignore[attr-defined]

    def note(self: SealingKey, sealed: bytes | memoryview, context: bytes) -> None:
        holder = f"{os.getpid()}/{id(self)}"
        kept.append(self)  # so that no other object gets its id
        into.sealed.append((self.known_as, bytes(sealed[:NONCE_SIZE]).hex(), _use(context), holder))  # type: ignore[attr-defined]

    def seal(self: SealingKey, data: bytes, context: bytes, **more: Any) -> bytes:
        sealed = real_seal(self, data, context, **more)
        note(self, sealed, context)
        return sealed

    def seal_into(self: SealingKey, data: bytes, context: bytes, out: memoryview) -> int:
        end = real_into(self, data, context, out)
        note(self, out, context)
        return end

    def seal_public(self: PublicKey, data: bytes, info: bytes) -> bytes:
        sealed = real_public(self, data, info)
        into.encapsulations.append(short(sealed[:1120]))
        return sealed

    def urandom(size: int) -> bytes:
        data = real_random(size)
        if size >= LONG:
            into.random.append(short(data))
        return data

    kept: list[object] = []
    with (
        mock.patch.object(SealingKey, "__init__", init),
        mock.patch.object(SealingKey, "seal", seal),
        mock.patch.object(SealingKey, "seal_into", seal_into),
        mock.patch.object(PublicKey, "seal", seal_public),
        mock.patch.object(os, "urandom", urandom),
    ):
        yield into


# ------------------------------------------------------------ in processes of their own


def back_up(folder: Path, scratch: Path) -> None:
    """On two threads at once, two snapshots each, of what nobody else has."""
    with pb.Repository.open(folder, PASSPHRASE, state_dir=scratch / f"state-{os.getpid()}") as repo:

        def work(name: str) -> None:
            root = scratch / name
            root.mkdir()
            for number in range(2):
                (root / f"{number}").write_bytes(Random(f"{name} {number}").randbytes(5000))
                repo.backup([pb.Files(root)])

        threads = [threading.Thread(target=work, args=(f"{os.getpid()}-{number}",)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def fork(folder: Path, scratch: Path) -> None:
    """A process forks while it has the repository open; both go on, with the keys that they share."""
    with pb.Repository.open(folder, PASSPHRASE, state_dir=scratch / "parent") as repo:
        shared = repo._unlocked
        shared.seal_body(Kind.DONE, b"before")
        child = os.fork()
        if not child:  # what was written down so far is the parent's
            for kept in (_own.sealed, _own.encapsulations, _own.random):
                kept.clear()
        for number in range(20):
            shared.seal_body(Kind.DONE, b"%d" % number)
            shared.wrap(os.urandom(32))
            ids.new_id()
        if not child:
            _say()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


DEEDS: dict[str, Callable[[Path, Path], None]] = {"backup": back_up, "fork": fork}
_own = Record()


def _say() -> None:
    os.write(1, (json.dumps(asdict(_own)) + "\n").encode())


def heard(line: str) -> Record:
    told = json.loads(line)
    return Record([tuple(item) for item in told["sealed"]], told["encapsulations"], told["random"])


if __name__ == "__main__":
    with recording(_own), mock.patch.multiple("pharmabackup.crypto.passphrases", MEMORY_KIB=64, ITERATIONS=1):
        DEEDS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    _say()
