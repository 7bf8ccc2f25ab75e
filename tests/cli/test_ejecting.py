"""eject, and volume:// URLs at the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.storage.mounts import image

Call = Callable[..., Any]


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a disk")
def test_a_disk_by_its_label_until_it_can_be_unplugged(place: Any, call: Call) -> None:
    url = "volume://PHARM-EJECT/backup"
    with image("ext4", 64 << 20, label="PHARM-EJECT") as where:
        assert call("-r", url, "init").code == 0
        assert call("-r", url, "backup", *place.sources()).code == 0
        with open(where / "open", "w"):
            busy = call("-r", url, "eject")
            assert busy.code == 75 and "Close what uses the disk and try again" in busy.err
        done = call("-r", url, "eject")
        assert (done.code, done.out) == (0, f"{url} can be unplugged now.\n")
        assert not os.path.ismount(where)
        gone = call("-r", url, "snapshots")
        assert gone.code == 66 and "Plug in the disk labelled PHARM-EJECT" in gone.err


def test_a_folder_is_no_disk_to_unplug(place: Any, call: Call) -> None:
    assert call("-r", "memory://x", "eject").code == 66
    with open(place.root / "open", "w"):
        refused = call("eject")
    assert refused.code in (69, 75)  # 75 where temporary files are on a disk of their own, which is in use


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")
def test_what_lies_in_memory_alone_is_not_let_go(place: Any, call: Call, tmp_path: Path) -> None:
    where = tmp_path / "memory"
    where.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "pharmabackup", str(where)], capture_output=True, check=False
    ).returncode:
        pytest.skip("this account mounts nothing")
    try:
        assert call("-r", str(where / "backup"), "init").code == 0
        refused = call("-r", str(where / "backup"), "eject")
        assert refused.code == 69 and "is on no disk that could be unplugged" in refused.err
        assert os.path.ismount(where) and os.listdir(where / "backup")
    finally:
        subprocess.run(["umount", str(where)], check=False)
