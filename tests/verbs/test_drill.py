"""The recovery key before it is needed: shares are drilled with each fault that would make them worthless."""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from blake3 import blake3
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.crypto import shares as scheme
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.engine import enrolment
from pharmabackup.engine.index import Index
from pharmabackup.format.wire import Kind
from pharmabackup.results import RecoveryDrill
from pharmabackup.verbs import drill as verb
from pharmabackup.verbs import keys
from tests.reader import shares as reader
from tests.verbs.ailing import Ward
from tests.verbs.forged import forged
from tests.verbs.site import PASSPHRASE, Site

MakeRepo = Callable[[], pb.Repository]
NEW = pb.Passphrase("the passphrase of somebody else")


class Vestry:
    """A repository with two generations of keys and two domains, and a recovery key that was split twice."""

    def __init__(self, repo: pb.Repository, site: Site, root: Path) -> None:
        self.repo, self.site, self.root = repo, site, root
        self.path = Path(repo.url)
        repo.enrol("restorer", NEW, name="the desk")
        self.back_up()
        self.old = repo.split_recovery()
        self.shares = repo.split_recovery(threshold=2, shares=3)
        key = pb.KeyFile.create(root / "till.key")
        repo.enrol("device", key, name="till-2", domain="branch")
        with pb.Repository.open(self.path, key, state_dir=root / "till") as till:
            (root / "branch").mkdir()
            (root / "branch" / "ledger").write_bytes(os.urandom(400_000))
            till.backup([pb.Files(root / "branch", tier=1)])
        self.back_up()
        repo.rotate(reason="somebody left")
        self.back_up()

    def back_up(self) -> None:
        self.site.change(size=300_000)
        self.site.back_up(self.repo)

    def holders(self) -> pb.Repository:
        """On a machine that has the shares and nothing else."""
        return pb.Repository.open(self.path, pb.Shares(*self.shares[:2]), state_dir=self.root / "theirs")

    def drill(self, *places: int, **more: Any) -> RecoveryDrill:
        return self.repo.drill_recovery_key(self.given(*places), **more)

    def given(self, *places: int) -> pb.Shares:
        return pb.Shares(*(self.shares[place] for place in places or (0, 1, 2)))

    def fails(self, *places: int) -> RecoveryDrill:
        with pytest.raises(pb.Incomplete) as caught:
            self.drill(*places)
        assert caught.value.kind == "drill" and caught.value.findings == caught.value.result.findings
        assert isinstance(caught.value.result, RecoveryDrill)
        self.says_no_words(str(caught.value), repr(vars(caught.value)))
        return caught.value.result

    def says_no_words(self, *texts: str) -> None:
        for text in texts:
            for share in (*self.shares, *self.old):
                words = share.split()[4:]
                assert not any(f"{one} {two}" in text for one, two in pairwise(words))

    def keyrings(self) -> list[Path]:
        """Of the recovery key's slot, the first one that it was given first."""
        slot = next(slot for slot in self.repo._unlocked.roster.slots if slot.name == "recovery 2")
        return sorted((self.path / "keys" / slot.id.hex()).iterdir(), key=lambda path: int(path.name))

    def records(self) -> list[Any]:
        return [record for record in self.repo.audit() if record.event == "drill"]


@pytest.fixture
def vestry(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Vestry:
    return Vestry(make_repo(), site, tmp_path)


# ------------------------------------------------------------ all is well


def test_holders_alone_prove_everything(vestry: Vestry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    events: list[pb.Event] = []
    with vestry.holders() as repo:
        result = repo.drill_recovery_key(vestry.given(), progress=events.append)
        left = {path.name for path in (tmp_path / "theirs").rglob("*") if path.is_file()}
    assert (result.state, result.shares, result.threshold, result.findings) == ("ok", (1, 2, 3), 2, ())
    (slot,) = (slot for slot in vestry.repo.slots() if slot.name == "recovery 2")
    assert (result.slot, result.fingerprint, result.split) == (slot.name, slot.fingerprint, slot.created)
    assert list(result.datasets) == ["branch", "documents"]  # by tier
    assert result.datasets["branch"].facts == {"snapshots": 1, "blocks": 2, "generations": [1]}
    documents = result.datasets["documents"]
    assert documents.facts["generations"] == [0, 1, 2] and documents.facts["snapshots"] == 3
    assert documents.snapshot is not None and documents.snapshot.id == vestry.repo.snapshot("documents").id
    assert documents.bytes > 900_000 and result.bytes == sum(one.bytes for one in result.datasets.values())
    assert [event.kind for event in events][:1] == ["started"] and events[-1].kind == "finished"
    assert list(scratch.iterdir()) == []
    assert left == {"history", "audit-heads"}  # what whoever opens it remembers
    (record,) = vestry.records()
    assert (record.outcome, record.slot, record.subject) == ("done", "recovery 2", "")
    expected = {"kind": "recovery-key", "shares": [1, 2, 3], "threshold": 2, "datasets": 2, "complete": 2}
    assert record.facts.items() >= (expected | {"fingerprint": slot.fingerprint, "state": "ok"}).items()
    assert "seconds" in record.facts and result.audit_id == record.id
    vestry.says_no_words(str(record.facts), str(result), repr(result), str(result.to_dict()), str(events))
    assert pickle.loads(pickle.dumps(result)).to_dict() == result.to_dict()


@pytest.mark.parametrize("places", [(0, 1), (1, 2), (2, 0)])
def test_as_few_as_it_takes_are_enough(vestry: Vestry, places: tuple[int, ...]) -> None:
    """And what they open is kept nowhere on the machine of whoever asked, which may not read."""
    assert vestry.drill(*places).shares == tuple(sorted(place + 1 for place in places))
    slot = vestry.keyrings()[0].parent.name
    state = vestry.repo._unlocked.state.parent
    assert [path.name for path in state.iterdir() if slot[:8] in path.name] == []


def test_who_may_not_read_may_ask_for_a_drill(vestry: Vestry) -> None:
    """What is opened the shares open. So it is recorded by somebody though they open nothing."""
    key = pb.KeyFile.create(vestry.root / "auditor.key")
    vestry.repo.enrol("auditor", key, name="the auditor")
    with pb.Repository.open(vestry.path, key, state_dir=vestry.root / "auditor") as auditor:
        assert auditor.drill_recovery_key(vestry.given(0, 2)).state == "ok"
        with pytest.raises(pb.WrongCredential):
            auditor.drill_recovery_key(pb.Shares(*vestry.old[:2]))
        with pytest.raises(pb.NotPermitted):  # it has learnt nothing
            list(auditor.snapshot("documents").glob())
    assert [(record.slot, record.outcome) for record in vestry.records()] == [
        ("the auditor", "done"),
        ("the auditor", "refused"),
    ]


def test_a_drill_is_of_a_bounded_amount(vestry: Vestry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each generation of keys, two blocks of names and two of data; the oldest snapshot is always looked at."""
    (vestry.site.root / "large").write_bytes(os.urandom(9_000_000))
    for _ in range(5):
        vestry.back_up()
    monkeypatch.setattr(verb, "SNAPSHOTS", 4)
    looked: list[bytes] = []
    real = verb._Drill._snapshot
    monkeypatch.setattr(
        verb._Drill,
        "_snapshot",
        lambda self, item, *a, **k: looked.append(item.transaction) or real(self, item, *a, **k),
    )
    result = vestry.drill()
    documents = [snapshot.id for snapshot in vestry.repo.snapshots("documents")]
    own = [name.hex() for name in looked if name.hex() in documents]
    assert len(own) == 4 and {own[0], own[-1]} == {documents[0], documents[-1]}
    assert result.datasets["documents"].facts["blocks"] <= 3 * 2 * verb.BLOCKS
    assert result.datasets["documents"].bytes < 3 * 2 * verb.BLOCKS * 1_300_000 < 9_000_000 * 2


def test_where_nothing_was_backed_up_there_is_nothing_to_prove(make_repo: MakeRepo) -> None:
    repo = make_repo()
    result = repo.drill_recovery_key(pb.Shares(*repo.split_recovery()[:2]))
    assert (result.state, [finding.code for finding in result.findings]) == ("warning", ["nothing-to-restore"])


def test_it_can_be_cancelled(vestry: Vestry) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(pb.Cancelled):
        vestry.drill(cancel=cancel)
    assert vestry.records()[-1].outcome == "cancelled"


# ------------------------------------------------------------ shares that are worth nothing


def test_shares_of_before_are_refused_and_that_is_recorded(vestry: Vestry) -> None:
    with pytest.raises(pb.WrongCredential, match=r"older|of the recovery key of .* revoked .*split anew") as caught:
        vestry.repo.drill_recovery_key(pb.Shares(*vestry.old[1:]))
    assert caught.value.kind == "revoked"
    (record,) = vestry.records()
    assert (record.outcome, record.slot) == ("refused", "owner")
    (old,) = (slot for slot in vestry.repo.slots() if slot.kind == "shares" and slot.revoked)
    known = {"kind": "recovery-key", "shares": [2, 3], "threshold": 2, "fingerprint": old.fingerprint}
    assert record.facts == known | {"error": "revoked"}
    vestry.says_no_words(str(caught.value), str(record))


def test_shares_of_another_repository(vestry: Vestry, make_repo: MakeRepo) -> None:
    with pytest.raises(pb.WrongCredential, match="not of this repository"):
        vestry.repo.drill_recovery_key(pb.Shares(*make_repo().split_recovery()[:2]))
    assert vestry.records()[-1].outcome == "refused"


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_share_that_does_not_belong_to_the_others_is_named(vestry: Vestry, bad: int) -> None:
    """Wherever it stands: any two others prove it. Its words look right, and its checksum is."""
    vestry.shares = tuple(forged(share) if place == bad else share for place, share in enumerate(vestry.shares))
    result = vestry.fails()
    assert [(finding.code, finding.subject) for finding in result.findings] == [("share-differs", f"share {bad + 1}")]
    assert all(one.complete for one in result.datasets.values())  # the others open all the same
    assert vestry.records()[-1].outcome == "incomplete"
    with pb.Repository.open(vestry.path, vestry.given()) as opened:  # and so they do after a fire
        assert opened.slot == "recovery 2"


def test_shares_that_do_not_fit_together(vestry: Vestry) -> None:
    vestry.shares = (vestry.shares[0], forged(vestry.shares[1]), vestry.shares[2])
    with pytest.raises(pb.WrongCredential, match="do not fit together") as caught:
        vestry.drill(0, 1)
    assert caught.value.kind == "shares" and vestry.records()[-1].outcome == "refused"
    vestry.says_no_words(str(caught.value))
    with pytest.raises(pb.InvalidInput, match="do not fit together"):
        pb.Repository.open(vestry.path, vestry.given(0, 1))


def test_only_shares_are_drilled(vestry: Vestry) -> None:
    with pytest.raises(pb.InvalidInput, match="Only shares"):
        vestry.repo.drill_recovery_key(vestry.shares)  # type: ignore[arg-type]
    assert vestry.records() == []  # nothing was begun


# ------------------------------------------------------------ keys that are not there


def test_a_generation_that_the_keyring_lacks(vestry: Vestry) -> None:
    """The keyring that brought it is gone. Another rotation hides that: the newest keys are there."""
    lost = vestry.keyrings()[-1]
    vestry.repo.rotate(reason="another left")
    vestry.back_up()
    assert vestry.drill().state == "ok"
    lost.unlink()
    found = vestry.fails()
    told = {finding.subject for finding in found.findings if finding.code == "recovery-key-missing"}
    assert told == {"the catalogue of generation 2", "reading generation 2"}
    assert "snapshot-damaged" in {finding.code for finding in found.findings}  # its record is sealed with the first


def test_a_generation_whose_data_the_keyring_does_not_open(vestry: Vestry) -> None:
    vestry.repo.rotate(reason="another left")
    vestry.keyrings()[-2].unlink()
    owner = vestry.repo._unlocked
    slot = next(slot for slot in owner.roster.slots if slot.name == "recovery 2")
    catalogue_alone = enrolment._addition(owner, slot, owner.keyring.catalogue[2:3], ())
    enrolment.put_keyring(owner, catalogue_alone, slot.recipient)
    found = vestry.fails()
    told = {finding.subject for finding in found.findings if finding.code == "recovery-key-missing"}
    assert told == {"reading generation 2", "transactions"}
    (damaged,) = (finding for finding in found.findings if finding.code == "snapshot-damaged")
    assert damaged.subject == vestry.repo.snapshot("documents").id
    assert not found.datasets["documents"].complete and found.datasets["branch"].complete


def test_a_domain_whose_naming_key_the_keyring_lacks(vestry: Vestry) -> None:
    vestry.keyrings()[2].unlink()  # after those of the two generations of before: the founding of the branch
    found = vestry.fails()
    assert [finding.subject for finding in found.findings if finding.code == "recovery-key-missing"] == [
        "the names of the domain 'branch'"
    ]
    assert (found.datasets["branch"].complete, found.datasets["documents"].complete) == (False, True)


def test_the_newest_keys_are_gone(vestry: Vestry) -> None:
    vestry.keyrings()[-1].unlink()
    with pytest.raises(pb.Damaged, match="The shares are right, and the newest keys") as caught:
        vestry.drill()
    assert caught.value.kind == "keys" and vestry.records()[-1].outcome == "failed"


def test_new_data_is_sealed_to_another_recovery_key(vestry: Vestry) -> None:
    other = PrivateKey.generate().public.raw
    enrolment.change_roster(vestry.repo._unlocked, lambda roster: replace(roster, recovery=other))
    assert {finding.code for finding in vestry.fails().findings} == {"recovery-key-differs"}


def test_a_list_that_was_turned_back_makes_no_old_shares_good(make_repo: MakeRepo, tmp_path: Path) -> None:
    """To a machine that remembers: a new one cannot know."""
    repo = make_repo()
    shares = repo.split_recovery()
    before = set((Path(repo.url) / "roster").iterdir())
    repo.split_recovery()
    for path in set((Path(repo.url) / "roster").iterdir()) - before:
        path.unlink()
    with pytest.raises(pb.Damaged) as caught:
        repo.drill_recovery_key(pb.Shares(*shares[:2]))
    assert caught.value.kind == "history-forked"
    with pb.Repository.open(repo.url, PASSPHRASE, state_dir=tmp_path / "new") as again:
        assert again.drill_recovery_key(pb.Shares(*shares[:2])).shares == (1, 2)


# ------------------------------------------------------------ data that does not come back


def test_a_pack_of_before_keys_were_replaced_is_lost(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the snapshots of before need it. It is missed though no block of it is chosen."""
    monkeypatch.setattr(verb, "BLOCKS", 0)
    shares = ward.repo.split_recovery()
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    for path in ward.documents.iterdir():
        path.write_bytes(os.urandom(1000))
    ward.repo.rotate(reason="somebody left")
    ward.back_up()
    ward.lose(name)
    with pytest.raises(pb.Incomplete) as caught:
        ward.repo.drill_recovery_key(pb.Shares(*shares[1:]))
    result = caught.value.result
    before = {snapshot.id for snapshot in ward.repo.snapshots("documents")[1:]}
    damaged = {finding.subject for finding in result.findings if finding.code == "snapshot-damaged"}
    assert damaged == before and len(before) == 3
    assert not result.datasets["documents"].complete


def test_a_block_that_was_changed(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "BLOCKS", 1000)  # what is chosen differs from drill to drill
    shares = ward.repo.split_recovery()
    ward.flip(*ward.block_of(ward.repo.snapshot("documents"), "large"))
    with pytest.raises(pb.Incomplete, match="changed after it was written"):
        ward.repo.drill_recovery_key(pb.Shares(*shares[1:]))


def test_names_that_were_changed(ward: Ward) -> None:
    shares = ward.repo.split_recovery()
    index = Index(ward.repo._unlocked, chunks=False)
    index.load()
    for number, kind in enumerate(index.blocks.kind):
        if kind == Kind.MANIFEST_BLOCK:
            pack = index.blocks.packs[index.blocks.pack[number]].hex()
            ward.flip(f"packs/{pack[:2]}/{pack}", index.blocks.offset[number] + 60)
    with pytest.raises(pb.Incomplete) as caught:
        ward.repo.drill_recovery_key(pb.Shares(*shares[1:]))
    assert {one.complete for one in caught.value.result.datasets.values()} == {False}


def test_a_false_block_under_a_right_seal(vestry: Vestry) -> None:
    """A writer that could name chunks falsely: what is opened is named again."""

    def other_names(data: bytes, key: bytes) -> object:
        return blake3(bytes(data) + b"x", key=key)

    with mock.patch("pharmabackup.engine.content_files.blake3", other_names):
        vestry.back_up()
    assert {finding.code for finding in vestry.fails().findings} == {"snapshot-damaged"}


def test_what_is_forgotten_is_not_asked_for(vestry: Vestry) -> None:
    vestry.repo.configure(forget_delay=pb.Keep(last=1).within)  # no delay
    vestry.repo.apply(vestry.repo.propose_forget({"documents": pb.Keep(last=1)}))
    vestry.repo.apply(vestry.repo.propose_prune())
    result = vestry.drill()
    assert result.state == "ok" and result.datasets["documents"].facts["snapshots"] == 1


# ------------------------------------------------------------ one share alone


def test_a_share_alone_is_told_from_those_of_before(vestry: Vestry, make_repo: MakeRepo) -> None:
    before = {path: path.read_bytes() for path in vestry.path.rglob("*") if path.is_file()}
    for number, share in enumerate(vestry.shares, 1):
        found = pb.Repository.check_share(vestry.path, f"  {share.upper()}\n")
        (slot,) = (slot for slot in vestry.repo.slots() if slot.name == "recovery 2")
        assert (found.state, found.current, found.number, found.threshold) == ("ok", True, number, 2)
        assert (found.repository, found.fingerprint) == (vestry.repo.id, slot.fingerprint)
        assert found.split == found.of == slot.created
        vestry.says_no_words(str(found), str(found.to_dict()))
    old = pb.Repository.check_share(vestry.path, vestry.old[2])
    (slot,) = (slot for slot in vestry.repo.slots() if slot.name == "recovery")
    assert (old.state, old.current, old.number, old.of) == ("critical", False, 3, slot.created)
    assert "which was replaced" in str(old)
    while scheme.facts_of(other := make_repo().split_recovery()[0]).set in {
        scheme.facts_of(share[0]).set for share in (vestry.old, vestry.shares)
    }:
        pass
    foreign = pb.Repository.check_share(vestry.path, other)
    assert (foreign.current, foreign.of) == (False, None) and "never had" in str(foreign)
    assert {path: path.read_bytes() for path in vestry.path.rglob("*") if path.is_file()} == before


def test_a_share_that_is_no_more_what_was_printed(vestry: Vestry) -> None:
    words = vestry.shares[0].split()
    for place in (0, 9, 32):
        wrong = [*words[:place], "academic" if words[place] != "academic" else "acid", *words[place + 1 :]]
        for text in (wrong, words[:-1], [*words, "acid"], [*words[:place], "pharmacy", *words[place + 1 :]], []):
            with pytest.raises(pb.InvalidInput, match="not as it was written down") as caught:
                pb.Repository.check_share(vestry.path, " ".join(text))
            vestry.says_no_words(str(caught.value))


def test_a_share_of_what_has_no_recovery_key(make_repo: MakeRepo, vestry: Vestry, tmp_path: Path) -> None:
    with pytest.raises(pb.NotFound, match="no recovery key"):
        pb.Repository.check_share(make_repo().url, vestry.shares[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(pb.NotFound, match="no repository"):
        pb.Repository.check_share(tmp_path / "empty", vestry.shares[0])


def test_a_false_list_makes_no_share_good(vestry: Vestry) -> None:
    """Lists are signed from the first on, whose hash is the repository's id: compare that with the kit's."""
    newest = max((vestry.path / "roster").iterdir(), key=lambda path: int(path.name))
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    with pytest.raises(pb.Damaged, match="not signed by an owner"):
        pb.Repository.check_share(vestry.path, vestry.shares[0])


def test_what_shares_of_a_key_say_of_it(vestry: Vestry) -> None:
    """As docs/format.md, §8.2 has it, with BLAKE3 and words read by code of another hand."""
    for shares, slot in ((vestry.old, "recovery"), (vestry.shares, "recovery 2")):
        (recipient,) = (one.recipient for one in vestry.repo._unlocked.roster.slots if one.name == slot)
        named = blake3(recipient or b"", derive_key_context="pharmabackup/1 key id").digest()
        for place, text in enumerate(shares):
            read = reader.share(text)
            assert read.identifier == int.from_bytes(named[:2]) >> 1
            assert (read.member, read.threshold, read.groups, read.extendable, read.exponent) == (place, 2, 1, 1, 0)


def test_no_two_recovery_keys_of_a_repository_look_alike(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, made = make_repo(), list[int]()
    repo.split_recovery()

    def set_of(recipient: bytes) -> int:
        made.append(7 if len(made) < 4 else scheme.set_of(recipient))
        return made[-1]

    monkeypatch.setattr(keys, "set_of", set_of)
    repo.split_recovery()
    assert len(made) == 5 and made[:4] == [7] * 4 and made[4] != 7


def test_shares_of_two_keys_are_told_apart(vestry: Vestry) -> None:
    one, two = vestry.shares[:2]
    with pytest.raises(pb.InvalidInput, match="not of one key: of one 1 and 3, of another 2"):
        pb.Shares(one, vestry.old[1], two)
