"""copy, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pharmabackup.cli.settings import Rate

Call = Callable[..., Any]


@pytest.fixture
def snapshots(place: Any, call: Call) -> list[str]:
    assert call("backup", *place.sources()).code == 0
    return [snapshot["id"] for snapshot in call("snapshots", "--json").json["snapshots"]]


def test_a_replica_is_made_filled_and_compared(place: Any, call: Call, snapshots: list[str]) -> None:
    usb = place.root / "usb"
    made = call("copy", usb, "--create")
    assert made.code == 0 and "Copied: " in made.out and "pmr" in made.out
    assert "Both hold the same snapshots." in call("compare", usb).out
    again = call("copy", usb)
    assert again.code == 0 and "Nothing to copy" in again.out
    assert call("-r", usb, "check", "--read-data", "100%").code == 0
    assert call("backup", *place.sources()).code == 0
    found = call("compare", usb)
    assert found.code == 0 and "would bring 2 snapshots" in found.out
    facts = call("compare", usb, "--json").json
    assert len(facts["only_here"]) == 2 and facts["only_there"] == []
    report = call("copy", usb, "--json").json
    assert report["verb"] == "copy" and report["state"] == "ok"


def test_one_snapshot_alone(place: Any, call: Call, snapshots: list[str]) -> None:
    usb = place.root / "usb"
    assert call("copy", usb, snapshots[0][:8], "--create").code == 0
    there = call("-r", usb, "snapshots", "--json").json["snapshots"]
    assert [item["id"] for item in there if not item["forgotten"]] == [snapshots[0]]


def test_to_another_repository(place: Any, call: Call, snapshots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    other = place.root / "other"
    place.environment["OTHER"] = "another passphrase of the tests"
    monkeypatch.setenv("OTHER", "another passphrase of the tests")
    assert call("-r", other, "--credential", "env:OTHER", "init").code == 0
    done = call("copy", other, "--to-credential", "env:OTHER")
    assert done.code == 0, done.err
    assert call("-r", other, "--credential", "env:OTHER", "check", "--read-data", "100%").code == 0
    refused = call("compare", other, "--to-credential", "env:OTHER")
    assert refused.code == 64 and "two repositories" in refused.err


def test_what_goes_wrong(place: Any, call: Call, snapshots: list[str]) -> None:
    assert call("copy", place.root / "nothing there").code == 74
    assert call("copy", place.shop, "--create").code == 73
    assert call("copy", place.repository).code == 64
    secret = call("copy", "s3://key:secret@bucket/x")
    assert secret.code == 64 and "secret@" not in secret.err


def test_one_backup_to_several_places_of_which_some_are_away(place: Any, call: Call, snapshots: list[str]) -> None:
    usb, broken = place.root / "usb", place.root / "broken"
    for other in (usb, broken):
        assert call("copy", other, "--create").code == 0
    (broken / "roster" / "0").write_bytes(b"junk")
    done = call("backup", *place.sources(), "--also", usb, "--also", broken, "--also", place.root / "nothing")
    assert done.code == 1, done.err
    assert str(broken) in done.err + done.out and "is left out" in done.err + done.out
    assert len(call("snapshots", "--json").json["snapshots"]) == 4
    assert len(call("-r", usb, "snapshots", "--json").json["snapshots"]) == 4
    assert call("backup", *place.sources(), "--also", usb).code == 0


def test_another_repository_than_was_meant(place: Any, call: Call, snapshots: list[str]) -> None:
    refused = call("--id", "0123456789abcdef", "snapshots")
    assert refused.code == 65 and "there is another repository" in refused.err


@pytest.mark.parametrize(("text", "rate"), [("2Mbit/s", 250_000), ("500 kbit/s", 62_500), ("0.5Gbit/s", 62_500_000)])
def test_rates(text: str, rate: int) -> None:
    assert Rate().convert(text, None, None) == rate


@pytest.mark.parametrize("text", ["2", "2MB/s", "-1kbit/s", "fast"])
def test_what_is_no_rate(call: Call, text: str) -> None:
    refused = call("--upload-limit", text, "snapshots")
    assert refused.code == 64 and "is no rate" in refused.err
