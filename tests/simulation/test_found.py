"""What the simulation has found and is not mended yet: strict, so that whoever mends it takes the mark away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb

PASSPHRASE = pb.Passphrase("correct horse battery staple")
MakeRepo = Callable[[], pb.Repository]


@pytest.mark.xfail(strict=True, raises=IndexError, reason="what is left is a keyring that cannot name anything")
def test_the_first_keyring_is_damaged_after_a_rotation(tmp_path: Path, make_repo: MakeRepo) -> None:
    """It says so, or does what it can with the rest."""
    make_repo().rotate(reason="a test")
    (first,) = (tmp_path / "repository-0" / "keys").rglob("0")
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.chmod(0o600)
    first.write_bytes(data)
    try:
        with pb.Repository.open(tmp_path / "repository-0", PASSPHRASE, state_dir=tmp_path / "fresh") as repo:
            repo.check()
    except pb.Error:
        pass
