"""drill recovery-key, check-share, recovery-kit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.verbs.forged import forged

Call = Callable[..., Any]
HOLDERS = ("--holder", "Jaya Patel", "--holder", "Sam Okafor", "--holder", "Lena Hughes")


@pytest.fixture
def shares(backed_up: Any, call: Call) -> list[str]:
    found: list[str] = call("split-recovery", "--json").json["shares"]
    return found


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def drill(call: Call, *more: str) -> Any:
    return call(*more, "drill", "recovery-key")


def test_with_the_shares_alone(backed_up: Any, shares: list[str], spawn: Call, tmp_path: Path) -> None:
    environment = {
        "PHARMABACKUP_REPOSITORY": str(backed_up.repository),
        "PHARMABACKUP_PASSPHRASE": "",
        "PHARMABACKUP_STATE": str(tmp_path / "a new machine"),
    }
    done = spawn("--credential", "shares", "drill", "recovery-key", **environment, stdin="\n".join(shares[1:]))
    assert done.code == 0, done.err
    assert "OK: everything was proved; shares 2, 3 of the recovery key" in done.out and "2 datasets" in done.out
    told = spawn(
        "--credential", "shares", "drill", "recovery-key", "--json", **environment, stdin="\n\n".join(shares)
    ).json
    assert (told["state"], told["shares"], told["threshold"], sorted(told["datasets"])) == (
        "ok", [1, 2, 3], 2, ["documents", "pmr"],
    )  # fmt: skip
    assert not any(" ".join(share.split()[4:6]) in str(told) + done.out + done.err for share in shares)


def test_asked_for_by_somebody_else(call: Call, shares: list[str], typed: Callable[[str], None]) -> None:
    """In whose chain it is recorded, also when it fails."""
    typed("\n".join(shares[:2]))
    assert drill(call).code == 0
    typed("\n".join((shares[0], forged(shares[1]), shares[2])))
    bad = drill(call)
    assert bad.code == 2 and "Share 2 does not belong to the others" in bad.err
    assert "CRITICAL: 1 finding" in bad.out
    typed("\n".join((shares[0], forged(shares[1]), shares[2])))
    told = drill(call, "--json")
    assert (told.code, told.json["state"], told.json["findings"][0]["code"]) == (2, "critical", "share-differs")
    call("split-recovery")
    typed("\n".join(shares[:2]))
    old = drill(call)
    assert old.code == 77 and "revoked" in old.err and "printed last" in old.err
    for given, code in ((shares[0], 77), (f"{shares[0]}\nacid", 64), ("", 77)):
        typed(given)
        assert drill(call).code == code
    records = [record for record in call("audit", "--json").json["records"] if record["event"] == "drill"]
    assert [record["outcome"] for record in records] == ["done", "incomplete", "incomplete", "refused"]


def test_data_that_does_not_come_back(backed_up: Any, call: Call, shares: list[str], typed: Any) -> None:
    for path in (backed_up.repository / "packs").rglob("*"):
        if path.is_file():
            path.unlink()
    typed("\n".join(shares[:2]))
    done = drill(call)
    assert done.code == 2 and "do not restore the snapshot" in done.err and "NOT" not in done.err


def test_a_place_that_is_not_there_is_unknown(call: Call, shares: list[str], typed: Any, tmp_path: Path) -> None:
    typed("\n".join(shares[:2]))
    assert drill(call, "-r", str(tmp_path / "nowhere")).code == 3


@pytest.mark.parametrize("kind", ["sample", "tier-1", "site"])
def test_what_does_not_exist_yet_is_not_offered(call: Call, backed_up: Any, kind: str) -> None:
    assert call("drill", kind).code == 64


def test_one_share(backed_up: Any, call: Call, spawn: Call, shares: list[str], typed: Any) -> None:
    (slot,) = (slot for slot in call("slots", "--json").json["slots"] if slot["kind"] == "shares")
    where = {"PHARMABACKUP_REPOSITORY": str(backed_up.repository), "PHARMABACKUP_PASSPHRASE": ""}
    done = spawn("check-share", **where, stdin=shares[1] + "\n")
    assert done.code == 0 and "OK: Share 2 is as it was printed" in done.out and slot["fingerprint"] in done.out
    call("split-recovery")
    typed(shares[1])
    old = call("check-share", "--json")
    assert (old.code, old.json["current"], old.json["number"]) == (2, False, 2)
    typed(shares[1])
    told = call("check-share", "-q")
    assert told.code == 2 and "CRITICAL" in told.out and "which was replaced" in told.out
    for text, code in ((shares[1][:-3] + "acid", 64), ("\n", 77)):
        typed(text)
        assert call("check-share").code == code


def test_the_page(backed_up: Any, call: Call, shares: list[str], tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="the extra reports is not installed")
    path = tmp_path / "kit.html"
    done = call(
        "recovery-kit",
        path,
        *HOLDERS,
        "--replica",
        "s3://bucket/fa123",
        "--name",
        "Harbour Street",
        "--contact",
        "0808",
    )
    assert done.code == 0 and "Print it." in done.out, done.err
    page = path.read_text("utf-8")
    (slot,) = (slot for slot in call("slots", "--json").json["slots"] if slot["kind"] == "shares")
    for text in ("Jaya Patel", "s3://bucket/fa123", "Harbour Street", slot["fingerprint"], str(backed_up.repository)):
        assert text in page
    assert call("recovery-kit", path, *HOLDERS, "--json").json == {
        "file": str(path), "fingerprint": slot["fingerprint"],
    }  # fmt: skip
    assert "Harbour Street" not in path.read_text("utf-8")
    assert "outdated" in call("split-recovery").err
    for wrong in (("--holder", "Jaya"), (*HOLDERS, "--threshold", "4"), ()):
        assert call("recovery-kit", path, *wrong).code == 64
    refused = call("recovery-kit", path, *HOLDERS, "--replica", "sftp://me:geheim@host/x")
    assert refused.code == 64 and "geheim" not in refused.err
    assert call("recovery-kit", tmp_path / "no" / "kit.html", *HOLDERS).code == 74


def test_there_is_no_page_without_a_recovery_key(backed_up: Any, call: Call, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="the extra reports is not installed")
    done = call("recovery-kit", tmp_path / "kit.html", *HOLDERS)
    assert done.code == 66 and "with the command split-recovery" in done.err
    assert not (tmp_path / "kit.html").exists()
