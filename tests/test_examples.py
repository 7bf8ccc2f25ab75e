"""Every example runs as it stands, and the demo tells the truth."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
TIMEOUT_S = 300


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PHARMABACKUP_PASSPHRASE": "four random words here"},
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pharmabackup.testing import pharmacy

    folder = tmp_path_factory.mktemp("examples") / "shop"
    pharmacy.make(folder, profile="XS", seed=3)
    return folder


def test_every_example_is_here_in_turn(shop: Path) -> None:
    assert sorted(path.name for path in EXAMPLES.glob("[01]*.py")) == [
        "01_backup.py",
        "02_restore.py",
        "03_look_inside.py",
        "04_check.py",
        "05_freeze.py",
        "06_keep.py",
        "07_repair.py",
        "08_copy.py",
        "09_keys.py",
        "10_roles.py",
        "11_audit.py",
        "12_recovery.py",
        "13_several_places.py",
        "14_any_program.py",
        "15_to_the_minute.py",
        "16_discover.py",
    ]
    for name, said in (
        ("01_backup.py", "pmr is safe"),
        ("01_backup.py", "0 bytes added"),
        ("02_restore.py", "start dispensing"),
        ("03_look_inside.py", "'id': 11"),
        ("04_check.py", "OK "),
        ("05_freeze.py", "The queue was paused"),
        ("06_keep.py", "can be called back until"),
        ("07_repair.py", "After that: ok"),
        ("08_copy.py", "check: ok"),
        ("08_copy.py", "sent 0 bytes"),
        ("13_several_places.py", "0 only here (0 bytes)"),
        ("14_any_program.py", "journal has 1,000 sales again"),
        ("15_to_the_minute.py", "It was safe"),
        ("16_discover.py", "pmr.db (sqlite) is backed up by pmr."),
        ("16_discover.py", "documents (folder) is backed up by nobody."),
        ("09_keys.py", "Jaya Patel: owner"),
        ("10_roles.py", "The till: This credential was revoked (stolen)"),
        ("11_audit.py", "(Sam Okafor)  restore  done: the monthly trial"),
        ("11_audit.py", "The log is whole."),
        ("12_recovery.py", "Share 3 is as it was printed"),
        ("12_recovery.py", "drill of the recovery key: ok, shares 1, 3"),
    ):
        done = run(name, shop)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        assert said in done.stdout, f"{name}: {done.stdout}"
    for path in (shop / "documents").rglob("*"):
        restored = shop.with_name("shop-restored") / "documents" / path.relative_to(shop / "documents")
        assert path.is_dir() or restored.read_bytes() == path.read_bytes()
    looked = shop.with_name("shop-looked")
    assert (looked / "patient.csv").read_text("utf-8").startswith("id,")
    assert len(list(looked.iterdir())) == 2


def test_examples_say_what_to_do_when_it_cannot_be(tmp_path: Path) -> None:
    for name, code in (("02_restore.py", 1), ("03_look_inside.py", 1), ("04_check.py", 3), ("07_repair.py", 1)):
        done = run(name, tmp_path / "nothing")
        assert done.returncode == code and "Traceback" not in done.stderr, name


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for _ in range(2):  # the second one empties what the first one left
        done = run("demo.py", "--folder", folder, "--profile", "XS")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ALL IS WELL" in done.stdout and "The repository grew by" in done.stdout


def test_the_demo_deletes_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    done = run("demo.py", "--folder", tmp_path, "--profile", "XS")
    assert done.returncode != 0 and (tmp_path / "mine").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_demo_sees_what_differs(shop: Path, tmp_path: Path) -> None:
    import importlib.util
    import shutil

    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)

    restored = tmp_path / "restored"
    for name in demo.FOLDERS:
        shutil.copytree(shop / name, restored / name)
    (restored / "pmr").mkdir()
    shutil.copyfile(shop / "pmr.db", restored / "pmr" / "pmr.db")
    assert demo.compared(shop, restored) == []

    changed = next(path for path in sorted((restored / "documents").rglob("*")) if path.is_file())
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    (restored / "logs" / "extra").touch()
    assert {text.split()[-1] for text in demo.compared(shop, restored)} >= {"differs.", "there."}

    with demo.closing(demo.sqlite3.connect(restored / "pmr" / "pmr.db")) as database:
        database.execute("DELETE FROM patient WHERE id = 5")
        database.commit()
    assert any("table patient" in text for text in demo.compared(shop, restored))
