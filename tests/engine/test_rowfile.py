"""The on-disk map against a dict."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pharmabackup.engine.rowfile import FRESH_BITS, Fresh, Run, merge_runs, open_run, write_run

# Few prefixes and few fingerprints, so that rows meet in one bucket and look alike.
KEYS = st.builds(
    lambda prefix, mark, tail: bytes((prefix, 0, 0, 0, mark)) + tail * 27,
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([b"\0", b"\1", b"\2", b"\xff"]),
)


def _run(folder: Path, rows: dict[bytes, bytes]) -> Run:
    fresh = Fresh()
    for key, value in rows.items():
        fresh.put(key, value)
    return write_run(str(folder / os.urandom(8).hex()), fresh.buckets(), FRESH_BITS, len(fresh))


@given(st.dictionaries(KEYS, st.binary(min_size=8, max_size=8), max_size=60), KEYS)
@settings(max_examples=60, deadline=None)
def test_a_run_is_the_map_that_was_put(tmp_path_factory: object, rows: dict[bytes, bytes], other: bytes) -> None:
    folder = tmp_path_factory.mktemp("rows")  # type: ignore[attr-defined]
    run = _run(folder, rows)
    for key in (*rows, other):
        assert run.get(key) == rows.get(key)
    run.close()


@given(st.lists(st.tuples(KEYS, st.binary(min_size=8, max_size=8)), max_size=60), KEYS)
@settings(max_examples=60, deadline=None)
def test_fresh_gives_the_newest_value(pairs: list[tuple[bytes, bytes]], other: bytes) -> None:
    fresh, model = Fresh(), {}
    for key, value in pairs:
        fresh.put(key, value)
        model[key] = value
    for key in (*model, other):
        assert fresh.get(key) == model.get(key)


def test_a_run_is_found_again_only_as_it_was_written(tmp_path: Path) -> None:
    rows = {os.urandom(32): os.urandom(8) for _ in range(3000)}
    run = _run(tmp_path, rows)
    run.close()
    again = open_run(run.path, count=len(run), bits=run.bits, digest=run.digest)
    assert again is not None
    assert all(again.get(key) == value for key, value in rows.items())
    again.close()
    data = bytearray(Path(run.path).read_bytes())
    for place in (0, len(data) // 2, len(data) - 1):
        data[place] ^= 1
        Path(run.path).write_bytes(data)
        assert open_run(run.path, count=len(run), bits=run.bits, digest=run.digest) is None
        data[place] ^= 1
    Path(run.path).unlink()
    assert open_run(run.path, count=len(run), bits=run.bits, digest=run.digest) is None


def test_merged_runs_hold_the_rows_of_all(tmp_path: Path) -> None:
    parts = [{os.urandom(32): os.urandom(8) for _ in range(size)} for size in (1, 700, 5000)]
    runs = [_run(tmp_path, rows) for rows in parts]
    merged = merge_runs(str(tmp_path / "merged"), runs)
    assert len(merged) == 5701
    assert all(merged.get(key) == value for rows in parts for key, value in rows.items())
    for run in (*runs, merged):
        run.close()
