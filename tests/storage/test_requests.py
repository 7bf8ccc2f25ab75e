"""What is asked of real servers, request by request: they cost time, and most cost money."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from zlib import crc32

import botocore.httpsession
import pytest

import pharmabackup as pb
from pharmabackup.storage import connect
from pharmabackup.storage.pace import Pace
from tests.servers import azure, gcs, s3

WHO = pb.Passphrase("correct horse battery staple")
SERVERS = {"seaweedfs": s3, "moto": s3, "azurite": azure, "fake_gcs": gcs}


def _place(request: pytest.FixtureRequest, server: str) -> tuple[str, dict[str, object]]:
    options = request.getfixturevalue(server).options
    if SERVERS[server] is s3:
        return f"s3://{s3.BUCKET}/{secrets.token_hex(8)}", options
    return SERVERS[server].fresh(), options


@pytest.mark.parametrize("server", sorted(SERVERS.keys() - {"moto"}))  # which does not say
def test_the_answer_to_a_put_proves_what_is_stored(request: pytest.FixtureRequest, server: str) -> None:
    url, options = _place(request, server)
    storage, data = connect(url, storage_options=options, create=True), os.urandom(300_000)
    info = storage.put_new("packs/a", data)
    assert info.checksum == crc32(data)
    assert storage.checksum("packs/a") == (300_000, crc32(data))
    storage.close()


def test_an_answer_with_another_checksum_proves_nothing(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one without: then storage is asked for it (`moto`)."""
    monkeypatch.setattr("pharmabackup.storage.s3._crc32", lambda answer: 1)
    for server in ("seaweedfs", "moto"):
        url, options = _place(request, server)
        storage = connect(url, storage_options=options, create=True)
        assert storage.put_new("packs/a", b"x").checksum is None
        storage.close()


@pytest.mark.parametrize("server", SERVERS)
def test_an_upload_limit_counts_what_is_sent_once(
    request: pytest.FixtureRequest, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is read for a signature or a checksum."""
    taken = list[int]()
    monkeypatch.setattr(Pace, "take", lambda self, size: taken.append(size) or size)
    url, options = _place(request, server)
    storage = connect(url, storage_options=options, create=True)
    storage.pace = Pace(1000)
    storage.put_new("packs/a", b"x" * 3_000_000)
    assert sum(taken) == 3_000_000
    assert storage.get("packs/a", limit=1 << 22) == b"x" * 3_000_000
    storage.close()


def test_a_backup_in_which_nothing_changed_takes_ten_requests(
    request: pytest.FixtureRequest, tmp_path: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two datasets, in a repository that is open, on SeaweedFS, which proves what it stored (docs/design/012)."""
    asked, real = list[str](), botocore.httpsession.URLLib3Session.send

    def send(self: object, prepared: object) -> object:
        asked.append(f"{prepared.method} {prepared.url.partition('?')[2][:40]}")  # type: ignore[attr-defined]
        return real(self, prepared)

    sources = []
    for name in ("pmr", "scans"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}").write_bytes(os.urandom(20_000))
        sources.append(pb.Files(tmp_path / name))
    url, options = _place(request, "seaweedfs")
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=tmp_path / "state") as repo:
        repo.backup(sources)
        repo.backup(sources)
        monkeypatch.setattr(botocore.httpsession.URLLib3Session, "send", send)
        report = repo.backup(sources)
        assert sum(result.added for result in report.datasets.values()) == 0
    assert len(asked) <= 10, asked
