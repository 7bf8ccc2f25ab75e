"""What marks have made of snapshots: section 15 of docs/format.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """A mark, who signed it, and when it came by the storage's clock, in nanoseconds."""

    mark: Any
    slot: bytes
    time: int

    @property
    def transactions(self) -> list[bytes]:
        return [self.mark.transactions[at : at + 16] for at in range(0, len(self.mark.transactions), 16)]


Named = tuple[bytes, Said]


def gone(marks: dict[bytes, Said], policy: Any, now: int, beside: Sequence[Named] = ()) -> set[bytes]:
    """Transactions whose forget counts and which nothing holds, now or at a moment since it has counted.

    `beside`: further holds and undos, which have the name of another mark.
    """
    every = [*marks.items(), *beside]
    holds = _holds(every)
    found = set()
    for transaction, since in _forgets(marks, every, policy):
        until = since
        for start, end in sorted(holds[transaction]):
            if start < until or start < since:
                until = max(until, end)
        if until <= now:
            found.add(transaction)
    return found


def _holds(marks: Sequence[Named]) -> dict[bytes, list[tuple[int, float]]]:
    """When each transaction was held: from when, and until when."""
    released: dict[tuple[bytes, bytes], int] = {}
    for _, said in marks:
        if said.mark.kind == "release":
            for key in ((said.mark.about, transaction) for transaction in said.transactions):
                released[key] = min(said.time, released.get(key, said.time))
    holds: dict[bytes, list[tuple[int, float]]] = defaultdict(list)
    for name, said in marks:
        if said.mark.kind == "hold":
            until = float("inf") if said.mark.until is None else said.mark.until
            for transaction in said.transactions:
                holds[transaction].append((said.time, min(until, released.get((name, transaction), until))))
    return holds


def _forgets(marks: dict[bytes, Said], every: Sequence[Named], policy: Any) -> list[tuple[bytes, int]]:
    """Of each first forget and each of its transactions: from when it counts."""
    found = []
    undos = sorted((said for _, said in every if said.mark.kind == "undo"), key=lambda said: said.time)
    for first, said in marks.items():
        if said.mark.kind != "forget" or said.mark.about is not None:
            continue
        group = {first: said}
        group |= {name: one for name, one in marks.items() if one.mark.kind == "forget" and one.mark.about == first}
        for transaction in said.transactions:
            standing = {name: one for name, one in group.items() if transaction in one.transactions}
            for undo in undos:
                since = _full(standing, policy)
                counts = since is None or undo.time < since
                if undo.mark.about in standing and transaction in undo.transactions and counts:
                    del standing[undo.mark.about]
                    if undo.mark.about == first:
                        standing = {}
            if (since := _full(standing, policy)) is not None:
                found.append((transaction, since))
    return found


def _full(standing: dict[bytes, Said], policy: Any) -> int | None:
    """When the forget counts for which these stand: a slot counts once, with its earliest."""
    times: dict[bytes, int] = {}
    for said in standing.values():
        times[said.slot] = min(said.time, times.get(said.slot, said.time))
    if len(times) < policy.forget_quorum:
        return None
    return sorted(times.values())[policy.forget_quorum - 1] + policy.forget_delay * 10**9
