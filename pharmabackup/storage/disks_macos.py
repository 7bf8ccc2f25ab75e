"""Disks on macOS, by `diskutil`. Written from its manual page; never run."""

from __future__ import annotations

import os
import plistlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

assert sys.platform == "darwin"  # type checkers read on only there

VOLUMES = "/Volumes"


def labels() -> Iterator[tuple[str, str]]:
    for name in os.listdir(VOLUMES):
        place = os.path.join(VOLUMES, name)
        if label := _about(place).get("VolumeName"):
            yield str(label), place


def hardware(path: str) -> frozenset[str] | None:
    about = _about(path)
    stores = [_about(store["APFSPhysicalStore"]) for store in about.get("APFSPhysicalStores", [])]
    found = {str(whole) for item in stores or [about] if (whole := item.get("ParentWholeDisk"))}
    return frozenset(found) or None


attached = hardware  # an image file is a disk of its own here


def eject(place: str) -> str | None:
    done = subprocess.run(["diskutil", "eject", place], capture_output=True, text=True, errors="replace", check=False)
    return None if done.returncode == 0 else " ".join(done.stderr.split()).rstrip(".") or "diskutil refused"


def _about(what: str) -> dict[str, Any]:
    done = subprocess.run(["diskutil", "info", "-plist", what], capture_output=True, check=False)
    return plistlib.loads(done.stdout) if done.returncode == 0 else {}
