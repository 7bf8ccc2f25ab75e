"""Shortcuts that the design forbids. Each is a case with one rule changed, in which the search must find a fault."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model.cases import SETTINGS, make_mutant
from tests.model.explore import Case


@dataclass(frozen=True)
class Mutant:
    code: str
    of: str  # the case
    title: str
    expects: str  # the beginning of what is found
    changes: dict[str, object] = field(default_factory=dict)


MUTANTS: dict[str, Mutant] = {}


def mutant(code: str, of: str, title: str, expects: str, **changes: object) -> None:
    assert code not in MUTANTS and code not in SETTINGS
    MUTANTS[code] = Mutant(code, of, title, expects, changes)


def build_mutant(code: str) -> Case:
    item = MUTANTS[code]
    return make_mutant(item.of, item.code, item.title, item.expects, item.changes)


# ---------------------------------------------------------------- writers

mutant("w-no-recheck", "C1", "does not read collections/ again before the commit", "DATA", recheck="none")
mutant(
    "w-recheck-relied",
    "C6",
    "looks again only for packs that it relies on, not for its own",
    "DATA",
    recheck_own=False,
)
mutant("w-recheck-open", "C1", "looks again only at collections that are not done", "DATA", recheck="unfinished")
mutant("w-later-first", "C1", "relies on condemned packs, and looks again only at later collections", "DATA",
       first="next", relies_on_condemned=True, shuns="none")  # fmt: skip
mutant(
    "w-unindexed", "C1", "puts what is condemned into a pack that no segment names", "INDEX", begin_anew="unindexed"
)
mutant(
    "w-unlisted",
    "C10",
    "relies on what the index says, without listing packs after it, and shuns nothing",
    "DATA",
    relies="indexed",
    shuns="none",
)
mutant(
    "w-packs-first",
    "C1",
    "lists packs before it reads collections/, and shuns nothing",
    "DATA",
    survey="packs-first",
    shuns="none",
)
mutant("w-together", "T1", "has one listing of all, and shuns nothing", "DATA", shuns="none")
mutant("w-together-trusts", "T1", "the same, and does not read collections/ again", "DATA", recheck="none")
mutant("w-unverified", "C14", "does not read back what it put", "DATA", verify=False)
mutant("w-intent-late", "C1", "creates its intent after it has looked again", "DATA", intent="after")
mutant("w-no-intent", "C1", "creates no intent", "DATA", intent="none")
mutant("w-pins-written", "C1", "its intent names only what it wrote", "DATA", pins="written")
mutant("w-pins-relied", "C1", "its intent names only what it relies on", "DATA", pins="relied")
mutant("w-no-obeying", "C1", "commits although it is aborted", "DATA", obeys_abort=False, exclusive=False)
mutant("w-deletes", "C1", "deletes its intents when it has committed, and step 5 does not ask again", "DATA",
       drops_intents=True, asks_again=False)  # fmt: skip
mutant("w-torn-intent", "C15", "passes over an intent that cannot be read", "DATA", unreadable="skip")
mutant("w-torn-condemn", "C16", "passes over a condemn that cannot be read", "DATA", unreadable="skip")
mutant("w-keys", "C6", "keeps the wrapped key in the intent", "KEY", keys="intents")

# ---------------------------------------------------------------- collectors

mutant("c-fates-first", "C1", "reads fates before intents, writers delete theirs, and step 5 does not ask", "DATA",
       look="fates-first", drops_intents=True, asks_again=False)  # fmt: skip
mutant("c-no-second-look", "C1", "does not read intents again after condemn", "DATA", second_look=False)
mutant("c-known-now", "C1", "takes for known what was decided since its look, and step 5 does not ask", "DATA",
       known="now", asks_again=False)  # fmt: skip
mutant("c-no-abort", "C1", "takes for dead what it does not abort", "DATA", abort_decides=False)
mutant(
    "c-dead-pin",
    "C1",
    "what is taken for dead pins in the first look, so that it may pin for ever",
    "QUIET",
    dead_pin=True,
)
mutant("c-not-asked", "C19", "does not ask again what is needed", "DATA", asks_again=False)
mutant(
    "c-no-waiting",
    "C8",
    "does not wait for a collection that is not done; step 5 takes any place",
    "DATA",
    waits=False,
    number="free",
    shunned_replaces=True,
)
mutant(
    "c-free-number",
    "C8",
    "takes the next free number for condemn, not the one after those it saw; step 5 takes any place",
    "DATA",
    number="free",
    shunned_replaces=True,
)
mutant(
    "c-own-execute",
    "C12",
    "deletes what it found itself although there is an execute, and writers shun nothing",
    "DATA",
    deletes="own",
    shuns="none",
)
mutant(
    "c-no-execute",
    "C12",
    "deletes without an execute, and writers shun nothing",
    "DATA",
    executes=False,
    shuns="none",
)
mutant("c-replaces-early", "C2", "replaces segments before it is decided what dies", "INDEX", replaces="early")
mutant(
    "c-packs-first", "C2", "lists packs before the index when it replaces segments", "INDEX", compacts="packs-first"
)
mutant("c-moves-unindexed", "C2", "publishes no segment for what it moved", "INDEX",
       indexes_moved=False, asks_again=False)  # fmt: skip
mutant(
    "c-same-name",
    "C4",
    "gives a new pack the old name when it begins anew, and moves what survived",
    "DATA",
    reuses_names=True,
    asks_again=False,
    moves_doubtful=True,
)
mutant("c-drops-fates", "C24", "deletes fates of aborted transactions", "DATA", drops=frozenset({"fates"}))
mutant("c-drops-forgotten", "C17", "deletes fates and marks of forgotten ones, and does not list them", "DATA",
       drops=frozenset({"fates", "marks"}), lists_gone=False)  # fmt: skip
mutant("c-drops-marks", "C25", "deletes marks", "DATA", drops=frozenset({"marks"}), lists_gone=False)
mutant("c-drops-records", "C9", "deletes its records when it is done", "DATA", drops=frozenset({"collections"}))
mutant(
    "c-drops-gap",
    "C12",
    "the same, and writers begin anew at a gap",
    "DATA",
    drops=frozenset({"collections"}),
    gap="anew",
)

# ---------------------------------------------------------------- storage

mutant("s-abort", "C21", "aborts where storage has no exclusive create", "DATA", aborts=True)
mutant("s-two", "C21", "two collectors where storage has no exclusive create", "DATA", sole=False)
mutant("s-stale", "C1", "collects where listings may be stale", "DATA", stale=True)

# ---------------------------------------------------------------- readers

mutant("r-once", "R1", "a restore reads index and packs once", "READER", reader="once")
mutant("r-check-once", "R4", "a check reads index and packs once", "ALARM", check="once")
mutant("r-index-first", "R3", "a check reads the index before fates", "ALARM", check="index-first")
mutant("r-hold-unchecked", "R5", "a hold is not followed by a look at collections/", "HELD", hold_rechecks=False)

# ---------------------------------------------------------------- marks and time

mutant("m-own-clock", "M1", "a collector judges by its own clock", "WORD", clock="own")
mutant("m-late-clock", "M1", "a collector asks for the time after it has read the marks", "WORD", clock="late")
mutant("m-late-words", "M1", "an undo counts however late it comes", "WORD", late_words="count")
mutant("m-no-holds", "M2", "a collector does not heed holds", "WORD", heeds_holds=False)
mutant("m-unlisted", "M3", "condemn does not say what was taken for gone", "DATA", lists_gone=False)
mutant("m-policy", "M5", "a longer delay holds for forgets that were made before it", "WORD", policy="newest")

# ---------------------------------------------------------------- domains

mutant("d-foreign-instance", "D1", "an instance in another domain counts", "DATA", foreign_instances=True)
mutant("d-foreign-entry", "D2", "an entry of another domain than its signer's counts", "DATA", foreign_entries=True)
mutant(
    "d-restated",
    "D2",
    "entries that do not count are stated again when segments are replaced",
    "DATA",
    restates_all=True,
)
mutant(
    "d-believed",
    "D3",
    "the directory of a pack that no segment names is believed unread",
    "DATA",
    believes_directories=True,
)
mutant("d-any-place", "D5", "any place of a block is as good as another", "DATA", prefers_sound=False)

# ---------------------------------------------------------------- rosters

mutant("o-newer", "O1", "passes over what cites a newer roster than it knows", "DATA", newer="skip")
mutant("o-rollback", "O5", "passes over what cites a roster that is not there", "DATA", newer="skip")
mutant("o-absent", "O3", "a fate that does not count is as if it were not there", "QUIET", revoked_fates="absent")
mutant("o-packs-void", "O3", "the packs of a revoked device do not count", "READER", revoked_packs="never")
mutant("o-packs-own", "O3", "they count only for its own snapshots", "READER", revoked_packs="own")
mutant("o-relies", "O4", "a writer relies on packs of a revoked device", "DATA", relies_on_revoked=True)

# ---------------------------------------------------------------- collections of revoked slots

mutant("k-counts", "K9", "a revoked slot's collection counts as any other's", "DATA", revoked_collections="count")
mutant(
    "k-absent", "K1", "a revoked slot's collection is as if it were not there", "DATA", revoked_collections="absent"
)
mutant("k-known", "K9", "who is revoked is asked before its records are read", "DATA", asks_who="known")
mutant("k-winner", "K8", "an execute that came before one's own is obeyed, whoever's it is", "DATA",
       asks_who="not the winner")  # fmt: skip
mutant("k-own", "K8", "such an execute is not obeyed, and what oneself has decided is deleted", "DATA", deletes="own")
mutant("k-gone", "K12", "step 5 believes a thief what is gone, by a roster of before", "DATA", asks_who="not step 5")
mutant("k-done", "K11", "what is not decided yet is done when somebody says so; step 5 takes any place", "DATA",
       early_done="counts", shunned_replaces=True)  # fmt: skip
mutant("k-policy", "K6", "a longer delay holds for what such a collection has deleted", "DATA", policy="newest")

# ---------------------------------------------------------------- locks

mutant(
    "l-refused",
    "L4",
    "a refused deletion counts as done, and writers shun nothing",
    "DATA",
    shuns="none",
)
mutant("l-waits", "L3", "a refused deletion leaves the collection unfinished", "QUIET", done_despite_refusal=False)
mutant(
    "l-all", "K8", "deletes what an execute named, without looking whether it is needed", "DATA", deletes_left="all"
)
mutant(
    "l-roster", "K12", "does not list roster/ again before it deletes what was left", "DATA", asks_before_left=False
)

# ---------------------------------------------------------------- replicas

mutant("b-plain", "B1", "brings fates as objects of their own names", "DATA", carries="plain")
mutant("b-own-name", "B1", "pins under the name of what it brings", "QUIET", carries="own-name")
mutant("b-burnt", "B3", "uses names again that an execute named", "DATA", shuns="none")
mutant(
    "b-burnt-copier",
    "B4",
    "only copies heed which names are burnt, not the replica's writers",
    "DATA",
    shuns="copier",
)
mutant("b-burnt-names", "B11", "copies heed it only when they name what they put", "DATA", shuns="names")
mutant("b-burnt-writers", "B5", "a collector takes a pack with a burnt name for a place, in both looks", "DATA",
       shunned_last=False, shunned_replaces=True)  # fmt: skip
mutant("b-carry-first", "B1", "creates the fate before the intent", "DATA", copy_order="carry-first")
mutant("b-no-recheck", "B2", "does not read collections/ again", "DATA", copy_rechecks=False)
mutant("b-absent", "B10", "condemn names what was brought without its content as gone", "QUIET", lists_absent=True)
mutant("b-gone", "B6", "brings fates whose content is gone, and does not say so", "DATA", marks_gone=False)
mutant(
    "n-burnt", "N1", "a writer relies on a name that an execute named, and requests come late", "DATA", shuns="copier"
)

# ---------------------------------------------------------------- packs that were condemned and are there

mutant("v-relies", "V1", "a writer relies on what was condemned and survived", "DATA", shuns="burnt")
mutant("v-counts", "V1", "a collector counts on such a pack as on any other, in both looks", "DATA",
       shunned_last=False, shunned_replaces=True)  # fmt: skip
mutant("v-moves", "V1", "moves a block out of such a pack, unopened", "DATA", moves_doubtful=True)
mutant("v-one-stays", "V2", "of several such packs one is chosen, the others go", "DATA", keeps_doubtful=False)
mutant("v-replaces", "V3", "in step 5, such a pack stands in for another", "DATA", shunned_replaces=True)
mutant("v-stolen", "V4", "such a pack comes after that of a stolen device, which stays", "DATA",
       sound_first=False, keeps_doubtful=False)  # fmt: skip
mutant("v-moves-stolen", "V4", "moves a block, unopened, out of what a stolen device put beside such a pack", "DATA",
       moves_doubtful=True)  # fmt: skip
mutant("v-mended", "V6", "of such a pack and that of a revoked slot one is chosen", "DATA", keeps_doubtful=False)
mutant("v-both", "V8", "of two packs of revoked slots one is chosen", "DATA", keeps_doubtful=False)
mutant("v-thief", "V7", "of several such packs one is chosen, though a thief had only to condemn them", "DATA",
       keeps_doubtful=False, shunned_replaces=True)  # fmt: skip
mutant("v-again", "V5", "a writer relies on what was deleted and is listed again", "DATA", shuns="none")
mutant("v-counts-again", "V5", "a collector counts on that as on any other pack", "DATA",
       shunned_last=False, shunned_replaces=True)  # fmt: skip
