"""Names of packs that a collection deleted are burnt: whatever lies there again may go at any moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from tests.verbs.site import DAY_NS, PASSPHRASE, Site, Time, forget_all_but, prune, stored

MakeRepo = Callable[[], pb.Repository]


def _put_again(repo: pb.Repository, site: Site, time: Time) -> list[str]:
    """A collection deletes all packs, and somebody who slept puts them there again. The folder is what it was."""
    storage = repo._unlocked.storage
    packs, segments = stored(storage, "packs"), stored(storage, "index")
    kept = {name: storage.get(name, limit=1 << 28) for name in (*packs, *segments)}
    content = {path.name: path.read_bytes() for path in site.root.iterdir()}
    for path in site.root.iterdir():
        path.unlink()
    (site.root / "other").write_bytes(os.urandom(1000))
    site.back_up(repo)
    forget_all_but(repo, 1, time)
    prune(repo)
    gone = set(kept) - {*stored(storage, "packs"), *stored(storage, "index")}
    for name in sorted(gone):
        storage.put_new(name, kept[name])
    for path in site.root.iterdir():
        path.unlink()
    for name, data in content.items():
        (site.root / name).write_bytes(data)
    return sorted(gone & set(packs))


@pytest.mark.parametrize("days", [0, 2], ids=["at once", "when what the writer pinned counts no more"])
def test_nobody_relies_on_a_name_that_was_deleted(
    tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time, days: int
) -> None:
    """A delete that is on its way comes after a backup and a collection, which chooses places as the writer does."""
    repo = make_repo()
    site.change()
    site.back_up(repo)
    storage, burnt = repo._unlocked.storage, _put_again(repo, site, time)
    assert burnt
    with pb.Repository.open(tmp_path / "repository-0", PASSPHRASE, state_dir=tmp_path / "fresh") as other:
        site.back_up(other)
        time.ahead += days * DAY_NS
        prune(other)
        storage.delete(burnt)
        site.all_restore(other, tmp_path / "out")
