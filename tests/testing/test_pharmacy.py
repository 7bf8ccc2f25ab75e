"""The sample pharmacy is the same every time, grows as described, and its checks notice damage."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pharmabackup.testing.pharmacy import PROFILES, check, inspect, live, make, trade
from pharmabackup.testing.pharmacy.__main__ import main
from pharmabackup.testing.pharmacy.people import check_digit, nhs_number
from pharmabackup.testing.pharmacy.state import date_of


def files(root: Path) -> dict[str, tuple[str, float]]:
    """The checksum and date of every file but the database's."""
    return {
        path.relative_to(root).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime)
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith("pmr.db")
    }


def contents(root: Path) -> str:
    """A checksum of all rows of the database."""
    digest = hashlib.sha256()
    with closing(sqlite3.connect(root / "pmr.db")) as db:
        for line in db.iterdump():
            digest.update(line.encode())
    return digest.hexdigest()


def counts(root: Path) -> dict[str, int]:
    """How many rows each table has."""
    with closing(sqlite3.connect(root / "pmr.db")) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def change(root: Path, *statements: str) -> None:
    with closing(sqlite3.connect(root / "pmr.db", isolation_level=None)) as db:
        for statement in statements:
            assert db.execute(statement).rowcount != 0, f"changes nothing: {statement}"


def day_of(root: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(root / "pmr.db")) as db:
        day, step = db.execute("SELECT day, step FROM site").fetchone()
        return day, step


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pharmacy") / "site"
    make(root, profile="XS", seed=7)
    return root


@pytest.fixture
def shop(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "shop"))


def test_one_seed_always_makes_the_same_pharmacy_and_the_same_days(shop: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    make(again, profile="XS", seed=7)
    assert (again / "pmr.db").read_bytes() == (shop / "pmr.db").read_bytes()
    assert files(again) == files(shop)
    trade(shop, 3)
    for _ in range(3):
        trade(again)
    assert files(again) == files(shop)
    assert contents(again) == contents(shop)


def test_another_seed_makes_another_pharmacy(original: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", profile="XS", seed=8)
    assert contents(tmp_path / "other") != contents(original)


def test_it_is_about_15_megabytes_in_one_closed_wal_database_with_small_pages(original: Path) -> None:
    everything = [path for path in original.rglob("*") if path.is_file()]
    assert 12e6 < sum(path.stat().st_size for path in everything) < 18e6
    assert [path.name for path in original.glob("pmr.db*")] == ["pmr.db"]
    header = (original / "pmr.db").read_bytes()[:100]
    assert int.from_bytes(header[16:18], "big") == 4096
    assert header[18:20] == b"\x02\x02", "not in WAL mode"


def test_all_is_well_when_made_and_after_days(shop: Path) -> None:
    assert check(shop) == []
    trade(shop, 7)
    assert check(shop) == []


def test_a_day_adds_what_the_profile_says(shop: Path) -> None:
    rates = PROFILES["XS"].rates
    trade(shop)
    before, names = counts(shop), set(files(shop))
    trade(shop)
    added = {table: count - before[table] for table, count in counts(shop).items()}
    assert date_of(day_of(shop)[0]).weekday() > 0, "a Monday adds Sunday's fridge readings"
    assert added == {
        "site": 0,
        "trading_day": 1,
        "patient": rates.new_patients,
        "prescription": rates.prescriptions,
        "item": rates.items,
        "eps_message": 0,  # a day's messages come, an old day's go
        "claim": rates.prescriptions,
        "audit": rates.audits,
        "stock": 0,
        "stock_move": rates.stock_moves,
        "cd_register": rates.cd_supplies + rates.cd_receipts,
        "rp_log": 3,
        "pom_register": 3,
        "service": rates.services,
        "owing": rates.owings,
        "fridge": 96,
        "product": 0,
        "document": rates.scans + rates.signatures + rates.deliveries,
    }
    new = set(files(shop)) - names
    assert len([name for name in new if name.endswith(".zpl")]) == rates.items
    assert len([name for name in new if name.endswith(".jpg")]) == rates.scans
    assert len([name for name in new if name.endswith(".tif")]) == rates.signatures
    assert len([name for name in new if name.startswith("documents/invoices/")]) == rates.deliveries


def test_a_normal_pharmacy_has_the_published_days() -> None:
    rates = PROFILES["M"].rates
    assert (rates.prescriptions, rates.items, rates.messages) == (170, 357, 680)
    assert (rates.audits, rates.stock_moves, rates.owings, rates.services) == (4000, 650, 15, 12)
    assert rates.cd_supplies + rates.cd_receipts == 12
    assert (rates.scans, rates.signatures, rates.deliveries) == (60, 40, 6)
    assert PROFILES["B"].rates == PROFILES["S"].rates == rates
    assert PROFILES["CHAIN"].sites == 50


def test_a_claim_is_submitted_accepted_and_paid_within_days(shop: Path) -> None:
    day = day_of(shop)[0] + 1
    status = (
        "SELECT group_concat(DISTINCT c.status) FROM claim c JOIN prescription p ON p.id = c.prescription_id"
        " WHERE p.day = ?"
    )
    seen = []
    for _ in range(5):
        trade(shop)
        with closing(sqlite3.connect(shop / "pmr.db")) as db:
            seen.append(db.execute(status, (day,)).fetchone()[0])
    assert seen == ["endorsed", "submitted", "accepted", "accepted", "paid"]


def test_the_weekly_dictionary_stays_nearly_the_same(shop: Path) -> None:
    def rows() -> set[object]:
        with closing(sqlite3.connect(shop / "pmr.db")) as db:
            return set(db.execute("SELECT * FROM product"))

    before = rows()
    trade(shop, 6)
    after = rows()
    assert before != after
    assert len(before & after) / len(after) == pytest.approx(0.98, abs=0.01)


def test_logs_rotate(shop: Path) -> None:
    before = {name: digest for name, (digest, _) in files(shop).items() if name.startswith("logs/")}
    trade(shop, 12)
    after = {name: digest for name, (digest, _) in files(shop).items() if name.startswith("logs/")}
    assert set(after) == {"logs/pms.log", *(f"logs/pms.log.{i}" for i in range(1, 5))}
    assert before.keys() <= after.keys() and not set(before.values()) & {after["logs/pms.log"]}
    assert sum((shop / name).stat().st_size for name in after) <= PROFILES["XS"].log_bytes


def test_nhs_numbers_are_from_the_test_range_and_all_different() -> None:
    numbers = [nhs_number(3, patient) for patient in range(20_000)]
    assert len(set(numbers)) == len(numbers)
    assert all(n.startswith("999") and len(n) == 10 and check_digit(n[:9]) == int(n[9]) for n in numbers)


def test_scans_do_not_compress_and_look_like_pictures(original: Path) -> None:
    import zlib

    for pattern, start, end in (("*.jpg", b"\xff\xd8\xff\xe0", b"\xff\xd9"), ("*.tif", b"II*\x00", b"")):
        data = next((original / "scans").rglob(pattern)).read_bytes()
        assert data.startswith(start) and data.endswith(end)
        assert len(zlib.compress(data)) > 0.97 * len(data)


def test_stopping_anywhere_leaves_a_sound_pharmacy_and_changes_nothing_in_the_end(shop: Path, tmp_path: Path) -> None:
    straight = Path(shutil.copytree(shop, tmp_path / "straight"))
    day = day_of(shop)[0]

    class After(threading.Event):
        """Set after it was asked so many times."""

        def __init__(self, asked: int) -> None:
            super().__init__()
            self.left = asked

        def is_set(self) -> bool:
            self.left -= 1
            return self.left < 0

    for transactions in (1, 40, 77):
        assert live(shop, After(transactions + 1)) == transactions
        assert day_of(shop)[0] == day
        assert check(shop) == []
    trade(shop)
    trade(straight)
    assert day_of(shop) == (day + 1, 0)
    assert contents(shop) == contents(straight)


def test_it_can_be_checked_and_copied_while_it_trades(shop: Path, tmp_path: Path) -> None:
    stop, done = threading.Event(), []
    clerk = threading.Thread(target=lambda: done.append(live(shop, stop, pause=0.0005)))
    clerk.start()
    try:
        for i in range(2):
            assert check(shop) == []
            copy = tmp_path / f"copy{i}"
            copy.mkdir()
            with closing(sqlite3.connect(shop / "pmr.db")) as source, closing(sqlite3.connect(copy / "pmr.db")) as to:
                source.backup(to)
            for folder in ("documents", "scans"):
                shutil.copytree(shop / folder, copy / folder)
            assert check(copy) == []
    finally:
        stop.set()
        clerk.join()
    assert done[0] > 10


Breaker = Callable[[Path], None]


def sql(*statements: str) -> Breaker:
    return lambda root: change(root, *statements)


def lose(pattern: str) -> Breaker:
    return lambda root: next(root.glob(pattern)).unlink()


def flip(pattern: str, offset: int = 1000) -> Breaker:
    def do(root: Path) -> None:
        path = next(root.glob(pattern))
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.unlink()  # it shares its contents with the original
        path.write_bytes(data)

    return do


def unindex(root: Path) -> None:
    """Leave an index without an entry that its table has, as a torn copy may."""
    with closing(sqlite3.connect(root / "pmr.db", isolation_level=None)) as db:
        entry = "CREATE INDEX patient_postcode ON patient(postcode)"
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = sql || ' WHERE 0' WHERE name = 'patient_postcode'")
        db.execute("PRAGMA schema_version = 99")
    with closing(sqlite3.connect(root / "pmr.db", isolation_level=None)) as db:
        db.execute(
            "INSERT INTO patient SELECT 99999, '9990000000', title, surname, forename, born, sex, address, postcode,"
            " phone, surgery, exemption, allergies, notes, registered, last_seen FROM patient LIMIT 1"
        )
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'patient_postcode'", (entry,))
        db.execute("PRAGMA schema_version = 100")


def _overwrite(root: Path) -> None:
    (root / "pmr.db").write_bytes(b"x" * 8192)


def _zero_page(root: Path) -> None:
    with open(root / "pmr.db", "r+b") as file:
        with closing(sqlite3.connect(root / "pmr.db")) as db:
            page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'service'").fetchone()[0]
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))


DAMAGE: dict[str, tuple[Breaker, str]] = {
    "index entry lost": (unindex, "integrity_check: row"),
    "page zeroed": (_zero_page, "database"),
    "prescription lost": (sql("DELETE FROM prescription WHERE id = 5"), "refers to a missing row of prescription"),
    "claim without prescription": (
        sql("UPDATE claim SET prescription_id = 999999 WHERE id = 3"),
        "claim 3 is for prescription 999999, which does not exist",
    ),
    "claim of another's item": (
        sql("UPDATE claim SET item_ids = (SELECT item_ids FROM claim WHERE id = 4) WHERE id = 3"),
        "claim 3 claims items that prescription",
    ),
    "claim of another amount": (sql("UPDATE claim SET amount = amount + 1 WHERE id = 3"), "claim 3 is for"),
    "claim lost": (sql("DELETE FROM claim WHERE id = 3"), "prescriptions of closed days have no claim"),
    "CD balance changed": (
        sql("UPDATE cd_register SET balance = balance + 1 WHERE id = 9"),
        "CD register entry 9 says",
    ),
    "CD entry rewritten": (
        sql("UPDATE cd_register SET party = 'Nobody' WHERE id = 9"),
        "CD register entry 9 was altered",
    ),
    "CD entry lost": (sql("DELETE FROM cd_register WHERE id = 9"), "CD register entry 9 is missing"),
    "last CD entry lost": (
        sql("DELETE FROM cd_register WHERE id = (SELECT max(id) FROM cd_register)"),
        "CD register says",
    ),
    "audit entry rewritten": (sql("UPDATE audit SET actor = 'nobody' WHERE id = 70"), "audit entry 70 was altered"),
    "audit entry lost": (sql("DELETE FROM audit WHERE id = 70"), "audit entry 70 is missing"),
    "audit entry at the end lost": (
        sql("DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)"),
        "the audit trail ends at entry",
    ),
    "stock movement lost": (sql("DELETE FROM stock_move WHERE id = 200"), "its movements make"),
    "stock changed": (sql("UPDATE stock SET on_hand = on_hand + 1 WHERE NOT controlled"), "its movements make"),
    "scan lost": (lose("scans/*/*/*.jpg"), "is missing"),
    "scan damaged": (flip("scans/*/*/*.jpg"), "is not what was filed"),
    "signature damaged": (flip("scans/*/*/*.tif"), "is not what was filed"),
    "invoice lost": (lose("documents/invoices/*/*.pdf"), "is missing"),
    "label lost": (lose("documents/labels/*/*.zpl"), "is missing"),
    "label damaged": (flip("documents/labels/*/*.zpl", 0), "is not a label"),
    "procedure lost": (lose("documents/sops/*.pdf"), "procedures on disk"),
    "fridge reading lost": (sql("DELETE FROM fridge WHERE id = 200"), "95 fridge readings on 2024-01-03"),
    "message lost": (
        sql("DELETE FROM eps_message WHERE id = (SELECT max(id) FROM eps_message)"),
        "has 3 EPS messages",
    ),
    "message kept too long": (
        sql("UPDATE eps_message SET received_on = '2023-01-01' WHERE id = (SELECT max(id) FROM eps_message)"),
        "EPS messages are older",
    ),
    "day counter behind": (sql("UPDATE site SET day = day - 1"), "the day counter says"),
    "day lost": (sql("DELETE FROM trading_day WHERE day = 4"), "the day counter says"),
    "day misdated": (sql("UPDATE trading_day SET date = '2023-01-01' WHERE day = 4"), "day 4 is dated 2023-01-01"),
    "item lost": (sql("DELETE FROM item WHERE id = 9"), "closed with"),
    "audits of a day changed": (sql("UPDATE trading_day SET audits = 1 WHERE day = 4"), "day 4 closed with 1 audit"),
    "audit trail swapped for a shorter one": (
        sql("DELETE FROM audit WHERE id > 100", "UPDATE site SET audit_count = 100"),
        "audit entries, not 100",
    ),
    "site lost": (sql("DELETE FROM site"), "it has no row saying which site it is"),
    "database lost": (lose("pmr.db"), "no pharmacy database"),
    "database overwritten": (_overwrite, "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed(original: Path, tmp_path: Path, damage: str) -> None:
    shop = Path(shutil.copytree(original, tmp_path / "shop", copy_function=os.link))
    (shop / "pmr.db").unlink()
    shutil.copy(original / "pmr.db", shop)
    breaker, expected = DAMAGE[damage]
    breaker(shop)
    problems = check(shop)
    assert any(expected in problem for problem in problems), problems


def test_many_problems_of_one_kind_are_summed_up(shop: Path) -> None:
    change(shop, "DELETE FROM stock_move WHERE kind = 'opening'")
    problems = check(shop)
    assert len(problems) < 10
    assert "more like these" in problems[-1]


def test_the_command_line_makes_trades_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "shop")
    assert main(["make", target, "--profile", "XS", "--seed", "3"]) == 0
    assert main(["make", target]) == 2
    assert main(["day", target, "--days", "2"]) == 0
    assert main(["live", target, "--seconds", "0.05"]) == 0
    assert main(["check", target]) == 0
    said = capsys.readouterr().out
    assert "CD register entries balance" in said and "FAILED" not in said
    change(tmp_path / "shop", "UPDATE cd_register SET supplied = supplied + 1 WHERE id = 9")
    assert main(["check", target]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert main(["day", str(tmp_path / "nowhere")]) == 2


def test_a_chain_is_checked_and_trades_site_by_site(original: Path, tmp_path: Path) -> None:
    for name in ("site-001", "site-002"):
        shutil.copytree(original, tmp_path / name)
    before = day_of(tmp_path / "site-002")[0]
    trade(tmp_path)
    assert day_of(tmp_path / "site-001") == day_of(tmp_path / "site-002") == (before + 1, 0)
    change(tmp_path / "site-002", "UPDATE claim SET amount = 0 WHERE id = 3")
    report = inspect(tmp_path)
    assert all(problem.startswith("site-002: ") for problem in report.problems) and report.problems
