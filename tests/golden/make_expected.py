"""Writes damaged/expected.json anew from what check says today: read the difference before you commit it."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.segments import read_segment
from pharmabackup.format.transaction import Intent
from pharmabackup.format.wire import Kind
from tests.golden import test_golden as golden

HERE = Path(__file__).parent


def objects(root: Path) -> dict[str, Any]:
    """The pack of the first day's documents, where its names begin, and the index segment that names it."""
    with pb.Repository.open(root, golden.PASSPHRASE) as repo:
        unlocked = repo._unlocked
        transaction = bytes.fromhex(golden.SNAPSHOTS["documents first day"])
        intent = unlocked.get(Kind.INTENT, ids.intent_name(transaction, 0), Intent).record
        for info in unlocked.storage.list("index"):
            digest = ids.hex_tail(info.name) or b""
            for entry in read_segment(unlocked, digest).record.packs:
                if entry.pack in intent.packs:
                    directory = read_directory(unlocked, entry.pack, entry.size)[1]
                    return {"pack": entry.pack.hex(), "names": directory.region_size, "index": digest.hex()}
    raise AssertionError("no segment names the pack")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(HERE / "v1.tar.gz") as archive:
            archive.extractall(Path(folder) / "v1", filter="data")
        (sound,) = (
            (Path(folder) / "v1").iterdir()
            if not (Path(folder) / "v1" / "repository").exists()
            else (Path(folder) / "v1",)
        )
        with mock.patch.dict(os.environ, PHARMABACKUP_STATE=f"{folder}/state"):
            named = objects(sound)
        golden.PACK = golden._object("packs", named["pack"])
        golden.NAMES = named["names"]
        golden.INDEX = golden._object("index", named["index"])
        found = {}
        for edit, damage in golden.EDITS.items():
            copy = Path(folder) / "copy"
            shutil.copytree(sound, copy)
            damage(copy)
            with mock.patch.dict(os.environ, PHARMABACKUP_STATE=f"{folder}/state of {edit}"):  # each sees it anew
                found[edit] = golden.findings(copy)
            shutil.rmtree(copy)
    expected = {"objects": named, "findings": found}
    (HERE / "damaged" / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
