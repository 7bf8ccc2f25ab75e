"""What is asked of a repository: that nothing is stored that nobody needs, and that a check names what is damaged."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.condemned import shunned_packs
from pharmabackup.engine.garbage import look_for_garbage
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.segments import read_segment
from pharmabackup.testing.faults import Injury
from pharmabackup.testing.simulated import SimulatedStorage


def no_garbage(repo: pb.Repository, gone: Collection[str], removed: set[bytes]) -> None:
    """Every block that is stored is needed, and is stored once; the index names what is there, nothing else.

    Where it lies only in packs that survived a collection, each stays: one may have been condemned for damage.

    `gone`: the snapshots that need nothing. `removed`: packs that were taken away on purpose.
    """
    unlocked = repo._unlocked
    history = load_history(unlocked, anew=True)
    index = Index(unlocked, chunks=False)
    index.load()
    reader = BlockReader(unlocked, index)
    needed = {
        block
        for item in history.committed.values()
        if item.transaction.hex() not in gone
        for block in SnapshotReader(reader, item.snapshot).relied()
    }
    packs = {ids.hex_tail(info.name) or b"": info.size for info in unlocked.storage.list("packs")}
    stored = defaultdict[bytes, list[bytes]](list)
    for pack, size in packs.items():
        for block in read_directory(unlocked, pack, size)[1].blocks:
            stored[block.id].append(pack)
    assert set(stored) == needed, f"{len(set(stored) - needed)} blocks of garbage"
    shunned = shunned_packs(unlocked)
    twice = [set(where) for where in stored.values() if len(where) > 1]
    assert all(where <= shunned for where in twice), "a block is stored twice"
    segments = [ids.hex_tail(info.name) or b"" for info in unlocked.storage.list("index")]
    named = [entry.pack for segment in segments for entry in read_segment(unlocked, segment).record.packs]
    # Two writers that found one orphan have both named it; and a pack that was removed on purpose is named until
    # something else is collected.
    assert set(packs) <= set(named)
    assert set(named) <= set(packs) | removed
    garbage = look_for_garbage(unlocked, now_ns(), lambda: None)
    garbage.index.close()
    index.close()
    assert (garbage.dead, garbage.sparse, garbage.unfinished) == (set(), {}, False)


def unindexed(repo: pb.Repository) -> set[str]:
    """Packs that are there and that no segment names."""
    storage = repo._unlocked.storage
    named: set[str] = set()
    for info in storage.list("index"):
        try:
            segment = read_segment(repo._unlocked, ids.hex_tail(info.name) or b"")
        except pb.Damaged:
            continue
        named.update(ids.pack_name(entry.pack) for entry in segment.record.packs)
    return {info.name for info in storage.list("packs")} - named


def finds(repo: pb.Repository, injury: Injury, removed: set[bytes], scars: set[str]) -> None:
    """A check names the object that was spoilt, and no other.

    `removed`: packs that segments may still name; `scars`: what was spoilt before and stays.
    """
    name, how = injury.name, injury.how
    folder = name.partition("/")[0]
    alone = unindexed(repo) if folder == "index" else set()
    findings = repo.check(read_data=1.0).findings
    others = {
        finding.subject
        for finding in findings
        if "/" in finding.subject and finding.subject != name and finding.severity != "info"
    } - {ids.pack_name(pack) for pack in removed}  # of which what was spoilt now was the other copy
    others -= scars
    assert not others, f"{name} was {how}, and these are named: {findings}"
    hurt = {finding.subject for finding in findings if finding.code == "snapshot-damaged"} - {name}
    assert not hurt or folder == "packs", f"{name} was {how}, and snapshots seem hurt: {findings}"
    if folder == "index" and how == "removed":
        assert alone <= {finding.subject for finding in findings if finding.code == "pack-unindexed"}, findings
    elif not hurts_nobody(repo._unlocked.storage, injury):
        assert [finding for finding in findings if finding.subject == name], (
            f"{name} was {how}, and nothing says so: {findings}"
        )


def hurts_nobody(storage: object, injury: Injury) -> bool:
    """An intent may go; a collection or a slot may have come just so far; `repository` has words and lines for us."""
    assert isinstance(storage, SimulatedStorage)
    folder, number = (*injury.name.split("/"), "")[:2]
    if folder == "collections" and injury.how == "removed":
        names = storage.names()
        rest = {other.rpartition("/")[2] for other in names if other.startswith(f"{folder}/{number}/")}
        highest = f"{folder}/{int(number) + 1}/condemn" not in names
        return highest and rest in (set(), {"condemn"}, {"condemn", "execute"})
    if folder == "audit" and injury.how == "removed":
        chain, _, last = injury.name.rpartition("/")
        return f"{chain}/{int(last) + 1}" not in storage.names()
    if folder == "repository" and injury.how != "removed":  # if it were no JSON any more, it had not been opened
        now, before = (json.loads(data) for data in (storage.get(injury.name, limit=1 << 16), injury.before))
        return {**now, "about": ""} == {**before, "about": ""}
    return (folder, injury.how) == ("intents", "removed")
