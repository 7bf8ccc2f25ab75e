"""One object of a world is spoilt: it is named by a check, mended from the replica, or taken away."""

from __future__ import annotations

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.keyrings import keyring_problem
from pharmabackup.testing.simulated import SimulatedStorage
from tests.simulation import judging
from tests.simulation.reached import reached
from tests.simulation.world import World

FOLDERS = ("packs", "index", "collections", "snapshots", "marks", "intents", "audit")  # what comes from day to day


def spoil(storage: SimulatedStorage, name: str, how: str, at: int, bit: int = 0) -> None:
    if how == "flipped":
        storage.flip(name, at, bit)
    elif how == "cut":
        storage.cut(name, at)
    else:
        storage.remove(name)


def is_found(world: World, device: str, kind: int, which: int, how: str, at: int, bit: int) -> None:
    """One object, of one kind: a check names it and nothing else; what is healed is healed."""
    world.repo(device).snapshots()  # it has seen all that there is: what vanishes can be missed
    world.close_devices()
    storage = world.storage
    there = {name.partition("/")[0] for name in storage.names()}
    kinds = [folder for folder in (*FOLDERS, *FOLDERS, "keys", "repository", "roster") if folder in there]
    folder = kinds[kind % len(kinds)]
    names = [name for name in storage.names() if name.partition("/")[0] == folder]
    before = set(storage.names())
    spoil(storage, names[which % len(names)], how, at, bit)
    injury = storage.injuries[-1]
    try:
        with world.simulation.open(storage, device=device) as repo:
            if folder in ("keys", "roster"):  # what cites it, or is opened by it, is named in its place
                findings = repo.check(read_data=1.0).findings
                said = any(
                    one.severity != "info" or injury.name in f"{one.subject} {one.message}" for one in findings
                )
                hidden = folder == "keys" and (how == "removed" or not keyring_problem(storage, injury.name))
                assert said or hidden, f"{injury.name} was {how}, and nothing says so"
                for one in () if said else world.there():  # nobody needed that keyring
                    world.compare(repo, one)
            else:
                judging.finds(repo, injury, world.removed, world.scars)
    except (pb.Damaged, pb.NotFound, pb.WrongCredential, pb.Unsupported) as error:
        # Without these nothing can be opened, and nothing judged. And one bit makes a version a newer one, which
        # is refused and not called damage.
        newer = how == "flipped" and isinstance(error, pb.Unsupported)
        assert newer or folder in ("repository", "roster", "keys"), f"{injury.name} {how}: {error!r}"
    finally:
        storage.heal()
    world.scars |= {name for name in storage.names() if name not in before and _follows(name, injury.name)}
    reached[f"damage found: {folder}"] += 1
    world.check(world.repo(device), device)


def _follows(name: str, injured: str) -> bool:
    """Whether it is the next audit record: written beside a spoilt one it names that, and not the healed one."""
    folder, _, number = injured.rpartition("/")
    return injured.startswith("audit/") and name == f"{folder}/{int(number) + 1}"


def spoil_what_the_replica_has(world: World, device: str, folder: str, which: int, how: str, at: int) -> str | None:
    """One pack or segment, where all is in the replica that has to be here; its name."""
    world.copy(world.repo(device), device)
    names = [name for name in world.storage.names() if name.startswith(folder)]
    with world.simulation.open(world.replica, device=device) as other:
        copied = {snapshot.id for snapshot in other.snapshots() if not snapshot.forgotten}
    here = {snapshot.id for snapshot in world.repo(device).snapshots() if not snapshot.forgotten}
    if not names or not here <= copied:
        return None  # the replica has forgotten it, or its collector came first
    name = names[which % len(names)]
    spoil(world.storage, name, how, at)
    if folder == "packs" and how == "removed":
        world.removed.add(ids.hex_tail(name) or b"")
    world.close_devices()
    return name


def mend(world: World, device: str, name: str) -> None:
    """From the replica; then all is well again."""
    world.repair(world.repo(device), device)
    world.all_restore(device)
    if name in world.storage.names():
        world.storage.heal()  # a backup that has not ended pins it, and no snapshot needs it
    world.storage.injuries.clear()
    world.check(world.repo(device), device)


def clear_torn(world: World, device: str) -> None:
    """What a lying storage has kept the beginning of: check names it, and somebody takes it away."""
    for storage in (world.storage, world.replica):
        names = {name for name in storage.torn if name in storage.names()}
        storage.torn.clear()
        if not names:
            continue
        world.close_devices()
        try:
            with world.simulation.open(storage, device=device) as repo:
                found = {finding.subject for finding in repo.check(read_data=1.0).findings}
        except pb.Damaged as error:
            assert any(name in error.message or name.startswith("roster/") for name in names), f"{names} {error!r}"
            found = names
        assert names <= found, f"{names} {found}"
        scars = {name for name in names if name.startswith("audit/")}
        world.scars |= scars
        for name in sorted(names - scars):
            storage.remove(name)
        storage.injuries.clear()
