"""Who names nothing, since he only cares for a repository or looks at it. What each role may do: test_matrix.py."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine import garbage, historycache
from pharmabackup.engine.index import Index
from pharmabackup.engine.keyrings import joined
from pharmabackup.format.keys import Keyring
from tests.verbs.ailing import PASSPHRASE, Ward


class Becomes:
    """Opens the ward's repository as another role, with a key file that is enrolled for it."""

    def __init__(self, ward: Ward, patch: pytest.MonkeyPatch) -> None:
        self._ward = ward
        self._patch = patch

    def __call__(self, role: str, *, signing: bool = True, forgetful: bool = False) -> None:
        ward = self._ward
        path = ward.root / f"{role}.key"
        if not path.exists():
            key = pb.KeyFile.create(path)
            with pb.Repository.open(ward.path, PASSPHRASE) as owner:
                owner.enrol(role, key.recipient, name=f"the {role}")  # type: ignore[arg-type]
        if not signing:  # nobody enrols such a one, and the format has it
            for module in ("opening", "unlocked"):
                self._patch.setattr(f"pharmabackup.engine.{module}.joined", _without_signing)
        if forgetful:
            shutil.rmtree(ward.root / "state")
        ward.repo.close()
        ward.repo = pb.Repository.open(ward.path, pb.KeyFile(path), state_dir=ward.root / "state")
        assert ward.repo.role == role


def _without_signing(*given: Any) -> Keyring:
    keyring = joined(*given)
    return replace(keyring, signing=None) if keyring.role == "auditor" else keyring


@pytest.fixture
def become(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> Becomes:
    return Becomes(ward, monkeypatch)


@pytest.mark.parametrize("role", ["owner", "maintainer"])
def test_only_who_can_prove_blocks_moves_what_was_ever_condemned(
    ward: Ward, become: Becomes, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """It may have been condemned for a wrong block."""
    if role != "owner":
        become(role)
    packs = {ids.hex_tail(name) for name in ward.names("packs")}
    real = garbage.sound_history
    monkeypatch.setattr(
        garbage, "sound_history", lambda unlocked: dataclasses.replace(real(unlocked), shunned={*packs})
    )
    monkeypatch.setattr(
        garbage, "choose_sparse", lambda found, unused, *_: found.sparse.update({p: [] for p in unused})
    )
    looked = garbage.look_for_garbage(ward.repo._unlocked, now_ns(), lambda: None)
    looked.index.close()
    assert set(looked.emptiable) == packs
    assert set(looked.sparse) == (packs if role == "owner" else set())


def test_what_a_machine_remembers_of_who_only_looks(ward: Ward, become: Becomes) -> None:
    """Without a signing key too, it is found again, and by another role it is not taken for its own."""
    become("auditor", signing=False, forgetful=True)
    ward.repo.check()
    become("auditor", signing=False)
    assert historycache.load(ward.repo._unlocked)
    become("maintainer")
    assert not historycache.load(ward.repo._unlocked)
    ward.repo.check()
    assert historycache.load(ward.repo._unlocked)


def test_what_needs_names_says_so(ward: Ward, become: Becomes) -> None:
    """Should a verb forget to ask first."""
    become("maintainer")
    for ask in (lambda it: it.domain, lambda it: it.naming_key, lambda it: Index(it).domain):
        with pytest.raises(pb.NotPermitted, match="The role maintainer may not back up"):
            ask(ward.repo._unlocked)
