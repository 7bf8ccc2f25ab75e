"""Every kind of stored object, tampered with in every way: it is named, and nothing wrong comes back.

What `test_regions.py` is to disks, this is to people: they have the storage, or some of the keys.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.crypto.signatures import SigningKey
from pharmabackup.engine.grants import GRANTS
from pharmabackup.engine.roster import roster_message
from pharmabackup.format import keys, wire
from pharmabackup.format.wire import Kind
from tests.damage import shop as s
from tests.damage.shop import Objects, Shop

# What shows each kind; wrapped keys, blocks and lists of names lie in packs.
SHOWS: dict[Kind, tuple[str, ...]] = {
    Kind.DIRECTORY: ("pack",),
    Kind.NAMES: ("pack",),
    Kind.DATA_BLOCK: ("pack",),
    Kind.MANIFEST_BLOCK: ("pack",),
    Kind.RECIPE_BLOCK: ("pack",),
    Kind.WRAPPED_KEY: ("pack",),
    Kind.INDEX: ("index",),
    Kind.INTENT: ("intent",),
    Kind.FATE: ("fate", "abort"),
    Kind.CARRY: ("carry",),
    Kind.CONDEMN: ("condemn",),
    Kind.EXECUTE: ("execute",),
    Kind.DONE: ("done",),
    Kind.MARK: ("hold", "forget"),
    Kind.AUDIT: ("audit",),
    Kind.KEYRING: ("keyring",),
    Kind.ROSTER: ("roster",),
}
EXHIBITS = ["repository", *dict.fromkeys(shown for group in SHOWS.values() for shown in group)]
KINDS = {shown: kind for kind, group in SHOWS.items() if kind in GRANTS for shown in group}


@dataclass
class Told:
    """What came of it: everything that was said, and what came back."""

    texts: list[str] = field(default_factory=list)  # of errors and findings: all they say
    errors: list[str] = field(default_factory=list)
    listed: dict[str, tuple[bool, object]] = field(default_factory=dict)  # snapshots: forgotten, held
    restored: set[str] = field(default_factory=set)
    newest: str | None = None
    pruned: str = ""

    def names(self, *wanted: str) -> bool:
        """Whether anything that was said names one of these objects, by its whole name or its last part."""
        parts = {part for name in wanted for part in (name, name.rpartition("/")[2]) if part == name or len(part) > 9}
        told = [text for text in self.texts if not text.startswith("pack-unindexed info")]  # which is no complaint
        return any(part in text for text in told for part in parts)


def judge(shop: Shop, objects: Objects, tmp_path: Path) -> Told:
    """Open, check, list, restore all, prune and restore again: only this library's errors, and no wrong byte."""
    told = Told()
    try:
        with s.opened(shop, objects, tmp_path / "state") as repo:
            _do(told, lambda: [_hear(told, finding) for finding in repo.check(read_data=1.0).findings])
            told.restored = _restore_all(told, shop, repo, tmp_path / "before")
            _do(told, lambda: _newest(told, shop, repo, tmp_path / "newest"))
            packs = s.packs(repo)
            told.pruned = _do(told, lambda: repo.apply(repo.propose_prune()))
            if s.packs(repo) != packs:
                left = _restore_all(Told(), shop, repo, tmp_path / "after")
                assert told.restored <= left, "a prune let go what could be restored"
    except pb.Error as error:
        _fault(told, error)
    return told


def _do(told: Told, work: Callable[[], object]) -> str:
    try:
        work()
    except pb.Error as error:
        _fault(told, error)
        return f"{type(error).__name__} {error.kind}"
    return "done"


def _fault(told: Told, error: pb.Error) -> None:
    assert type(error) is not pb.Error
    assert error.kind and error.message.endswith(".") and error.remedy, traceback.format_exception(error)
    told.errors.append(f"{type(error).__name__} {error.kind}")
    told.texts.append(str(error))
    for finding in error.findings:
        _hear(told, finding)


def _hear(told: Told, finding: pb.Finding) -> None:
    assert finding.message and finding.remedy
    told.texts.append(f"{finding.code} {finding.severity} {finding.subject} {finding.message}")


def _restore_all(told: Told, shop: Shop, repo: pb.Repository, out: Path) -> set[str]:
    found: set[str] = set()
    listed: list[pb.Snapshot] = []
    _do(told, lambda: listed.extend(repo.snapshots()))
    for snapshot in listed:
        told.listed[snapshot.id] = snapshot.forgotten, snapshot.held
        if snapshot.forgotten:
            continue  # it may be gone
        place = out / snapshot.id
        if _do(told, partial(repo.restore, place, snapshots=[snapshot])) == "done":
            found.add(snapshot.id)
        _compare(shop, snapshot, place / "documents", whole=snapshot.id in found)
    return found


def _newest(told: Told, shop: Shop, repo: pb.Repository, out: Path) -> None:
    report = repo.restore(out)
    for finding in report.findings:
        _hear(told, finding)
    snapshot = report.datasets["documents"].snapshot
    assert snapshot is not None
    told.newest = snapshot.id
    _compare(shop, snapshot, out / "documents", whole=True)


def _compare(shop: Shop, snapshot: pb.Snapshot, place: Path, *, whole: bool) -> None:
    have = {path.name: path.read_bytes() for path in place.iterdir()} if place.is_dir() else {}
    want = shop.files[snapshot.id]
    have = {name: data for name, data in have.items() if not name.endswith(".salvaged")}
    assert all(want[name] == data for name, data in have.items()), "a wrong byte came back"
    assert not whole or have == want


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Shop]]:
    """One, and another repository of the same shape under the same passphrases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pharmabackup.crypto.passphrases.MEMORY_KIB", 64)
        patch.setattr("pharmabackup.crypto.passphrases.ITERATIONS", 1)
        base = tmp_path_factory.mktemp("shops")
        yield s.build(base / "one", 1), s.build(base / "other", 2)


@pytest.fixture(scope="module")
def sound(shops: tuple[Shop, Shop], tmp_path_factory: pytest.TempPathFactory) -> Told:
    return judge(shops[0], shops[0].objects, tmp_path_factory.mktemp("sound"))


def test_nothing_is_said_of_a_sound_repository(shops: tuple[Shop, Shop], sound: Told) -> None:
    assert (sound.texts, sound.errors, sound.pruned) == ([], [], "done")
    kept = [name for name, (forgotten, _) in sound.listed.items() if not forgotten]
    assert (len(sound.listed), len(kept), sound.restored) == (8, 6, set(kept) | sound.restored)
    assert sound.newest == kept[0]


def test_every_kind_is_shown(shops: tuple[Shop, Shop]) -> None:
    assert set(SHOWS) == set(Kind)
    assert shops[0].exhibits.keys() == set(EXHIBITS)
    assert KINDS.keys() == set(EXHIBITS) - {"repository", "roster", "keyring"}
    folders = {name.partition("/")[0] for name in shops[0].objects}
    assert folders == {name.partition("/")[0] for name in shops[0].exhibits.values()}


Way = Callable[[Shop, Shop, str], Objects]  # what there is instead of what there was


def _with(change: Callable[[bytes], bytes]) -> Way:
    def way(shop: Shop, other: Shop, exhibit: str) -> Objects:
        name = shop.exhibits[exhibit]
        return {name: change(shop.objects[name])}

    return way


def _flip(at: int | float) -> Way:
    def change(data: bytes) -> bytes:
        place = int(len(data) * at) if isinstance(at, float) else at % len(data)
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return _with(change)


def _like(shop: Shop, exhibit: str) -> str:
    """The newest other object of its kind; of its own slot, or of collections its own part."""
    name = shop.exhibits[exhibit]
    folder, _, last = name.rpartition("/")
    start = f"{folder}/" if exhibit in ("keyring", "audit") else f"{name.partition('/')[0]}/"
    end = last if name.startswith("collections/") else ""
    return [
        other
        for other, data in shop.objects.items()
        if other.startswith(start) and other.endswith(end) and other != name
        if exhibit == "pack" or data[5] == shop.objects[name][5]
    ][-1]


def _of_the_same_kind(shop: Shop, other: Shop, exhibit: str) -> Objects:
    return {shop.exhibits[exhibit]: shop.objects[_like(shop, exhibit)]}


def _of_another_kind(shop: Shop, other: Shop, exhibit: str) -> Objects:
    place = (EXHIBITS.index(exhibit) + 1) % len(EXHIBITS)
    return {shop.exhibits[exhibit]: shop.objects[shop.exhibits[EXHIBITS[place]]]}


def _of_another_repository(shop: Shop, other: Shop, exhibit: str) -> Objects:
    return {shop.exhibits[exhibit]: other.objects[other.exhibits[exhibit]]}


def _from_another_repository(shop: Shop, other: Shop, exhibit: str) -> Objects:
    """Beside what there is, under the name that it had there."""
    return {other.exhibits[exhibit]: other.objects[other.exhibits[exhibit]]}


def _twice(shop: Shop, other: Shop, exhibit: str) -> Objects:
    """Under another name that is valid, too."""
    name = shop.exhibits[exhibit]
    folder, _, last = name.rpartition("/")
    again = {
        "packs": f"packs/00/00{'1' * 62}",
        "index": f"index/{'1' * 64}",
        "intents": f"intents/{'1' * 32}.0",
        "snapshots": f"snapshots/{'1' * 32}",
        "marks": f"marks/{'1' * 32}",
        "collections": f"collections/3/{last}",
    }.get(name.partition("/")[0])
    return {again or f"{folder}/{int(last) + 1}": shop.objects[name]}


WAYS: dict[str, Way] = {
    "first byte": _flip(0),
    "version": _with(lambda data: data[:4] + b"\0" + data[5:]),
    "kind": _flip(5),
    "key id": _flip(9),
    "nonce, or salt": _flip(41),
    "a third": _flip(0.33),
    "two thirds": _flip(0.67),
    "last byte": _flip(-1),
    "half": _with(lambda data: data[: len(data) // 2]),
    "without the last byte": _with(lambda data: data[:-1]),
    "longer": _with(lambda data: data + b"x"),
    "empty": _with(lambda data: b""),
    "of the same kind": _of_the_same_kind,
    "of another kind": _of_another_kind,
    "of another repository": _of_another_repository,
    "from another repository": _from_another_repository,
    "twice": _twice,
}


# What nobody says anything of, since it is nothing; why.
NOTHING: dict[tuple[str, str], str] = {
    ("repository", "without the last byte"): "the end of its last line",
}
ONE = ("of the same kind", "twice", "from another repository")  # there is one `repository`
CASES = [(exhibit, way) for exhibit in EXHIBITS for way in WAYS if exhibit != "repository" or way not in ONE]


@pytest.mark.parametrize(("exhibit", "way"), CASES)
def test_by_whoever_has_the_storage(
    shops: tuple[Shop, Shop], sound: Told, tmp_path: Path, cheap_kdf: None, exhibit: str, way: str
) -> None:
    shop, other = shops
    new = WAYS[way](shop, other, exhibit)
    told = judge(shop, shop.objects | new, tmp_path)
    if (exhibit, way) in NOTHING:
        assert told == sound
    else:
        assert told.names(*new), told.texts


# ------------------------------------------------------------ by whoever has keys

MAY: dict[str, tuple[str, ...]] = {  # docs/format.md, §5.1
    "pack": ("device", "maintainer", "owner"),
    "index": ("device", "maintainer", "owner"),
    "intent": ("device", "maintainer", "owner"),
    "fate": ("device", "owner"),
    "abort": ("maintainer", "owner"),
    "carry": ("maintainer", "owner"),
    "condemn": ("maintainer", "owner"),
    "execute": ("maintainer", "owner"),
    "done": ("maintainer", "owner"),
    "hold": ("device", "restorer", "maintainer", "owner"),
    "forget": ("maintainer", "owner"),
    "audit": ("owner",),  # in its own slot's folder
}


def _put(shop: Shop, exhibit: str, stored: bytes) -> tuple[Objects, str]:
    """What there is with this instead of the exhibit, and its name. A new pack is all that says what is in it."""
    objects, name = dict(shop.objects), shop.exhibits[exhibit]
    if exhibit in ("pack", "index"):
        del objects[name]
        if exhibit == "pack":
            del objects[shop.exhibits["index"]]
            stored = replace(s.parts_of(shop, name), directory=stored).joined()
            name = s.pack_name(stored)
        else:
            name = ids.index_name(hashlib.sha256(stored).digest())
    return objects | {name: stored}, name


WHO: dict[str, dict[str, Any]] = {
    **{role: {"by": role} for role in s.ROLES},
    "with another key": {"by": "nobody"},
    "by a slot that there is not": {"by": "unknown"},
    "citing a roster that there is not": {"by": "owner", "cite": 99},
    "citing another roster than there is": {"by": "owner", "told": bytes(32)},
    "for another name": {"by": "owner", "name": "marks/00"},
    "revoked": {"by": "revoked"},
    "revoked, citing the roster before that": {"by": "revoked", "cite": -2},
}
READ_ALL_THE_SAME = ("pack", "index")  # of a revoked slot: §7.2
DECIDES = ("abort",)  # whatever it cites: §7.2
ACCEPTED = ("fate", "audit", "forget")  # only what an owner saw before: §7.2


def _counts(exhibit: str, who: str) -> bool:
    if who.startswith("revoked"):
        return exhibit in READ_ALL_THE_SAME + DECIDES or (who != "revoked" and exhibit not in ACCEPTED)
    return who in MAY[exhibit] or (who == "for another name" and exhibit in READ_ALL_THE_SAME)  # it has none


def _who_cases() -> list[Any]:
    cases = [(exhibit, who) for exhibit in MAY for who in WHO]
    cases.remove(("condemn", "revoked, citing the roster before that"))  # here its forgets count in the future only
    return [pytest.param(exhibit, who, id=f"{exhibit}, {who}") for exhibit, who in cases]


@pytest.mark.parametrize(("exhibit", "who"), _who_cases())
def test_by_whoever_has_keys(
    shops: tuple[Shop, Shop], sound: Told, tmp_path: Path, cheap_kdf: None, exhibit: str, who: str
) -> None:
    """The same content, signed by somebody else. Who may is believed: so the others are refused for what they are."""
    shop, how = shops[0], dict(WHO[who])
    by = shop.signers[how.pop("by")]
    name = how.pop("name", shop.exhibits[exhibit])
    stored = shop.forge(KINDS[exhibit], shop.contents[exhibit], by=by, name=name, **how)
    objects, placed = _put(shop, exhibit, stored)
    told = judge(shop, objects, tmp_path)
    if _counts(exhibit, who):
        assert (told.listed, told.restored, told.pruned) == (sound.listed, sound.restored, "done"), told.texts
        assert {text.split()[0] for text in told.texts} <= {"pack-unindexed", "index-missing", "several-devices"}
    else:
        assert told.names(placed), told.texts


# ------------------------------------------------------------ rosters, and what lies in packs


def _roster(shop: Shop, by: s.Signer, change: Callable[[keys.Roster], keys.Roster] = lambda old: old) -> Objects:
    """One more roster, of somebody's making."""
    number = len(shop.rosters)
    last = wire.decode(shop.objects[f"roster/{number - 1}"][8:], keys.SignedRoster)
    before = wire.decode(last.content, keys.Roster)
    roster = change(structs.replace(before, number=number, previous=shop.rosters[-1]))
    content = wire.encode(roster)
    message = roster_message(shop.repository, number, by.slot, shop.rosters[-1], content)
    signed = keys.SignedRoster(content, by.slot, SigningKey(by.seed).sign(message))
    return {f"roster/{number}": wire.header(Kind.ROSTER) + wire.encode(signed)}


def _older(shop: Shop) -> Objects:
    """The one before, again."""
    return {f"roster/{len(shop.rosters)}": shop.objects[f"roster/{len(shop.rosters) - 1}"]}


def _granted(old: keys.Roster) -> keys.Roster:
    """The auditor becomes an owner."""
    slots = tuple(structs.replace(one, role="owner") if one.role == "auditor" else one for one in old.slots)
    return structs.replace(old, slots=slots)


def _unrevoked(old: keys.Roster) -> keys.Roster:
    return structs.replace(old, slots=tuple(structs.replace(one, revoked=None) for one in old.slots))


ROSTERS: dict[str, Callable[[Shop], Objects]] = {
    **{who: lambda shop, who=who: _roster(shop, shop.signers[who]) for who in (*s.ROLES[:4], "revoked", "nobody")},
    "unknown": lambda shop: _roster(shop, shop.signers["unknown"]),
    "the one before, again": _older,
    "a slot with another role": lambda shop: _roster(shop, shop.signers["owner"], _granted),
    "a slot that is not revoked any more": lambda shop: _roster(shop, shop.signers["owner"], _unrevoked),
    "a gap": lambda shop: {f"roster/{len(shop.rosters) + 1}": shop.objects["roster/1"]},
    "owner": lambda shop: _roster(shop, shop.signers["owner"]),
}


@pytest.mark.parametrize("case", ROSTERS)
def test_rosters(shops: tuple[Shop, Shop], sound: Told, tmp_path: Path, cheap_kdf: None, case: str) -> None:
    shop = shops[0]
    new = ROSTERS[case](shop)
    told = judge(shop, shop.objects | new, tmp_path)
    if case == "owner":
        assert told == sound
    else:
        assert told.names(*new, *["roster/"] * (case == "a gap"))
        assert (told.errors[0].split()[0], told.restored) == ("Damaged", set())


def _inside(mine: s.Parts, theirs: s.Parts) -> dict[str, s.Parts]:
    """A pack with something of another one in it."""
    own, other = (
        next(block for block in parts.record.blocks if block.kind == Kind.DATA_BLOCK) for parts in (mine, theirs)
    )
    assert own.length == other.length  # both hold one file of 3,000 random bytes
    block = theirs.region[other.offset : other.offset + other.length]
    return {
        "a block": replace(mine, region=mine.region[: own.offset] + block + mine.region[own.offset + own.length :]),
        "all blocks": replace(mine, region=theirs.region),
        "names": replace(mine, names=theirs.names),
        "directory": replace(mine, directory=theirs.directory),
        "no directory": replace(mine, directory=b""),
        "filler": replace(mine, filler=bytes(len(mine.filler))),  # which means nothing
    }


@pytest.mark.parametrize("renamed", [False, True], ids=["under the old name", "under its own"])
@pytest.mark.parametrize("what", ["a block", "all blocks", "names", "directory", "no directory", "filler"])
def test_inside_packs(
    shops: tuple[Shop, Shop], sound: Told, tmp_path: Path, cheap_kdf: None, what: str, renamed: bool
) -> None:
    """Under its own name, its bytes have the hash that they have to have; and no segment says that it was another."""
    shop = shops[0]
    name = shop.exhibits["pack"]
    changed = _inside(s.parts_of(shop, name), s.parts_of(shop, _like(shop, "pack")))[what].joined()
    objects = dict(shop.objects)
    if renamed:
        for gone in ("pack", "index"):
            del objects[shop.exhibits[gone]]
        name = s.pack_name(changed)
    told = judge(shop, objects | {name: changed}, tmp_path)
    if renamed and what == "filler":
        assert (told.listed, told.restored, told.errors) == (sound.listed, sound.restored, [])
        assert {text.split()[0] for text in told.texts} == {"pack-unindexed", "index-missing"}
    else:
        assert any(text.startswith("pack-damaged critical") for text in told.texts)
        assert told.names(name)
        assert (told.restored == sound.restored) == (what in ("names", "filler") or (what, renamed) in KEPT)


KEPT = {("directory", False), ("no directory", False)}  # the segment has the signed directory too
