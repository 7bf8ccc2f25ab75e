"""Content from its beginning to its end, for whoever cannot seek: a program that restores, a server.

A dump of which single rows changed, day after day, lies in the blocks of many days, in turn. Which blocks are needed
when is known beforehand. So of those in memory the one goes that is needed last (Bélády's rule), which fetches the
fewest, and over a line they are asked for ahead of their turn.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby

from pharmabackup.engine.lanes import in_lanes
from pharmabackup.engine.reading import SnapshotReader, range_of, run_range
from pharmabackup.format import block as layout
from pharmabackup.format.wire import malformed

BLOCKS = 96  # in memory, of about 1 MiB
PIECE = 1 << 20
OPENERS = 2  # threads that fetch and open blocks before their turn: that takes as long as what is done with them


def stream(reader: SnapshotReader, start: int, size: int) -> Iterator[bytes]:
    """These bytes of the content, in pieces of about 1 MiB. Damaged: then what came is not whole."""
    runs, table = reader.recipe()
    starts, end = reader.run_starts, start + size
    if end > starts[-1]:
        raise malformed("recipe", "it is shorter than its manifest says")
    if not size:
        return
    first, beyond = bisect_right(starts, start) - 1, bisect_left(starts, end)
    turns = [(slot, list(group)) for slot, group in groupby(range(first, beyond), key=runs.block.__getitem__)]
    moves = plan([slot for slot, _ in turns], BLOCKS)
    blocks, domain = reader.blocks, reader.snapshot.domain
    index = blocks.index.blocks
    numbers = {slot: index.find(table[slot], domain) for slot, _ in turns}
    places = {slot: range_of(index, number) for slot, number in numbers.items() if number is not None}
    ahead = blocks.ahead()
    comes = [slot for (slot, _), move in zip(turns, moves, strict=True) if move is not None]
    opened = in_lanes(OPENERS, lambda slot: blocks.fetch(table[slot], domain, ahead=ahead), comes, pool=blocks.pool())
    held: dict[int, tuple[bytes, list[int]]] = {}
    parts: list[memoryview] = []
    filled = 0
    try:
        if ahead is not None:
            ahead.plan(places[slot] for slot in comes if slot in places)
        for (slot, group), move in zip(turns, moves, strict=True):
            if move is not None:
                held.pop(move, None)
                _, fetched = next(opened)
                content = fetched()
                if ahead is not None and slot in places:
                    ahead.done(places[slot])
                held[slot] = content, layout.chunk_ends(content)
            content, ends = held[slot]
            for i in group:
                begin, stop = run_range(ends, runs.first[i], runs.count[i], runs.sizes[i])
                begin += max(0, start - starts[i])
                stop -= max(0, starts[i + 1] - end)
                parts.append(memoryview(content)[begin:stop])
                filled += stop - begin
                if filled >= PIECE:
                    yield b"".join(parts)
                    parts, filled = [], 0
        if parts:
            yield b"".join(parts)
    finally:
        opened.close()
        if ahead is not None:
            ahead.close()


def plan(wanted: Sequence[int], room: int) -> list[int | None]:
    """For each turn: None where its block is held already, else which one it takes the place of (-1: none).

    L. A. Bélády, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5 (1966).
    """
    never = len(wanted)
    following = [never] * never
    last: dict[int, int] = {}
    for turn in range(never - 1, -1, -1):
        following[turn] = last.get(wanted[turn], never)
        last[wanted[turn]] = turn
    held: dict[int, int] = {}  # when it is wanted next
    moves: list[int | None] = []
    for turn, slot in enumerate(wanted):
        if slot in held:
            moves.append(None)
        elif len(held) < room:
            moves.append(-1)
        else:
            latest = max(held, key=held.__getitem__)
            del held[latest]
            moves.append(latest)
        held[slot] = following[turn]
    return moves
