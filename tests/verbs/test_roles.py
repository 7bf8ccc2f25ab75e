"""What each role may do with the keys that it holds: who only cares for a repository, or reads it, names nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
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
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import PASSPHRASE, QUIET, Ward

Deed = Callable[[Ward, Path], object]
LOOKING: dict[str, Deed] = {
    "snapshots": lambda ward, _: ward.repo.snapshots(),
    "check": lambda ward, _: _quiet(ward.repo.check()),
    "check of all data": lambda ward, _: [_quiet(ward.repo.check(read_data=1.0)) for _ in range(2)],
    "slots": lambda ward, _: ward.repo.slots(),
    "hold": lambda ward, _: ward.repo.hold(ward.repo.snapshot(), reason="a dispute"),
}
CARING: dict[str, Deed] = {
    "forget": lambda ward, _: ward.repo.apply(ward.repo.propose_forget({"*": pb.Keep(last=1)})),
    "prune": lambda ward, _: ward.repo.apply(ward.repo.propose_prune()),
    "repair": lambda ward, _: _mend(ward),
    "repair of what is lost": lambda ward, _: _lose(ward),
    "release": lambda ward, _: _release(ward),
    "compare": lambda ward, _: ward.repo.compare(ward.repo),
    "copy to a replica": lambda ward, out: _copy(ward, out),
}
READING: dict[str, Deed] = {
    "restore": lambda ward, out: ward.repo.restore(out),
    "ls": lambda ward, _: ward.repo.snapshot("documents").glob("*"),
}
NAMING: dict[str, Deed] = {
    "backup": lambda ward, _: ward.repo.backup(ward.sources()),
    "repair from sources": lambda ward, _: ward.repo.propose_repair(sources=ward.sources()),
    "enrol": lambda ward, _: ward.repo.enrol("owner", pb.Passphrase("another horse battery staple"), name="x"),
    "rotate": lambda ward, _: ward.repo.rotate(reason="test"),
}


def _quiet(report: pb.Report) -> None:
    assert {finding.code for finding in report.findings} <= QUIET


def _mend(ward: Ward) -> None:
    """One pack of which the list of names is damaged, and a segment."""
    name = ward.names("packs")[0]
    ward.flip(name, ward.regions(name)["filler"])
    ward.mend()


def _release(ward: Ward) -> None:
    ward.repo.hold(ward.repo.snapshot(), reason="a dispute")
    ward.repo.release(ward.repo.snapshot(), reason="it is settled")


def _copy(ward: Ward, out: Path) -> None:
    with pb.Repository.create(out, PASSPHRASE, replica_of=ward.repo, state_dir=ward.root / "state") as there:
        assert there.role == "maintainer"
        ward.repo.copy(there)
        assert len(there.snapshots()) == len(ward.states)


def _lose(ward: Ward) -> None:
    """Blocks whose chunks' names this machine may remember."""
    ward.lose(ward.pack_of(Kind.DATA_BLOCK))
    assert ward.repo.propose_repair().findings


class Becomes:
    """Opens the ward's repository with keyrings of another role, without naming keys: nobody can enrol one yet."""

    def __init__(self, ward: Ward, patch: pytest.MonkeyPatch) -> None:
        self._ward = ward
        self._patch = patch

    def __call__(self, role: str, *, signing: bool = True, forgetful: bool = False) -> None:
        def other(*given: Any) -> Keyring:
            keyring = joined(*given)
            readers = keyring.readers if role == "restorer" else ()
            seed = keyring.signing if signing else None
            return replace(keyring, role=role, naming=(), readers=readers, signing=seed)

        for module in ("opening", "unlocked"):
            self._patch.setattr(f"pharmabackup.engine.{module}.joined", other)
        self._patch.setattr("pharmabackup.engine.unlocked.check_keyring", lambda *_: None)
        ward = self._ward
        if forgetful:
            shutil.rmtree(ward.root / "state")
        ward.repo.close()
        ward.repo = pb.Repository.open(ward.path, PASSPHRASE, state_dir=ward.root / "state")
        assert (ward.repo.role, ward.repo._unlocked.keyring.naming) == (role, ())


@pytest.fixture
def become(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> Becomes:
    return Becomes(ward, monkeypatch)


@pytest.mark.parametrize("forgetful", [False, True], ids=["", "new machine"])
@pytest.mark.parametrize(
    ("role", "deed"),
    [("maintainer", deed) for deed in (LOOKING | CARING)]
    + [("auditor", deed) for deed in LOOKING if deed != "hold"]
    + [("restorer", deed) for deed in (LOOKING | READING)],
)
def test_who_names_nothing_may(
    ward: Ward, become: Becomes, tmp_path: Path, role: str, deed: str, forgetful: bool
) -> None:
    become(role, forgetful=forgetful)
    (LOOKING | CARING | READING)[deed](ward, tmp_path / "out")


@pytest.mark.parametrize("role", ["maintainer", "auditor", "restorer"])
@pytest.mark.parametrize("deed", list(NAMING))
def test_who_names_nothing_may_not(ward: Ward, become: Becomes, tmp_path: Path, role: str, deed: str) -> None:
    become(role)
    with pytest.raises(pb.NotPermitted) as caught:
        NAMING[deed](ward, tmp_path / "out")
    assert caught.value.remedy


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
        garbage, "_choose_sparse", lambda found, unused, *_: found.sparse.update({p: [] for p in unused})
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
