"""forget, prune, recall, hold, release."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import pytest

import pharmabackup as pb

Call = Callable[..., Any]


@pytest.fixture
def two(place: Any, call: Call) -> list[str]:
    """The ids of two snapshots of the documents, the newest first."""
    for text in ("one", "two"):
        (place.shop / "documents" / "letter.txt").write_text(text)
        assert call("backup", "--files", f"documents={place.shop / 'documents'}").code == 0
    return [snapshot["id"] for snapshot in call("snapshots", "--json").json["snapshots"]]


def _asked(call: Call) -> list[str]:
    return [item["id"] for item in call("snapshots", "--json").json["snapshots"] if item["forget_at"]]


def test_forget_shows_what_it_would_do_and_stops(call: Call, two: list[str]) -> None:
    answer = call("forget", "--keep-last", "1")
    assert answer.code == 0
    assert two[1][:8] in answer.out and two[0][:8] not in answer.out
    assert "1 snapshot would be forgotten" in answer.out and "can be called back until" in answer.out
    assert "Nothing was done. Add --yes to do it." in answer.err
    assert _asked(call) == []


def test_forget_does_it(call: Call, two: list[str]) -> None:
    answer = call("forget", "--keep-daily", "1", "--dataset", "doc*", "--yes")
    assert answer.code == 0 and "Forgotten: 1 snapshot." in answer.out
    assert _asked(call) == [two[1]]
    assert "to be forgotten on" in call("snapshots").out
    assert "There is nothing to forget." in call("forget", "--keep-last", "1").err


def test_forget_tells_programs(call: Call, two: list[str]) -> None:
    proposal = call("forget", "--keep-last", "1", "--json").json
    assert proposal["verb"] == "forget" and [item["id"] for item in proposal["snapshots"]] == [two[1]]
    assert _asked(call) == []
    assert call("forget", "--keep-last", "1", "--yes", "--json").json["state"] == "ok"
    assert _asked(call) == [two[1]]


def test_forget_by_id_never_takes_the_newest(call: Call, two: list[str]) -> None:
    answer = call("forget", two[0][:8], two[1][:8], "--yes")
    assert answer.code == 0 and "it is the newest of its dataset" in answer.err
    assert _asked(call) == [two[1]]


def test_without_rules_and_names_the_owners_hold(call: Call, two: list[str]) -> None:
    assert "There is nothing to forget." in call("forget").err
    assert call("forget", "--dataset", "documents").code == 64


@pytest.mark.parametrize("text", ["soon", "3", "3w", "-1d", "1.5h"])
def test_what_is_no_duration(call: Call, text: str) -> None:
    answer = call("forget", "--keep-within", text)
    assert answer.code == 64 and "is no duration" in answer.err


def test_recall(call: Call, two: list[str]) -> None:
    call("forget", "--keep-last", "1", "--yes")
    answer = call("recall", two[1][:8], "--reason", "a mistake")
    assert answer.code == 0 and "is called back" in answer.out
    assert _asked(call) == []
    assert call("recall", two[1][:8], "--reason", "again").code == 66


def test_hold_and_release(call: Call, two: list[str]) -> None:
    answer = call("hold", two[1][:8], "--reason", "incident 7", "--until", "2099-01-01")
    assert answer.code == 0 and "is held" in answer.out
    assert "held" in call("snapshots").out
    assert "it is held" in call("forget", "--keep-last", "1", "--yes").err
    assert _asked(call) == []
    assert call("release", two[1][:8], "--reason", "closed", "--json").json == {"snapshot": two[1]}
    assert call("release", two[1][:8], "--reason", "closed").code == 66
    assert call("hold", two[1][:8]).code == 64


def _dead(place: Any) -> None:
    """A pack that nobody needs and nobody will: older than a day."""
    pack = next((place.repository / "packs").glob("*/*"))
    data = pack.read_bytes()[:-1] + b"?"
    name = hashlib.sha256(data).hexdigest()
    other = pack.parent.parent / name[:2] / name
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(data)
    os.utime(other, (1, 1))


def test_prune_shows_what_it_would_free_and_stops(place: Any, call: Call, two: list[str]) -> None:
    assert "There is nothing to delete." in call("prune").err
    _dead(place)
    answer = call("prune")
    assert answer.code == 0
    assert "would be freed; 0 snapshots that were forgotten" in answer.out
    assert "Nothing was done. Add --yes to do it." in answer.err
    assert call("prune", "--json").json["bytes_freed"] > 0


def test_prune_does_it(place: Any, call: Call, two: list[str]) -> None:
    _dead(place)
    answer = call("prune", "--yes")
    assert answer.code == 0 and "Freed: " in answer.out
    assert call("prune", "--yes", "--json").json["state"] == "ok"
    assert call("check", "--read-data", "100%").code == 0


def test_prune_ends_one_that_was_interrupted(
    place: Any, call: Call, two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when there is nothing else to do, as check says."""
    _dead(place)
    with monkeypatch.context() as patch:
        patch.setattr("pharmabackup.engine.collection.Done", lambda number: (_ for _ in ()).throw(pb.Conflict("x")))
        call("prune", "--yes")
    assert not (place.repository / "collections" / "1" / "done").exists()
    answer = call("prune", "--yes")
    assert answer.code == 0 and "it is finished first" in answer.err
    assert (place.repository / "collections" / "1" / "done").exists()
    assert "There is nothing to delete." in call("prune").err
