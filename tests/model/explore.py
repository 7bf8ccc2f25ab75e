"""The search: every state that some order of the actors' moves reaches, breadth first, each checked once.

Stores and actors' memories are numbered, so that a state is one integer, and what an actor can do from a store is
worked out once. What is found is found with as few moves as possible.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.model.actors import END, Actor
from tests.model.properties import broken, garbage, has_deleted
from tests.model.rules import Rules
from tests.model.store import Fate, Store, View

BITS = 24  # of a state for each part of it
MASK = (1 << BITS) - 1
VIEWS = 5000  # kept at once
QUIET_MOVES = 400  # more than anybody needs who is alone


@dataclass(frozen=True)
class Case:
    """Who acts on what. `expects`: empty if nothing may go wrong, else what the search must find.

    `afterwards`: who comes when all are quiet; the last must then have done his work, and no garbage may be left.
    """

    code: str
    title: str
    rules: Rules
    store: Store
    actors: tuple[Actor, ...]
    expects: str = ""
    deletes: bool = True  # some state must be reached in which garbage was deleted
    commits: bool = True  # and one in which a snapshot was committed
    nightly: bool = False
    afterwards: tuple[Callable[[], Actor], ...] = ()
    everywhere: bool = False  # all may stop for ever in any state before that, not only in the last ones
    arrives: Callable[[View], str] | None = None  # what must hold in the end, empty if it does
    index_matters: bool = True


@dataclass
class Found:
    """What a search came to."""

    states: int = 0
    stores: int = 0
    wrong: str = ""
    trace: list[str] = field(default_factory=list)
    deleted: int = 0  # states in which garbage was deleted
    committed: int = 0
    quiet: int = 0  # stores from which it was tried whether all comes right in the end


class _Numbered:
    """Values and their numbers."""

    def __init__(self) -> None:
        self.number: dict[Hashable, int] = {}
        self.values: list[Any] = []

    def of(self, value: Hashable) -> int:
        found = self.number.setdefault(value, len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found


class Search:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.found = Found()
        self._stores = _Numbered()
        self._places = [_Numbered() for _ in case.actors]
        self._next: list[dict[int, list[tuple[int, int]]]] = [{} for _ in case.actors]
        self._views: dict[int, View] = {}
        self._facts: list[tuple[bool, bool]] = []  # by store: garbage was deleted, a snapshot committed
        self._before = frozenset(item for item in case.store if isinstance(item, Fate))

    def run(self) -> Found:
        """Until something is wrong or all was seen."""
        found, last = self.found, set[int]()
        start = self._stores.of(self.case.store)
        for i, actor in enumerate(self.case.actors):
            start |= self._places[i].of(actor.start) << BITS * (i + 1)
        self._look(start & MASK)
        parents, queue = {start: -1}, [start]
        for state in queue:
            moved = False
            for new in self._successors(state):
                moved = True
                if new not in parents:
                    parents[new] = state
                    queue.append(new)
            if found.wrong:
                found.trace = self._trace(parents, queue[-1])
                break
            if not moved:
                last.add(state & MASK)
            deleted, committed = self._facts[state & MASK]
            found.deleted += deleted
            found.committed += committed
        found.states, found.stores = len(parents), len(self._stores.values)
        if self.case.afterwards and not found.wrong:
            self._quiet(range(found.stores) if self.case.everywhere else sorted(last), parents)
        return found

    def _successors(self, state: int) -> Iterator[int]:
        """The states that one move leads to. If that is where something is wrong, it is the last."""
        store = state & MASK
        for i, known in enumerate(self._next):
            shift = BITS * (i + 1)
            key = (state >> shift & MASK) << BITS | store
            moves = known.get(key)
            if moves is None:
                moves = known[key] = self._moves(i, key >> BITS, store)
            rest = state & ~(MASK << shift | MASK)
            for place, after in moves:
                yield rest | place << shift | after
            if self.found.wrong:
                return

    def view(self, store: int) -> View:
        view = self._views.get(store)
        if view is None:
            if len(self._views) >= VIEWS:
                self._views.clear()
            view = self._views[store] = View(self._stores.values[store])
        return view

    def _moves(self, i: int, place: int, store: int) -> list[tuple[int, int]]:
        """What actor i can do; what is wrong after one of these moves is noted."""
        at = self._places[i].values[place]
        moves = []
        if at[0] != END and at[0][0] != "!":
            for move in self.case.actors[i].moves(at, self.view(store)):
                known = len(self._stores.values)
                number = self._stores.of(move.store)
                if number == known:
                    self._look(number)
                if move.at[0][0] == "!" and not self.found.wrong:
                    self.found.wrong = move.at[0][1:]
                moves.append((self._places[i].of(move.at), number))
                if self.found.wrong:
                    moves = moves[-1:]
                    break
        return moves

    def _look(self, store: int) -> None:
        view = self.view(store)
        wrong = broken(view, self.case.rules)
        if wrong.startswith("INDEX") and not self.case.index_matters:
            wrong = ""
        self.found.wrong = self.found.wrong or wrong
        committed = any(not fate.aborted and fate not in self._before for fate in view.fates.values())
        self._facts.append((has_deleted(view), committed))

    def _trace(self, parents: dict[int, int], state: int) -> list[str]:
        states = [state]
        while (state := parents[state]) >= 0:
            states.append(state)
        lines = []
        for before, after in zip(states[:0:-1], states[-2::-1], strict=True):
            lines.append(self._label(before, after))
        return lines

    def _label(self, before: int, after: int) -> str:
        for i, actor in enumerate(self.case.actors):
            shift = BITS * (i + 1)
            if before & ~(MASK << shift | MASK) != after & ~(MASK << shift | MASK):
                continue
            at = self._places[i].values[before >> shift & MASK]
            if at[0] == END:
                continue
            for move in actor.moves(at, self.view(before & MASK)):
                if (
                    self._places[i].number.get(move.at) == after >> shift & MASK
                    and self._stores.number.get(move.store) == after & MASK
                ):
                    return f"{actor.name:8} {move.label}"
        raise AssertionError("nobody made this move")

    # ------------------------------------------------------------ when all is quiet

    def _quiet(self, stores: Sequence[int], parents: dict[int, int]) -> None:
        good: set[Store] = set()
        for number in stores:
            store: Store = self._stores.values[number]
            wrong, trace = self._alone(store, good)
            self.found.quiet += 1
            if wrong:
                state = next(state for state in parents if state & MASK == number)
                self.found.wrong = wrong
                self.found.trace = [*self._trace(parents, state), "         all stop for ever", *trace]
                return

    def _alone(self, store: Store, good: set[Store]) -> tuple[str, list[str]]:
        """Those who come afterwards, one after the other, each doing the first of what he can do."""
        trace: list[str] = []
        for make in self.case.afterwards:
            actor = make()
            at, moves = actor.start, 0
            while at[0] != END:
                move = next(iter(actor.moves(at, View(store))), None)
                if move is None or moves == QUIET_MOVES or str(move.at[0]).startswith("!"):
                    return f"QUIET: {actor.name} does not come to an end", trace
                moves += 1
                trace.append(f"{actor.name:8} {move.label}")
                if move.store != store and move.store not in good:
                    wrong = broken(View(move.store), self.case.rules)
                    if wrong and (self.case.index_matters or not wrong.startswith("INDEX")):
                        return wrong, trace
                    good.add(move.store)
                at, store = move.at, move.store
        view = View(store)
        left = garbage(view, aborts=self.case.rules.aborts)
        if left:
            return f"QUIET: {sorted(left)} is garbage and stays", trace
        if self.case.arrives is not None and (problem := self.case.arrives(view)):
            return f"QUIET: {problem}", trace
        return "", trace


def explore(case: Case) -> Found:
    """Garbage collection of Python's own is off meanwhile: there are millions of tuples and no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return Search(case).run()
    finally:
        if was_on:
            gc.enable()
