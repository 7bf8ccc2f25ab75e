"""Removable disks: found by label, told apart as hardware, let go before they are unplugged.

The disks are file systems of their own in files, attached as block devices and mounted.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.errors import InvalidInput, NotFound, StorageFailed, Unsupported
from pharmabackup.storage import connect, disks
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.memory import MemoryStorage
from tests.storage.mounts import image, tmpfs, unmount
from tests.verbs.site import PASSPHRASE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts disks")
MB = 1 << 20


@contextmanager
def disk(label: str, fs: str = "ext4") -> Iterator[Path]:
    with image(fs, 40 * MB, label=label) as where:
        yield where


@pytest.mark.parametrize(("fs", "label"), [("ext4", "PHARM-USB-A"), ("exfat", "Täglich 1"), ("ext4", "two words")])
def test_a_disk_is_found_by_its_label_wherever_it_is(fs: str, label: str) -> None:
    for _ in range(2):  # at another place the second time
        with disk(label, fs) as where:
            storage = connect(f"volume://{label}/backups/main", create=True)
            assert isinstance(storage, LocalStorage)
            assert storage.local_root() == str(where / "backups" / "main")
            storage.put_new("packs/a", b"here")
            assert connect(f"volume://{label.replace(' ', '%20')}/backups/main").get("packs/a", limit=10) == b"here"
            assert disks.mounted(label.upper()) == str(where)


def test_a_disk_that_is_not_there_is_asked_for() -> None:
    with disk("PHARM-USB-A"), pytest.raises(NotFound, match="Plug in the disk labelled PHARM-USB-B") as caught:
        connect("volume://PHARM-USB-B/backup")
    assert caught.value.kind == "volume"


def test_two_disks_of_one_label_are_not_guessed_between() -> None:
    with disk("PHARM-USB-A") as one, disk("PHARM-USB-A") as other:
        with pytest.raises(StorageFailed, match="Several connected disks") as caught:
            connect("volume://PHARM-USB-A/backup")
        assert str(one) in str(caught.value)
        assert str(other) in str(caught.value)


def test_a_folder_that_is_missing_is_made_only_for_a_new_repository() -> None:
    with disk("PHARM-USB-A") as where:
        with pytest.raises(StorageFailed):
            connect("volume://PHARM-USB-A/backup")
        assert not (where / "backup").exists()
        assert connect("volume://PHARM-USB-A", create=True).local_root() == str(where)


@pytest.mark.parametrize(
    "url", ["volume://", "volume:///backup", "volume://LABEL/../etc", "volume://LABEL/a/%2e%2e/b"]
)
def test_what_names_no_folder_of_a_disk(url: str) -> None:
    with pytest.raises(InvalidInput, match="volume://LABEL/folder"):
        connect(url)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder where the images are; `tmp_path` may be in memory."""
    with tempfile.TemporaryDirectory(prefix="pharmabackup-") as folder:
        yield Path(folder)


def test_an_image_is_on_the_disk_that_its_file_is_on(on_disk: Path) -> None:
    with disk("A") as one, disk("B", "exfat") as other:  # the kernel's driver, and FUSE's, which hides the device
        assert disks.hardware(str(one)) == disks.hardware(str(other)) == disks.hardware(str(on_disk)) != frozenset()
        assert disks.on_one_disk(str(one), str(other))
        assert os.stat(one).st_dev != os.stat(other).st_dev


def test_what_is_in_memory_is_on_no_disk(tmp_path: Path) -> None:
    with tmpfs("64m") as memory:
        assert disks.hardware(str(memory)) is None
        assert not disks.on_one_disk(str(memory), str(tmp_path))
        with image("ext4", 40 * MB, on=memory) as where:
            assert not disks.on_one_disk(str(where), str(tmp_path))


def test_partitions_and_arrays_are_the_disks_that_they_lie_on(tmp_path: Path) -> None:
    """On a tree as /sys has it (sysfs(5)): this machine cannot make arrays."""
    from pharmabackup.storage.disks_linux import _whole

    block = tmp_path / "devices" / "block"
    for name in ("sda/sda1", "sda/sda2", "sdb/sdb1"):
        (block / name).mkdir(parents=True)
        (block / name / "partition").write_text("1\n")
    for array, parts in {"md0": ["sda/sda1", "sdb/sdb1"], "dm-0": ["md0"]}.items():
        (block / array / "slaves").mkdir(parents=True)
        for part in parts:
            (block / array / "slaves" / Path(part).name).symlink_to(block / part)
    assert set(_whole(str(block / "sda/sda2"))) == {"sda"}
    assert set(_whole(str(block / "dm-0"))) == {"sda", "sdb"}


def test_a_backup_beside_the_data_is_told_also_from_another_partition(tmp_path: Path, on_disk: Path) -> None:
    site = on_disk / "site"
    site.mkdir()
    (site / "records").write_bytes(b"x")
    with disk("PHARM-USB-A") as same:
        assert _codes(f"{same}/repository", site, tmp_path / "s1") == {"same-device"}
    with tmpfs("64m") as memory, image("ext4", 40 * MB, on=memory) as other:
        assert _codes(f"{other}/repository", site, tmp_path / "s2") == set()


def _codes(url: str, site: Path, state: Path) -> set[str]:
    with pb.Repository.create(url, PASSPHRASE, state_dir=state) as repo:
        return {finding.code for finding in repo.backup([pb.Files(site)]).findings}


@pytest.mark.parametrize("fs", ["ext4", "exfat"])
def test_a_disk_is_let_go_with_all_that_was_written(tmp_path: Path, fs: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "records").write_bytes(b"of today")
    with disk("PHARM-USB-A", fs) as where:
        url, key, state = "volume://PHARM-USB-A/backup", PASSPHRASE, tmp_path / "state"
        repo = pb.Repository.create(url, key, state_dir=state)
        repo.backup([pb.Files(site)])
        repo.restore(tmp_path / "restored")
        repo.close(eject=True)
        assert not os.path.ismount(where)
        with pytest.raises(NotFound, match="No disk labelled PHARM-USB-A"):
            pb.Repository.open(url, key, state_dir=state)


def test_a_disk_that_is_in_use_is_not_let_go() -> None:
    with disk("PHARM-USB-A") as where:
        storage = connect("volume://PHARM-USB-A/backup", create=True)
        storage.put_new("packs/a", b"here")
        storage.close()
        with open(where / "report", "w"), pytest.raises(StorageFailed, match="Close what uses the disk") as caught:
            storage.eject()
        assert (caught.value.kind, caught.value.retryable) == ("in-use", True)
        assert storage.get("packs/a", limit=10) == b"here"
        storage.eject()
        assert not os.path.ismount(where)


@pytest.mark.parametrize("place", ["root", "memory"])
def test_what_cannot_be_unplugged_says_so(place: str) -> None:
    storage = LocalStorage("/") if place == "root" else MemoryStorage()
    with pytest.raises(Unsupported) as caught:
        storage.eject()
    assert caught.value.kind == "capability"


def test_a_disk_behind_a_link_is_let_go_and_not_what_the_link_lies_on() -> None:
    with tmpfs("64m") as home, disk("PHARM-USB-A") as where:
        (home / "usb").symlink_to(where)
        storage = LocalStorage.create(home / "usb" / "backup")
        storage.eject()
        assert not os.path.ismount(where)
        assert os.path.ismount(home)


def test_another_partition_of_the_disk_that_the_system_runs_from_is_not_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with disk("PHARM-USB-A") as where:
        storage = LocalStorage.create(where / "backup")
        monkeypatch.setattr(disks.system, "attached", lambda _: frozenset({"sda"}))
        with pytest.raises(Unsupported, match="on the disk that this computer runs from"):
            storage.eject()
        assert os.path.ismount(where)


def test_a_disk_that_is_gone_is_not_called_none() -> None:
    with disk("PHARM-USB-A") as where:
        storage = LocalStorage.create(where / "backup")
        unmount(where)
        with pytest.raises(StorageFailed) as caught:
            storage.eject()
        assert caught.value.kind == "unreachable"
