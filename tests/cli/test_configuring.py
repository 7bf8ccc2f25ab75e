"""configure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import pharmabackup as pb
from tests.cli.conftest import SECRET

pytestmark = pytest.mark.usefixtures("place")
Call = Callable[..., Any]
SECOND = "a second passphrase of the tests"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the library was asked to set."""
    wishes: list[dict[str, Any]] = []
    real = pb.Repository.configure

    def configure(repository: pb.Repository, **wish: Any) -> None:
        wishes.append(wish)
        real(repository, **wish)

    monkeypatch.setattr(pb.Repository, "configure", configure)
    return wishes


def test_each_dataset_begins_a_rule(call: Call, asked: list[dict[str, Any]]) -> None:
    first = "--dataset pmr --keep-within 30d --keep-daily 60"
    others = "--dataset a --dataset b:x --keep-last 2 --dataset * --keep-daily 7"
    answer = call("configure", *first.split(), *others.split())
    assert answer.code == 0 and "Set: 4 rules for what is kept." in answer.out
    assert list(asked[0]["keep"].items()) == [
        ("pmr", pb.Keep(within=timedelta(days=30), daily=60)),
        ("a", pb.Keep(last=2)),
        ("b:x", pb.Keep(last=2)),
        ("*", pb.Keep(daily=7)),
    ]
    assert asked[0]["forget_delay"] is None and asked[0]["forget_quorum"] is None


def test_without_a_dataset_a_rule_is_for_all(call: Call, asked: list[dict[str, Any]]) -> None:
    assert call("configure", "--keep-last", "3", "--keep-yearly", "1").code == 0
    assert asked[0]["keep"] == {"*": pb.Keep(last=3, yearly=1)}
    assert call("configure", "--keep-all").code == 0
    assert asked[1]["keep"] == {}


def test_forget_obeys(place: Any, call: Call) -> None:
    for text in ("one", "two", "three"):
        (place.shop / "documents" / "letter.txt").write_text(text)
        assert call("backup", "--files", f"documents={place.shop / 'documents'}").code == 0
    assert "There is nothing to forget." in call("forget", "--yes").err
    assert call("configure", "--dataset", "doc*", "--keep-last", "2").code == 0
    assert "Forgotten: 1 snapshot." in call("forget", "--yes").out


def test_delay_and_quorum(place: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    place.environment["SECOND"] = SECOND
    monkeypatch.setenv("SECOND", SECOND)
    refused = call("configure", "--quorum", "2")
    assert refused.code == 64 and "only 1 can" in refused.err
    assert call("enrol", "owner", "Jaya Patel", "--new", "env:SECOND").code == 0
    answer = call("configure", "--forget-delay", "7", "--quorum", "2")
    assert answer.code == 0 and "called back for 7 days; 2 people have to agree" in answer.out
    with pb.Repository.open(place.repository, pb.Passphrase(SECRET)) as repository:
        policy = repository._unlocked.roster.policy
    assert (policy.forget_delay, policy.forget_quorum) == (7 * 86400, 2)


def test_programs_are_told_what_was_set(call: Call) -> None:
    assert call("configure", "--keep-last", "3", "--forget-delay", "7", "--json").json == {
        "keep": ["*"],
        "forget_delay": 7 * 86400,
        "forget_quorum": None,
        "reason_required": None,
        "lock": None,
    }


def test_for_how_long_places_lock(call: Call) -> None:
    assert (
        "nobody can delete what is stored for 35 days, in places that can" in call("configure", "--lock", "35d").out
    )
    assert "Nobody can delete what is stored for 35 days" in call("configure").out
    assert call("configure", "--json").json["lock"] == 35 * 86400
    assert "no more locks are set" in call("configure", "--lock", "0d").out
    assert "delete" not in call("configure").out
    assert call("configure", "--lock", "soon").code == 64


def test_without_options_it_shows_what_is_set(call: Call, asked: list[dict[str, Any]]) -> None:
    assert call("configure").out.splitlines() == [
        "No rules: everything is kept.",
        "What is forgotten can be called back for 14 days; one person can forget.",
    ]
    rules = "--dataset pmr --keep-within 30d --keep-daily 60 --dataset * --keep-last 0"
    assert call("configure", *rules.split(), "--forget-delay", "1").code == 0
    assert [" ".join(line.split()) for line in call("configure").out.splitlines()] == [
        "Dataset Kept",
        "pmr within 30 days, 60 daily",
        "* only what is always kept",
        "What is forgotten can be called back for 1 day; one person can forget.",
    ]
    assert call("configure", "--json").json == {
        "keep": {"pmr": {"within": 30 * 86400, "daily": 60}, "*": {}},
        "forget_delay": 86400,
        "forget_quorum": 1,
        "reason_required": False,
        "lock": 0,
    }
    assert len(asked) == 1


@pytest.mark.parametrize(
    "words",
    [
        "--dataset pmr",
        "--keep-daily 7 --dataset pmr",
        "--keep-daily 7 --keep-daily 8",
        "--dataset a --keep-last 1 --dataset a --keep-last 2",
        "--keep-all --keep-last 1",
        "--quorum 0",
        "--forget-delay -1",
        "--forget-delay 99999999999999",
        "--dataset a: --keep-last 1",
    ],
)
def test_what_is_not_understood_sets_nothing(place: Any, call: Call, words: str) -> None:
    answer = call("configure", *words.split())
    assert answer.code == 64 and answer.err
    assert not (place.repository / "roster" / "1").exists()
