"""Identifiers: how the library's random ids and object names are made and written."""

from __future__ import annotations

import os
import re

ID_SIZE = 16
NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")  # in objects' names: one spelling each

# A dataset's name becomes a folder's name wherever it is restored to, so it is one that every system takes.
DATASET_NAME = r"^(?!\.{1,2}$)(?! )[^\x00-\x1f\x7f/\\:*?\"<>|\ud800-\udfff]{1,100}(?<![ .])$"


def new_id() -> bytes:
    """16 random bytes: never used twice, not even by two machines that were copied from one image."""
    return os.urandom(ID_SIZE)


def pack_name(digest: bytes) -> str:
    text = digest.hex()
    return f"packs/{text[:2]}/{text}"


def index_name(digest: bytes) -> str:
    return f"index/{digest.hex()}"


def intent_name(transaction: bytes, number: int) -> str:
    return f"intents/{transaction.hex()}.{number}"


def probe_name(number: bytes) -> str:
    return f"probe-{number.hex()}"


def is_passing(name: str) -> bool:
    """Whether an object is there for a while only, and no snapshot relies on it: an intent, a probe's."""
    return name.startswith(("intents/", "probe-"))


def fate_name(transaction: bytes) -> str:
    return f"snapshots/{transaction.hex()}"


def collection_name(number: int, part: str) -> str:
    return f"collections/{number}/{part}"


def mark_name(mark: bytes) -> str:
    return f"marks/{mark.hex()}"


def roster_name(number: int) -> str:
    return f"roster/{number}"


def keyring_name(slot: bytes, number: int) -> str:
    return f"keys/{slot.hex()}/{number}"


def audit_name(slot: bytes, number: int) -> str:
    return f"audit/{slot.hex()}/{number}"


def hex_tail(name: str) -> bytes | None:
    """The bytes that the last part of an object's name spells; None when it spells none. There is one spelling."""
    return _spelt(name.rpartition("/")[2])


def _spelt(text: str) -> bytes | None:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        return None
    return found if found.hex() == text else None


def id_of(name: str) -> bytes | None:
    """The id in the name of a fate, a mark or an intent; None when it is no such name (docs/format.md, §2)."""
    folder, _, tail = name.partition("/")
    found, dot, number = tail.partition(".")
    if (folder == "intents" and not NUMBER.fullmatch(number)) or (folder != "intents" and dot):
        return None
    raw = _spelt(found)
    return raw if raw is not None and len(raw) == ID_SIZE else None
