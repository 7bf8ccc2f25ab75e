"""The owner's rules: what is kept of what, how long what is forgotten can be called back, and how many must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from msgspec.structs import replace

from pharmabackup.clock import now_ns
from pharmabackup.engine import enrolment
from pharmabackup.engine.audit import note
from pharmabackup.engine.grants import MARK_GRANTS
from pharmabackup.engine.history import ENDLESS, History
from pharmabackup.engine.historyreader import sound_history
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Error, InvalidInput
from pharmabackup.format.keys import KeepRule, Policy, Roster
from pharmabackup.results import Rules
from pharmabackup.retention import Class, Keep

SECOND = timedelta(seconds=1)
DELAY_MAX = timedelta(days=3650)
WITHIN_MAX = timedelta(days=365_000)
COUNT_MAX = 10**9
RULES_MAX = 1000
PATTERN_MAX = 200
QUORUM_MAX = 16


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be set; None: as it is."""

    keep: Mapping[str, Keep] | None = None
    forget_delay: timedelta | None = None
    forget_quorum: int | None = None
    reason_required: bool | None = None
    lock: timedelta | None = None


def rules(unlocked: Unlocked) -> Rules:
    """The newest. Damaged, StorageFailed."""
    unlocked.renewed()
    policy = unlocked.roster.policy
    return Rules(
        keep={rule.dataset: keep_of(rule) for rule in policy.keep},
        forget_delay=policy.forget_delay * SECOND,
        forget_quorum=policy.forget_quorum,
        reason_required=policy.reason_required,
        lock=policy.lock * SECOND,
    )


def keep_of(rule: KeepRule) -> Keep:
    counts = {field.name: getattr(rule, field.name) for field in dataclasses.fields(Keep) if field.name != "within"}
    return Keep(within=rule.within * SECOND, **counts)


def configure(unlocked: Unlocked, wish: Wish) -> None:
    """One roster with these rules, or none where they hold already.

    Shorter and fewer is judged by what was said before: see `_check_words`. It is judged again after the roster is
    there, since somebody may have called back or held something meanwhile; then the rules are as before.
    InvalidInput, NotPermitted, Conflict, Damaged, Unsupported, StorageFailed.
    """
    enrolment.permit_owner(unlocked, "set what is kept")
    given = _given(wish)
    unlocked.renew()
    if replace(unlocked.roster.policy, **given) == unlocked.roster.policy:
        return
    before = unlocked.roster.policy

    def change(roster: Roster) -> Roster:
        nonlocal before
        before = roster.policy
        policy = replace(before, **given)
        _check_quorum(roster, wish.forget_quorum)
        _check_words(unlocked, before, policy)
        return replace(roster, policy=policy)

    enrolment.change_roster(unlocked, change)
    after = replace(before, **given)
    try:
        _check_words(unlocked, before, after)
    except Error:  # what cannot be judged is put back as well
        enrolment.change_roster(unlocked, lambda roster: _back(roster, after, before))
        raise
    note(unlocked, "configure", _told(before, after), reason=None)


def _back(roster: Roster, after: Policy, before: Policy) -> Roster:
    """All as it was, unless another owner has set it since."""
    policy = roster.policy
    if (policy.forget_delay, policy.forget_quorum) != (after.forget_delay, after.forget_quorum):
        return roster
    rules = before.keep if policy.keep == after.keep else policy.keep
    same = policy.reason_required == after.reason_required
    same_lock = policy.lock == after.lock
    return replace(
        roster,
        policy=replace(
            policy,
            keep=rules,
            forget_delay=before.forget_delay,
            forget_quorum=before.forget_quorum,
            reason_required=before.reason_required if same else policy.reason_required,
            lock=before.lock if same_lock else policy.lock,
        ),
    )


def _given(wish: Wish) -> dict[str, object]:
    """The policy's fields that are to be set. InvalidInput."""
    given: dict[str, object] = {}
    if wish.keep is not None:
        if len(wish.keep) > RULES_MAX:
            raise InvalidInput(f"There are more than {RULES_MAX} rules.", remedy="Join some with * and ?.")
        given["keep"] = tuple(_rule(pattern, keep) for pattern, keep in wish.keep.items())
    delay = wish.forget_delay
    if delay is not None:
        if not isinstance(delay, timedelta) or not timedelta(0) <= delay <= DELAY_MAX:
            raise InvalidInput(
                f"{delay!r} is no time after which a forget can count.",
                kind="forget-delay",
                remedy=f"Give a timedelta from 0 to {DELAY_MAX.days} days.",
            )
        given["forget_delay"] = _seconds(delay)
    quorum = wish.forget_quorum
    if quorum is not None:
        if not isinstance(quorum, int) or isinstance(quorum, bool) or not 1 <= quorum <= QUORUM_MAX:
            raise InvalidInput(
                f"{quorum!r} is no number of people who have to agree.",
                kind="forget-quorum",
                remedy=f"Give a whole number from 1 to {QUORUM_MAX}.",
            )
        given["forget_quorum"] = quorum
    if wish.reason_required is not None:
        if not isinstance(wish.reason_required, bool):
            raise InvalidInput(
                f"{wish.reason_required!r} does not say whether a restore needs a reason.",
                kind="reason-required",
                remedy="Give True or False.",
            )
        given["reason_required"] = wish.reason_required
    if wish.lock is not None:
        if not isinstance(wish.lock, timedelta) or not timedelta(0) <= wish.lock <= DELAY_MAX:
            raise InvalidInput(
                f"{wish.lock!r} is no time for which objects can be locked.",
                kind="lock",
                remedy=f"Give a timedelta from 0 to {DELAY_MAX.days} days.",
            )
        given["lock"] = _seconds(wish.lock)
    return given


def _rule(pattern: str, keep: Keep) -> KeepRule:
    """InvalidInput."""
    Class(pattern)
    if len(pattern) > PATTERN_MAX or any("\ud800" <= letter <= "\udfff" for letter in pattern):
        raise InvalidInput(
            f"{pattern[:PATTERN_MAX]!a} cannot be stored as a rule's pattern.",
            kind="keep",
            remedy=f"Give Unicode text of {PATTERN_MAX} characters at most.",
        )
    if not isinstance(keep, Keep):
        raise InvalidInput(f"{keep!r} does not say how much is kept.", kind="keep", remedy="Give a pb.Keep.")
    counts = {field.name: getattr(keep, field.name) for field in dataclasses.fields(keep) if field.name != "within"}
    if keep.within > WITHIN_MAX or any(count > COUNT_MAX for count in counts.values()):
        raise InvalidInput(
            f"{keep!r} is more than can be stored.",
            kind="keep",
            remedy="Leave a dataset without a rule to keep all of it.",
        )
    return KeepRule(dataset=pattern, within=_seconds(keep.within), **counts)


def _seconds(duration: timedelta) -> int:
    """Whole ones, upwards: what is asked for is the least."""
    whole, rest = divmod(duration, SECOND)
    return whole + bool(rest)


def _check_quorum(roster: Roster, quorum: int | None) -> None:
    """InvalidInput when so many could never agree: nothing would ever be forgotten."""
    there = sum(1 for slot in roster.slots if slot.revoked is None and slot.role in MARK_GRANTS["forget"])
    if quorum is not None and quorum > there:
        raise InvalidInput(
            f"{quorum} people would have to agree, and only {there} can.",
            kind="forget-quorum",
            remedy="Enrol others first, or ask for fewer.",
        )


def _check_words(unlocked: Unlocked, before: Policy, after: Policy) -> None:
    """Conflict when new rules would make a recall or a hold come too late that came in time by the old ones.

    Which words came in time is judged by the newest rules, also of what was said before them.
    """
    if after.forget_delay >= before.forget_delay and after.forget_quorum >= before.forget_quorum:
        return
    history, now = sound_history(unlocked), now_ns()
    old = dataclasses.replace(history, quorum=before.forget_quorum, delay=before.forget_delay * 10**9)
    new = dataclasses.replace(history, quorum=after.forget_quorum, delay=after.forget_delay * 10**9)
    recalled = _unheard(new) - _unheard(old) - history.deleted
    held = set(old.holds(now)) - set(new.holds(now))
    if recalled or held:
        raise Conflict(
            f"By these rules {len(recalled)} calls back and holds of {len(held)} snapshots would have come too late, "
            f"such as that of {min(recalled | held).hex()[:8]}, and it could be deleted.",
            kind="words-lost",
            remedy="Choose a longer delay. A hold that is over can be released first.",
        )


def _unheard(history: History) -> set[bytes]:
    """Snapshots that go, or go earlier than a later forget lets them, since by these rules a recall came too late."""
    heard = dataclasses.replace(history, delay=ENDLESS).forgets()
    return {
        who
        for who, ripe in history.forgets().items()
        if who not in heard or ripe < heard[who] - ENDLESS + history.delay
    }


def _told(before: Policy, after: Policy) -> str:
    """For the audit record, which everybody with a catalogue key can read."""
    told = []
    if before.keep != after.keep:
        told.append(f"keep: {len(after.keep)} rules (were {len(before.keep)})")
    if before.forget_delay != after.forget_delay:
        told.append(f"forget_delay: {after.forget_delay} s (was {before.forget_delay} s)")
    if before.reason_required != after.reason_required:
        told.append(f"reason_required: {after.reason_required} (was {before.reason_required})")
    if before.forget_quorum != after.forget_quorum:
        told.append(f"forget_quorum: {after.forget_quorum} (was {before.forget_quorum})")
    if before.lock != after.lock:
        told.append(f"lock: {after.lock} s (was {before.lock} s)")
    return "; ".join(told)
