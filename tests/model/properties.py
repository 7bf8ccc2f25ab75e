"""What must hold in every state, and what must come about when everything is quiet."""

from __future__ import annotations

from tests.model.rules import Rules
from tests.model.store import View, entries_of


def broken(view: View, rules: Rules) -> str:
    """What is wrong with what storage holds; empty: nothing.

    DATA   a snapshot that is committed and not gone needs a block that no whole pack of its domain holds; what it had
           lost before the beginning is no news
    KEY    such a pack is there, but the key of the transaction that sealed it is not
    INDEX  such a pack is there, but no segment that counts says so
    WORD   a hold or undo did not save its snapshot, though whoever made it was told that it came in time
    """
    deleted = view.deleted
    for mark in view.marks:
        if mark.kind in ("undo", "hold") and mark.told and mark.txn in deleted:
            return f"WORD: the {mark.kind} of {mark.txn} was said to come in time, and it was deleted"
    gone = view.gone(view.counting, late_words=rules.late_words)
    entries = entries_of(view.segments.values())
    for txn, snapshot in sorted(view.snapshots().items()):
        if txn in gone:
            continue
        for block in sorted(snapshot.blocks):
            if (txn, block) in view.lost:
                continue
            places = [pack for pack in view.packs.values() if pack.domain == snapshot.domain and block in pack.holds]
            if not places:
                return f"DATA: {txn} lost {block}"
            if rules.keys == "intents" and not any(item.txn == pack.key for pack in places for item in view.intents):
                return f"KEY: {txn} cannot open {block}"
            if not any((block, pack.name, pack.domain) in entries for pack in places):
                return f"INDEX: {txn} cannot find {block}"
    return ""


def garbage(view: View, *, aborts: bool = True) -> set[str]:
    """Packs without a living block, that no lock keeps. What no pack holds is as well in one that only says so."""
    gone = view.gone(view.counting)
    alive = {
        (block, item.domain) for txn, item in view.snapshots().items() if txn not in gone for block in item.blocks
    }
    held = {(block, pack.domain) for pack in view.packs.values() for block in pack.holds}
    nowhere = {(block, domain) for block, domain in alive - held if any(block == lost for _, lost in view.lost)}
    pinned: set[str] = set()
    if not aborts:
        pinned = {pack for item in view.intents if item.txn not in view.fates for pack in item.packs}
    return {
        pack.name
        for pack in view.packs.values()
        if pack.name not in pinned | view.locked
        and not any((block, pack.domain) in alive for block in pack.holds)
        and not any((block, pack.domain) in nowhere for block in pack.says)
    }


def has_deleted(view: View) -> bool:
    """Whether a collection has deleted a pack."""
    return any(pack not in view.packs for item in view.executes.values() for pack in item.packs)
