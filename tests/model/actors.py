"""What an actor is: a name, where it starts, and what it may do next. Each move is one call to the storage.

An actor that is at `END` does nothing more. One whose place begins with `!` has found out something that is not so,
and what follows says what. Since every state is checked, an actor that is never scheduled again is one that stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple, Protocol

from tests.model.store import Store, View

END = "end"


class Move(NamedTuple):
    label: str
    at: Any  # the actor's own memory, a named tuple; its first field is where it is
    store: Store


class Actor(Protocol):
    name: str
    start: Any

    def moves(self, at: Any, view: View) -> Iterator[Move]: ...


def names(items: Iterable[object]) -> str:
    """For labels: a set of names, in order."""
    return "{" + ", ".join(sorted(map(str, items))) + "}"


def subsets(items: frozenset[str]) -> Iterator[frozenset[str]]:
    """All subsets, the whole first."""
    ordered = sorted(items)
    for chosen in product((True, False), repeat=len(ordered)):
        yield frozenset(item for item, taken in zip(ordered, chosen, strict=True) if taken)
