"""Every primitive against vectors that others have published; where each comes from stands in its file."""

from __future__ import annotations

import hashlib
import os

import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given
from hypothesis import strategies as st
from shamir_mnemonic import decode_mnemonics, recover_ems

from pharmabackup.crypto import hashing, passphrases, shares, signatures
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.crypto.sealing import OVERHEAD, NotAuthentic, SealingKey
from pharmabackup.errors import InvalidInput, WrongCredential
from tests.crypto.known import Case, cases, decapsulated, scheduled, vectors
from tests.reader import shares as reader_shares
from tests.reader import wire as reader
from tests.reader.wire import Refused

NIGHTLY = os.environ.get("PHARMABACKUP_PROFILE") == "nightly"
XAES = vectors("xaes-256-gcm")
HPKE = vectors("hpke")


def _changed(data: bytes) -> list[bytes]:
    """One bit of each byte, and cut off or made longer."""
    flipped = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]
    return [*flipped, data[:-1], data[1:], data + b"\0"]


# ------------------------------------------------------------ AES-256-GCM, XAES-256-GCM


@pytest.mark.parametrize("case", cases("aes-256-gcm"))
def test_aes_gcm(case: Case) -> None:
    cipher, nonce, associated = AESGCM(case["key"]), case["nonce"], case["associated"]
    assert cipher.encrypt(nonce, case["plain"], associated) == case["sealed"]
    assert cipher.decrypt(nonce, case["sealed"], associated) == case["plain"]
    for wrong in _changed(case["sealed"]):
        with pytest.raises(InvalidTag):
            cipher.decrypt(nonce, wrong, associated)


@pytest.mark.parametrize("case", XAES["cases"])
def test_xaes(case: Case) -> None:
    key = SealingKey(case["key"])
    assert key._mask.to_bytes(16, "big") == case["mask"]
    assert key.seal(case["plain"], case["associated"], nonce=case["nonce"]) == case["nonce"] + case["sealed"]
    derived = AESGCM(case["derived"]).decrypt(case["nonce"][12:], case["sealed"], case["associated"])
    assert derived == key.open(case["nonce"] + case["sealed"], case["associated"]) == case["plain"]
    for wrong in _changed(case["nonce"] + case["sealed"]):
        with pytest.raises(NotAuthentic):
            key.open(wrong, case["associated"])


@pytest.mark.parametrize("rounds", [10_000, *[1_000_000] * NIGHTLY])
def test_xaes_accumulated(rounds: int) -> None:
    stream = memoryview(hashlib.shake_128(b"").digest(rounds * (32 + 24 + 2 + 2 * 255)))
    ciphertexts, at = hashlib.shake_128(), 0

    def take(n: int) -> bytes:
        nonlocal at
        at += n
        return bytes(stream[at - n : at])

    for _ in range(rounds):
        key, nonce = SealingKey(take(32)), take(24)
        plain = take(take(1)[0])
        context = take(take(1)[0])
        sealed = key.seal(plain, context, nonce=nonce)
        assert key.open(sealed, context) == plain
        ciphertexts.update(sealed[24:])
    assert ciphertexts.digest(32) == XAES["accumulated"][str(rounds)]


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200), st.binary(max_size=100))
def test_xaes_is_a_counter_kdf_over_cmac(key: bytes, plain: bytes, context: bytes) -> None:
    """As the specification says it in the words of NIST SP 800-108, with a CMAC that is not ours."""
    sealed = SealingKey(key).seal(plain, context)
    derived = b""
    for counter in (1, 2):
        mac = CMAC(algorithms.AES(key))
        mac.update(counter.to_bytes(2, "big") + b"X\0" + sealed[:12])
        derived += mac.finalize()
    assert AESGCM(derived).decrypt(sealed[12:24], sealed[24:], context) == plain
    assert reader.unseal(key, sealed, context) == plain


@given(st.binary(max_size=200), st.binary(max_size=100), st.data())
def test_what_was_changed_does_not_open(plain: bytes, context: bytes, data: st.DataObject) -> None:
    key = SealingKey(bytes(range(32)))
    sealed = key.seal(plain, context)
    assert len(sealed) == len(plain) + OVERHEAD
    out = bytearray(len(sealed) + OVERHEAD)
    assert key.open_into(sealed, context, memoryview(out)) == len(plain)
    assert out[: len(plain)] == key.open(sealed, context) == plain
    at, bit = data.draw(st.integers(0, len(sealed) - 1)), data.draw(st.integers(0, 7))
    wrong = bytearray(sealed)
    wrong[at] ^= 1 << bit
    for opened in (bytes(wrong), sealed[:at], sealed[:-1], sealed + b"\0"):
        with pytest.raises(NotAuthentic):
            key.open(opened, context)
        with pytest.raises(NotAuthentic):
            key.open_into(opened, context, memoryview(out))
    for other, associated in ((key, context + b"\0"), (SealingKey(bytes(32)), context)):
        with pytest.raises(NotAuthentic):
            other.open(sealed, associated)
    end = key.seal_into(plain, context, memoryview(out))
    assert end == len(sealed) and key.open(out[:end], context) == plain


def test_a_sealing_key_has_32_bytes() -> None:
    for size in (0, 16, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            SealingKey(bytes(size))


# ------------------------------------------------------------ HPKE and what it is made of


@pytest.mark.parametrize("case", cases("hkdf-sha256"))
def test_hkdf(case: Case) -> None:
    """The library has it inside HPKE alone."""
    size, salt, info = case["length"], case["salt"], case["info"]
    assert HKDF.extract(SHA256(), salt or None, case["material"]) == case["extracted"]
    assert HKDFExpand(SHA256(), size, info).derive(case["extracted"]) == case["expanded"]
    assert HKDF(SHA256(), size, salt or None, info).derive(case["material"]) == case["expanded"]


@pytest.mark.parametrize("case", cases("x25519"))
def test_x25519(case: Case) -> None:
    private = X25519PrivateKey.from_private_bytes(case["private"])
    assert private.exchange(X25519PublicKey.from_public_bytes(case["public"])) == case["shared"]


@pytest.mark.parametrize("case", cases("ml-kem-768"))
def test_ml_kem(case: Case) -> None:
    private = MLKEM768PrivateKey.from_seed_bytes(case["seed"])
    assert private.public_key().public_bytes_raw() == case["public"]
    assert private.decapsulate(case["ciphertext"]) == case["shared"]


def _expanded(seed: bytes) -> bytes:
    """The form in which keyrings hold it."""
    return hashlib.shake_256(seed).digest(96)


def test_hpke_written_out() -> None:
    """The combiner and the key schedule that the next tests rely on give the published secrets."""
    shared = decapsulated(_expanded(HPKE["private"]), HPKE["public"], HPKE["encapsulation"])
    assert shared == HPKE["shared"]
    key, nonce = scheduled(shared, HPKE["info"], aead=3)
    assert (key, nonce) == (HPKE["key"], HPKE["nonce"])
    assert ChaCha20Poly1305(key).decrypt(nonce, HPKE["sealed"], HPKE["associated"]) == HPKE["plain"]
    assert reader.ReaderKey(_expanded(HPKE["private"])).public == HPKE["public"]


def test_hpke_published() -> None:
    """Our suite differs from the published one in the cipher: the published encapsulation with our cipher opens."""
    private = PrivateKey(_expanded(HPKE["private"]))
    assert private.public.raw == HPKE["public"]
    key, nonce = scheduled(HPKE["shared"], HPKE["info"], aead=2)
    sealed = HPKE["encapsulation"] + AESGCM(key).encrypt(nonce, HPKE["plain"], b"")
    assert private.open(sealed, HPKE["info"]) == HPKE["plain"]
    assert reader.ReaderKey(_expanded(HPKE["private"])).open(sealed, HPKE["info"]) == HPKE["plain"]


@given(st.binary(min_size=96, max_size=96), st.binary(max_size=100), st.binary(max_size=100))
def test_what_is_sealed_to_a_public_key_is_hpke(secret: bytes, plain: bytes, info: bytes) -> None:
    private = PrivateKey(secret)
    sealed = private.public.seal(plain, info)
    assert len(sealed) == 1136 + len(plain)
    key, nonce = scheduled(decapsulated(secret, private.public.raw, sealed[:1120]), info, aead=2)
    assert AESGCM(key).decrypt(nonce, sealed[1120:], b"") == plain
    assert private.open(sealed, info) == reader.ReaderKey(secret).open(sealed, info) == plain


def test_what_was_sealed_to_a_public_key_and_changed_does_not_open() -> None:
    private, info = PrivateKey(bytes(range(96))), b"for this"
    sealed = private.public.seal(b"x" * 32, info)
    middle = sealed[:1088], sealed[1088:]  # every tenth byte of the first part is enough
    wrong = [sealed[:at] + bytes([sealed[at] ^ 128]) + sealed[at + 1 :] for at in range(0, 1088, 10)]
    wrong += [middle[0] + tail for tail in _changed(middle[1])] + [b"", sealed[:1120], middle[1] + middle[0]]
    for data in wrong:
        with pytest.raises(NotAuthentic):
            private.open(data, info)
    for other, told in ((private, info + b"\0"), (PrivateKey.generate(), info)):
        with pytest.raises(NotAuthentic):
            other.open(sealed, told)


# ------------------------------------------------------------ Argon2id, Ed25519, BLAKE3


@pytest.mark.parametrize("case", cases("argon2id"))
def test_argon2id(case: Case) -> None:
    settings = {"iterations": case["iterations"], "lanes": case["lanes"]}
    kdf = Argon2id(
        salt=case["salt"],
        length=case["length"],
        memory_cost=case["memory_kib"],
        secret=case["secret"] or None,
        ad=case["associated"] or None,
        **settings,
    )
    assert kdf.derive(case["passphrase"]) == case["key"]
    if not case["secret"]:
        text = case["passphrase"].decode("utf-8")
        key = passphrases.stretch(text, salt=case["salt"], memory_kib=case["memory_kib"], **settings)
        assert key == case["key"]


def test_a_passphrase_is_stretched_in_normalization_form_c() -> None:
    """So that it does not matter on which keyboard an accent was typed."""

    def key(text: str) -> bytes:
        return passphrases.stretch(text, salt=bytes(16), memory_kib=64, iterations=1, lanes=1)

    direct = Argon2id(salt=bytes(16), length=32, memory_cost=64, iterations=1, lanes=1)
    assert key("vier W\u00f6rter") == key("vier Wo\u0308rter") == direct.derive("vier W\u00f6rter".encode())
    assert key("vier W\u00f6rter") != key("vier Worter")


@pytest.mark.parametrize("case", cases("ed25519"))
def test_ed25519(case: Case) -> None:
    signer = signatures.SigningKey(case["seed"])
    message, signature = case["message"], case["signature"]
    assert (signer.public, signer.sign(message)) == (case["public"], signature)
    assert signatures.is_signed(case["public"], signature, message)
    for wrong in _changed(signature):
        assert not signatures.is_signed(case["public"], wrong, message)
    for wrong in _changed(message)[:100]:
        assert wrong == message or not signatures.is_signed(case["public"], signature, wrong)
    for other in (bytes(32), b"\xff" * 32, b"", case["public"][:-1], cases("ed25519")[0]["message"] + bytes(31)):
        assert not signatures.is_signed(other, signature, message)


@pytest.mark.parametrize("case", vectors("blake3")["cases"], ids=lambda case: case["input_len"])
def test_blake3(case: Case) -> None:
    given_ = vectors("blake3")
    data = (bytes(range(251)) * (case["input_len"] // 251 + 1))[: case["input_len"]]
    assert hashing.digest(data) == case["hash"][:32]
    assert hashing.keyed(given_["key"].encode(), data) == case["keyed_hash"][:32]
    derived = blake3(data, derive_key_context=given_["context"])
    assert derived.digest(length=len(case["derive_key"])) == case["derive_key"]


# ------------------------------------------------------------ SLIP-39

GROUPS = (17, 18, 19, 36, 37, 38)  # of several groups, which we neither make nor take
SHARES = cases("slip-39")


@pytest.mark.parametrize("case", SHARES, ids=lambda case: case["number"])
def test_slip_39(case: Case) -> None:
    """The published secrets have a passphrase, and ours have none: the scheme opens these shares with any."""
    texts, secret = case["shares"], case["secret"]
    if secret:
        whole = recover_ems(decode_mnemonics(texts))
        assert whole.decrypt(b"TREZOR") == reader_shares.join(texts, b"TREZOR") == secret
    else:
        with pytest.raises(Refused):
            reader_shares.join(texts, b"TREZOR")
    if secret and case["number"] not in GROUPS:
        joined = shares.join(texts)
        assert joined.secret == whole.decrypt(b"") == reader_shares.join(texts) and not joined.odd
        return
    with pytest.raises((InvalidInput, WrongCredential)) as caught:
        shares.join(texts)
    assert caught.value.kind in ("shares", "too-few-shares") and caught.value.remedy
    told = set(f"{caught.value.message} {caught.value.remedy}".lower().split())
    assert not {word for text in texts for word in text.split()} & told - {"for", "share"}


def test_all_slip_39_vectors_are_there() -> None:
    assert [case["number"] for case in SHARES] == [*range(1, 46)]
    assert [case["number"] for case in SHARES if case["secret"]] == [
        1,
        4,
        *range(17, 21),
        23,
        *range(36, 39),
        *range(41, 46),
    ]
