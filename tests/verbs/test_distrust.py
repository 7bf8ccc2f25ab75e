"""After a repair that could not mend all, backups do not rely on what is damaged."""

from __future__ import annotations

import pytest

from pharmabackup import ids
from pharmabackup.engine.condemned import burnt_names, shunned_packs
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import Ward


@pytest.mark.parametrize("more", ["", "directory", "trailer"])
def test_a_backup_after_a_repair_is_whole(ward: Ward, more: str) -> None:
    """Part of a file that is as before is lost, and nothing else has it."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    places = ward.regions(name)
    for place in filter(None, ("data block", more)):
        ward.flip(name, places[place])
    ward.reopen()
    ward.mend()
    assert ward.whole() != set(ward.states)
    assert name in ward.names("packs")  # what is still needed of it is there
    before = set(ward.states)
    for fresh in (False, True):
        if fresh:
            ward.reopen()
        ward.back_up()
        assert set(ward.states) - before <= ward.whole()


def test_what_survived_is_shunned_and_its_name_is_not_burnt(ward: Ward) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    ward.flip(name, ward.regions(name)["data block"])
    ward.reopen()
    ward.mend()
    unlocked, digest = ward.repo._unlocked, ids.hex_tail(name)
    assert digest in shunned_packs(unlocked) - burnt_names(unlocked)
