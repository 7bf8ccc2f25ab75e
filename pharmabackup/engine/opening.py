"""Creating and opening repositories: from a URL and a credential to an `Unlocked`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from pharmabackup import ids
from pharmabackup.credentials import Credential, Passphrase
from pharmabackup.engine.keyrings import (
    Opener,
    Way,
    check_not_revoked,
    joined,
    key_of,
    keyring_numbers,
    read_whole,
)
from pharmabackup.engine.lanes import Beside
from pharmabackup.engine.listing import side_by_side
from pharmabackup.engine.passphrase_tries import tries
from pharmabackup.engine.statefolder import (
    AUDIT_QUEUE,
    StrPath,
    check_identity,
    forget_place,
    state_folder,
    state_name,
)
from pharmabackup.errors import Conflict, Damaged, NotFound, WrongCredential
from pharmabackup.format.keys import Keyring, Roster, Slot
from pharmabackup.format.repository import (
    REPOSITORY_MAX,
    RepositoryRecord,
    decode_repository,
    encode_repository,
)
from pharmabackup.storage import connect
from pharmabackup.storage.base import Capabilities, ObjectInfo, Storage
from pharmabackup.storage.probe import probe

if TYPE_CHECKING:
    from pharmabackup.engine.roster import Rosters
    from pharmabackup.engine.unlocked import Unlocked

REPOSITORY = "repository"
LISTS = ("roster", "keys")
WITHOUT_KEYS = "without-signing-key"  # where things are kept meanwhile: what is remembered stays as it is


def create(
    url: StrPath,
    credential: Credential,
    *,
    storage_options: Mapping[str, object] | None = None,
    state_dir: StrPath | None = None,
) -> Unlocked:
    """A new repository. The object `repository` is created last: before it is there, nothing is one."""
    way = Way.of(credential)
    with _connected(url, storage_options, create=True) as storage:
        _check_empty(storage)
        forget_place(storage.location, state_folder(state_dir))
        from pharmabackup.engine.roster import found

        capabilities = probe(storage)
        founding = found(way)
        storage.put_new(ids.roster_name(0), founding.roster)
        storage.put_new(founding.keyring_name, founding.keyring)
        record = _record(founding.repository, capabilities)
        storage.put_new(REPOSITORY, encode_repository(record))
        return _unlock(storage, record, credential, state_dir, lambda: None)


def create_replica(
    url: StrPath,
    credential: Credential,
    *,
    of: Unlocked,
    storage_options: Mapping[str, object] | None = None,
    state_dir: StrPath | None = None,
) -> Unlocked:
    """The same repository at another place, without content yet. It opens with the credentials of the first.

    Conflict, WrongCredential, StorageFailed.
    """
    from pharmabackup.engine.carrying import copy_keys

    of.renew()
    _find(of.storage, of.repository, key_of(credential), of.roster)  # before anything is written
    with _connected(url, storage_options, create=True) as storage:
        _check_empty(storage)
        forget_place(storage.location, state_folder(state_dir))
        record = _record(of.repository, probe(storage))
        copy_keys(of, storage)
        storage.put_new(REPOSITORY, encode_repository(record))
        return _unlock(storage, record, credential, state_dir, lambda: None)


@contextmanager
def _connected(
    url: StrPath, storage_options: Mapping[str, object] | None, *, create: bool = False
) -> Iterator[Storage]:
    """A storage that nobody has to close where its repository cannot be opened."""
    storage = connect(url, storage_options=storage_options, create=create)
    try:
        yield storage
    except BaseException:
        storage.close()
        raise


def _check_empty(storage: Storage) -> None:
    """Conflict when there is something where a new repository is to be."""
    if any(True for _ in storage.list("")):
        raise Conflict(
            f"There is something in {storage.location} already.",
            kind="repository-exists" if _exists(storage) else "target-not-empty",
            remedy="Open it instead of creating it."
            if _exists(storage)
            else "Choose a new or empty folder for the repository.",
        )


def _record(repository: bytes, capabilities: Capabilities) -> RepositoryRecord:
    return RepositoryRecord(
        pharmabackup=1,
        id=repository.hex(),
        capabilities={
            "exclusive-create": capabilities.exclusive_create,
            "fresh-listing": capabilities.fresh_listing,
            "object-lock": capabilities.object_lock,
        },
    )


def _exists(storage: Storage) -> bool:
    try:
        storage.info(REPOSITORY)
    except NotFound:
        return False
    return True


def open_repository(
    url: StrPath,
    credential: Credential,
    *,
    storage_options: Mapping[str, object] | None = None,
    state_dir: StrPath | None = None,
    expected: str | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Unlocked:
    """`expected`: the repository's id, or how it begins. `meanwhile` is called while the credential is worked on.

    NotFound when there is none, WrongCredential, Unsupported, StorageFailed, Damaged("another-repository").
    """
    with (
        _connected(url, storage_options) as storage,
        Beside(storage.lanes, lambda: side_by_side(storage, LISTS) if storage.lanes > 1 else None) as lists,
    ):
        record = _record_of(storage)
        forgets = storage.present == storage.location
        check_identity(storage.present, record.id, state_folder(state_dir), expected, forgets=forgets)
        return _unlock(storage, record, credential, state_dir, meanwhile, lists.result())


def _record_of(storage: Storage) -> RepositoryRecord:
    root = storage.local_root()
    if root is not None and not os.path.isdir(root):
        raise _no_repository(storage)
    try:
        raw = storage.get(REPOSITORY, limit=REPOSITORY_MAX)
    except NotFound:
        if any(True for _ in storage.list("roster")):
            raise Damaged(
                f"The repository in {storage.location} has lost its object named repository.",
                kind="repository-record-missing",
                remedy="Run check on another location and copy that object from there.",
            ) from None
        raise _no_repository(storage) from None
    return decode_repository(raw)


def open_also(of: Unlocked, credential: Credential, *, state_dir: StrPath) -> Unlocked:
    """What is open already, with another credential, over the same connection: only one of them closes it.

    Its threads are the caller's to end. WrongCredential, Damaged, StorageFailed.
    """
    return _unlock(of.storage, of.record, credential, state_dir, lambda: None)


def read_lists(url: StrPath, storage_options: Mapping[str, object] | None) -> tuple[str, Rosters]:
    """A repository's id, and who may do what in it: what anybody can read who reaches it, without a key.

    NotFound, Damaged, Unsupported, StorageFailed.
    """
    from pharmabackup.engine.roster import read_rosters

    storage = connect(url, storage_options=storage_options)
    try:
        record = _record_of(storage)
        return record.id, read_rosters(storage, bytes.fromhex(record.id))
    finally:
        storage.close()


def _no_repository(storage: Storage) -> NotFound:
    return NotFound(
        f"There is no repository in {storage.location}.",
        kind="repository",
        remedy="Check the path, plug in its disk, or create a repository there.",
    )


def _unlock(
    storage: Storage,
    record: RepositoryRecord,
    credential: Credential,
    state_dir: StrPath | None,
    meanwhile: Callable[[], None],
    lists: Mapping[str, Sequence[ObjectInfo]] | None = None,
) -> Unlocked:
    """`lists`: what was in `LISTS` a moment ago."""
    repository = bytes.fromhex(record.id)
    key = key_of(credential)

    def find() -> tuple[Rosters, FoundKeys]:
        from pharmabackup.engine.roster import read_rosters

        if lists is None:
            rosters = read_rosters(storage, repository)
            return rosters, _find(storage, repository, key, rosters.newest)
        rosters = read_rosters(storage, repository, lists["roster"])
        listed = keyring_numbers(storage, lists["keys"])
        try:
            return rosters, _find(storage, repository, key, rosters.newest, listed)
        except (Damaged, WrongCredential):
            if (now := keyring_numbers(storage)) == listed:
                raise
            # They were listed before the rosters.
            return rosters, _find(storage, repository, key, rosters.newest, now)

    with ThreadPoolExecutor(1, thread_name_prefix="pharmabackup-open") as pool:
        finding = pool.submit(find)  # stretching takes time on purpose; everything else is imported while that runs
        from pharmabackup.engine.unlocked import Unlocked, check_keyring

        meanwhile()
        rosters, found = finding.result()
    slot = found.slot
    keyring = found.keyring
    check_keyring(keyring, slot)
    state = state_folder(state_dir)
    own = state / state_name(storage.location, slot.id, repository)
    unlocked = Unlocked(
        storage=storage,
        record=record,
        repository=repository,
        roster=rosters.newest,
        roster_hash=rosters.newest_hash,
        rosters=rosters.hashes,
        revoked_in=rosters.revoked_in,
        keyring=keyring,
        opener=found.opener,
        state=own if keyring.signing else own / WITHOUT_KEYS,
        queue=state / AUDIT_QUEUE / state_name(storage.present, slot.id, repository),
    )
    with suppress(OSError):  # a place is known from now on, if there is room for that
        unlocked.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not unlocked.has_newest_keys:  # they were changed between the two readings
        unlocked.renew()
    return unlocked


@dataclass(frozen=True, slots=True)
class FoundKeys:
    """A credential's slot, and what those of its keyrings that open have."""

    slot: Slot
    keyring: Keyring
    opener: Opener


def _find(
    storage: Storage,
    repository: bytes,
    key: Passphrase | Opener,
    roster: Roster,
    listed: Mapping[str, list[int]] | None = None,
) -> FoundKeys:
    """Those of the first slot that the roster says this opens. What is damaged is passed over: others may hold the
    same keys.

    WrongCredential, Damaged, StorageFailed.
    """
    numbers, unreadable = keyring_numbers(storage) if listed is None else listed, list[Damaged]()
    empty: Slot | None = None
    for slot, opener in tries(key, roster) if isinstance(key, Passphrase) else _sealed_to(key, roster):
        if empty is not None and slot.revoked is not None:
            break  # what is in use is damaged, and that is what has to be told
        check_not_revoked(slot)
        sealed = read_whole(storage, slot.id.hex(), numbers.get(slot.id.hex(), []), unreadable)
        opened = opener.open_all(repository, sealed, unreadable)
        if (newest := next(opened, None)) is not None:
            return FoundKeys(slot, joined(chain((newest,), opened), roster), opener)
        empty = empty or slot
    if unreadable:
        raise unreadable[-1]
    if empty is not None:
        raise Damaged(
            f"No keyring of {empty.name!r} is left: this credential is the right one, and opens nothing.",
            kind="keys-missing",
            remedy=f"Copy the folder keys/{empty.id.hex()} from another location.",
        )
    if isinstance(key, Passphrase):
        raise WrongCredential(
            "This passphrase does not open this repository.",
            remedy="Type it again: capitals and spaces count. If it was changed, use the new one.",
        )
    raise WrongCredential(
        "This key does not open this repository.",
        remedy="Ask the owner to enrol it; he needs its public half, the file with .pub at its end.",
    )


def _sealed_to(key: Opener, roster: Roster) -> list[tuple[Slot, Opener]]:
    """The slots of a key, in the list's order, revoked ones last."""
    recipient = key.recipient
    found = [slot for slot in roster.slots if slot.credential != "passphrase" and slot.recipient == recipient]
    return [(slot, key) for slot in sorted(found, key=lambda slot: slot.revoked is not None)]
