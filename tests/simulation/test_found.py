"""What the simulation has found and is not mended yet: strict, so that whoever mends it takes the mark away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine import enrolment
from pharmabackup.errors import StorageFailed

PASSPHRASE = pb.Passphrase("correct horse battery staple")
MakeRepo = Callable[[], pb.Repository]


@pytest.mark.xfail(strict=True, raises=IndexError, reason="the keyring of a rotation that died is taken for whole")
def test_a_keyring_is_damaged_after_a_rotation_that_died(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, or opens with what is left; it does not fail for a key that is not there."""
    repo, folder = make_repo(), tmp_path / "repository-0"
    (whole,) = (path for path in (folder / "keys").rglob("*") if path.is_file())

    def dies(*_: object) -> None:
        raise StorageFailed("The cable is out.", location="here")

    monkeypatch.setattr(enrolment, "change_roster", dies)
    with pytest.raises(StorageFailed):
        repo.rotate(reason="a test")
    monkeypatch.undo()
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 1
    whole.chmod(0o600)
    whole.write_bytes(data)
    try:
        with pb.Repository.open(folder, PASSPHRASE, state_dir=tmp_path / "fresh") as other:
            other.check()
    except pb.Error:
        pass
