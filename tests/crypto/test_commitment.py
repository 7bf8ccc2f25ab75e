"""AES-GCM does not commit to its key: a sealed text is made that opens under two. Keys' ids keep that harmless."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PublicKey
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.keyrings import Opener, seal_keyring
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format import keys, pack, wire
from pharmabackup.format.wire import Kind
from tests.crypto import make_constructions as made
from tests.crypto.known import vectors

V = vectors("constructions")
REDUCING = 0xE1 << 120  # the field of NIST SP 800-38D, §6.3: the first bit of a block is its lowest power
NONCE = bytes(range(24))
ONE, OTHER = made.TRANSACTION, made.NAMING


def _times(a: int, b: int) -> int:
    product = 0
    for bit in range(127, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (REDUCING if b & 1 else 0)
    return product


def _power(a: int, exponent: int) -> int:
    found = 1 << 127
    while exponent:
        if exponent & 1:
            found = _times(found, a)
        a, exponent = _times(a, a), exponent >> 1
    return found


def _message_key(key: bytes) -> tuple[int, int]:
    """What GCM authenticates a message of this nonce with: the hash key, and what its tag is masked with."""
    prf = SealingKey(key)._prf
    mask = SealingKey(key)._mask.to_bytes(16, "big")
    counters = (bytes([0, i, 0x58, 0]) + NONCE[:12] for i in (1, 2))
    blocks = (bytes(a ^ b for a, b in zip(counter, mask, strict=True)) for counter in counters)
    derived = Cipher(algorithms.AES(prf.encryptor().update(b"".join(blocks))), modes.ECB()).encryptor()
    hash_key, masked = derived.update(bytes(16)), derived.update(NONCE[12:] + b"\0\0\0\1")
    return int.from_bytes(hash_key, "big"), int.from_bytes(masked, "big")


def _hashed(hash_key: int, associated: bytes, data: bytes) -> int:
    found = 0
    for part in (associated, data):
        for at in range(0, len(part), 16):
            found = _times(found ^ int.from_bytes(part[at : at + 16].ljust(16, b"\0"), "big"), hash_key)
    return _times(found ^ (8 * len(associated) << 64 | 8 * len(data)), hash_key)


def opens_under_both(plain: bytes, associated: bytes) -> bytes:
    """Sealed under ONE, with `plain` before a last block of 16 bytes that is chosen so that OTHER opens it too."""
    plain = plain.ljust(-(-len(plain) // 16) * 16, b"\0")
    data = SealingKey(ONE).seal(plain, associated, nonce=NONCE)[24:-16] + bytes(16)
    tags, powers = 0, 0
    for key in (ONE, OTHER):
        hash_key, masked = _message_key(key)
        tags ^= _hashed(hash_key, associated, data) ^ masked
        powers ^= _times(hash_key, hash_key)  # the last block is hashed, and then the lengths
    chosen = _times(tags, _power(powers, (1 << 128) - 2))
    data = data[:-16] + chosen.to_bytes(16, "big")
    hash_key, masked = _message_key(ONE)
    return NONCE + data + (_hashed(hash_key, associated, data) ^ masked).to_bytes(16, "big")


def test_one_text_opens_under_two_keys() -> None:
    sealed = opens_under_both(b"Take one tablet daily.", b"x")
    assert SealingKey(ONE).open(sealed, b"x").startswith(b"Take one tablet daily.")
    assert not SealingKey(OTHER).open(sealed, b"x").startswith(b"Take one tablet daily.")
    with pytest.raises(NotAuthentic):
        SealingKey(bytes(32)).open(sealed, b"x")


def test_a_keyring_opens_for_whose_it_says_it_is() -> None:
    """Otherwise one stored keyring would tell by one try which of many passphrases is the right one."""
    ring = made.keyring(V["repository"])
    one, other = (Opener(hashing.derive("recipient", key, 96)) for key in (ONE, OTHER))
    stored = wire.decode(seal_keyring(ring, 3, one.recipient)[8:], keys.SealedKeyring)
    unreadable: list[Damaged] = []
    assert list(one.open_all(ring.repository, [stored], unreadable)) == [ring]
    assert list(other.open_all(ring.repository, [stored], unreadable)) == []
    assert unreadable == []
    for renamed in (other, one):
        context = wire.keyring_context(ring.repository, hashing.key_id(other.recipient), ring.slot, 3)
        sealed = PublicKey(one.recipient).seal(wire.pad(wire.encode(ring)), context)
        stored = keys.SealedKeyring(ring.slot, 3, hashing.key_id(renamed.recipient), sealed)
        assert list(renamed.open_all(ring.repository, [stored], unreadable)) == []
    assert len(unreadable) == 2


def test_an_object_opens_under_the_key_that_it_names() -> None:
    unlocked = made.opened(V["roster"])
    unlocked._catalogue |= {hashing.key_id(key): SealingKey(key) for key in (ONE, OTHER)}
    context = wire.context(unlocked.repository, Kind.DONE, hashing.key_id(ONE))
    sealed = opens_under_both(b"body", context)
    assert unlocked.open_body(Kind.DONE, wire.header(Kind.DONE) + hashing.key_id(ONE) + sealed)[:4] == b"body"
    for named in (OTHER, made.CATALOGUE):
        with pytest.raises(Damaged, match="changed"):
            unlocked.open_body(Kind.DONE, wire.header(Kind.DONE) + hashing.key_id(named) + sealed)


def test_a_wrapped_key_is_the_one_that_is_named() -> None:
    """A maintainer could wrap another key under a block's key id."""
    unlocked: Unlocked = made.opened(V["roster"])
    recipient = unlocked.roster.generations[-1].reader
    for key_id, taken in ((hashing.key_id(ONE), True), (hashing.key_id(OTHER), False), (bytes(32), False)):
        info = wire.wrap_info(unlocked.repository, key_id)
        wrap = pack.Wrap(hashing.key_id(recipient), PublicKey(recipient).seal(ONE, info))
        if taken:
            unlocked.block_key(pack.WrappedKey(key_id, (wrap,)))
        else:
            with pytest.raises(Damaged, match="not the one that it says"):
                unlocked.block_key(pack.WrappedKey(key_id, (wrap,)))
