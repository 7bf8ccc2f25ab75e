"""What a repair takes from replicas: no more than it showed, and nothing that anybody may have put there."""

from __future__ import annotations

import os

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import compression, ids
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine import enrolment
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.keyrings import NUMBER_LAST, keyring_numbers, read_sealed
from pharmabackup.engine.moving import publish
from pharmabackup.engine.packs import PackWriter, read_directory, read_names
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import block as layout
from pharmabackup.format import wire
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import PASSPHRASE, Ward

OTHER = pb.Passphrase("another horse battery staple")
LAST = 10**18 - 1  # the last number that can be read
OTHERS = [bytes((one,)) * 32 for one in range(1, 5)]


def _plant(ward: Ward, number: int, *, to: bytes | None = None, of: pb.Repository | None = None) -> str:
    """Junk in the replica that looks like a keyring: of the only slot, or of that one's. `to`: other than its own."""
    unlocked = (of or ward.repo)._unlocked
    slot = unlocked.keyring.slot.hex()
    genuine = read_sealed(unlocked.storage, slot, keyring_numbers(unlocked.storage)[slot][-1])
    junk = replace(genuine, number=number, key_id=to or genuine.key_id, sealed=b"junk" * 400)
    name = ids.keyring_name(unlocked.keyring.slot, number)
    path = ward.root / "replica" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(wire.header(Kind.KEYRING) + wire.encode(junk))
    return name


def _opens(ward: Ward, passphrase: pb.Passphrase = PASSPHRASE) -> None:
    pb.Repository.open(ward.path, passphrase, state_dir=ward.root / "state").close()


def _codes(found: pb.Proposal | pb.Report) -> dict[str, str]:
    return {finding.subject: finding.code for finding in found.findings}


# ------------------------------------------------------------ keyrings


@pytest.mark.parametrize("strange", [False, True], ids=["his", "another's"])
@pytest.mark.parametrize("verb", ["repair", "copy"])
def test_planted_keyrings_do_not_come(ward: Ward, replica: pb.Repository, verb: str, strange: bool) -> None:
    """Of a slot that has its keyring here, and whose credential is at hand."""
    before = ward.names("keys")
    planted = [_plant(ward, 1000 + at, to=other if strange else None) for at, other in enumerate(OTHERS)]
    if verb == "repair":
        ward.mend(replicas=[replica])
    else:
        replica.copy(ward.repo)
    assert ward.names("keys") == before
    assert planted
    _opens(ward)


def test_planted_keyrings_of_others_keep_nobody_out(ward: Ward) -> None:
    """Whose keyrings cannot be opened here. A copy brings what says that it is sealed to whom the list says."""
    ward.repo.enrol("owner", OTHER, name="Jaya Patel")
    before = ward.names("keys")
    with ward.replica() as replica, pb.Repository.open(ward.path, OTHER, state_dir=ward.root / "other") as other:
        strange = {_plant(ward, 1 << 45 | at, to=key, of=other) for at, key in enumerate(OTHERS[:2])}
        planted = _plant(ward, 1 << 45 | 9, of=other)
        ward.mend(replicas=[replica])
        assert ward.names("keys") == before
        replica.copy(ward.repo)
        assert set(ward.names("keys")) - set(before) == {planted}
        assert not strange & set(ward.names("keys"))
    _opens(ward)
    _opens(ward, OTHER)


@pytest.mark.parametrize("number", [NUMBER_LAST + 1, LAST])
def test_no_keyring_with_an_impossible_number_comes(ward: Ward, replica: pb.Repository, number: int) -> None:
    """After it no number would be left for the next one. Not even where the slot has none here."""
    name = _plant(ward, number)
    proposal = ward.repo.propose_repair(replicas=[replica])
    assert not proposal.steps and _codes(proposal) == {name: "keyring-differs"}
    assert _codes(replica.copy(ward.repo)).items() >= {name: "keyring-differs"}.items()
    (own,) = ward.names("keys")
    ward.lose(own)
    ward.mend(replicas=[replica])
    assert ward.names("keys") == [own]
    ward.repo.change_passphrase(OTHER)
    _opens(ward, OTHER)


def test_a_planted_one_far_above_cuts_nobody_off_from_replicas(ward: Ward, replica: pb.Repository) -> None:
    """The next number is above it, and where it was not planted that one has to come all the same."""
    ward.repo.enrol("owner", OTHER, name="Jaya Patel")
    ward.repo.copy(replica)
    with pb.Repository.open(ward.path, OTHER, state_dir=ward.root / "other") as other:
        name = _plant(ward, (1 << 47) + int(ward.names("keys")[-1].rpartition("/")[2]), to=OTHERS[0], of=other)
    (ward.root / "replica" / name).rename(ward.path / name)
    ward.repo.rotate(reason="a laptop was lost")
    assert "keyring-differs" not in _codes(ward.repo.copy(replica)).values()
    with pb.Repository.open(ward.root / "replica", OTHER, state_dir=ward.root / "there") as there:
        assert there._unlocked.has_newest_keys
        assert {finding.code for finding in there.check().findings} == set()


@pytest.mark.parametrize("number", [NUMBER_LAST, LAST])
def test_where_no_number_is_left_it_is_said(ward: Ward, number: int) -> None:
    """Somebody who may write here has put it here. One above it would be taken by no replica."""
    with ward.replica():
        name = _plant(ward, number)
        (ward.path / name).write_bytes((ward.root / "replica" / name).read_bytes())
    with pytest.raises(pb.Conflict) as caught:
        ward.repo.rotate(reason="a laptop was lost")
    assert caught.value.kind == "keyring-number" and name in str(caught.value)
    assert {name.rpartition("/")[2] for name in ward.names("keys")} == {"0", str(number)}


def test_a_slot_without_keyrings_takes_its_own_alone(ward: Ward, replica: pb.Repository) -> None:
    """Among junk."""
    (own,) = ward.names("keys")
    for at, other in enumerate(OTHERS):
        _plant(ward, 1000 + at, to=other)
        _plant(ward, 2000 + at)
    ward.lose(own)
    ward.mend(replicas=[replica])
    assert ward.names("keys") == [own]
    _opens(ward)


def test_what_cannot_be_told_apart_comes_and_opens(ward: Ward) -> None:
    """Junk beside the genuine one, of a slot that nobody here can open and that has none here."""
    ward.repo.enrol("owner", OTHER, name="Jaya Patel")
    with ward.replica() as replica, pb.Repository.open(ward.path, OTHER, state_dir=ward.root / "other") as other:
        slot = other._unlocked.keyring.slot.hex()
        (own,) = (name for name in ward.names("keys") if slot in name)
        for at, key in enumerate(OTHERS):
            _plant(ward, 1000 + at, to=key, of=other)
        junk = _plant(ward, 2000, of=other)
        ward.lose(own)
        proposal = ward.mend(replicas=[replica])
        assert proposal.steps == ("2 sealed keyrings are copied from a replica.",)
        assert {own, junk} <= set(ward.names("keys"))
    _opens(ward, OTHER)
    _opens(ward)


def test_a_changed_passphrase_goes_along_with_its_list(ward: Ward) -> None:
    """Not before it, when the change died between the two; and no junk beside it."""
    ward.repo.enrol("owner", OTHER, name="Jaya Patel")
    third = pb.Passphrase("a third horse battery staple")
    with (
        ward.replica() as replica,
        pb.Repository.open(ward.root / "replica", OTHER, state_dir=ward.root / "other") as there,
    ):
        before = ward.names("keys")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError):
            patch.setattr(enrolment, "SignedRoster", _dies)
            there.change_passphrase(third)
        ward.mend(replicas=[replica])
        there.copy(ward.repo)
        assert ward.names("keys") == before
        _opens(ward, OTHER)
        there.change_passphrase(third)
        for at, other in enumerate(OTHERS):
            _plant(ward, 1 << 45 | at, to=other, of=there)
        ward.reopen()
        there.copy(ward.repo)
        assert len(ward.names("keys")) == len(before) + 1
    _opens(ward, third)
    _opens(ward)
    with pytest.raises(pb.WrongCredential):
        _opens(ward, OTHER)


def _dies(*_: object) -> object:
    raise OSError


def test_a_keyring_that_goes_before_it_was_applied(ward: Ward, replica: pb.Repository) -> None:
    (name,) = ward.names("keys")
    ward.lose(name)
    proposal = ward.repo.propose_repair(replicas=[replica])
    (ward.root / "replica" / name).unlink()
    with pytest.raises(pb.Conflict) as caught:
        ward.repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"


def test_a_damaged_keyring_is_told(ward: Ward, replica: pb.Repository) -> None:
    """It is not mended in place."""
    (name,) = ward.names("keys")
    ward.cut(name, 10)
    proposal = ward.mend(replicas=[replica])
    assert _codes(proposal) == {name: "keyring-damaged"} and not proposal.steps
    assert "by hand" in proposal.findings[0].remedy
    replica.change_passphrase(OTHER)  # which gives him another one
    replica.copy(ward.repo)
    _opens(ward, OTHER)


# ------------------------------------------------------------ records


def test_no_record_comes_that_was_not_shown(ward: Ward, replica: pb.Repository) -> None:
    """A forget that was said in the replica alone; a snapshot that it alone has is told, and does not come either."""
    documents = ward.repo.snapshots("documents")
    replica.apply(replica.propose_forget(snapshots=[documents[-1]]))
    replica.hold(documents[0], reason="only there")
    replica.backup(ward.sources())
    fate = ids.fate_name(bytes.fromhex(documents[1].id))
    ward.flip(fate, 100)
    known = len(ward.repo.snapshots())
    proposal = ward.mend(replicas=[replica])
    assert proposal.steps[0].startswith("1 record is taken from a replica")
    assert documents[1].id[:8] in proposal.steps[1] and len(proposal.steps) == 2
    history = load_history(ward.repo._unlocked, anew=True)
    assert not history.forgets() and not history.said
    assert len(history.committed) == known
    ward.all_is_well()
    second = ward.repo.propose_repair(replicas=[replica])
    assert "record-elsewhere" in {finding.code for finding in second.findings}


def test_marks_are_named_in_the_proposal(ward: Ward, replica: pb.Repository) -> None:
    ward.repo.hold(ward.repo.snapshots()[-1], reason="incident 7")
    ward.repo.hold(ward.repo.snapshots()[0], reason="incident 8")
    ward.repo.copy(replica)
    marks = ward.names("marks")
    assert ward.repo.check().state == "ok"
    ward.lose(marks[0])
    proposal = ward.repo.propose_repair(replicas=[replica])
    (said,) = proposal.steps[1:]
    reason = "incident 7" if "incident 7" in said else "incident 8"
    assert f"hold {ward.repo.snapshots()[-1 if reason == 'incident 7' else 0].id[:8]} ({reason})" in said
    ward.repo.apply(proposal)
    assert {item.mark.reason for item in load_history(ward.repo._unlocked).said} == {"incident 7", "incident 8"}


# ------------------------------------------------------------ blocks


def forge(unlocked: Unlocked, name: str) -> list[bytes]:
    """In that storage, other content under the ids of a pack's data blocks, by whoever may sign there."""
    index = Index(unlocked, chunks=False)
    index.load()
    table, digest = index.blocks, bytes.fromhex(name.rpartition("/")[2])
    place = table.packs.index(digest)
    reader = BlockReader(unlocked, index)
    _, directory = read_directory(unlocked, digest, table.pack_sizes[place])
    names = read_names(unlocked, digest, directory)
    writer = PackWriter(unlocked, directory.domain)
    session = os.urandom(32)
    wrapped, key = unlocked.wrap(session), SealingKey(session)
    forged: list[bytes] = []
    for block, own in zip(directory.blocks, names, strict=True):
        number = next(number for number in table.instances(block.id) if table.pack[number] == place)
        sealed, wrap = unlocked.storage.get_range(name, block.offset, block.length), directory.keys[block.key]
        if block.kind == Kind.DATA_BLOCK:
            content = bytearray(reader.open(table, number, sealed, directory.domain))
            end = layout.chunk_ends(bytes(content))[-1]
            content[:end] = b"X" * end
            plain = compression.compress(bytes(content), 1, checksum=True)
            context = wire.block_context(unlocked.repository, Kind(block.kind), wrapped.key_id, block.id)
            sealed, wrap = key.seal(plain, context), wrapped
            forged.append(block.id)
        writer.add(kind=block.kind, number=0, block_id=block.id, names=own, sealed=memoryview(sealed), key=wrap)
    publish(unlocked, [written.entry for written in writer.finish()])
    writer.close()
    unlocked.storage.delete([name])
    return forged


def test_forged_replica(ward: Ward, replica: pb.Repository) -> None:
    """A block that opens under its id and is not what the id names gets no place in a new pack."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    forged = forge(replica._unlocked, name)
    ward.lose(name)
    ward.reopen()
    proposal = ward.mend(replicas=[replica])
    assert "snapshot-damaged" in {finding.code for finding in proposal.findings}
    index = Index(ward.repo._unlocked, chunks=False)
    index.load()
    table, here = index.blocks, set(ward.names("packs"))
    placed = {table.ids[number] for number, place in table.placed() if ids.pack_name(table.packs[place]) in here}
    assert not placed & set(forged)
    ward.whole()  # nothing wrong comes back under its own name


def _as_maintainer(repo: pb.Repository, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(repo._unlocked, "keyring", replace(repo._unlocked.keyring, role="maintainer", readers=()))


def test_who_may_not_read_takes_nothing_that_has_changed(
    ward: Ward, replica: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He cannot tell which block of a pack it is, so that he takes none of it."""
    name = ward.pack_of(Kind.DATA_BLOCK)
    path = ward.root / "replica" / name
    data = bytearray(path.read_bytes())
    data[ward.regions(name)["data block"]] ^= 1
    path.write_bytes(data)
    ward.lose(name)
    with monkeypatch.context() as patch:
        _as_maintainer(ward.repo, patch)
        proposal = ward.mend(replicas=[replica])
    assert not any("taken from" in step for step in proposal.steps)
    assert "snapshot-damaged" in {finding.code for finding in proposal.findings}
