"""A share that looks right and is not."""

from __future__ import annotations

from dataclasses import replace

from shamir_mnemonic import Share


def forged(share: str) -> str:
    """Another point under the same number, with a checksum of its own."""
    read = Share.from_mnemonic(share)
    return str(replace(read, value=read.value[:-1] + bytes([read.value[-1] ^ 1])).mnemonic())
