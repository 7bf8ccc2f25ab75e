"""XAES-256-GCM (https://c2sp.org/XAES-256-GCM): AES-256-GCM with random 192-bit nonces.

Each message is sealed under a key of its own, derived from the first half of its nonce, so 2^80 messages may
share one key. GCM does not commit to its key; a key's id does (`hashing.key_id`), and whoever opens checks it.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE = 32
NONCE_SIZE = 24
TAG_SIZE = 16
OVERHEAD = NONCE_SIZE + TAG_SIZE

Buffer = bytes | bytearray | memoryview


class NotAuthentic(Exception):
    """What was opened is not what was sealed under this key and these circumstances."""


class SealingKey:
    """One 256-bit key. May be used by any number of threads at once."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise ValueError("a sealing key has 32 bytes")
        # ECB over single blocks is the pseudo-random function that the specification derives keys with.
        self._prf = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305
        first = int.from_bytes(self._prf.encryptor().update(bytes(16)), "big")
        self._mask = (first << 1 & (1 << 128) - 1) ^ (0x87 if first >> 127 else 0)

    def _message_key(self, nonce: bytes) -> AESGCM:
        blocks = b"".join(
            (int.from_bytes(bytes((0, i, 0x58, 0)) + nonce[:12], "big") ^ self._mask).to_bytes(16, "big")
            for i in (1, 2)
        )
        return AESGCM(self._prf.encryptor().update(blocks))

    def seal(self, data: Buffer, context: bytes, *, nonce: bytes | None = None) -> bytes:
        """nonce (24) | ciphertext | tag (16). `nonce` is given by test vectors alone."""
        nonce = nonce or os.urandom(NONCE_SIZE)
        return nonce + self._message_key(nonce).encrypt(nonce[12:], data, context)

    def seal_into(self, data: Buffer, context: bytes, out: memoryview) -> int:
        """The same into a buffer that is used again, because fresh memory costs more than the cipher."""
        nonce = os.urandom(NONCE_SIZE)
        end = len(data) + OVERHEAD
        out[:NONCE_SIZE] = nonce
        self._message_key(nonce).encrypt_into(nonce[12:], data, context, out[NONCE_SIZE:end])
        return end

    def open(self, sealed: Buffer, context: bytes) -> bytes:
        """The data. NotAuthentic."""
        view = memoryview(sealed)
        if len(view) < OVERHEAD:
            raise NotAuthentic
        nonce = bytes(view[:NONCE_SIZE])
        try:
            return self._message_key(nonce).decrypt(nonce[12:], view[NONCE_SIZE:], context)
        except InvalidTag:
            raise NotAuthentic from None

    def open_into(self, sealed: Buffer, context: bytes, out: memoryview) -> int:
        """The data at the start of `out`; its length. NotAuthentic."""
        view = memoryview(sealed)
        if len(view) < OVERHEAD:
            raise NotAuthentic
        nonce, length = bytes(view[:NONCE_SIZE]), len(view) - OVERHEAD
        try:
            self._message_key(nonce).decrypt_into(nonce[12:], view[NONCE_SIZE:], context, out[:length])
        except InvalidTag:
            raise NotAuthentic from None
        return length
