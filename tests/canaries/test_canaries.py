"""Secrets and patients' data that were given away are nowhere: canaries were, and are looked for."""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import zstandard
from shamir_mnemonic import Share

import pharmabackup as pb
from pharmabackup.crypto import hashing, passphrases
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.engine.index import Index
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import wire
from pharmabackup.format.pack import WrappedKey
from tests.canaries import search as c
from tests.canaries.deeds import DEEDS
from tests.processes import shown_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and limits the size of files")
ROOT = Path(__file__).parents[2]


class Aviary:
    """A folder of all that was done, and what each process left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder.parent / "temporary"
        self.temporary.mkdir()
        self.output = self.listed = b""
        data = folder / "data" / c.DATASET / c.FOLDER
        data.mkdir(parents=True)
        (data / c.FILE).write_text(c.CONTENT * 2000)
        (data / "large").write_bytes(os.urandom(200_000) + c.CONTENT.encode("utf-16-le") + os.urandom(9))
        os.setxattr(data / c.FILE, "user.canary", c.ATTRIBUTE.encode())
        with closing(sqlite3.connect(folder / "data" / "pmr.db")) as db, db:
            db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
            db.executemany("INSERT INTO patient (name) VALUES (?)", [(f"{c.CELL} {i}",) for i in range(3000)])

    def do(self, deed: str) -> None:
        given = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "TMPDIR": str(self.temporary),
            "HOME": str(self.folder.parent / "home"),
        }
        with (self.folder.parent / "output").open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, "-X", "dev", "-m", "tests.canaries.deeds", deed, self.folder],
                cwd=ROOT,
                env=given,
                stdout=output,
                stderr=output,
            )
            listed, looks = shown_of(process)
            assert looks > 20 and deed.encode() in listed and b"TMPDIR=" in listed
            self.listed += listed
            output.seek(0)
            said = output.read()
        self.output += said
        wanted = -signal.SIGKILL if deed.startswith("killed") else 0
        assert process.returncode == wanted, (deed, said.decode()[-3000:])

    def keys(self) -> dict[str, bytes]:
        """All that anybody who may open it holds, old and new."""
        with pb.Repository.open(self.folder / "repository", pb.Passphrase(c.NEW_PASSPHRASE)) as repo:
            return keys_of(repo._unlocked)


def keys_of(unlocked: Unlocked) -> dict[str, bytes]:
    ring, setting = unlocked.keyring, unlocked.slot.argon2id
    assert setting is not None
    stretched = passphrases.stretch(c.NEW_PASSPHRASE, **msgspec.structs.asdict(setting))
    found = {"block names key": ring.block_names, "signing seed": ring.signing or b"", "K": stretched}
    for place, key in enumerate(ring.catalogue):
        found[f"catalogue key {place}"] = key.key
    for place, naming in enumerate(ring.naming):
        found[f"naming key {place}"] = naming.key
        for purpose in ("data names", "manifest names", "recipe names", "chunker seed"):
            found[f"{purpose} {place}"] = hashing.derive(purpose, naming.key)
    for place, reader in enumerate(ring.readers):
        found[f"reader key {place}, ML-KEM"], found[f"reader key {place}, X25519"] = reader.key[:64], reader.key[64:]
    pair = unlocked.opener.private.raw
    found |= {"passphrase's pair, ML-KEM": pair[:64], "passphrase's pair, X25519": pair[64:]}
    for purpose in ("index cache", "history cache", "check schedule", "file cache", "audit"):
        found[purpose] = unlocked.purpose_key(purpose)
    index = Index(unlocked, chunks=False)
    index.load()
    for place, wrapped in enumerate(wrapped for wrapped in index.blocks.keys if wrapped.wraps):
        found[f"transaction's key {place}"] = _unwrapped(unlocked, wrapped)
    index.close()
    assert "transaction's key 1" in found and all(len(key) >= 32 for key in found.values())
    return found


def till_keys(folder: Path) -> dict[str, bytes]:
    """What the key file of the device holds and opens."""
    key = pb.KeyFile(folder.parent / "till.key")
    with pb.Repository.open(folder / "repository", key) as own:
        ring, pair = own._unlocked.keyring, own._unlocked.opener.private.raw
        assert ring.signing is not None and not ring.readers
        return {
            "till's seed": key.reveal(),
            "till's pair, ML-KEM": pair[:64],
            "till's pair, X25519": pair[64:],
            "till's signing seed": ring.signing,
            "till's file cache": own._unlocked.purpose_key("file cache"),
        }


def vault_keys(folder: Path) -> dict[str, bytes]:
    """What a vault held: the text of an entry, and the key in it."""
    text = json.loads((folder.parent / "vault").read_text())["desk"]
    return {"vault's entry": text.encode(), "vault's seed": base64.b64decode(text.split()[-1])}


def _unwrapped(unlocked: Unlocked, wrapped: WrappedKey) -> bytes:
    for reader in unlocked.keyring.readers:
        private = PrivateKey(reader.key)
        for wrap in wrapped.wraps:
            if wrap.recipient == hashing.key_id(private.public.raw):
                return private.open(wrap.sealed, wire.wrap_info(unlocked.repository, wrapped.key_id))
    raise AssertionError("nobody can read it")


@pytest.fixture(scope="module")
def aviary(tmp_path_factory: pytest.TempPathFactory) -> Aviary:
    made = Aviary(tmp_path_factory.mktemp("aviary") / "place")
    for deed in DEEDS:
        made.do(deed)
    return made


@pytest.fixture(scope="module")
def keys(aviary: Aviary) -> dict[str, list[bytes]]:
    """Keys, and shares of the recovery key: those that are in use, and those of before."""
    written = [text for some in json.loads((aviary.folder.parent / "shares").read_text()) for text in some]
    assert len(written) == 6
    shares = {f"share {place}": text for place, text in enumerate(written)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHARMABACKUP_STATE", str(aviary.folder.parent / "looking"))
        found = aviary.keys() | {f"value of {what}": Share.from_mnemonic(text).value for what, text in shares.items()}
        for what, some in (("newer", written[:3]), ("older", written[3:])):
            found[f"{what} recovery key"] = pb.Shares(*some).reveal()
            pair = PrivateKey.from_seed(found[f"{what} recovery key"]).raw
            found[f"{what} pair, ML-KEM"], found[f"{what} pair, X25519"] = pair[:64], pair[64:]
        found |= till_keys(aviary.folder) | vault_keys(aviary.folder)
        found |= {f"storage's {what}": text.encode() for what, text in (c.S3 | c.WEBDAV).items()}
        found["storage's login"] = ":".join(c.WEBDAV.values()).encode()
        return c.keys(found) | c.shares(shares)


PASSPHRASES = c.texts(c.PASSPHRASES)
DATA = c.texts(c.INSIDE)
NAMES = c.texts(c.NAMES)
EVERYTHING = c.texts(c.PASSPHRASES | c.SEALED)


def test_they_are_seen_in_whatever_form() -> None:
    """The search itself: as text of two kinds, compressed once or twice, in names of files, and keys as text."""
    for form in (str.encode, lambda text: text.encode("utf-16-le")):
        for wrapped in (
            bytes,
            zlib.compress,
            zstandard.compress,
            lambda data: zstandard.compress(zlib.compress(data)),
        ):
            data = os.urandom(100) + wrapped(b"before " + form(c.CELL) + b" after") + os.urandom(100)
            assert c.found(data, EVERYTHING) == {"cell"}
    key = os.urandom(32)
    for shown in (key, key.hex().encode(), base64.b64encode(key), f"x = {key!r}".encode()):
        assert c.found(b"..." + shown + b"...", c.keys({"key": key})) == {"key"}
    assert c.found(os.urandom(100_000), EVERYTHING | c.keys({"key": key})) == set()


def test_they_were_there(aviary: Aviary) -> None:
    """In what was backed up, and in what was restored; and every process told what it did."""
    assert {what for what, _ in c.found_below(aviary.folder / "data", EVERYTHING)} >= {"content", "cell", *c.NAMES}
    restored = min(aviary.folder.glob("out-1-*"), key=lambda path: path.stat().st_ctime_ns)
    assert {what for what, _ in c.found_below(restored, EVERYTHING)} >= {"content", "cell", *c.NAMES}
    said = (aviary.folder / "said").read_text("utf-8")
    for error in ("WrongCredential", "Incomplete", "Cancelled", "StorageFailed", "Damaged", "Traceback", "Conflict"):
        assert error in said
    assert "is restored and verified" in (aviary.folder / "log").read_text("utf-8")
    assert len(list((aviary.folder / "state").rglob("*"))) > 8


def test_storage_shows_nothing(aviary: Aviary, keys: dict[str, list[bytes]]) -> None:
    for place in ("repository", "replica", "another repository"):
        assert c.found_below(aviary.folder / place, EVERYTHING | keys) == set()


def test_this_machines_caches_show_nothing(aviary: Aviary, keys: dict[str, list[bytes]]) -> None:
    """Also those of a process that was killed."""
    assert c.found_below(aviary.folder / "state", EVERYTHING | keys) == set()


def test_nothing_is_left_in_temporary_files(aviary: Aviary, keys: dict[str, list[bytes]]) -> None:
    assert c.found_below(aviary.temporary, EVERYTHING | keys) == set()
    home = aviary.folder.parent / "home"
    assert not home.exists() or list(home.rglob("*")) == []


def test_the_list_of_processes_shows_nothing(aviary: Aviary, keys: dict[str, list[bytes]]) -> None:
    """Of all that ran, and of what it started itself."""
    assert c.found(aviary.listed, PASSPHRASES | DATA | keys) == set()


def test_logs_show_nothing(aviary: Aviary, keys: dict[str, list[bytes]]) -> None:
    """At DEBUG, with tracebacks, and what a program logs of events, as it may; and what was printed by the way."""
    data = (aviary.folder / "log").read_bytes()
    assert b"DEBUG" in data or b"INFO" in data
    assert c.found(data, PASSPHRASES | DATA | NAMES | keys) == set()
    assert c.found(aviary.output, EVERYTHING | keys) == set()


def test_errors_and_events_show_nothing(aviary: Aviary, keys: dict[str, list[bytes]]) -> None:
    assert c.found((aviary.folder / "said").read_bytes(), PASSPHRASES | DATA | NAMES | keys) == set()


def test_what_python_shows_of_results_has_no_secret(aviary: Aviary, keys: dict[str, list[bytes]]) -> None:
    """Whoever asks for names gets them; nobody gets passphrases, keys or what is in files. Pickles too."""
    for name in ("shown", "told"):
        assert c.found((aviary.folder / name).read_bytes(), PASSPHRASES | DATA | keys) == set()
    assert c.found((aviary.folder / "shown").read_bytes(), NAMES) != set()


def test_the_recovery_kit_has_no_secret(aviary: Aviary, keys: dict[str, list[bytes]]) -> None:
    data = (aviary.folder / "kit.html").read_bytes()
    assert c.found(data, PASSPHRASES | DATA | keys) == set() and c.found(data, EVERYTHING) == {"dataset's name"}


def test_what_is_searched_would_be_found(aviary: Aviary, tmp_path: Path, keys: dict[str, list[bytes]]) -> None:
    """A key and a cell, left in the midst of a cache."""
    cache = next(path for path in (aviary.folder / "state").rglob("*") if path.is_file()).read_bytes()
    for what in ("naming key 0", "K", "share 0", "value of share 4", "newer recovery key"):
        (tmp_path / "cache").write_bytes(cache[:50] + zstandard.compress(b"x" + keys[what][0] + b"y") + cache[50:])
        assert c.found_below(tmp_path, EVERYTHING | keys) == {(what, "cache")}
