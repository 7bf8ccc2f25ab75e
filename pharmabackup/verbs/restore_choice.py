"""What a restore brings back, and to where: everything is looked at before the first byte is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pharmabackup.engine.history import Committed, History
from pharmabackup.errors import Conflict, InvalidInput, NotFound, StorageFailed, Unsupported
from pharmabackup.patterns import compile_ancestors, compile_following, compile_patterns
from pharmabackup.sources.base import Source
from pharmabackup.sources.files import Files
from pharmabackup.sources.sqlite import SQLite
from pharmabackup.verbs.restore_marker import MARKER, read_marker


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which paths of a dataset are asked for, where that is not all."""

    matches: Callable[[bytes], bool]
    below: Callable[[bytes], bool]  # whether something in this folder might be
    after: Callable[[bytes, bytes], bool]  # whether something in this folder might be, after that name in it


class Selection:
    """Which datasets, and which paths in them, `only` names."""

    def __init__(self, only: Sequence[str]) -> None:
        self.everything = not only
        self._whole = {text for text in only if "/" not in text}
        self._globs: dict[str, list[str]] = {}
        for text in only:
            dataset, slash, pattern = text.partition("/")
            if slash:
                self._globs.setdefault(dataset, []).append(pattern or "**")
        self.named = self._whole | set(self._globs)

    def wants(self, dataset: str) -> bool:
        return self.everything or dataset in self.named

    def filter(self, dataset: str) -> Wanted | None:
        """Which paths; None: all."""
        if self.everything or dataset in self._whole:
            return None
        patterns = ["/" + pattern for pattern in self._globs[dataset]]
        return Wanted(compile_patterns(patterns), compile_ancestors(patterns), compile_following(patterns))


def choose(
    history: History, before: int | None, chosen: Sequence[Committed], selection: Selection
) -> list[Committed]:
    """The snapshots to restore, by tier and name. NotFound, InvalidInput."""
    found: dict[str, Committed] = {}
    if chosen:
        for item in chosen:
            if item.snapshot.dataset in found:
                raise InvalidInput(
                    f"Two snapshots of {item.snapshot.dataset} were given.", remedy="Restore one after the other."
                )
            found[item.snapshot.dataset] = item
    else:
        forgotten = history.forgotten()
        for item in history.newest():
            late = before is not None and item.snapshot.time >= before
            if not late and item.transaction not in forgotten:
                found.setdefault(item.snapshot.dataset, item)
    missing = selection.named - set(found)
    if missing:
        raise NotFound(
            f"There is no dataset {', '.join(sorted(missing))} in this repository.",
            kind="dataset",
            remedy=f"It has {', '.join(sorted(found)) or 'none'}.",
        )
    if not found:
        raise NotFound("There is no snapshot to restore.", kind="snapshot", remedy="List what there is.")
    wanted = [item for name, item in found.items() if selection.wants(name)]
    return sorted(wanted, key=lambda item: (item.snapshot.tier, item.snapshot.dataset))


def other_devices(history: History, item: Committed) -> list[str]:
    """Which other devices have a dataset of that name: their newest is not what is restored."""
    forgotten = history.forgotten()
    return sorted(
        {
            other.slot.name
            for other in history.committed.values()
            if other.snapshot.dataset == item.snapshot.dataset
            and other.slot.id != item.slot.id
            and other.transaction not in forgotten
        }
    )


@dataclass(frozen=True, slots=True)
class Into:
    """A dataset goes into a source, which was asked whether it can be."""

    source: Source


@dataclass(frozen=True, slots=True)
class Place:
    """Where a dataset goes: a folder, and for a database loaded into a path of its own, that path."""

    folder: Path
    database: Path | None
    merge: bool


def choose_places(
    snapshots: Sequence[Committed],
    target: Path | None,
    into: Mapping[str, Source],
    selection: Selection,
    overwrite: bool,
) -> dict[str, Place | Into]:
    """Every place is looked at before the first byte is written.

    Conflict, InvalidInput, NotFound, Unsupported, SourceFailed.
    """
    unknown = set(into) - {item.snapshot.dataset for item in snapshots}
    if unknown:
        raise NotFound(
            f"`into` names {', '.join(sorted(unknown))}, which is not restored.",
            kind="dataset",
            remedy="Leave it out, or restore that dataset too.",
        )
    found: dict[str, Place | Into] = {}
    for item in snapshots:
        name = item.snapshot.dataset
        source = into.get(name)
        if source is None and target is None:
            raise InvalidInput(f"There is no place to restore {name} to.", remedy="Give a target folder.")
        if source is None:
            assert target is not None
            found[name] = _folder(target / name, item, overwrite)
        elif source.kind != item.snapshot.source:
            raise Unsupported(
                f"{name} is a backup of kind {item.snapshot.source} and cannot be loaded into {source.kind}.",
                remedy="Give a source of the same kind, or restore to a folder.",
            )
        elif isinstance(source, SQLite):
            path = source.location()
            if path.exists() and not overwrite:
                raise _not_empty(path)
            found[name] = Place(path.with_name(f"{path.name}{MARKER}"), path, False)
        elif isinstance(source, Files):
            found[name] = _folder(source.location(), item, overwrite)
        elif selection.filter(name) is not None:
            raise Unsupported(
                f"{name} is loaded into a {source.kind} as a whole, not some of its files.",
                remedy="Name the dataset alone in `only`, or restore to a folder.",
            )
        else:
            source.prepare(item.snapshot.facts, overwrite=overwrite)
            found[name] = Into(source)
    return found


def _folder(folder: Path, item: Committed, overwrite: bool) -> Place:
    if os.path.lexists(folder) and not folder.is_dir():
        raise Conflict(
            f"{folder} is a file, and a folder has to be there.",
            remedy="Move it away, or choose another target folder.",
        )
    for parent in folder.parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise Conflict(f"{parent} is a file, not a folder.", remedy="Choose another target folder.")
            break
    try:
        occupied = folder.is_dir() and bool(os.listdir(folder))
    except OSError as error:
        raise StorageFailed(
            f"{folder} cannot be looked into: {os.strerror(error.errno or errno.EIO)}.",
            kind="storage-denied",
            remedy="Let this user read and write there, or choose another target folder.",
            location=str(folder),
        ) from error
    marker = read_marker(folder)
    resumed = marker is not None and marker.transaction == item.transaction
    if occupied and not resumed and not overwrite:
        raise _not_empty(folder)
    return Place(folder, None, occupied)


def _not_empty(path: Path) -> Conflict:
    return Conflict(
        f"{path} is there already and was not touched.",
        kind="target-not-empty",
        remedy="Choose an empty folder, or pass overwrite=True.",
    )
