"""The protocol's rules. The defaults are the protocol; each other value is a shortcut that has to be found unsafe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """Also what the storage can do, since some rules hang on that."""

    # ---- storage
    exclusive: bool = True  # of several who create one name, one succeeds
    sole: bool = True  # there is but one collector where storage has no exclusive create
    stale: bool = False  # a listing may miss an object that was made since the beginning
    paged: bool = False  # a listing comes in two parts, one after the other
    torn_packs: bool = False  # a put may say yes and keep nothing whole
    torn_records: str = ""  # the kind of record that may be kept torn
    unreadable: str = "stop"  # or "skip": what is done about a record that cannot be read

    # ---- writers
    recheck: str = "all"  # collections/ before the commit: all from F on; "unfinished": only those; "none"
    recheck_own: bool = True  # packs that it wrote itself count too
    first: str = "unfinished"  # F is the first unfinished collection; "next": the one after the highest
    relies_on_condemned: bool = False
    begin_anew: str = "anew"  # when overtaken; "unindexed": new packs in the same transaction, without a segment
    shuns: str = "condemned"  # relies on no pack that a collection ever condemned; "burnt": that an execute named;
    # "copier": only copies do not, on these; "names": and only when they name packs; "none"
    relies: str = "listed"  # only on packs that a listing shows; "indexed": on what the index says
    survey: str = "collections-first"  # or "packs-first": lists packs before it reads collections/; "together": one
    # listing of all, which comes to these folders in any order
    verify: bool = True  # reads back what it wrote
    intent: str = "before"  # the recheck; "after": after it; "none"
    pins: str = "all"  # "relied" or "written" alone
    obeys_abort: bool = True
    drops_intents: bool = False  # a writer deletes its intents once it has committed
    keys: str = "packs"  # or "intents": where a transaction's wrapped key lies

    # ---- collectors
    aborts: bool = True  # may decide a transaction of others
    dead_pin: bool = False  # in the first look too, what is taken for dead pins nothing
    abort_decides: bool = True  # False: takes it for dead without creating its fate
    look: str = "intents-first"  # or "fates-first"
    second_look: bool = True  # step 4: reads intents again
    known: str = "listed"  # in step 4, the decided that condemn lists; "now": all that are decided by then
    asks_again: bool = True  # step 5: what is still needed
    shunned_last: bool = True  # counts on a pack that was ever condemned only if there is no other place
    keeps_doubtful: bool = (
        True  # of several that were all condemned before, or made by stolen or revoked slots, none goes
    )
    moves_doubtful: bool = False  # blocks out of such packs, unopened, into one that nobody doubts
    shunned_replaces: bool = False  # in step 5, such a pack stands in for one that was not condemned before
    waits: bool = True  # for a collection that is not done
    number: str = "seen"  # condemn has the number after those seen in the first look; "free": the next free one
    deletes: str = "executed"  # what execute decided; "own": what this collector found
    executes: bool = True  # writes execute before it deletes
    replaces: str = "late"  # segments, after it is decided what dies; "early": with the first look
    compacts: str = "index-first"  # or "packs-first"
    reuses_names: bool = False  # a restarted collector gives its new pack the old name
    restates_all: bool = False  # also entries that do not count, when segments are replaced
    indexes_moved: bool = True  # publishes the new pack's entries before condemn
    drops: frozenset[str] = frozenset()  # records deleted when done: "fates", "marks", "collections"
    gap: str = ""  # "anew": writers begin anew when a collection's records are missing
    done_despite_refusal: bool = True  # what storage refuses to delete is left to a later collector
    deletes_left: str = "needless"  # of burnt packs that are there; "all": those that a thief named, too
    asks_before_left: bool = True  # lists roster/ again before it deletes them

    # ---- marks and time
    clock: str = "storage"  # "own": the collector's clock, which may be ahead; "late": asked after marks were read
    late_words: str = "void"  # or "count": undo and hold count however late
    lists_absent: bool = False  # condemn names those that were brought without their content
    lists_gone: bool = True  # condemn lists the snapshots that were taken for gone
    heeds_holds: bool = True
    policy: str = (
        "then"  # a longer delay is for forgets that are made after it; "newest": for all, as docs/format.md has it
    )

    # ---- domains
    foreign_instances: bool = False  # an instance in another domain counts
    foreign_entries: bool = False  # an entry of another domain than its segment's signer counts
    prefers_sound: bool = True  # of several places of a block, one that no stolen or revoked device has made
    sound_first: bool = True  # that comes before the question which of them was ever condemned
    believes_directories: bool = False  # of packs that no segment names, unread

    # ---- rosters
    newer: str = "list"  # a citation of a newer roster: list again, else stop; "skip": it does not count
    revoked_fates: str = "void"  # that do not count: decided, and nothing lives; "absent": as if not there
    revoked_packs: str = "read"  # count for reading; "never"; "own": only for fates of that slot
    relies_on_revoked: bool = False
    revoked_collections: str = "ended"  # deletes nothing more; "count": as others'; "absent": as if not there
    asks_who: str = (
        "newest"  # by a roster listed after the records were read; "known": listed before; "not the winner":
    )
    # not of an execute that another was faster to create
    early_done: str = "void"  # that comes before execute; "counts": and then collectors shun only what is decided

    # ---- readers
    reader: str = "again"  # looks again while collections/ changes; "once"
    check: str = "again"  # as readers; "once"; "index-first"
    hold_rechecks: bool = True

    # ---- replicas
    carries: str = "carry"  # one exclusive fate brings all; "plain": fates as objects of their own names; "own-name"
    copy_order: str = "intent-first"  # or "carry-first"
    copy_rechecks: bool = True
    marks_gone: bool = True  # a carried fate whose content is not there says so


THE_PROTOCOL = Rules()
