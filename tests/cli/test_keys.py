"""slots, enrol, passphrase, rotate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Call = Callable[..., Any]
SECOND = "a second passphrase of the tests"


@pytest.fixture
def second(place: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("backup", *place.sources()).code == 0
    place.environment["SECOND"] = SECOND
    monkeypatch.setenv("SECOND", SECOND)


def test_one_more_passphrase(call: Call, second: None) -> None:
    assert call("--credential", "env:SECOND", "snapshots").code == 77
    done = call("enrol", "owner", "Jaya Patel", "--new", "env:SECOND")
    assert done.code == 0 and "Jaya Patel can open" in done.out
    assert call("--credential", "env:SECOND", "snapshots").code == 0
    assert [slot["name"] for slot in call("slots", "--json").json["slots"]] == ["owner", "Jaya Patel"]
    assert "this one" in call("slots").out
    assert call("enrol", "owner", "Jaya Patel", "--new", "env:SECOND").code == 73


def test_another_passphrase(call: Call, second: None) -> None:
    done = call("passphrase", "--new", "env:SECOND")
    assert done.code == 0 and "run rotate too" in done.out
    assert call("snapshots").code == 77
    assert call("--credential", "env:SECOND", "snapshots").code == 0


def test_new_keys(place: Any, call: Call, second: None) -> None:
    assert call("rotate").code == 64
    assert call("rotate", "--reason", "a laptop was lost", "--json").json == {"slot": "owner"}
    assert call("backup", *place.sources()).code == 0
    assert call("check", "--read-data", "100%").code == 0


def test_nobody_is_asked_without_a_terminal(call: Call, second: None) -> None:
    refused = call("passphrase")
    assert refused.code == 77 and "nobody at a terminal" in refused.err


def test_what_is_there_is_sealed_anew(place: Any, call: Call, second: None) -> None:
    assert "newest keys" in call("reseal").err
    assert call("rotate", "--reason", "a laptop was lost").code == 0
    asked = call("reseal")
    assert asked.code == 0 and "sealed with the newest keys" in asked.out and "Add --yes" in asked.err
    assert len(call("reseal", "--json").json["steps"]) == 1
    done = call("reseal", "--yes")
    assert done.code == 0 and "Sealed anew: " in done.out
    assert call("reseal", "--json").json["steps"] == []
    assert call("check", "--read-data", "100%").code == 0


def test_sealing_anew_leaves_what_is_damaged_and_says_so(place: Any, call: Call, second: None) -> None:
    assert call("rotate", "--reason", "a laptop was lost").code == 0
    path = max((place.repository / "packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    left = call("reseal", "--yes")
    assert left.code == 1 and "1 damaged" in left.err and path.name in left.err and "Sealed anew: " in left.out
    told = call("reseal", "--yes", "--json")
    assert told.code == 1 and told.json["error"]["kind"] == "reseal"
    assert [finding["code"] for finding in told.json["result"]["findings"]] == ["pack-damaged"]


def test_a_device_by_its_public_key(place: Any, call: Call, second: None) -> None:
    key = place.root / "till-1.key"
    made = call("key", "new", str(key), "--json").json
    assert made["fingerprint"] == call("key", "show", str(key)).out.strip()
    assert made["fingerprint"] == call("key", "show", f"{key}.pub").out.strip()
    done = call("enrol", "device", "till-1", "--recipient", f"{key}.pub", "--domain", "branch")
    assert done.code == 0 and made["fingerprint"] in done.out
    till = ("--credential", f"keyfile:{key}")
    assert call(*till, "backup", *place.sources()).code == 0
    assert call(*till, "restore", str(place.root / "out")).code == 77
    assert call("restore", str(place.root / "out")).code == 0
    rows = {slot["name"]: slot for slot in call("slots", "--json").json["slots"]}
    assert (rows["till-1"]["role"], rows["till-1"]["kind"]) == ("device", "recipient")
    assert call("enrol", "device", "till-2", "--recipient", str(key)).code == 64  # the secret half is no public key
    assert call("key", "new", str(key)).code == 73
    assert call("enrol", "owner", "x", "--recipient", f"{key}.pub", "--new", "ask").code == 64


def test_a_slot_that_is_revoked(place: Any, call: Call, second: None) -> None:
    key = place.root / "till-1.key"
    assert call("enrol", "device", "till-1", "--new", f"keyfile:{key}").code == 66
    assert call("key", "new", str(key)).code == 0
    assert call("enrol", "device", "till-1", "--new", f"keyfile:{key}").code == 0
    assert call("revoke", "till-1").code == 64
    done = call("revoke", "till-1", "--reason", "stolen")
    assert done.code == 0 and "till-1 is revoked" in done.out
    refused = call("--credential", f"keyfile:{key}", "snapshots")
    assert refused.code == 77 and "revoked (stolen)" in refused.err
    assert "revoked 20" in call("slots").out
    assert call("revoke", "owner", "--reason", "x").code == 73


def test_slots_that_are_revoked_together(call: Call, place: Any, second: None) -> None:
    for name in ("till-1", "till-2"):
        key = place.root / f"{name}.key"
        assert call("key", "new", str(key)).code == 0
        assert call("enrol", "device", name, "--new", f"keyfile:{key}").code == 0
    done = call("revoke", "till-1", "till-2", "--reason", "stolen", "--json")
    assert done.code == 0 and done.json == {"slots": ["till-1", "till-2"]}
    assert call("slots").out.count("revoked 20") == 2


def test_shares_that_different_people_keep(place: Any, call: Call, spawn: Call, second: None) -> None:
    shares = call("split-recovery", "--json").json["shares"]
    shown = call("split-recovery", "--threshold", "2", "--shares", "2")
    assert shown.code == 0 and "Share 2 of 2, of which 2 open:" in shown.out
    lines = [line.strip() for line in shown.out.splitlines() if line.startswith("  ")]
    kept = [" ".join(lines[:5]), " ".join(lines[5:])]
    opened = spawn("--credential", "shares", "slots", **place.environment, stdin="\n".join(kept))
    assert opened.code == 0 and "this one" in opened.out
    refused = spawn("--credential", "shares", "slots", **place.environment, stdin="\n".join(shares[:2]))
    assert refused.code == 77 and "split anew" in refused.err
    few = spawn("--credential", "shares", "slots", **place.environment, stdin=kept[0])
    assert few.code == 77 and "takes 2" in few.err and kept[0].split()[5] not in few.err
