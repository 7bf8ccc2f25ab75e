"""Every role against every verb, for real: with credentials that were enrolled, each on a machine of its own.

What a role may do it does, and the effect is looked at. What it may not do is refused before anything is written.
Then the permission checks are taken away and it is tried again: it fails for want of a key, or what was written does
not count for an owner who opens the repository afterwards on a new machine.

Deleting objects is another matter: no key is needed for that, and no key prevents it. Who may delete what is said by
the storage's own permissions; `test_what_was_deleted_is_named` shows what an owner finds.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.format import wire
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import Ward
from tests.verbs.crew import MARKER, ROLES, Crew, unchecked
from tests.verbs.deeds import NEW, READERS, ROWS, Row, later, lose_letter, lose_segment
from tests.verbs.site import DAY_NS, Time

WHY = "changed after it was written"  # a key that is under the right name and is not that key


@pytest.fixture(autouse=True)
def _everything_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune moves whatever is not all alive."""
    monkeypatch.setattr("pharmabackup.engine.emptying.UNUSED_SHARE", 0.0)


@pytest.fixture(scope="session")
def enrolled(built: Ward, tmp_path_factory: pytest.TempPathFactory) -> Crew:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pharmabackup.crypto.passphrases.MEMORY_KIB", 64)
        patch.setattr("pharmabackup.crypto.passphrases.ITERATIONS", 1)
        made = Crew.enrol(Ward.copy(built, tmp_path_factory.mktemp("crew") / "ward"))
        made.ward.repo.close()
    return made


@pytest.fixture
def crew(enrolled: Crew, tmp_path: Path, cheap_kdf: None) -> Iterator[Crew]:
    made = Crew.copy(enrolled, tmp_path / "ward")
    yield made
    made.close()


NEVER = [("recovery", "change the passphrase"), ("recovery", "split the recovery key")]  # it has none, and is one


def _cells(which: Callable[[str, Row], bool]) -> list[Any]:
    return [
        pytest.param(role, row, id=f"{role}-{row.name}")
        for row in ROWS
        for role in ROLES
        if which(role, row) and (role, row.name) not in NEVER
    ]


def _prepared(crew: Crew, row: Row, time: Time) -> None:
    row.before(crew)
    if row.before is later:
        time.ahead += 15 * DAY_NS


def test_every_public_verb_has_a_row() -> None:
    public = {
        prefix + name
        for kind, prefix in ((pb.Repository, ""), (pb.Snapshot, "Snapshot."))
        for name, member in inspect.getmembers(kind)
        if callable(member) and not name.startswith("_")
    }
    assert {verb for row in ROWS for verb in row.verbs.split()} == public


def test_every_role_is_in_it(crew: Crew) -> None:
    roles = {role: crew.open(role).role for role in ROLES}
    assert roles == {role: "owner" if role == "recovery" else role for role in ROLES}
    with pytest.raises(pb.InvalidInput, match="opens with a key"):
        crew.open("recovery").change_passphrase(NEW)
    with pytest.raises(pb.Conflict, match="do not replace themselves"):
        crew.open("recovery").split_recovery()


@pytest.mark.parametrize(("role", "row"), _cells(lambda role, row: role in row.who))
def test_who_may(crew: Crew, time: Time, role: str, row: Row) -> None:
    _prepared(crew, row, time)
    row.shown(crew, row.do(crew, row.open(crew, role)))


@pytest.mark.parametrize(("role", "row"), _cells(lambda role, row: role not in row.who))
def test_who_may_not_is_told_who_may(crew: Crew, time: Time, role: str, row: Row) -> None:
    _prepared(crew, row, time)
    repo = row.open(crew, role)
    before = crew.listing()
    with pytest.raises(pb.NotPermitted) as caught:
        row.do(crew, repo)
    assert f"The role {role} may not" in caught.value.message
    assert any(may in caught.value.remedy for may in row.who)
    assert role not in caught.value.remedy
    after = crew.listing()
    told = [name for name in after if name not in before]
    assert {name: data for name, data in after.items() if name not in told} == before
    assert {name.removeprefix("replica/").partition("/")[0] for name in told} == {"audit"}
    here = [record for record in crew.owner().audit() if record.slot == repo.slot]
    assert (here[-1].outcome, here[-1].facts["error"]) == ("refused", caught.value.kind)
    assert not (crew.ward.root / "out").exists()


@pytest.mark.parametrize(("role", "row"), _cells(lambda role, row: role not in row.who and row.who == READERS))
def test_who_may_not_read_lacks_the_key(crew: Crew, role: str, row: Row) -> None:
    """Without the checks: not a byte of what is stored comes out, into memory or onto the disk."""
    repo = row.open(crew, role)
    result = None
    with unchecked(repo), pytest.raises((pb.Damaged, pb.Incomplete)) as caught:
        result = row.do(crew, repo)
    assert result is None
    told = [caught.value.message, *(found.message for found in caught.value.findings)]
    assert any(WHY in text for text in told), told
    for path in crew.ward.root.rglob("*"):
        if path.is_file() and crew.ward.documents not in path.parents:
            assert MARKER not in path.read_bytes()
    assert MARKER not in str(told).encode()


OWN = {  # what a role may write, so that it is as good as its word: packs and their index, and what a slot did
    "device": ("packs/", "index/", "intents/", "audit/", "keys/"),
    "maintainer": ("packs/", "index/", "intents/", "audit/", "keys/", "collections/"),
    "restorer": ("intents/", "audit/", "keys/"),
    "auditor": ("intents/", "audit/", "keys/"),
}


PLANTED = {  # by deed: what whoever may not do it puts there all the same, besides a record of it in the log
    "restore": {"intents", "snapshots"},  # a hold on what it needs, and its end
    "back up": {"packs", "index", "intents", "snapshots"},
    "follow": {"packs", "index", "intents", "snapshots"},
    "copy to a replica": {"packs", "index", "intents", "snapshots"},
    "forget": {"marks"},
    "prune": {"packs", "index", "collections"},
    "repair": {"packs", "index", "collections"},
    "repair from sources": {"packs", "index", "collections"},
    "recall": {"marks"},
    "hold": {"marks"},
    "release": {"marks"},
    "enrol": {"keys", "roster"},
    "revoke": {"roster"},
    "split the recovery key": {"keys", "roster"},
    "change the passphrase": {"keys", "roster"},
    "rotate": {"keys", "roster"},
    "configure": {"roster"},
    "seal anew": {"packs", "index", "collections"},
}
ONLY_READ = {
    "glob",
    "open a file",
    "as a file system",
    "table",
    "SQL",
    "copy to another repository",
}  # these put nothing here
MOVES = {("maintainer", "repair from sources"), ("maintainer", "seal anew")}  # as its prunes do, what needs no key


def test_each_deed_says_what_it_plants() -> None:
    assert PLANTED.keys().isdisjoint(ONLY_READ)
    assert PLANTED.keys() | ONLY_READ == {row.name for row in ROWS if not row.looks and row.who != frozenset(ROLES)}


@pytest.mark.parametrize(("role", "row"), _cells(lambda role, row: role not in row.who and not row.looks))
def test_what_who_may_not_has_written_does_not_count(crew: Crew, time: Time, role: str, row: Row) -> None:
    """Without the checks: an owner on a new machine sees what was so before, and what was put there is named.

    A keyring is not: it is sealed to its slot, and no list of keys has what it holds.
    """
    _prepared(crew, row, time)
    repo = row.open(crew, role)
    replicas = [None, crew.replica] if crew.replica.exists() else [None]
    said = [crew.said(crew.owner(url)) for url in replicas]
    harmed = row.before in (lose_segment, lose_letter)
    whole = crew.ward.whole(crew.owner()) if harmed else set(crew.ward.states)
    before = crew.listing()
    with unchecked(repo), contextlib.suppress(pb.Damaged, pb.Incomplete, pb.Conflict):
        row.do(crew, repo)
    after = crew.listing()
    if (role, row.name) not in MOVES:
        assert {name: after.get(name) for name in before} == before  # nothing was replaced, and nothing is gone
    planted = {name for name in after if name not in before}
    folders = {name.removeprefix("replica/").partition("/")[0] for name in planted}
    assert folders - {"audit"} == PLANTED.get(row.name, set())
    named = _take_away_what_stops(
        crew, planted, ("roster/",) if role == "maintainer" else ("roster/", "collections/")
    )
    for url in replicas:
        for found in crew.owner(url).check(read_data=1.0).findings:
            prefix = "" if url is None else "replica/"
            named |= {prefix + name for name in _named(found)} & planted
    aborted = {ids.fate_name(transaction) for transaction in load_history(crew.owner()._unlocked).aborted}
    silent = {name.removeprefix("replica/") for name in planted - named} - aborted
    assert {name for name in silent if not name.startswith(OWN[role])} == set()
    assert [crew.said(crew.owner(url)) for url in replicas] == said
    left = crew.ward.whole(crew.owner())
    assert left >= whole if harmed else left == whole  # whole blocks may be added by who has them


def _take_away_what_stops(crew: Crew, planted: set[str], what: tuple[str, ...]) -> set[str]:
    """Lists of keys and records of collections: all stop at them, say which, and go on when it is gone."""
    found = {name for name in planted if name.startswith(what)}
    for name in found:
        with pytest.raises(pb.Damaged) as caught:
            owner = crew.owner()
            owner.backup(crew.ward.sources())
        assert name in str(caught.value)
        crew.ward.lose(name)
    return found


def _named(found: pb.Finding) -> set[str]:
    return {found.subject, *(word.rstrip(".:,;") for word in found.message.split())}


# ------------------------------------------------------------ keys, and what no key is needed for


@pytest.mark.parametrize("role", [role for role in ROLES if role not in READERS])
def test_no_key_that_who_may_not_read_holds_opens_a_block(crew: Crew, role: str) -> None:
    """Each on each: but the lists of where content lies, which all hold the key of, nothing opens."""
    unlocked = crew.open(role)._unlocked
    keyring = unlocked.keyring
    assert not keyring.readers
    held = [key.key for key in (*keyring.catalogue, *keyring.naming)] + [keyring.block_names, keyring.signing or b""]
    index = Index(unlocked, chunks=False)
    index.load()
    table, opened = index.blocks, set()
    for number, block_id in enumerate(table.ids):
        name = ids.pack_name(table.packs[table.pack[number]])
        sealed = unlocked.storage.get_range(name, table.offset[number], table.length[number])
        wrapped = table.keys[table.key[number]]
        context = wire.block_context(unlocked.repository, Kind(table.kind[number]), wrapped.key_id, block_id)
        for key in held:
            with contextlib.suppress(NotAuthentic):
                SealingKey(key).open(sealed, context)
                opened.add(table.kind[number])
        for wrap in wrapped.wraps:
            info = wire.wrap_info(unlocked.repository, wrapped.key_id)
            with pytest.raises(NotAuthentic):
                unlocked.opener.private.open(wrap.sealed, info)
    assert opened == {Kind.RECIPE_BLOCK} and {Kind.DATA_BLOCK, Kind.MANIFEST_BLOCK} <= set(table.kind)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("packs", "pack-missing"),
        ("index", "index-missing"),
        ("snapshots", "history-forked"),
        ("marks", "history-forked"),
    ],
)
def test_what_was_deleted_is_named(crew: Crew, what: str, code: str) -> None:
    """Whoever may delete in the storage needs no key for it: its permissions, or another copy, are what helps.

    Told by a machine that has seen the repository; of packs and their index by any.
    """
    ward, owner = crew.ward, crew.owner()
    gone, whole = ward.names(what)[-1], ward.whole(owner)
    ward.lose(gone)
    found = {found.code: found for found in owner.check(read_data=1.0).findings}
    assert code in found and (what == "index" or gone in found[code].subject)
    left = ward.whole(owner)
    assert left == whole if what in ("index", "marks") else left < whole
