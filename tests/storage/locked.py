"""A bucket with versions and locks, and what it holds."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime

import pharmabackup as pb
from pharmabackup.storage import connect
from tests.servers import s3

WHO = pb.Passphrase("correct horse battery staple")


def fresh() -> str:
    return f"s3://{s3.LOCKED}/{secrets.token_hex(8)}"


def key(storage, name: str) -> str:
    return f"{storage.location.removeprefix(f's3://{s3.LOCKED}/')}/{name}"


def versions(client, storage, name: str = "") -> list[dict]:
    answer = client.list_object_versions(Bucket=s3.LOCKED, Prefix=key(storage, name))
    return [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]


def of(storage, name: str = ""):
    """The versions of an object, or of all, as the adapter lists them."""
    return [version for version in storage.versions(name) if not name or version.name == name]


def wait(moment: datetime | None = None) -> datetime:
    """A moment between what came before and what comes after: the server counts in seconds."""
    time.sleep(1.1)
    moment = datetime.now(UTC)
    time.sleep(1.1)
    return moment


def restored(repo, tmp_path) -> bytes:
    target = tmp_path / secrets.token_hex(4)
    repo.restore(target)
    return (target / "data" / "a").read_bytes()


def hide(url: str, options) -> dict[str, bytes]:
    """Delete all, as its credentials may; what was there."""
    storage = connect(url, storage_options=options)
    there = {info.name: storage.get(info.name, limit=1 << 30) for info in storage.list("")}
    assert set(storage.delete(list(there)).values()) == {None}
    storage.close()
    return there
