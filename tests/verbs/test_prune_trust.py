"""Pruning: what segments, planted packs and pins say lets no genuine pack go, and keeps none for ever."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine import garbage, moving
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.segments import read_segment, read_segments, write_segment
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.format.index import PackEntry, Segment
from pharmabackup.format.keys import Role
from pharmabackup.format.pack import Directory
from pharmabackup.format.transaction import Intent
from pharmabackup.format.wire import Kind, encode
from tests.verbs.site import DAY_NS, Site, Time, double, forget_all_but, prune, stored
from tests.verbs.staff import Staff

PATIENCE_S = 30
MakeRepo = Callable[[], pb.Repository]


@pytest.mark.parametrize("foreign", [False, True], ids=["of its own domain", "of another"])
def test_what_others_say_of_a_pack_takes_no_ones_place(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    """A device's word that counts for nothing does not count either once a collector has published it."""
    unlocked, real = repo._unlocked, read_segments
    named = [
        entry
        for name in stored(unlocked.storage, "index")
        for entry in read_segment(unlocked, ids.hex_tail(name) or b"").record.packs
    ]
    planted = [[replace(entry, size=entry.size + 1 + number) for entry in named] for number in range(9)]
    told = {write_segment(unlocked, entries) for entries in planted}

    def foreigner(get: Callable[[], Statement[Segment]]) -> Statement[Segment]:
        found = get()
        slot = replace(found.slot, role="device", domain=ids.new_id())
        return dataclasses.replace(found, slot=slot)

    @contextmanager
    def read(unlocked: Unlocked, sizes: Mapping[bytes, int], **how: Any) -> Iterator[Any]:
        with real(unlocked, sizes, **how) as segments:
            yield (
                (digest, partial(foreigner, get) if foreign and digest in told else get) for digest, get in segments
            )

    for module in ("collection", "index"):
        monkeypatch.setattr(f"pharmabackup.engine.{module}.read_segments", read)
    forget_all_but(repo, 2, time)
    prune(repo)
    left = [read_segment(unlocked, ids.hex_tail(name) or b"") for name in stored(unlocked.storage, "index")]
    entries = {entry for segment in left for entry in segment.record.packs}
    kept = {entry for entry in named if ids.pack_name(entry.pack) in set(stored(unlocked.storage, "packs"))}
    assert kept and kept <= entries
    lies = {entry for entries in planted for entry in entries}
    assert bool(lies & entries) != foreign
    assert repo.check().state == "ok"
    snapshot = repo.snapshot("documents")
    repo.restore(tmp_path / "out", snapshots=[snapshot])


def test_a_lie_about_what_a_pack_holds_crashes_nothing(repo: pb.Repository, time: Time) -> None:
    """A device can sign that there is nothing in it."""
    unlocked = repo._unlocked
    signed = unlocked.sign(Kind.DIRECTORY, "packs/", Directory(unlocked.domain, bytes(32), 0, 0, (), ()))
    packs = [(ids.hex_tail(info.name) or b"", info.size) for info in unlocked.storage.list("packs")]
    write_segment(unlocked, [PackEntry(pack, size, encode(signed)) for pack, size in packs])
    forget_all_but(repo, 2, time)
    prune(repo)
    assert repo.check(read_data=1.0).state == "ok"


def test_packs_and_segments_stay_within_what_readers_take(
    repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of moved blocks each may be tiny and have a key of its own."""
    for name, most in (("BLOCKS_MAX", 2), ("KEYS_MAX", 1)):
        monkeypatch.setattr(f"pharmabackup.engine.packs.{name}", most)
    monkeypatch.setattr(moving, "SEGMENT_BYTES", 1)
    monkeypatch.setattr("pharmabackup.engine.emptying.UNUSED_SHARE", 0.0)
    forget_all_but(repo, 3, time)
    before = set(stored(repo._unlocked.storage, "packs"))
    prune(repo)
    new = [name for name in stored(repo._unlocked.storage, "packs") if name not in before]
    assert len(new) >= 2
    for name in new:
        size = repo._unlocked.storage.info(name).size
        directory = read_directory(repo._unlocked, ids.hex_tail(name) or b"", size)[1]
        assert len(directory.keys) == 1 and len(directory.blocks) <= 2
    assert len(stored(repo._unlocked.storage, "index")) >= len(new)
    site.all_restore(repo, tmp_path / "out")


@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "its segment is lost"])
def test_a_planted_pack_is_no_reason_to_let_a_genuine_one_go(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, indexed: bool
) -> None:
    """Anybody who may write can put a signed directory behind blocks that are not those."""
    storage = repo._unlocked.storage
    genuine = max(storage.list("packs"), key=lambda info: info.modified)
    if not indexed:
        newest = max(storage.list("index"), key=lambda info: info.modified)
        assert not any(storage.delete([newest.name]).values())
    data = bytearray(storage.get(genuine.name, limit=1 << 30))
    for number in range(256):
        data[number] ^= 1
        planted = ids.pack_name(hashlib.sha256(data).digest())
        storage.put_new(planted, bytes(data))
    time.ahead += 3 * DAY_NS
    prune(repo)
    assert genuine.name in stored(storage, "packs")
    snapshot = repo.snapshot("documents")
    repo.restore(tmp_path / "out", snapshots=[snapshot])
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == site.states[snapshot.id]


@pytest.mark.parametrize("older", [True, False], ids=["older", "younger"])
def test_a_segment_that_names_a_planted_pack_lets_no_genuine_one_go(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, older: bool
) -> None:
    """A device that was stolen can sign that others' blocks lie in a pack of its own, and cannot delete anything."""
    unlocked, storage = repo._unlocked, repo._unlocked.storage
    newest = max(storage.list("index"), key=lambda info: info.modified)
    genuine = read_segment(unlocked, ids.hex_tail(newest.name) or b"").record.packs
    planted = []
    for entry in genuine:
        for _ in range(64):
            data = os.urandom(entry.size)
            digest = hashlib.sha256(data).digest()
            storage.put_new(ids.pack_name(digest), data)
            planted.append(replace(entry, pack=digest))
            if older:
                os.utime(Path(storage.local_root() or "") / ids.pack_name(digest), (1, 1))
    write_segment(unlocked, planted)
    time.ahead += 3 * DAY_NS
    prune(repo)
    assert {ids.pack_name(entry.pack) for entry in genuine} <= set(stored(storage, "packs"))
    snapshot = repo.snapshot("documents")
    repo.restore(tmp_path / "out", snapshots=[snapshot])
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == site.states[snapshot.id]


def test_of_two_packs_the_whole_one_stays(tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time) -> None:
    repo = make_repo()
    site.change()
    site.back_up(repo)
    storage = repo._unlocked.storage
    (first,) = stored(storage, "packs")
    double(repo)
    (second,) = set(stored(storage, "packs")) - {first}
    path = Path(storage.local_root() or "") / first
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    os.utime(path, (1, 1))
    time.ahead += 3 * DAY_NS
    prune(repo)
    assert second in stored(storage, "packs")
    repo.restore(tmp_path / "out")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == site.states[repo.snapshot().id]


@pytest.mark.parametrize("role", ["device", "restorer", "auditor"])
def test_whoever_pins_everything_puts_off_a_prune_for_a_day_and_does_no_more(
    staff: Staff, site: Site, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    """Any role may hold what is there, of every domain: what is pinned stays until that is a day old, and no
    snapshot comes or comes back by it."""
    monkeypatch.setattr(garbage, "YOUNG_NS", 0)
    other = staff.enrol(role, "the other", domain="branch" if role == "device" else None)._unlocked
    owner = staff.repo
    for _ in range(3):
        site.change()
        site.back_up(owner)
    owner.configure(forget_delay=timedelta(0))
    owner.apply(owner.propose_forget({"*": pb.Keep(last=1)}))
    snapshots = {(it.id, it.forgotten) for it in owner.snapshots()}
    before = stored(other.storage, "packs")
    assert owner.propose_prune().bytes_freed > 0
    transaction, packs = ids.new_id(), b"".join(sorted(ids.hex_tail(name) or b"" for name in before))
    other.put(Kind.INTENT, ids.intent_name(transaction, 0), Intent(transaction, 0, "hold", packs, now_ns()))
    proposal = owner.propose_prune()
    assert proposal.bytes_freed == 0
    (told,) = [finding for finding in proposal.findings if finding.code == "prune-waits"]
    assert told.subject == "the other" and told.severity == "info" and "'the other'" in told.message
    time.ahead += DAY_NS - 3600 * 10**9
    prune(owner)
    assert stored(other.storage, "packs") == before
    time.ahead += 2 * 3600 * 10**9
    prune(owner)
    assert not set(stored(other.storage, "packs")) >= set(before)
    assert {(it.id, it.forgotten) for it in owner.snapshots()} == snapshots
    site.all_restore(owner, tmp_path / "out")
