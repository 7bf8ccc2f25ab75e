"""What a restore makes when: empty files where they come, links at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.format.manifest import Entry
from pharmabackup.verbs.restore_content import ContentRestorer
from tests.sources.trees import posix, punched
from tests.trees import describe

pytestmark = posix


def test_only_links_and_further_names_are_kept_for_the_end(
    tmp_path: Path, make_repo: Callable[[], pb.Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory would grow with the number of empty files otherwise."""
    repo, root = make_repo(), tmp_path / "site"
    (root / "d/e").mkdir(parents=True)
    for number in range(100):
        (root / f"d/{number}").touch()
        (root / f"d/e/{number}").touch()
    (root / "d/content").write_text("content")
    os.link(root / "d/content", root / "d/second name")
    os.link(root / "d/0", root / "d/e/empty too")
    (root / "d/link").symlink_to("content")
    punched(root / "hole", 100_000)
    repo.backup([pb.Files(root)])
    kept: list[Entry] = []
    real = ContentRestorer._names

    def names(self: ContentRestorer, wanted: Callable[[bytes], bool] | None) -> list[Entry]:
        kept.extend(real(self, wanted))
        assert (tmp_path / "out/site/d/e/99").exists()
        return kept

    monkeypatch.setattr(ContentRestorer, "_names", names)
    repo.restore(tmp_path / "out")
    assert {entry.path for entry in kept} == {b"d/second name", b"d/e/empty too", b"d/link"}
    assert describe(tmp_path / "out/site") == describe(root)


def test_whose_dataset_it_is_when_several_devices_have_one_of_that_name(
    tmp_path: Path, make_repo: Callable[[], pb.Repository]
) -> None:
    repo, office = make_repo(), pb.Passphrase("another horse battery staple")
    repo.enrol("owner", office, name="office")
    for name, opened in (("till", repo), ("office", pb.Repository.open(repo.url, office))):
        (tmp_path / name / "documents").mkdir(parents=True)
        (tmp_path / name / "documents" / "whose").write_text(name)
        opened.backup([pb.Files(tmp_path / name / "documents")])
    found = repo.restore(tmp_path / "newest").findings
    assert [(item.code, item.severity) for item in found] == [("several-devices", "warning")]
    assert "owner backed up" in found[0].message
    assert (tmp_path / "newest" / "documents" / "whose").read_text() == "office"
    mine = next(snapshot for snapshot in repo.snapshots() if snapshot.device == "owner")
    assert repo.restore(tmp_path / "mine", snapshots=[mine]).findings == ()
    assert (tmp_path / "mine" / "documents" / "whose").read_text() == "till"
