"""A stolen device, with its keys and with write access: what it puts there harms no other domain's snapshots.

What it may not write at all is in test_matrix.py; what it signs after it was revoked in test_enrol.py; what it says
of packs that are not its own in test_prune_trust.py and, without any key, in test_planted_segment.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from blake3 import blake3
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import compression, ids
from pharmabackup.clock import now_ns
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine import enrolment
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import PackWriter, read_directory, read_names
from pharmabackup.engine.segments import write_segment
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import block as layout
from pharmabackup.format import wire
from pharmabackup.format.index import PackEntry
from pharmabackup.format.keys import CatalogueKey, NamingKey
from pharmabackup.format.transaction import Audit, Condemn, Done, Execute
from pharmabackup.format.wire import Kind
from tests.verbs.site import PASSPHRASE, Site, stored
from tests.verbs.staff import Staff

MakeRepo = Callable[[], pb.Repository]
KINDS = [Kind.DATA_BLOCK, Kind.MANIFEST_BLOCK, Kind.RECIPE_BLOCK]
LETTER = os.urandom(400_000)


@pytest.fixture
def staff(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Staff]:
    """An owner, a till of a domain of its own, and a thief's of another."""
    made = Staff(make_repo(), tmp_path)
    site.change()
    (site.root / "letter").write_bytes(LETTER)
    site.back_up(made.repo)
    made.enrol("device", "till", domain="branch")
    made.enrol("device", "thief", domain="elsewhere")
    site.back_up(made.open("till"))
    yield made
    made.close()


def _all_is_there(staff: Staff, site: Site, out: Path, *but: str) -> None:
    """Every snapshot of others than the thief, byte for byte, to an owner on a new machine."""
    owner = staff.repo = staff.open(os.urandom(4).hex(), key=pb.Passphrase("correct horse battery staple"))
    for snapshot in owner.snapshots():
        if snapshot.device != "thief" and snapshot.id not in but:
            place = out / os.urandom(4).hex()
            owner.restore(place, snapshots=[snapshot])
            found = {path.name: path.read_bytes() for path in (place / "documents").iterdir()}
            assert found == site.states[snapshot.id]


def _findings(staff: Staff) -> dict[str, set[str]]:
    """By code: all that the owner's check says of them."""
    found: dict[str, set[str]] = {}
    for finding in staff.repo.check(read_data=1.0).findings:
        found.setdefault(finding.code, set()).update((finding.subject, finding.message))
    return found


# ------------------------------------------------------------ blocks


def _false_pack(thief: Unlocked, owner: Unlocked, kind: Kind, domain: bytes) -> PackEntry:
    """Under the ids of all the owner's and the till's blocks of that kind, content that is as long and another."""
    index = Index(thief, chunks=False)
    index.load()
    table, session = index.blocks, os.urandom(32)
    wrapped, key = thief.wrap(session), SealingKey(session)
    if kind == Kind.RECIPE_BLOCK:
        key = thief.catalogue_key
        wrapped = next(table.keys[table.key[n]] for n, found in enumerate(table.kind) if found == kind)
    writer = PackWriter(thief, domain)
    for pack, size in zip(list(table.packs), list(table.pack_sizes), strict=True):
        _, directory = read_directory(owner, pack, size)
        for block, names in zip(directory.blocks, read_names(owner, pack, directory), strict=True):
            if block.kind == kind:
                chunks = [os.urandom(5000) for _ in range(block.count)]
                lengths = b"".join(len(chunk).to_bytes(4, "little") for chunk in chunks)
                content = b"".join(chunks) + layout.trailer(lengths)
                plain = compression.compress(content, 1, checksum=True)
                context = wire.block_context(thief.repository, kind, wrapped.key_id, block.id)
                sealed = memoryview(key.seal(plain, context))
                writer.add(kind=kind, number=0, block_id=block.id, names=names, sealed=sealed, key=wrapped)
    (written,) = writer.finish()
    writer.close()
    return written.entry


@pytest.mark.parametrize(
    "kind", [Kind.DATA_BLOCK, Kind.MANIFEST_BLOCK, Kind.RECIPE_BLOCK], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("says", ["its own", "the till's"])
def test_a_false_block_under_a_genuine_id(staff: Staff, site: Site, tmp_path: Path, kind: Kind, says: str) -> None:
    """In a pack of its own domain, its names do not fit; in a pack of another's, its signature does not."""
    thief, till = staff.open("thief")._unlocked, staff.open("till")
    domain = thief.domain if says == "its own" else till._unlocked.domain
    entry = _false_pack(thief, staff.repo._unlocked, kind, domain)
    segment = write_segment(thief, [entry])
    os.utime(Path(thief.storage.local_root() or "") / ids.index_name(segment), (1, 1))  # it is looked at first
    _all_is_there(staff, site, tmp_path / "out")
    pack, found = ids.pack_name(entry.pack), _findings(staff)
    if says == "its own":
        assert any(pack in told for told in found["pack-damaged"])
    else:
        assert pack in found["pack-damaged"] and ids.index_name(segment) in found["index-void"]
    site.back_up(till)
    _all_is_there(staff, site, tmp_path / "later")


def _other_names(data: bytes, key: bytes) -> object:
    """Of the thief's letter those of the letter that others have."""
    return blake3(GENUINE.get(bytes(data), bytes(data)), key=key)


GENUINE: dict[bytes, bytes] = {}


@pytest.mark.parametrize("domain", ["branch", "elsewhere"])
def test_a_false_chunk_under_the_name_of_what_others_have(
    staff: Staff, site: Site, tmp_path: Path, domain: str
) -> None:
    """Devices of one domain trust each other's chunks: it costs the next one's copy, and no wrong byte comes back."""
    form, false = os.urandom(8000), os.urandom(8000)  # smaller than any cut: one chunk
    GENUINE[false] = form
    staff.enrol("device", "insider", domain=domain)
    (site.root / "form").write_bytes(false)
    with mock.patch("pharmabackup.engine.content_files.blake3", _other_names):
        staff.open("insider").backup([pb.Files(site.root)])
    (site.root / "form").write_bytes(form)
    victim = site.back_up(staff.open("till"))
    if domain == "elsewhere":
        _all_is_there(staff, site, tmp_path / "out", *_of(staff, "insider"))
        return
    _all_is_there(staff, site, tmp_path / "out", victim, *_of(staff, "insider"))
    with pytest.raises(pb.Incomplete) as caught:
        staff.repo.restore(tmp_path / "there", snapshots=[staff.repo.snapshot(id=victim)])
    assert "file-lost" in {found.code for found in caught.value.findings}
    assert not (tmp_path / "there" / "documents" / "form").exists()
    assert any(
        victim in told or "form" in told or "documents need it" in told for told in _findings(staff)["pack-damaged"]
    )


def _of(staff: Staff, device: str) -> list[str]:
    return [snapshot.id for snapshot in staff.repo.snapshots() if snapshot.device == device]


def test_a_false_segment_about_others_packs(staff: Staff, site: Site, tmp_path: Path) -> None:
    """Genuine directories in a thief's segment, with sizes that are not theirs; and blocks that lie elsewhere."""
    thief, till = staff.open("thief")._unlocked, staff.open("till")
    entries: list[PackEntry] = []
    for name in stored(thief.storage, "packs"):
        digest = ids.hex_tail(name) or b""
        entry, directory = read_directory(thief, digest, thief.storage.info(name).size)
        entries.append(replace(entry, size=entry.size - 1))
        moved = tuple(replace(block, offset=0) for block in directory.blocks)
        signed = thief.sign(Kind.DIRECTORY, "packs/", replace(directory, blocks=moved))
        entries.append(replace(entry, directory=wire.encode(signed)))
    segments = [ids.index_name(write_segment(thief, [entry])) for entry in entries]
    _all_is_there(staff, site, tmp_path / "out")
    found = _findings(staff)
    assert set(segments) <= found["index-void"] | found["index-damaged"]
    site.back_up(till)
    assert till.snapshots()[0].added < 20_000  # it relies on its own packs all the same
    _all_is_there(staff, site, tmp_path / "later")


# ------------------------------------------------------------ records


def test_a_collection_that_condemns_everything(staff: Staff, site: Site, tmp_path: Path) -> None:
    """Whoever meets it stops, says which object it is, and goes on when that is taken away. Nothing is deleted."""
    thief, till = staff.open("thief")._unlocked, staff.open("till")
    packs = [ids.hex_tail(name) or b"" for name in stored(thief.storage, "packs")]
    thief.put(Kind.CONDEMN, ids.collection_name(1, "condemn"), Condemn(1, b"".join(sorted(packs)), b"", b""))
    thief.put(Kind.EXECUTE, ids.collection_name(1, "execute"), Execute(1, b"".join(sorted(packs)), b""))
    thief.put(Kind.DONE, ids.collection_name(1, "done"), Done(1))
    before = set(stored(thief.storage, "packs"))
    planted = stored(thief.storage, "collections")
    for act in (lambda: site.back_up(till), lambda: staff.repo.apply(staff.repo.propose_prune())):
        with pytest.raises(pb.Damaged, match="collections/1/"):
            act()
    assert set(planted) <= _findings(staff)["collection-damaged"]
    assert set(stored(thief.storage, "packs")) >= before
    assert not any(thief.storage.delete(planted).values())
    site.back_up(till)
    _all_is_there(staff, site, tmp_path / "out")


PLANTED = ["roster/7", "roster/99", "roster/x"]
PLANTED += [f"collections/{name}" for name in ("1/condemn", "1/execute", "1/done", "3/condemn", "x")]


@pytest.mark.parametrize("name", PLANTED)
def test_junk_that_stops_everybody_is_named_with_what_to_do(
    staff: Staff, site: Site, tmp_path: Path, name: str
) -> None:
    """Anybody who may write can do that. A torn record, without which a thief would be in again, looks the same."""
    number = sum(1 for _ in staff.repo._unlocked.storage.list("roster"))
    name = name.replace("roster/7", f"roster/{number}")
    planted = Path(staff.repo.url) / name
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_bytes(os.urandom(2000))
    told: list[pb.Damaged] = []
    for deed in (
        lambda: staff.open("till").snapshots(),
        lambda: site.back_up(staff.open("till")),
        lambda: staff.open("owner", key=PASSPHRASE).propose_prune(),
    ):
        try:
            deed()
        except pb.Damaged as error:
            told.append(error)
    assert len(told) >= (1 if name.startswith("collections") else 3)
    for error in told:
        known = name if not name.startswith("collections/3") else "collections/3"
        assert known in error.remedy and "by hand" in error.remedy, (str(error), error.remedy)
        assert known in error.message or "number 3" in error.message
    planted.unlink()
    site.back_up(staff.open("till"))
    _all_is_there(staff, site, tmp_path / "out")


@pytest.mark.parametrize("name", ["keys/x", "keys/00/0", "keys/SLOT/007", "keys/SLOT/x", f"keys/SLOT/{10**18}"])
def test_what_is_no_name_of_a_keyring_is_told_and_stops_nobody(staff: Staff, site: Site, name: str) -> None:
    """Nor does it keep a copy from bringing keyrings, or an owner from giving new keys."""
    owner = staff.repo._unlocked
    planted = Path(staff.repo.url) / (name := name.replace("SLOT", owner.keyring.slot.hex()))
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_bytes(os.urandom(2000))
    site.back_up(staff.open("till"))
    again = staff.open("owner", key=PASSPHRASE)
    again.rotate(reason="to see")
    told = [finding for finding in again.check().findings if finding.code.startswith("keyring")]
    assert [(one.code, one.severity, one.subject) for one in told] == [("keyring-damaged", "warning", name)]


def test_a_keyring_with_other_keys_is_not_taken(staff: Staff, site: Site, tmp_path: Path) -> None:
    """To every slot, newer than all that it has: keys that the thief knows. No list of keys has them."""
    thief, till = staff.open("thief")._unlocked, staff.open("till")
    known = CatalogueKey(1, os.urandom(32))
    for slot in enrolment.present(thief.roster):
        false = replace(
            thief.keyring,
            slot=slot.id,
            role=slot.role,
            signing=None,
            catalogue=(known,),
            naming=(NamingKey(till._unlocked.domain, os.urandom(32)),),
        )
        enrolment.put_keyring(thief, false, slot.recipient)
    site.back_up(till)
    fresh = staff.open("till")
    assert fresh._unlocked.keyring == till._unlocked.keyring and known not in fresh._unlocked.keyring.catalogue
    _all_is_there(staff, site, tmp_path / "out")


def test_an_audit_record_in_anothers_name(staff: Staff, site: Site, tmp_path: Path) -> None:
    thief, owner = staff.open("thief")._unlocked, staff.repo._unlocked.keyring.slot
    number = sum(1 for _ in thief.storage.list(f"audit/{owner.hex()}"))
    name = ids.audit_name(owner, number)
    thief.put(Kind.AUDIT, name, Audit(number, bytes(32), now_ns(), None, "revoke", "done", "till", "no", {}))
    assert name in _findings(staff)["audit-damaged"]
    staff.repo.rotate(reason="somebody left")
    assert name in _findings(staff)["audit-damaged"]
    _all_is_there(staff, site, tmp_path / "out")


@pytest.mark.parametrize("last", [str(10**18 - 1), "x", "next"])
def test_an_audit_record_after_which_none_can_come_stops_nobody(staff: Staff, last: str) -> None:
    """Or an owner could revoke, and make no new keys, since that is written down in between."""
    owner = staff.repo._unlocked
    for name in ("one", "two"):
        staff.repo.enrol("device", pb.KeyFile.create(staff.folder / name).recipient, name=name)
    folder = f"audit/{owner.keyring.slot.hex()}"
    last = last if last != "next" else str(sum(1 for _ in owner.storage.list(folder)))
    planted = f"{folder}/{last}"
    staff.open("thief")._unlocked.storage.put_new(planted, b"junk" * 20_000_000)
    for number, name in enumerate(("one", "two"), 2):
        staff.repo.revoke(name, reason="stolen")
        assert len(owner.roster.generations) == number
    found = {finding.subject: finding.code for finding in staff.repo.check().findings}
    assert found[planted] == ("object-unknown" if last == "x" else "audit-damaged")
