"""Keys and passphrases in the system's vault: a Secret Service of its own for each test, and real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SECRET

SERVICE = "gnome-keyring-daemon"
SESSION = "dbus-run-session"
UNLOCK = f"printf secret | {SERVICE} --unlock --components=secrets >/dev/null 2>&1; "
RUN = f"exec {sys.executable} -m pharmabackup"
pytestmark = pytest.mark.skipif(
    not (shutil.which(SERVICE) and shutil.which(SESSION)), reason=f"there is no {SERVICE}, or no {SESSION}"
)
Session = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def session(place: Any, tmp_path: Path) -> Session:
    """Commands that run one after the other in one session of a user who has a vault. The last one's output."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    environment = {**os.environ, **place.environment, "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    environment |= {
        "XDG_DATA_HOME": str(home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PHARMABACKUP_REPOSITORY": str(place.repository),
    }

    def run(*commands: str, vault: bool = True) -> subprocess.CompletedProcess[str]:
        script = (UNLOCK if vault else "") + "\n".join(
            command.replace("pharmabackup ", f"{RUN[5:]} ") for command in commands
        )
        argv = [SESSION, "--", "sh", "-c", script] if vault else ["sh", "-c", script]
        return subprocess.run(argv, env=environment, cwd=home, capture_output=True, text=True, timeout=120)

    return run


def test_a_key_that_is_made_there_opens_what_it_was_enrolled_for(session: Session, place: Any) -> None:
    done = session(
        "pharmabackup key new vault:pharmabackup/till-1 | tail -n +2 >key.pub",
        "pharmabackup enrol device till-1 --recipient key.pub >/dev/null",
        f"pharmabackup --credential vault:pharmabackup/till-1 backup --files shop={place.shop} >/dev/null 2>&1",
        "pharmabackup --credential vault:pharmabackup/till-1 snapshots",
        "pharmabackup key show vault:pharmabackup/till-1",
        "pharmabackup key show key.pub",
    )
    *listed, first, second = done.stdout.splitlines()
    assert "shop" in listed[-1] and first == second and len(first) == 19, done.stderr


def test_a_passphrase_that_was_typed_in_there(session: Session) -> None:
    typed = f"import keyring; keyring.set_password('pharmabackup', 'owner', '{SECRET}')"
    done = session(f'{sys.executable} -c "{typed}"', "pharmabackup --credential vault:pharmabackup/owner slots")
    assert done.returncode == 0 and "owner" in done.stdout, done.stderr
    done = session("pharmabackup key show vault:pharmabackup/owner")
    assert done.returncode == 64 and "is a passphrase" in done.stderr and SECRET not in done.stderr


def test_an_entry_is_not_made_twice_and_one_that_is_not_there_is_named(session: Session) -> None:
    made = "pharmabackup key new vault:pharmabackup/till-1"
    assert session(made).returncode == 0
    assert session(made).returncode == 73
    done = session("pharmabackup --credential vault:pharmabackup/other slots")
    assert done.returncode == 66 and "no entry 'other'" in done.stderr


def test_a_machine_without_a_vault(session: Session) -> None:
    done = session("pharmabackup key new vault:pharmabackup/till-1", vault=False)
    assert done.returncode == 69 and "no vault" in done.stderr and "key file" in done.stderr
