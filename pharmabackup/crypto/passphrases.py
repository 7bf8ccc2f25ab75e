"""A key from a passphrase: Argon2id (RFC 9106), at its second recommended setting by default."""

from __future__ import annotations

import unicodedata

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from pharmabackup.errors import Unsupported
from pharmabackup.mutex import Mutex

SALT_SIZE = 16
MEMORY_KIB = 64 * 1024
ITERATIONS = 3
LANES = 4


def stretch(passphrase: str, *, salt: bytes, memory_kib: int, iterations: int, lanes: int) -> bytes:
    """32 bytes. About 0.1 s and 64 MiB at the default setting, on purpose: a guess costs as much."""
    kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
    with _one_at_a_time.own:
        try:
            return kdf.derive(unicodedata.normalize("NFC", passphrase).encode("utf-8"))
        except MemoryError:
            raise Unsupported(
                f"This machine has not the {memory_kib // 1024} MiB of free memory that opening takes.",
                kind="capability",
                remedy="Close other programs and try again.",
            ) from None


_one_at_a_time = Mutex()  # several at once in one process fail as if memory were short
