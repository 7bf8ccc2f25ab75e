"""Which packs are worth emptying: their living blocks move, so that the rest can go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pharmabackup.engine.packs import PACK_TARGET

if TYPE_CHECKING:
    from pharmabackup.engine.garbage import Garbage

UNUSED_SHARE = 0.05  # of what is alive: so much may stay dead between living blocks
SMALL = PACK_TARGET // 4  # bytes: packs below that are joined when there are many of about one size
MANY = 32  # far more than a class of sizes spans, so that what was joined is not joined again with those


def choose_sparse(
    garbage: Garbage, unused: dict[bytes, int], content: dict[bytes, int], kept: dict[bytes, list[int]]
) -> None:
    """Empty the packs with the greatest share of dead bytes, until few are left."""
    left = sum(unused.values())
    may_stay = UNUSED_SHARE * sum(garbage.sizes[pack] - rest for pack, rest in unused.items())
    for pack in sorted(unused, key=lambda pack: (unused[pack] / max(1, content[pack]), pack), reverse=True):
        if left <= may_stay:
            return
        garbage.sparse[pack] = sorted(kept[pack])
        left -= unused[pack]


def choose_small(garbage: Garbage, unused: dict[bytes, int], kept: dict[bytes, list[int]]) -> None:
    """Join small packs where there are many of about one size: of one power of eight."""
    domain_of = dict(zip(garbage.index.blocks.packs, garbage.index.blocks.domains, strict=True))
    classes: dict[tuple[bytes, int], list[bytes]] = {}
    for pack in unused.keys() - garbage.sparse.keys():
        if garbage.sizes[pack] < SMALL:
            classes.setdefault((domain_of[pack], garbage.sizes[pack].bit_length() // 3), []).append(pack)
    for packs in classes.values():
        if len(packs) >= MANY:
            garbage.small.update(packs)
            garbage.sparse.update((pack, sorted(kept[pack])) for pack in packs)
