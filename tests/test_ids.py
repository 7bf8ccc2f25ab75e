"""Names of objects have one spelling."""

from __future__ import annotations

import pytest

from pharmabackup import ids

DIGEST = bytes(range(0xA0, 0xC0))


@pytest.mark.parametrize("name", [ids.pack_name(DIGEST), ids.index_name(DIGEST), ids.mark_name(DIGEST), DIGEST.hex()])
def test_the_tail_of_a_name(name: str) -> None:
    assert ids.hex_tail(name) == DIGEST


@pytest.mark.parametrize("tail", [DIGEST.hex().upper(), DIGEST.hex(" "), f"{DIGEST.hex()} ", "a", "zz", "\u0660" * 2])
def test_a_tail_that_is_spelled_otherwise(tail: str) -> None:
    assert ids.hex_tail(f"packs/a0/{tail}") is None
