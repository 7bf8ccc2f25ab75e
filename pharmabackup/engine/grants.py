"""Which roles may sign what: a signature counts only if the roster grants it (docs/format.md, §5.1 and §7.2)."""

from __future__ import annotations

from collections.abc import Mapping

from pharmabackup.format.keys import Role
from pharmabackup.format.wire import Kind

READERS: frozenset[Role] = frozenset({"restorer", "owner"})
WRITERS: frozenset[Role] = frozenset({"device", "owner"})
COLLECTORS: frozenset[Role] = frozenset({"maintainer", "owner"})
EVERYBODY: frozenset[Role] = frozenset({"device", "restorer", "auditor", "maintainer", "owner"})
GRANTS: Mapping[Kind, frozenset[Role]] = {
    Kind.DIRECTORY: WRITERS | COLLECTORS,
    Kind.INDEX: WRITERS | COLLECTORS,
    Kind.INTENT: EVERYBODY,
    Kind.FATE: WRITERS | COLLECTORS,
    Kind.CARRY: WRITERS | COLLECTORS,  # a device: of its own snapshots
    Kind.CONDEMN: COLLECTORS,
    Kind.EXECUTE: COLLECTORS,
    Kind.DONE: COLLECTORS,
    Kind.MARK: EVERYBODY,
    Kind.AUDIT: EVERYBODY,
}
FATE_GRANTS: Mapping[str, frozenset[Role]] = {"commit": WRITERS, "abort": COLLECTORS}
INTENT_GRANTS: Mapping[str, frozenset[Role]] = {"write": WRITERS | COLLECTORS, "hold": EVERYBODY}
MARK_GRANTS: Mapping[str, frozenset[Role]] = {
    "forget": COLLECTORS,
    "undo": COLLECTORS,
    "hold": EVERYBODY - {"auditor"},
    "release": COLLECTORS,
    "verified": EVERYBODY,
}
JUDGED_MARKS = frozenset(("forget", "undo", "release"))  # of a revoked slot they count if an owner accepted them
NAMERS: frozenset[Role] = frozenset({"restorer", "owner"})  # who holds every domain's naming key
JUDGED_LATER = frozenset((Kind.FATE, Kind.DIRECTORY, Kind.INDEX))  # what a slot committed before it was revoked stays
SELF_NAMED: Mapping[Kind, str] = {Kind.DIRECTORY: "packs/", Kind.INDEX: "index/"}
