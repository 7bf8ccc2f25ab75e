"""Vectors of this folder: JSON with a `source`, values in hexadecimal; and HPKE written out."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

HERE = Path(__file__).parent
Case = dict[str, Any]


def vectors(name: str) -> Case:
    """What a file here holds; texts that are hexadecimal are bytes."""
    found: Case = json.loads((HERE / "vectors" / f"{name}.json").read_text("utf-8"))
    assert found.pop("source")
    return {key: _decoded(value) for key, value in found.items()}


def cases(name: str) -> list[Case]:
    found = vectors(name)["cases"]
    assert isinstance(found, list) and found
    return found


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    try:
        return bytes.fromhex(value) if isinstance(value, str) else value
    except ValueError:
        return value


def decapsulated(secret: bytes, public: bytes, encapsulation: bytes) -> bytes:
    """The shared secret of X-Wing, from the library's parts. `secret`: the 96 bytes of docs/format.md, §9."""
    from_mlkem = MLKEM768PrivateKey.from_seed_bytes(secret[:64]).decapsulate(encapsulation[:1088])
    ephemeral = X25519PublicKey.from_public_bytes(encapsulation[1088:])
    from_x25519 = X25519PrivateKey.from_private_bytes(secret[64:]).exchange(ephemeral)
    return hashlib.sha3_256(from_mlkem + from_x25519 + encapsulation[1088:] + public[1184:] + b"\\.//^\\").digest()


def scheduled(shared: bytes, info: bytes, aead: int) -> tuple[bytes, bytes]:
    """Key and base nonce of RFC 9180, §5.1, in base mode with HKDF-SHA256 and a cipher whose keys have 32 bytes."""
    suite = b"HPKE" + struct.pack(">HHH", 0x647A, 1, aead)

    def extract(label: bytes, data: bytes, salt: bytes = b"") -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + data, "sha256")

    def expand(key: bytes, label: bytes, data: bytes, size: int) -> bytes:
        return hmac.digest(key, struct.pack(">H", size) + b"HPKE-v1" + suite + label + data + b"\1", "sha256")[:size]

    context = b"\0" + extract(b"psk_id_hash", b"") + extract(b"info_hash", info)
    secret = extract(b"secret", b"", shared)
    return expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)
