"""The table of targets on valid and spoilt inputs, without the fuzzer; then the fuzzer, where it is installed."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.format import samples as s
from tests.fuzz import run, seeds
from tests.fuzz.targets import TARGETS, Target

MEMORY_MAX = 16 << 20  # for one input; tracemalloc counts what Python and msgspec take
TIME_MAX_S = 5.0
REFUSED_SEEDS = {"features": 1, "repository": 1}  # one requires a feature that this version does not know

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason=f"{run.NOT_INSTALLED} Without it the table alone is tested."
)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_accepted(name: str) -> None:
    target = TARGETS[name]
    refused = [seed for seed in target.seeds if target(seed) is None]
    assert len(refused) == REFUSED_SEEDS.get(name, 0)
    assert all(len(seed) <= run.INPUT_MAX for seed in target.seeds)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=300)
@given(data=st.data())
def test_spoilt_inputs(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    seed = data.draw(st.sampled_from(target.seeds))
    target(data.draw(st.one_of(st.binary(max_size=400), s.spoilt(seed), _changed(target, seed))))


def _changed(target: Target, seed: bytes) -> st.SearchStrategy[bytes]:
    """As the fuzzer changes it: with its structure."""

    def change(number: int) -> bytes:
        rng = random.Random(number)
        return target.change(seed, rng, lambda raw: raw[rng.randint(0, 9) :] + rng.randbytes(rng.randint(0, 9)))

    return st.integers(0, 1 << 32).map(change)


@pytest.mark.parametrize("name", TARGETS)
def test_memory_and_time_are_bounded(name: str) -> None:
    """Lengths and numbers that claim much, at every place of every valid input."""
    target, began = TARGETS[name], time.monotonic()
    tracemalloc.start()
    try:
        for seed in target.seeds:
            for at in range(0, len(seed), max(1, len(seed) // 40)):
                for claim in (b"\xff" * 8, b"\xff\xff\xff\x7f", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
                    target(seed[:at] + claim + seed[at + len(claim) :])
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < TIME_MAX_S * len(target.seeds)


def test_every_sample_of_a_record_has_its_seed() -> None:
    assert {type(record) for record in s.TOP + s.PARTS} == set(seeds.SHAPES)
    assert len(seeds.SHAPES) < 256  # one byte chooses


@needs_atheris
@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds=2", f"--folder={tmp_path}"]
    done = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found" in done.stdout
    assert not list((tmp_path / "findings").iterdir())


@needs_atheris
@pytest.mark.slow
def test_another_error_stops_the_fuzzer(tmp_path: Path) -> None:
    """With a target that takes Damaged for a fault."""
    spoil = (
        "import sys; from tests.fuzz import run, targets; from pharmabackup.errors import Unsupported\n"
        "targets.REFUSED = (Unsupported,)\n"
        "run.fuzz('block', 20, run.Path(sys.argv[1]))"
    )
    (tmp_path / "block").mkdir()
    (tmp_path / "findings").mkdir()
    command = [sys.executable, "-c", spoil, str(tmp_path)]
    done = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Damaged: A stored block is not valid" in done.stdout + done.stderr
    assert [path.name.startswith("block-crash-") for path in (tmp_path / "findings").iterdir()] == [True]


def test_a_finding_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / "findings" / "block-crash-1").write_bytes(b"\xab\xcd")
        return subprocess.CompletedProcess(
            command, 77, "Traceback\n", "INFO: a line\nstat::number_of_executed_units: 7\n"
        )

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(subprocess, "run", stopped)
    assert run.main(["block", f"--folder={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert all(
        text in printed for text in ("FOUND", "Traceback", "block-crash-1:\nabcd", "1 of 1 targets", " 7 inputs")
    )
    assert "INFO" not in printed
    assert {path.read_bytes() for path in (tmp_path / "block").iterdir()} == set(seeds.BLOCKS)


def test_without_the_fuzzer_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run.main([]) == 2
    assert "atheris" in capsys.readouterr().err
