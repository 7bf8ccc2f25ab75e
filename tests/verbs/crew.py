"""A repository with a real credential of every role, and what becomes of it when the permission checks are gone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.engine.keyrings import joined
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.resealing import Resealing
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.keys import Keyring, NamingKey, ReaderKey
from pharmabackup.format.pack import Block, Directory, WrappedKey
from tests.verbs.ailing import PASSPHRASE, Ward

ROLES = ("device", "restorer", "auditor", "maintainer", "owner", "recovery")
MARKER = b"Nobody Atall, 999 000 0000; "


class Crew:
    """A ward with keys of two generations, one snapshot held, one to be forgotten, and a credential a role."""

    def __init__(self, ward: Ward, shares: tuple[str, ...]) -> None:
        self.ward = ward
        self.shares = shares
        self.replica = ward.root / "replica"
        self._opened: list[pb.Repository] = []

    @classmethod
    def enrol(cls, ward: Ward) -> Crew:
        repo = ward.repo
        (ward.root / "keys").mkdir()
        for role in ROLES[:-1]:
            key = pb.KeyFile.create(ward.root / "keys" / role)
            repo.enrol(role, key.recipient, name=f"the {role}")  # type: ignore[arg-type]
        shares = repo.split_recovery()
        repo.rotate(reason="somebody left")
        ward.change(3)
        (ward.documents / "letter").write_bytes(MARKER * 5000)
        ward.back_up()
        oldest, second = ward.repo.snapshots("documents")[-1], ward.repo.snapshots("documents")[-2]
        repo.hold(oldest, reason="a dispute")
        repo.apply(repo.propose_forget(snapshots=[second]))
        return cls(ward, shares)

    @classmethod
    def copy(cls, other: Crew, root: Path) -> Crew:
        return cls(Ward.copy(other.ward, root), other.shares)

    def open(self, role: str, url: Path | None = None) -> pb.Repository:
        """On a machine of that role's own."""
        return self.open_with(self.credential(role), f"state of {role}", url)

    def open_with(self, credential: pb.Credential, state: str, url: Path | None = None) -> pb.Repository:
        opened = pb.Repository.open(url or self.ward.path, credential, state_dir=self.ward.root / state)
        self._opened.append(opened)
        return opened

    def credential(self, role: str) -> pb.Credential:
        return pb.Shares(*self.shares[1:]) if role == "recovery" else pb.KeyFile(self.ward.root / "keys" / role)

    def close(self) -> None:
        for opened in (*self._opened, self.ward.repo):
            opened.close()

    def owner(self, url: Path | None = None) -> pb.Repository:
        """The owner who founded it, on a machine that remembers nothing."""
        shutil.rmtree(self.ward.root / "new machine", ignore_errors=True)
        return self.open_with(PASSPHRASE, "new machine", url)

    def listing(self) -> dict[str, bytes]:
        """Every object of the repository, and of its replica if there is one."""
        found: dict[str, bytes] = {}
        for root in (self.ward.path, self.replica):
            for path in root.rglob("*") if root.exists() else ():
                if path.is_file() and ".uploads" not in path.parts:
                    name = path.relative_to(self.ward.path if root == self.ward.path else self.ward.root)
                    found[name.as_posix()] = path.read_bytes()
        return found

    def said(self, repo: pb.Repository) -> dict[str, Any]:
        """What an owner sees: the snapshots and what was said about them, who is enrolled, and the rules."""
        snapshots = {it.id: (it.dataset, it.held, it.forgotten, it.forget_at, it.device) for it in repo.snapshots()}
        return {"snapshots": snapshots, "slots": repo.slots(), "rules": repo.rules().to_dict()}


@contextmanager
def unchecked(repo: pb.Repository) -> Iterator[None]:
    """No permission is asked: whoever opened it takes himself for an owner, and has keys for what he lacks.

    They are not the keys: a private key under the name of each reader's, and a naming key under the domain's id. Nor
    is it asked whether blocks are what their ids say; where all are to be sealed anew, those that do not open move as
    they are.
    """
    unlocked = repo._unlocked
    genuine, take_keys, seal_anew = unlocked.keyring, Unlocked._take_keys, Resealing.__call__

    def as_owner(*given: Any) -> Keyring:
        keyring = joined(*given)
        naming = keyring.naming or (NamingKey(unlocked.roster.domains[0].id, os.urandom(32)),)
        readers = keyring.readers or (ReaderKey(0, PrivateKey.generate().raw),)
        return replace(keyring, role="owner", naming=naming, readers=readers)

    def take(self: Unlocked) -> None:
        take_keys(self)
        if not genuine.readers:
            readers = [hashing.key_id(generation.reader) for generation in self.roster.generations]
            self._readers = [(name, PrivateKey.generate()) for name in readers]

    def anew(
        self: Resealing, directory: Directory, block: Block, sealed: memoryview
    ) -> tuple[memoryview, WrappedKey]:
        try:
            return seal_anew(self, directory, block, sealed)
        except pb.Damaged:
            return sealed, directory.keys[block.key]

    with (
        mock.patch.object(BlockReader, "_check_names", lambda *_: None),
        mock.patch.object(Resealing, "__call__", anew),
        mock.patch("pharmabackup.engine.unlocked.joined", as_owner),
        mock.patch("pharmabackup.engine.unlocked.check_keyring", lambda *_: None),
        mock.patch.object(Unlocked, "_take_keys", take),
    ):
        unlocked.renew()
        assert unlocked.keyring.role == "owner" and unlocked.keyring.signing == genuine.signing
        yield
