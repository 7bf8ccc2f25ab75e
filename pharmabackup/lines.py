"""Lines of succession: which of some things come next after which, though others lie between."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping

END = b""  # what comes next on a line that has no more


def next_of(
    newest_first: Iterable[bytes], followers: Mapping[bytes, Collection[bytes]], wanted: Container[bytes]
) -> dict[bytes, tuple[bytes, ...]]:
    """Of each that is wanted, newest first, what follows it without another of them in between, END with it where a
    line has none.

    `followers`: of each of all, those that follow it directly; they come before it in `newest_first`.
    """
    nearest: dict[bytes, tuple[bytes, ...]] = {END: (END,)}  # from each on: itself, or if not wanted what comes next
    found: dict[bytes, tuple[bytes, ...]] = {}
    for item in newest_first:
        behind = [nearest[follower] for follower in followers[item] or (END,)]
        following = behind[0] if len(behind) == 1 else tuple(dict.fromkeys(each for one in behind for each in one))
        if item in wanted:
            found[item] = following
            following = (item,)
        nearest[item] = following
    return found
