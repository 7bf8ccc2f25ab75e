"""Cases: a writer that learns all from one listing, which comes to collections/, index/ and packs/ in any order."""

from __future__ import annotations

from tests.model import safe_collections, safe_shunned
from tests.model.cases import case

TOGETHER = {"survey": "together"}

case(
    "T1", "as C1, the writer has one listing of all, which comes to folders in any order", everywhere=True, **TOGETHER
)(safe_collections.c1)
case("T2", "as C2", everywhere=True, **TOGETHER)(safe_collections.c2)
case("T3", "as C3: two collectors, moved blocks", nightly=True, asks_again=False, **TOGETHER)(safe_collections.c3)
case("T4", "as C9: a segment comes late", asks_again=False, **TOGETHER)(safe_collections.c9)
case("T5", "as C10: and the writer wants what it names", nightly=True, **TOGETHER)(safe_collections.c10)
case("T6", "as C11: on the packs of one that is under way", asks_again=False, nightly=True, **TOGETHER)(
    safe_collections.c11
)
case("T7", "as C12: a helper wakes before its execute", nightly=True, **TOGETHER)(safe_collections.c12)
case("T8", "as C18: a forget races the writer", **TOGETHER)(safe_collections.c18)
case("T9", "as C24: an aborted transaction", **TOGETHER)(safe_collections.c24)
case("T10", "as V5: a deletion does not last", **TOGETHER)(safe_shunned.v5)
