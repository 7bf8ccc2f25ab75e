"""eject, and volume:// URLs at the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
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
    refused = call("eject")
    assert refused.code in (69, 75)  # 75 where temporary files are on a disk of their own, which others use
