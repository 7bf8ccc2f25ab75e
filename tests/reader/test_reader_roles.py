"""Keys of every role, shares and domains, and slots that are revoked, read by the independent reader."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.crypto import shares as library
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.engine import enrolment
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.keyrings import seal_keyring
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.keys import NamingKey, Roster
from pharmabackup.format.transaction import Fate
from pharmabackup.format.wire import Kind
from tests.reader import shares, texts, wire
from tests.reader.reader import Reader
from tests.reader.test_reader import GOLDEN, expected_form
from tests.reader.wire import Refused
from tests.verbs.forged import forged

ROLES: dict[str, Any] = json.loads((GOLDEN / "v1-roles.json").read_text("utf-8"))
OWNER = "correct horse battery staple"
MakeRepo = Callable[[], pb.Repository]


# ---------------------------------------------------------------- golden


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    with tarfile.open(GOLDEN / "v1-roles.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "v1-roles"


def secret(slot: str) -> str | bytes:
    if slot == "owner":
        return str(ROLES["passphrase"])
    return shares.join(ROLES["shares"][1:]) if slot == "recovery 2" else texts.seed_of(ROLES["keys"][slot])


PRESENT = [(name, role) for name, role, _, revoked in ROLES["slots"] if not revoked]


@pytest.mark.skipif(sys.platform != "linux", reason="its attributes are those of Linux")
@pytest.mark.parametrize(("slot", "role"), PRESENT)
def test_golden_roles(golden: Path, slot: str, role: str) -> None:
    reader = Reader(golden, secret(slot))
    assert (reader.slots[reader.slot].name, reader.slots[reader.slot].role) == (slot, role)
    assert (reader.ignored, reader.spoilt, reader.replaced) == ([], [], [])
    assert reader.revoked == {ROLES["does not count"]}
    assert len(reader.catalogue) == 3
    assert len(reader.readers) == (3 if role in ("owner", "restorer") else 0)
    domains = {domain.id: domain.name for domain in reader.rosters[-1].domains}
    named = {"branch till": {"branch"}, "till-1": {"main"}, "the auditor": set[str](), "the supplier": set[str]()}
    assert {domains[domain] for domain in reader.naming} == named.get(slot, {"main", "branch"})
    content = {expected["id"]: expected["content"] for expected in ROLES["snapshots"]}
    assert reader.snapshots().keys() == {transaction for transaction in content if content[transaction] is not None}
    for transaction in reader.snapshots():
        if role in ("owner", "restorer"):
            assert expected_form(reader.restore(transaction)) == content[transaction]
        else:
            with pytest.raises(Refused):
                reader.restore(transaction)


def test_golden_who_was_revoked(golden: Path) -> None:
    for seed in (secret("till-2"), shares.join(ROLES["old shares"][:3])):
        with pytest.raises(Refused, match="was revoked"):
            Reader(golden, seed)
    with pytest.raises(Refused, match="no slot"):
        Reader(golden, bytes(32))


def test_golden_roles_are_domains_of_their_keys(golden: Path) -> None:
    reader = Reader(golden, secret("the desk"))
    assert {wire.key_id(key)[:16]: key for key in reader.naming.values()} == reader.naming


# ---------------------------------------------------------------- the worked example


def test_the_worked_example() -> None:
    text = (GOLDEN.parents[1] / "docs" / "format.md").read_text("utf-8").partition("## 27")[2].partition("## 28")[0]
    shown = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    at = shown.index(KEY.splitlines()[0])
    seed = texts.seed_of("\n".join(shown[at : at + 3]))
    assert seed == bytes(range(32))
    private = hashlib.shake_256(seed).digest(96)
    public = wire.ReaderKey(private).public
    domain = wire.key_id(bytes(range(0x20, 0x40)))[:16].hex()
    assert shown[at - 1] == domain
    assert "".join(shown[at + 3 : at + 5]) == private.hex()
    assert shown[at + 5 : at + 7] == [wire.key_id(public).hex(), texts.fingerprint(public)]
    assert shares.join(shown[at + 7 : at + 9]) == seed
    assert pb.Shares(*shown[at + 7 : at + 9]).reveal() == seed


# ---------------------------------------------------------------- shares


def test_published_shares() -> None:
    """The first of the vectors of SLIP-39, with the passphrase that it has."""
    one = (
        "duckling enlarge academic academic agency result length solution fridge kidney coal piece deal husband "
        "erode duke ajar critical decision keyboard"
    )
    assert shares.join([one], b"TREZOR").hex() == "bb54aac4b89dc868ba37d9cc21b2cece"
    with pytest.raises(Refused, match="as it was written"):
        shares.join([one.replace("keyboard", "kidney")], b"TREZOR")


@st.composite
def _splits(draw: st.DrawFn) -> tuple[bytes, tuple[str, ...], int, list[int]]:
    number = draw(st.integers(2, 16))
    needed = draw(st.integers(2, min(number, 6)))
    seed = draw(st.binary(min_size=32, max_size=32))
    order = draw(st.permutations(range(number)))
    public = PrivateKey.from_seed(seed).public.raw
    return seed, library.split(seed, public, threshold=needed, shares=number), needed, order


@settings(max_examples=25)
@given(_splits())
def test_any_so_many_shares_give_the_seed_and_fewer_do_not(
    made: tuple[bytes, tuple[str, ...], int, list[int]],
) -> None:
    seed, written, needed, order = made
    chosen = [written[place] for place in order]
    assert shares.join(chosen[:needed]) == seed
    assert pb.Shares(*chosen[:needed]).reveal() == seed
    assert pb.Shares(*chosen).reveal() == seed
    with pytest.raises(Refused, match=f"takes {needed}"):
        shares.join(chosen[: needed - 1])
    with pytest.raises(pb.WrongCredential, match=f"takes {needed}"):
        pb.Shares(*chosen[: needed - 1])
    fields = shares.share(chosen[0])
    assert fields[2:6] == (0, 0, 1, 1)  # no more rounds, one group of one
    assert (fields.extendable, fields.threshold, len(fields.value)) == (1, needed, 32)
    fewer = {shares.share(text).member: shares.share(text).value for text in chosen[: needed - 1]}
    if needed > 2:
        with pytest.raises(Refused, match="do not fit"):  # what they would give as another threshold's
            shares._recover(needed - 1, fewer)


@settings(max_examples=25)
@given(_splits(), st.data())
def test_shares_that_lie_on_another_curve_are_named(
    made: tuple[bytes, tuple[str, ...], int, list[int]], data: st.DataObject
) -> None:
    """The others open as long as they are enough, and each of those is told."""
    seed, written, needed, order = made
    most = min(2, len(order) - needed)
    false = set(data.draw(st.lists(st.sampled_from(order), unique=True, max_size=most)))
    joined = pb.Shares(*(forged(written[place]) if place in false else written[place] for place in order))
    assert joined.reveal() == seed and joined.numbers == tuple(place + 1 for place in order)
    assert joined.odd() == tuple(sorted(place + 1 for place in false))
    few = order[: needed + 1]
    with pytest.raises(pb.InvalidInput, match="do not fit together"):
        pb.Shares(
            *(forged(written[place]) if place in few[needed - 1 :] else written[place] for place in few)
        ).reveal()


@settings(max_examples=25)
@given(_splits(), st.data())
def test_a_share_that_was_changed_is_refused(
    made: tuple[bytes, tuple[str, ...], int, list[int]], data: st.DataObject
) -> None:
    """Up to three words of a share: the code finds all such changes."""
    _, written, needed, order = made
    chosen = [written[place].split() for place in order[:needed]]
    at = data.draw(st.lists(st.integers(0, 32), min_size=1, max_size=3, unique=True))
    for place in at:
        chosen[-1][place] = data.draw(st.sampled_from([w for w in shares._words() if w != chosen[-1][place]]))
    changed = [" ".join(words) for words in chosen]
    with pytest.raises(Refused):
        shares.join(changed)
    with pytest.raises(pb.InvalidInput):
        pb.Shares(*changed)


# ---------------------------------------------------------------- texts

KEY, RECIPIENT = ROLES["keys"]["till-1"], ROLES["recipients"]["till-1"]
SPACE = st.text(st.sampled_from(" \t\r\n\u00a0"), min_size=1, max_size=3)


def _library(text: str, tmp: Path) -> bytes:
    """The secret, or public key, that the library reads there."""
    if "recipient" in text:
        return pb.Recipient(text).raw
    (tmp / "key").write_bytes(text.encode("latin-1", "replace"))
    return pb.KeyFile(tmp / "key").reveal()


def _independent(text: str) -> bytes:
    return texts.public_of(text) if "recipient" in text else texts.seed_of(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@settings(max_examples=60)
@given(st.sampled_from([KEY, RECIPIENT]), st.data())
def test_texts_survive_reflowing(folder: Path, text: str, data: st.DataObject) -> None:
    title, mark, encoded = text.split("\n", 2)
    encoded = "".join(encoded.split())
    cuts = sorted(data.draw(st.sets(st.integers(1, len(encoded) - 1), max_size=20)))
    ascii_only = text == KEY  # a key file is read as ASCII
    space = st.text(st.sampled_from(" \t\r\n"), min_size=1, max_size=3) if ascii_only else SPACE
    parts = [encoded[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    around = [data.draw(space) for _ in range(len(parts) + 3)]
    flowed = around[0] + title + around[1] + mark
    flowed += "".join(gap + part for gap, part in zip(around[2:], parts, strict=False)) + around[-1]
    assert _library(flowed, folder) == _independent(flowed) == _independent(text) == _library(text, folder)


@settings(max_examples=150)
@given(st.sampled_from([KEY, RECIPIENT]), st.data())
def test_texts_are_refused_after_any_change(folder: Path, text: str, data: st.DataObject) -> None:
    """One character that is no white space changed, left out, put in, or changed with the next."""
    at = data.draw(st.sampled_from([place for place in range(len(text)) if not text[place].isspace()]))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126))
    change = data.draw(st.sampled_from(["changed", "left out", "put in", "swapped"]))
    put = {"changed": other, "left out": "", "put in": text[at] + other, "swapped": text[at + 1 : at + 2] + text[at]}
    changed = text[:at] + put[change] + text[at + (2 if change == "swapped" else 1) :]
    if "".join(changed.split()) == "".join(text.split()) and changed.startswith(text.partition("\n")[0] + "\n"):
        return
    with pytest.raises(pb.InvalidInput):
        _library(changed, folder)
    with pytest.raises(Refused):
        _independent(changed)


@pytest.mark.parametrize("text", [KEY, RECIPIENT], ids=["key", "recipient"])
def test_the_last_letter_of_a_text_has_one_spelling(folder: Path, text: str) -> None:
    """It says less than six bits: several letters could stand for them."""
    whole = text.rstrip()
    at = len(whole.rstrip("=")) - 1
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/":
        changed = whole[:at] + letter + whole[at + 1 :]
        if letter != whole[at]:
            with pytest.raises(pb.InvalidInput):
                _library(changed, folder)
            with pytest.raises(Refused):
                _independent(changed)


# ---------------------------------------------------------------- fresh


class Staff:
    """A repository of an owner, where others are enrolled by keys, and each backs up a folder of its own."""

    def __init__(self, repo: pb.Repository, base: Path) -> None:
        self.repo, self.base = repo, base
        self.place = Path(repo.url)
        self.opened: dict[str, pb.Repository] = {}

    def enrol(self, role: Any, name: str, domain: str | None = None) -> pb.Repository:
        key = pb.KeyFile.create(self.base / f"{name}.key")
        self.repo.enrol(role, key.recipient, name=name, domain=domain)
        self.opened[name] = pb.Repository.open(self.place, key, state_dir=self.base / f"state of {name}")
        return self.opened[name]

    def seed(self, name: str) -> bytes:
        return texts.seed_of((self.base / f"{name}.key").read_text("ascii"))

    def back_up(self, name: str) -> str:
        root = self.base / f"files of {name}"
        root.mkdir(exist_ok=True)
        (root / f"{len(list(root.iterdir()))}").write_bytes(os.urandom(3000))
        snapshot = self.opened[name].backup([pb.Files(root)]).datasets[root.name].snapshot
        assert snapshot is not None
        return snapshot.id

    def thief(self) -> Any:
        """Who never learns that he is revoked."""
        return mock.patch.multiple(Unlocked, renew=lambda _: None, renewed=lambda *_: False)


@pytest.fixture
def staff(make_repo: MakeRepo, tmp_path: Path) -> Iterator[Staff]:
    made = Staff(make_repo(), tmp_path)
    yield made
    for opened in made.opened.values():
        opened.close()


def test_a_domain_that_is_founded_later_reaches_who_reads(staff: Staff) -> None:
    staff.enrol("restorer", "the desk")
    recovery = shares.join(list(staff.repo.split_recovery(threshold=3, shares=4)[1:]))
    staff.enrol("device", "till", "branch")
    made = staff.back_up("till")
    for who in (staff.seed("the desk"), recovery, OWNER):
        reader = Reader(staff.place, who)
        assert len(reader.naming) == 2
        assert len(reader.restore(made)) == 2
    assert len(Reader(staff.place, staff.seed("till")).naming) == 1


@pytest.mark.parametrize("case", ["another key of a domain", "a domain that there is not", "as it was"])
def test_a_naming_key_that_no_domain_commits_to(staff: Staff, case: str) -> None:
    """Whoever may write to storage can seal a keyring to anybody's slot."""
    desk = staff.enrol("restorer", "the desk")._unlocked
    till = staff.enrol("device", "till", "branch")._unlocked
    made = staff.back_up("till")
    key = till.keyring.naming[0].key if case == "as it was" else b"x" * 32
    domain = till.domain if case != "a domain that there is not" else enrolment.domain_of(key)
    added = replace(desk.keyring, signing=None, naming=(NamingKey(domain, key),))
    enrolment.put_keyring(staff.repo._unlocked, added, desk.slot.recipient)  # the newest, and the oldest
    (staff.place / "keys" / desk.slot.id.hex() / "0").write_bytes(seal_keyring(added, 0, desk.slot.recipient))
    reader = Reader(staff.place, staff.seed("the desk"))
    assert reader.naming[till.domain] == till.naming_key
    assert len(reader.naming) == 2
    assert len(reader.restore(made)) == 2
    desk.renew()
    assert {one.domain: one.key for one in desk.keyring.naming} == reader.naming


def test_what_counts_of_a_slot_that_was_revoked(staff: Staff) -> None:
    """Its snapshots up to then, with all that came before them; of the rest what cites a roster of before."""
    till = staff.enrol("device", "till")
    staff.enrol("device", "heir")
    before = {staff.back_up("till") for _ in range(3)}
    staff.repo.revoke("till", reason="stolen")
    with staff.thief():
        after = {staff.back_up("till") for _ in range(2)}
        till.hold(till.snapshots()[-1], reason="to keep it for ever")
    after_that = staff.back_up("heir")
    reader = Reader(staff.place, OWNER)
    assert (reader.snapshots().keys(), reader.revoked) == (before | {after_that}, after)
    assert {snapshot.id for snapshot in staff.repo.snapshots()} == before | {after_that}
    assert [one.record.kind for name, one in reader.stored.items() if name.startswith("marks/")] == ["hold"]
    for transaction in reader.snapshots():
        assert len(reader.restore(transaction)) > 1
    with pytest.raises(Refused, match="was revoked"):
        Reader(staff.place, staff.seed("till"))


def test_what_cites_the_roster_that_revoked_its_signer(staff: Staff) -> None:
    till = staff.enrol("device", "till")
    staff.back_up("till")
    staff.repo.revoke("till", reason="stolen")
    unlocked, owner = till._unlocked, staff.repo._unlocked
    unlocked.roster, unlocked.rosters = owner.roster, owner.rosters
    unlocked.keyring = replace(unlocked.keyring, catalogue=owner.keyring.catalogue)
    unlocked._take_keys()
    with staff.thief():
        till.hold(till.snapshots()[-1], reason="to keep it for ever")
    (mark,) = (path.name for path in (staff.place / "marks").iterdir())
    with pytest.raises(Refused, match=f"marks/{mark}: signed by a revoked slot"):
        Reader(staff.place, OWNER)
    assert "mark-damaged" in {finding.code for finding in staff.repo.check().findings}


def test_what_was_said_of_a_revoked_slot_stays(staff: Staff) -> None:
    staff.enrol("device", "till")
    staff.repo.revoke("till", reason="stolen")

    def change(roster: Roster) -> Roster:
        (slot,) = (slot for slot in roster.slots if slot.name == "till")
        assert slot.revoked is not None
        more = replace(slot, revoked=replace(slot.revoked, accepted=bytes(32)))
        return replace(roster, slots=tuple(more if one == slot else one for one in roster.slots))

    assert Reader(staff.place, OWNER).snapshots() == {}
    with pytest.raises(pb.Damaged, match="never changes"):
        enrolment.change_roster(staff.repo._unlocked, change)
    with pytest.raises(Refused, match="never changes"):
        Reader(staff.place, OWNER)


@pytest.mark.parametrize("outcome", ["commit", "abort"])
def test_what_a_thief_put_before_a_carried_snapshot(staff: Staff, tmp_path: Path, outcome: Any) -> None:
    """In a replica that holds it from a carry alone, its name is free."""
    staff.enrol("device" if outcome == "commit" else "maintainer", "stolen")
    heir = staff.enrol("device", "heir")
    made = [staff.back_up("heir") for _ in range(2)]
    place, first = tmp_path / "replica", bytes.fromhex(made[0])
    genuine = load_history(heir._unlocked).committed[first].snapshot
    forged = replace(genuine, dataset="another") if outcome == "commit" else None
    with (
        pb.Repository.create(place, pb.Passphrase(OWNER), replica_of=staff.repo, state_dir=tmp_path / "s") as two,
        pb.Repository.open(place, pb.KeyFile(tmp_path / "stolen.key"), state_dir=tmp_path / "t") as thief,
    ):
        staff.repo.copy(two)
        assert {snapshot.id for snapshot in two.snapshots()} == set(made)
        fate = Fate(first, outcome, bytes(32) if forged else None, forged)
        thief._unlocked.put(Kind.FATE, ids.fate_name(first), fate)
        assert {snapshot.dataset for snapshot in two.snapshots() if snapshot.id == made[0]} == (
            {genuine.dataset} if forged else set()
        )
        if forged:
            assert Reader(place, OWNER).contested == [ids.fate_name(first)]
        else:
            with pytest.raises(Refused, match="names a head"):
                Reader(place, OWNER)
        staff.repo.revoke("stolen", reason="stolen")
        staff.repo.copy(two)
        assert [snapshot.id for snapshot in two.snapshots()] == made[::-1]
        assert {snapshot.dataset for snapshot in two.snapshots()} == {genuine.dataset}
        two.restore(tmp_path / "out", snapshots=[two.snapshot(id=made[0])])
        assert two.check(read_data=1.0).findings == ()
        two.propose_prune()
    reader = Reader(place, OWNER)
    assert reader.snapshots().keys() == set(made)
    assert [len(reader.restore(transaction)) for transaction in made] == [2, 3]


def test_shares_that_were_split_anew(staff: Staff) -> None:
    old, new = (list(staff.repo.split_recovery()) for _ in range(2))
    staff.enrol("device", "till")
    made = staff.back_up("till")
    reader = Reader(staff.place, shares.join(new[:2]))
    assert reader.slots[reader.slot].name == "recovery 2"
    assert reader.rosters[-1].recovery == reader.slots[reader.slot].recipient
    assert len(reader.restore(made)) == 2
    with pytest.raises(Refused, match="was revoked"):
        Reader(staff.place, shares.join(old[:2]))
