"""The owner's rules: set, used, and kept through whatever else owners do; two people who have to agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import results
from pharmabackup.engine import opening
from pharmabackup.engine.enrolment import change_roster
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.keys import Policy
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.verbs import configure as configure_module
from tests.verbs.ailing import Ward
from tests.verbs.faults import BusyStorage, Dead, DyingStorage, any_call
from tests.verbs.site import DAY_NS, Site, Time, open_at, stored, twin
from tests.verbs.test_roles import Becomes

SECOND = pb.Passphrase("quite another passphrase")
DAY = timedelta(days=1)
MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def become(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> Becomes:
    return Becomes(ward, monkeypatch)


@pytest.fixture
def other(tmp_path: Path, repo: pb.Repository) -> Iterator[pb.Repository]:
    """A second owner's, on a machine of its own."""
    repo.enrol("owner", SECOND, name="Jaya Patel")
    with pb.Repository.open(tmp_path / "repository-0", SECOND, state_dir=tmp_path / "hers") as opened:
        yield opened


def _policy(repo: pb.Repository) -> Policy:
    repo._unlocked.renew()
    return repo._unlocked.roster.policy


def _ids(snapshots: Any) -> set[str]:
    return {snapshot.id for snapshot in snapshots}


def _forgotten(repo: pb.Repository) -> set[str]:
    return _ids(snapshot for snapshot in repo.snapshots() if snapshot.forgotten)


def _oldest(repo: pb.Repository) -> pb.Snapshot:
    return repo.snapshots()[-1]


def _forget(repo: pb.Repository, *snapshots: pb.Snapshot) -> pb.Proposal:
    proposal = repo.propose_forget(snapshots=snapshots)
    repo.apply(proposal)
    return proposal


# ------------------------------------------------------------ what is kept


@pytest.mark.parametrize(
    ("rules", "goes"),
    [
        ({"documents": pb.Keep(last=3)}, 8),
        ({"owner/doc*": pb.Keep(last=4)}, 7),
        ({"till-1/*": pb.Keep(last=9), "*": pb.Keep(last=2)}, 9),
        ({"*:before *": pb.Keep(last=2), "*": pb.Keep(last=1)}, 8),
        ({"documents": pb.Keep(within=DAY)}, 0),
        ({"scans": pb.Keep(last=1)}, 0),
    ],
    ids=["dataset", "device", "another device", "label", "within", "another dataset"],
)
def test_rules_are_used_where_none_are_given(
    repo: pb.Repository, site: Site, rules: dict[str, pb.Keep], goes: int
) -> None:
    """Of eleven, the last three with a label."""
    for number in range(3):
        site.change()
        repo.backup([pb.Files(site.root)], reason=f"Before update {number}")
    assert repo.propose_forget().snapshots == ()
    wanted = _ids(repo.propose_forget(rules).snapshots)
    repo.configure(keep=rules)
    assert _ids(repo.propose_forget().snapshots) == wanted
    assert len(wanted) == goes
    repo.configure(keep={})
    assert repo.propose_forget().snapshots == ()


def test_a_rule_is_stored_whole_and_in_its_place(repo: pb.Repository) -> None:
    rules = {
        "till-1/pmr": pb.Keep(last=1, hourly=2, daily=3, weekly=4, monthly=5, yearly=6),
        "*": pb.Keep(within=timedelta(days=30, microseconds=1)),
    }
    repo.configure(keep=rules)
    first, second = _policy(repo).keep
    assert (first.dataset, second.dataset) == ("till-1/pmr", "*")
    counts = (first.last, first.within, first.hourly, first.daily, first.weekly, first.monthly, first.yearly)
    assert counts == (1, 0, 2, 3, 4, 5, 6)
    assert second.within == 30 * 86400 + 1  # not less than what was asked for


def test_everybody_sees_the_rules_that_hold_now(repo: pb.Repository, other: pb.Repository, tmp_path: Path) -> None:
    rules = {"till-1/pmr": pb.Keep(last=1, hourly=2, daily=3), "*": pb.Keep(within=30 * DAY)}
    assert other.rules() == results.Rules(keep={}, forget_delay=14 * DAY, forget_quorum=1)
    repo.configure(keep=rules, forget_delay=2 * DAY, forget_quorum=2)
    assert other.rules() == results.Rules(keep=rules, forget_delay=2 * DAY, forget_quorum=2)
    assert str(other.rules()).splitlines() == [
        "till-1/pmr: 1 last, 2 hourly, 3 daily",
        "*: within 30 days",
        "A forget counts 2 days after 2 people said so.",
    ]


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "wish",
    [
        {"forget_delay": timedelta(seconds=-1)},
        {"forget_delay": timedelta(days=3651)},
        {"forget_delay": 14},
        {"forget_quorum": 0},
        {"forget_quorum": 17},
        {"forget_quorum": True},
        {"forget_quorum": 2},  # there is one owner
        {"keep": {"": pb.Keep(last=1)}},
        {"keep": {"/pmr": pb.Keep(last=1)}},
        {"keep": {"pmr:": pb.Keep(last=1)}},
        {"keep": {"x" * 201: pb.Keep(last=1)}},
        {"keep": {"\udc80": pb.Keep(last=1)}},
        {"keep": {"pmr": 7}},
        {"keep": {"pmr": pb.Keep(last=1 << 63)}},
        {"keep": {"pmr": pb.Keep(within=timedelta.max)}},
        {"keep": {f"{number}": pb.Keep(last=1) for number in range(1001)}},
    ],
    ids=lambda wish: str(wish)[:40].encode("ascii", "replace").decode(),
)
def test_what_cannot_be_is_refused_and_writes_nothing(make_repo: MakeRepo, wish: dict[str, Any]) -> None:
    repo = make_repo()
    before = stored(repo._unlocked.storage, "")
    with pytest.raises(pb.InvalidInput) as caught:
        repo.configure(**wish)
    assert caught.value.remedy
    assert stored(repo._unlocked.storage, "") == before


@pytest.mark.parametrize("role", ["maintainer", "auditor", "restorer"])
def test_only_an_owner_sets_rules(ward: Ward, become: Becomes, role: str) -> None:
    become(role)
    before = ward.names("roster")
    with pytest.raises(pb.NotPermitted, match="may not set what is kept"):
        ward.repo.configure(forget_delay=timedelta(0))
    assert ward.names("roster") == before


def test_what_is_as_it_was_writes_nothing_and_what_changed_is_recorded(repo: pb.Repository) -> None:
    storage = repo._unlocked.storage
    repo.configure(keep={"*": pb.Keep(last=3)}, forget_delay=2 * DAY)
    assert _configured(repo) == 1 and len(stored(storage, "roster")) == 2
    repo.configure()
    repo.configure(keep={"*": pb.Keep(last=3)}, forget_delay=2 * DAY, forget_quorum=1)
    assert _configured(repo) == 1 and len(stored(storage, "roster")) == 2
    before = _policy(repo)
    repo.configure(forget_delay=3 * DAY)
    assert _policy(repo).keep == before.keep and _policy(repo).forget_delay == 3 * 86400


def _configured(repo: pb.Repository) -> int:
    return sum(record.event == "configure" for record in repo.audit())


def test_an_audit_record_says_what_was_set(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(configure_module, "note", lambda _, *words, **more: said.append((words, more)))
    repo.configure(keep={"*": pb.Keep(last=3)}, forget_delay=2 * DAY)
    ((event, subject), more), *rest = said
    assert not rest and event == "configure" and more == {"reason": None}
    assert subject == "keep: 1 rules (were 0); forget_delay: 172800 s (was 1209600 s)"


# ------------------------------------------------------------ the delay


def test_a_shorter_delay_is_obeyed(repo: pb.Repository, time: Time) -> None:
    repo.configure(forget_delay=2 * DAY)
    oldest = _oldest(repo)
    proposal = _forget(repo, oldest)
    assert proposal.not_before is not None
    assert timedelta(hours=47) < proposal.not_before - proposal.created < timedelta(hours=49)
    time.ahead += DAY_NS
    assert _forgotten(repo) == set() and repo.propose_prune().snapshots == ()
    time.ahead += DAY_NS + 3600 * 10**9
    assert _forgotten(repo) == {oldest.id} == _ids(repo.propose_prune().snapshots)


def test_the_newest_rules_hold_for_what_was_forgotten_before(
    repo: pb.Repository, other: pb.Repository, time: Time
) -> None:
    """Both ways, and for whoever had it open all the time."""
    oldest = _oldest(repo)
    _forget(repo, oldest)
    time.ahead += 3 * DAY_NS
    repo.configure(forget_delay=2 * DAY)
    assert _ids(other.propose_prune().snapshots) == {oldest.id} == _forgotten(repo)
    repo.configure(forget_delay=30 * DAY)
    assert other.propose_prune().snapshots == () and _forgotten(repo) == set()
    other.recall(oldest, reason="in time again")
    time.ahead += 60 * DAY_NS
    assert repo.propose_prune().snapshots == ()


@pytest.mark.parametrize("word", ["recall", "hold"])
def test_who_has_it_open_learns_that_words_come_too_late(
    repo: pb.Repository, other: pb.Repository, time: Time, word: str
) -> None:
    oldest = _oldest(other)
    _forget(repo, oldest)
    other.snapshots()
    repo.configure(forget_delay=timedelta(0))
    with pytest.raises(pb.Conflict, match="may be gone already"):
        getattr(other, word)(oldest, reason="too late")


@pytest.fixture
def storage_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Marks that are made from now on are so much later by the storage's clock."""
    from pharmabackup.storage.local import LocalStorage

    ahead = {"by": 0}
    real = LocalStorage.list

    def later(by: timedelta) -> None:
        ahead["by"] += int(by.total_seconds()) * 10**9

    made: dict[str, int] = {}

    def list_(self: LocalStorage, prefix: str) -> Any:
        from dataclasses import replace

        for info in real(self, prefix):
            if info.name.startswith("marks/"):
                yield replace(info, modified=info.modified + made.setdefault(info.name, ahead["by"]))
            else:
                yield info

    monkeypatch.setattr(LocalStorage, "list", list_)
    return later


@pytest.mark.parametrize("word", ["recall", "hold"])
def test_a_shorter_delay_never_undoes_what_was_said_in_time(
    repo: pb.Repository, time: Time, storage_time: Callable[[timedelta], None], word: str
) -> None:
    oldest = _oldest(repo)
    _forget(repo, oldest)
    repo.snapshots()
    storage_time(5 * DAY)
    time.ahead += 5 * DAY_NS
    getattr(repo, word)(oldest, reason="a dispute")
    before = _policy(repo)
    with pytest.raises(pb.Conflict, match="would have come too late") as caught:
        repo.configure(forget_delay=2 * DAY, keep={})
    assert caught.value.kind == "words-lost" and _policy(repo) == before
    assert len(stored(repo._unlocked.storage, "roster")) == 1  # not even for a moment
    repo.configure(forget_delay=6 * DAY)
    time.ahead += 60 * DAY_NS
    assert repo.propose_prune().snapshots == ()


def test_a_recall_in_time_is_not_undone_though_it_was_forgotten_again(
    repo: pb.Repository, time: Time, storage_time: Callable[[timedelta], None]
) -> None:
    """By the shorter delay the first forget would have counted before the recall, and it would go at once."""
    oldest = _oldest(repo)
    _forget(repo, oldest)
    repo.snapshots()
    storage_time(9 * DAY)
    time.ahead += 9 * DAY_NS
    repo.recall(oldest, reason="in time")
    _forget(repo, _oldest(repo))
    before = _policy(repo)
    with pytest.raises(pb.Conflict, match="would have come too late"):
        repo.configure(forget_delay=7 * DAY)
    assert _policy(repo) == before
    repo.configure(forget_delay=10 * DAY)


def test_what_is_called_back_while_a_delay_is_shortened_puts_it_back(
    repo: pb.Repository,
    other: pb.Repository,
    time: Time,
    storage_time: Callable[[timedelta], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the look at what was said and the new roster."""
    oldest = _oldest(repo)
    _forget(repo, oldest)
    repo.snapshots()
    storage_time(5 * DAY)
    time.ahead += 5 * DAY_NS
    real, before = configure_module._check_words, _policy(repo)
    calls: list[bool] = []

    def look(unlocked: Unlocked, *policies: Policy) -> None:
        real(unlocked, *policies)
        if not calls:
            calls.append(True)
            other.recall(oldest, reason="in time")

    monkeypatch.setattr(configure_module, "_check_words", look)
    with pytest.raises(pb.Conflict, match="would have come too late"):
        repo.configure(forget_delay=2 * DAY, keep={"*": pb.Keep(last=1)})
    assert _policy(repo) == before
    time.ahead += 60 * DAY_NS
    assert repo.propose_prune().snapshots == ()


# ------------------------------------------------------------ two people


def test_two_have_to_agree(repo: pb.Repository, other: pb.Repository, time: Time) -> None:
    repo.configure(forget_quorum=2, forget_delay=7 * DAY, keep={"*": pb.Keep(last=6)})
    first = repo.propose_forget()
    assert len(first.snapshots) == 2 and first.not_before is None
    repo.apply(first)
    assert not any(snapshot.forget_at for snapshot in repo.snapshots())
    assert repo.propose_forget().snapshots == ()  # one person counts once
    time.ahead += 60 * DAY_NS
    assert _forgotten(repo) == set() and repo.propose_prune().snapshots == ()
    time.ahead -= 60 * DAY_NS

    second = other.propose_forget()
    assert _ids(second.snapshots) == _ids(first.snapshots) and second.not_before is not None
    other.apply(second)
    asked = _ids(snapshot for snapshot in repo.snapshots() if snapshot.forget_at)
    assert asked == _ids(first.snapshots) and _forgotten(repo) == set()
    time.ahead += 6 * DAY_NS
    assert repo.propose_prune().snapshots == ()
    time.ahead += 2 * DAY_NS
    assert _forgotten(repo) == asked == _forgotten(other)
    proposal = other.propose_prune()
    assert _ids(proposal.snapshots) == asked
    other.apply(proposal)
    assert repo.check(read_data=1.0).state == "ok"
    with pytest.raises(pb.Conflict, match="may be gone already"):
        repo.recall(_oldest(repo), reason="too late")


@pytest.mark.parametrize("who", ["the first", "the second"])
def test_either_calls_back_what_two_agreed_on(
    repo: pb.Repository, other: pb.Repository, time: Time, who: str
) -> None:
    repo.configure(forget_quorum=2)
    oldest = _oldest(repo)
    _forget(repo, oldest)
    _forget(other, _oldest(other))
    assert _oldest(repo).forget_at is not None
    (repo if who == "the first" else other).recall(oldest, reason="a mistake")
    time.ahead += 60 * DAY_NS
    assert _forgotten(repo) == set() == _forgotten(other) and repo.propose_prune().snapshots == ()


def test_a_quorum_holds_for_what_one_has_forgotten_before(
    repo: pb.Repository, other: pb.Repository, time: Time
) -> None:
    oldest = _oldest(repo)
    _forget(repo, oldest)
    time.ahead += 15 * DAY_NS
    assert _forgotten(repo) == {oldest.id}
    other.configure(forget_quorum=2)
    assert repo.propose_prune().snapshots == () and _forgotten(repo) == set()
    other.configure(forget_quorum=1)
    assert _ids(repo.propose_prune().snapshots) == {oldest.id}


def test_one_owner_alone_can_lower_a_quorum_and_that_is_seen(repo: pb.Repository, other: pb.Repository) -> None:
    """Against an owner who means harm stand the storage's locks and a replica that he cannot write to, not rules."""
    repo.configure(forget_quorum=2)
    other.configure(forget_quorum=1, forget_delay=0 * DAY)
    oldest = _oldest(other)
    _forget(other, oldest)
    assert _ids(other.propose_prune().snapshots) == {oldest.id}
    told = [record for record in repo.audit() if record.event == "configure"][-1]
    assert told.slot == other._unlocked.slot.name
    assert told.subject == "forget_delay: 0 s (was 1209600 s); forget_quorum: 1 (was 2)"


def test_no_more_are_asked_for_than_there_are(repo: pb.Repository, other: pb.Repository) -> None:
    with pytest.raises(pb.InvalidInput, match="only 2 can"):
        other.configure(forget_quorum=3)
    other.configure(forget_quorum=2)


# ------------------------------------------------------------ beside what else owners do


def test_rules_stay_whatever_owners_do_later(repo: pb.Repository, other: pb.Repository) -> None:
    repo.configure(forget_quorum=2, forget_delay=7 * DAY, keep={"*": pb.Keep(last=6)})
    policy = _policy(repo)
    other.rotate(reason="a laptop was lost")
    other.enrol("owner", pb.Passphrase("a third passphrase"), name="third")
    other.change_passphrase(pb.Passphrase("and another passphrase"))
    assert _policy(repo) == policy == _policy(other)
    slots, generations = len(repo.slots()), len(repo._unlocked.roster.generations)
    repo.configure(forget_delay=8 * DAY)
    assert (len(repo.slots()), len(repo._unlocked.roster.generations)) == (slots, generations) == (3, 2)


WISHES: dict[str, dict[str, Any]] = {
    "keep": {"keep": {"*": pb.Keep(last=1)}},
    "delay": {"forget_delay": DAY},
    "quorum": {"forget_quorum": 2},
}
ALL: dict[str, Any] = {"keep": {"*": pb.Keep(last=1)}, "forget_delay": DAY, "forget_quorum": 2}


@pytest.fixture
def shared(memory: MemoryStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStorage:
    with open_at(monkeypatch, memory, tmp_path / "first") as repo:
        repo.enrol("owner", SECOND, name="Jaya Patel")
    return memory


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_it_dies_at_any_call(
    shared: MemoryStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: bool
) -> None:
    """All of it is set or nothing; done again, it is there."""
    outcomes = set()
    for dies_at in any_call():
        inner = twin(shared)
        storage = DyingStorage(inner)
        with open_at(monkeypatch, storage, tmp_path / f"{dies_at}") as repo:
            before = _policy(repo)
            storage.arm(dies_at, after=after)
            try:
                repo.configure(**ALL)
                died = False
            except Dead:
                died = True
        with open_at(monkeypatch, inner, tmp_path / f"{dies_at}-again") as repo:
            found = _policy(repo)
            outcomes.add(found == before)
            assert found == before or (len(found.keep), found.forget_delay, found.forget_quorum) == (1, 86400, 2)
            repo.configure(**ALL)
            assert (_policy(repo).forget_delay, _policy(repo).forget_quorum) == (86400, 2)
            assert repo.check().state == "ok"
            repo.rotate(reason="again")
        if not died:
            assert outcomes == {True, False}
            return


@pytest.mark.parametrize("other", [*WISHES, "rotate", "enrol"])
def test_another_owner_does_something_between_any_two_calls(
    shared: MemoryStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: str
) -> None:
    """What he sets and what this one sets are both there."""
    for at in any_call():
        inner = twin(shared)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            monkeypatch.setattr(opening, "connect", lambda *_, **__: inner)
            with pb.Repository.open("memory://x", SECOND, state_dir=tmp_path / f"{at}-other") as repo:
                if other == "rotate":
                    repo.rotate(reason="too")
                elif other == "enrol":
                    repo.enrol("owner", pb.Passphrase("a third passphrase"), name="third")
                else:
                    repo.configure(**WISHES[other])

        storage = BusyStorage(inner, meanwhile)
        mine = {name: wish for name, wish in ALL.items() if name not in WISHES.get(other, {})}
        with open_at(monkeypatch, storage, tmp_path / f"{at}") as repo:
            storage.interrupt(at)
            repo.configure(**mine)
            done = storage.interrupted
        with open_at(monkeypatch, inner, tmp_path / f"{at}-again") as repo:
            policy, roster = _policy(repo), repo._unlocked.roster
            given = {*mine, *(WISHES.get(other, {}) if done else ())}
            assert ("keep" in given) == (len(policy.keep) == 1)
            assert ("forget_delay" in given) == (policy.forget_delay == 86400)
            assert ("forget_quorum" in given) == (policy.forget_quorum == 2)
            assert len(roster.generations) == 1 + (done and other == "rotate")
            assert len(roster.slots) == 2 + (done and other == "enrol")
        if not done:
            assert storage.calls > 3
            return


def test_a_put_back_leaves_what_another_owner_has_set_since(repo: pb.Repository, other: pb.Repository) -> None:
    before = _policy(repo)
    repo.configure(forget_delay=5 * DAY)
    after = _policy(repo)
    other.configure(forget_delay=9 * DAY)
    change_roster(repo._unlocked, lambda roster: configure_module._back(roster, after, before))
    assert _policy(repo).forget_delay == 9 * 86400
