"""Credentials of every role, each on a machine of its own."""

from __future__ import annotations

from pathlib import Path

import pharmabackup as pb
from pharmabackup.format.keys import Role


class Staff:
    """A repository, and a key file for each role, enrolled by its public half."""

    def __init__(self, repo: pb.Repository, folder: Path) -> None:
        self.repo = repo
        self.folder = folder
        self.keys: dict[str, pb.KeyFile] = {}
        self._opened: list[pb.Repository] = []

    def enrol(self, role: Role, name: str, *, domain: str | None = None) -> pb.Repository:
        key = self.keys[name] = pb.KeyFile.create(self.folder / f"{name}.key")
        self.repo.enrol(role, pb.Recipient(str(key.recipient)), name=name, domain=domain)
        return self.open(name)

    def open(self, name: str, *, key: pb.Credential | None = None, state_dir: Path | None = None) -> pb.Repository:
        """On a machine of its own."""
        state = state_dir or self.folder / f"state of {name}"
        opened = pb.Repository.open(self.repo.url, key or self.keys[name], state_dir=state)
        self._opened.append(opened)
        return opened

    def close(self) -> None:
        for opened in self._opened:
            opened.close()
