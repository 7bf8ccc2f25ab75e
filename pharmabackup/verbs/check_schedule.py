"""How each pack was when it was last read whole, on this machine: shares of a check take turns, and add up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pharmabackup.clock import now_ns, steady_ns
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.blocktable import BlockTable
from pharmabackup.engine.history import History
from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import wire
from pharmabackup.verbs.check_packs import PackFound

CONTEXT = b"check schedule"
SAVE_EVERY_NS = 60 * 10**9  # what was read by then is not read again after a power cut


class Reading(msgspec.Struct, array_like=True, frozen=True):
    """`time`: nanoseconds since 1970, this machine's clock."""

    time: int
    sound: bool


NEVER = Reading(0, sound=True)


class _Known(msgspec.Struct, array_like=True):
    """`hurt`: the snapshots that the last check found damaged, whatever it was."""

    packs: dict[bytes, Reading] = {}
    hurt: list[bytes] = []


class Readings:
    """The last reading of each pack."""

    def __init__(self, unlocked: Unlocked) -> None:
        self._unlocked = unlocked
        known = _load(unlocked)
        self._last, self._hurt = known.packs, known.hurt
        self._saved = steady_ns()

    def in_turn(self, there: Iterable[int], table: BlockTable, share: float) -> list[int]:
        """Which of these packs a share takes: those that were read longest ago.

        What was damaged then is read each time, and counts for nothing: it is told until it is mended, and keeps
        nobody from coming to the others.
        """
        last = {place: self._last.get(table.packs[place], NEVER) for place in there}
        order = sorted(last, key=lambda place: (last[place].time, table.packs[place]))
        budget = math.ceil(share * sum(table.pack_sizes[place] for place in order))
        found = [place for place in order if not last[place].sound]
        for place in order:
            if budget > 0 and last[place].sound:
                found.append(place)
                budget -= table.pack_sizes[place]
        return found

    def take(self, found: Mapping[int, PackFound], packs: Sequence[bytes], *, now: bool) -> None:
        """Remember what was read up to here; save it `now`, or if that was long ago."""
        if not now and steady_ns() < self._saved + SAVE_EVERY_NS:
            return
        here, time = set(packs), now_ns()
        for pack, last in _load(self._unlocked).packs.items():  # of a check that runs at the same time, too
            if last.time > self._last.get(pack, NEVER).time:
                self._last[pack] = last
        self._last = {pack: last for pack, last in self._last.items() if pack in here}
        for sound in (True, False):  # of two things that segments say of one pack, the worse counts
            places = [place for place, one in dict(found).items() if (one.problem is None) == sound]
            self._last.update(dict.fromkeys([packs[place] for place in places], Reading(time, sound)))
        self._save()

    def conclude(self, hurt: Iterable[bytes]) -> None:
        """Remember these snapshots as the ones that are damaged."""
        found = sorted(hurt)
        if found != self._hurt:
            self._hurt = found
            self._save()

    def _save(self) -> None:
        try:
            data = msgspec.msgpack.encode(_Known(self._last, self._hurt))
            replace(self._unlocked.state / "read", _key(self._unlocked).seal(data, CONTEXT))
        except OSError:
            pass  # a full or read-only state folder: the same packs come first the next time
        self._saved = steady_ns()

    def times(self, packs: Sequence[bytes]) -> list[int]:
        """When each of these was read, by its place; 0 if it never was, or was damaged."""
        return [last.time if (last := self._last.get(pack, NEVER)).sound else 0 for pack in packs]


def known_damage(unlocked: Unlocked) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """Packs that were damaged when they were last read, and snapshots that the last check found damaged: here, with
    this credential."""
    known = _load(unlocked)
    return frozenset(pack for pack, last in known.packs.items() if not last.sound), frozenset(known.hurt)


def verified(history: History, slot: bytes, oldest: Mapping[bytes, int]) -> list[bytes]:
    """Of these snapshots, those of which all was read since that slot last said so.

    `oldest`: when the pack of each was read that was read longest ago, if all were found sound.
    """
    said: dict[bytes, int] = {}
    now = now_ns()
    for item in history.said:
        if item.mark.kind == "verified" and item.slot.id == slot and item.mark.time <= now:
            said.update(dict.fromkeys(item.transactions, item.mark.time))
    return [transaction for transaction, time in oldest.items() if time > said.get(transaction, 0)]


def _load(unlocked: Unlocked) -> _Known:
    try:
        data = _key(unlocked).open((unlocked.state / "read").read_bytes(), CONTEXT)
        known = wire.decoder(_Known).decode(data)
    except (OSError, NotAuthentic, msgspec.MsgspecError, ValueError):
        return _Known()
    now = now_ns()
    for pack, last in known.packs.items():
        if last.time > now:  # this machine's clock was ahead then
            known.packs[pack] = Reading(0, last.sound)
    return known


def _key(unlocked: Unlocked) -> SealingKey:
    return SealingKey(unlocked.purpose_key("check schedule"))
