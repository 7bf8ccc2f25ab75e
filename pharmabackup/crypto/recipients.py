"""Sealing to a public key: HPKE (RFC 9180), base mode, with ML-KEM-768 + X25519, HKDF-SHA256, AES-256-GCM.

The pair is hybrid because a pharmacy's records stay secret for decades and a cloud copy made today can be
opened by whoever has a quantum computer later.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pharmabackup.crypto.sealing import NotAuthentic

X25519_SIZE = 32
MLKEM_PUBLIC_SIZE = 1184
MLKEM_SEED_SIZE = 64
PUBLIC_SIZE = MLKEM_PUBLIC_SIZE + X25519_SIZE
SECRET_SIZE = MLKEM_SEED_SIZE + X25519_SIZE

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """ML-KEM-768 encapsulation key (1,184 bytes) | X25519 public key (32 bytes)."""

    raw: bytes

    def seal(self, data: bytes, info: bytes) -> bytes:
        """HPKE single-shot ciphertext: encapsulation | ciphertext | tag."""
        mlkem = MLKEM768PublicKey.from_public_bytes(self.raw[:MLKEM_PUBLIC_SIZE])
        x25519 = X25519PublicKey.from_public_bytes(self.raw[MLKEM_PUBLIC_SIZE:])
        return _SUITE.encrypt(data, MLKEM768X25519PublicKey(mlkem, x25519), info)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """ML-KEM-768 seed (64 bytes) | X25519 private key (32 bytes)."""

    raw: bytes = field(repr=False)
    _halves: tuple[MLKEM768PrivateKey, X25519PrivateKey] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mlkem = MLKEM768PrivateKey.from_seed_bytes(self.raw[:MLKEM_SEED_SIZE])
        x25519 = X25519PrivateKey.from_private_bytes(self.raw[MLKEM_SEED_SIZE:])
        object.__setattr__(self, "_halves", (mlkem, x25519))  # once: a restore opens a key for each old transaction

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(os.urandom(SECRET_SIZE))

    @classmethod
    def from_seed(cls, seed: bytes) -> PrivateKey:
        """X-Wing's expansion of 32 bytes: SHAKE256 (draft-connolly-cfrg-xwing-kem, section 5.2)."""
        return cls(hashlib.shake_256(seed).digest(SECRET_SIZE))

    @property
    def public(self) -> PublicKey:
        mlkem, x25519 = self._halves
        return PublicKey(
            mlkem.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            + x25519.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        )

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """The data. NotAuthentic when it was sealed to another key or for something else."""
        mlkem, x25519 = self._halves
        try:
            return _SUITE.decrypt(sealed, MLKEM768X25519PrivateKey(mlkem, x25519), info)
        except (InvalidTag, ValueError):
            raise NotAuthentic from None
