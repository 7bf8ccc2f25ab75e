"""What is given from elsewhere: a key that lies in a vault, and what opens a storage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import keyring
from keyring.backend import KeyringBackend

import pharmabackup as pb
from tests.canaries import search as c
from tests.servers.canned import answer, canned
from tests.servers.s3 import BUCKET, moto

if TYPE_CHECKING:
    from tests.canaries.deeds import Teller

SERVICE = "pharmabackup"


class _Vault(KeyringBackend):
    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.entries = {"owner": c.NEW_PASSPHRASE}

    def get_password(self, service: str, username: str) -> str | None:
        return self.entries.get(username)

    def set_password(self, service: str, username: str, password: str) -> None:
        self.entries[username] = password


def given(teller: Teller) -> None:
    """Vault and storage: what opens is used, and then refused."""
    vaulted(teller)
    stored(teller)


def vaulted(teller: Teller) -> None:
    vault = _Vault()
    keyring.set_keyring(vault)
    key, state = pb.Vault.create(SERVICE, "desk"), teller.state
    (teller.folder.parent / "vault").write_text(json.dumps(vault.entries))
    teller.show(key)
    with pb.Repository.open(teller.repository, pb.Vault(SERVICE, "owner"), state_dir=state) as repo:
        repo.enrol("device", key.recipient, name="desk")
    with pb.Repository.open(teller.repository, key, state_dir=state) as own:
        teller.show(own)
        teller.show(own.backup(teller.sources, reason=c.REASON, progress=teller.hear))
        teller.show(own._unlocked.opener)
    teller.fails(lambda: pb.Vault.create(SERVICE, "desk"), pb.Conflict)
    teller.fails(lambda: pb.Repository.open(teller.repository, pb.Vault(SERVICE, "none")), pb.NotFound)
    teller.fails(lambda: pb.Vault(SERVICE, "owner").recipient, pb.InvalidInput)
    vault.entries["desk"] = vault.entries["desk"][:-8]
    teller.fails(lambda: pb.Repository.open(teller.repository, key), pb.Error)


def stored(teller: Teller) -> None:
    """A server that takes any credentials, and one that takes none."""
    secrets, who, folder = dict(c.S3), pb.Passphrase(c.PASSPHRASE), teller.folder.parent / "moto"
    folder.mkdir()
    with moto(folder) as server:
        options = {"endpoint_url": server.url, "region": "us-east-1", **secrets}
        url = f"s3://{BUCKET}/canaries"
        with pb.Repository.create(url, who, storage_options=options, state_dir=teller.state) as repo:
            teller.show(repo)
            teller.show(repo.backup(teller.sources, progress=teller.hear))
            teller.show(repo._unlocked.storage)
        with pb.Repository.open(url, who, storage_options=options, state_dir=teller.state) as repo:
            teller.show(repo.check(progress=teller.hear))
        teller.fails(
            lambda: pb.Repository.open(url, who, storage_options={**options, "verify": c.S3["secret"]}), pb.Error
        )
    with canned(lambda _: answer(403)) as refusing:
        options["endpoint_url"] = refusing.url
        teller.fails(lambda: pb.Repository.open(url, who, storage_options=options), pb.Error)
        place, login = f"webdav://127.0.0.1:{refusing.port}/x", dict(c.WEBDAV)
        teller.fails(lambda: pb.Repository.open(place, who, storage_options=login), pb.Error)
        assert {request.headers.get("authorization", "")[:5] for request in refusing.requests} >= {"Basic", "AWS4-"}
