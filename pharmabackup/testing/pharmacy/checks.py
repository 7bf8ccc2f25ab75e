"""What must be true of a pharmacy, however it got here."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from . import schema
from .profiles import PROFILES, Profile
from .site import sites
from .state import AUDIT_COLUMNS, CD_COLUMNS, FIRST_DATE, GENESIS, chained, date_of

CHECK_ALL_UP_TO = 2000
"""More files than this are checked by sample."""
SAMPLE = 500
EXAMPLES = 5


@dataclass
class Report:
    """What was checked, in sentences, and the sentences that say what is wrong."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Subject:
    root: Path
    db: sqlite3.Connection
    profile: Profile
    day: int
    step: int

    def number(self, sql: str, *values: object) -> int:
        return int(self.db.execute(sql, values).fetchone()[0])


_Check = Callable[[_Subject, list[str]], str]


def check(target: Path | str) -> list[str]:
    """The problems of the pharmacy (or chain) at this place; none if all is well."""
    return inspect(target).problems


def inspect(target: Path | str) -> Report:
    """Check the pharmacy (or chain) at this place; changes nothing, and one being traded in may be checked."""
    report = Report()
    try:
        roots = sites(target)
    except FileNotFoundError as error:
        return Report([f"FAILED: {error}"], [str(error)])
    for root in roots:
        prefix = f"{root.name}: " if len(roots) > 1 else ""
        one = _inspect(root)
        report.lines += [prefix + line for line in one.lines]
        report.problems += [prefix + problem for problem in one.problems]
    return report


def _inspect(root: Path) -> Report:
    report = Report()
    try:
        with closing(schema.connect(root)) as connection:
            connection.execute("BEGIN")
            row = connection.execute("SELECT profile, day, step FROM site").fetchone()
            if row is None or row[0] not in PROFILES:
                raise sqlite3.DatabaseError("it has no row saying which site it is")
            subject = _Subject(root, connection, PROFILES[row[0]], row[1], row[2])
            for one in CHECKS:
                _run(one, subject, report)
    except sqlite3.DatabaseError as error:
        message = f"the database cannot be read: {error}"
        report.problems.append(message)
        report.lines.append(f"FAILED: {message}")
    return report


def _run(one: _Check, subject: _Subject, report: Report) -> None:
    problems: list[str] = []
    try:
        line = one(subject, problems)
    except sqlite3.DatabaseError as error:
        line = f"{one.__name__.strip('_').replace('_', ' ')} could not be checked"
        problems.append(f"the database cannot be read: {error}")
    shown = problems[:EXAMPLES]
    if len(problems) > EXAMPLES:
        shown.append(f"and {len(problems) - EXAMPLES} more like these")
    report.problems += shown
    if shown:
        report.lines.append(f"FAILED: {line}")
        report.lines += [f"  {problem}" for problem in shown]
    else:
        report.lines.append(line)


def _integrity(s: _Subject, problems: list[str]) -> str:
    found = [row[0] for row in s.db.execute("PRAGMA integrity_check(20)")]
    problems += [f"integrity_check: {text}" for text in found if text != "ok"]
    return "database integrity check ok"


def _foreign_keys(s: _Subject, problems: list[str]) -> str:
    for table, row, parent, _ in s.db.execute("PRAGMA foreign_key_check"):
        problems.append(f"{table} row {row} refers to a missing row of {parent}")
    return "foreign keys ok"


def _day_counter(s: _Subject, problems: list[str]) -> str:
    opened = s.day + (1 if s.step else 0)
    days = s.db.execute("SELECT day, date, prescriptions, items, audits FROM trading_day ORDER BY day").fetchall()
    if [row[0] for row in days] != list(range(1, opened + 1)):
        problems.append(f"the day counter says {opened} days, the table of days has {len(days)}")
    counts = {
        row[0]: (row[1], row[2])
        for row in s.db.execute(
            "SELECT p.day, count(DISTINCT p.id), count(i.id) FROM prescription p"
            " LEFT JOIN item i ON i.prescription_id = p.id GROUP BY p.day"
        )
    }
    for day, on, prescriptions, items, audits in days:
        if on != date_of(day).isoformat():
            problems.append(f"day {day} is dated {on}")
        if day > s.day:
            continue
        if (prescriptions, items) != counts.get(day):
            problems.append(
                f"day {day} closed with {prescriptions} prescriptions and {items} items, not {counts.get(day)}"
            )
        if audits != s.profile.rates.audits:
            problems.append(f"day {day} closed with {audits} audit entries")
    recorded = s.number("SELECT count(*) FROM audit")
    if not s.step and recorded != s.day * s.profile.rates.audits:
        problems.append(f"{s.day} days should have {s.day * s.profile.rates.audits} audit entries, not {recorded}")
    total = sum(count for count, _ in counts.values())
    return f"{opened} trading days, {s.day} of them closed, agree with their {total} prescriptions"


def _register_balances(s: _Subject, problems: list[str]) -> str:
    balances: dict[int, int] = {}
    head, count = GENESIS, 0
    for count, row in enumerate(s.db.execute(f"SELECT {CD_COLUMNS} FROM cd_register ORDER BY id"), 1):
        number, code, _, received, supplied, balance = row[:6]
        if number != count:
            problems.append(f"CD register entry {count} is missing")
            break
        expected = balances.get(code, 0) + received - supplied
        if balance != expected or balance < 0:
            problems.append(f"CD register entry {number} says balance {balance}, should be {expected}")
        balances[code] = balance
        head = chained(head, row[:-1])
        if head != row[-1]:
            problems.append(f"CD register entry {number} was altered: its hash does not follow from the one before")
            head = row[-1]
    for code, on_hand in s.db.execute("SELECT product_code, on_hand FROM stock WHERE controlled"):
        if balances.get(code, 0) != on_hand:
            problems.append(f"CD register says {balances.get(code, 0)} of {code}, stock says {on_hand}")
    return f"{count} CD register entries balance"


def _audit_chain(s: _Subject, problems: list[str]) -> str:
    head, count = GENESIS, 0
    for count, row in enumerate(s.db.execute(f"SELECT {AUDIT_COLUMNS} FROM audit ORDER BY id"), 1):
        if row[0] != count:
            problems.append(f"audit entry {count} is missing")
            break
        head = chained(head, row[:-1])
        if head != row[-1]:
            problems.append(f"audit entry {count} was altered: its hash does not follow from the one before")
            head = row[-1]
    expected_head, expected = s.db.execute("SELECT audit_head, audit_count FROM site").fetchone()
    if (head, count) != (expected_head, expected):
        problems.append(f"the audit trail ends at entry {count}, the site says {expected}")
    return f"{count} audit entries are chained"


def _claims(s: _Subject, problems: list[str]) -> str:
    rows = s.db.execute(
        "SELECT c.id, c.amount, c.prescription_id, json_array_length(c.item_ids), count(i.id), sum(i.price),"
        " (SELECT count(*) FROM prescription p WHERE p.id = c.prescription_id)"
        " FROM claim c, json_each(c.item_ids) j"
        " LEFT JOIN item i ON i.id = j.value AND i.prescription_id = c.prescription_id GROUP BY c.id"
    )
    count = 0
    for number, amount, prescription, claimed, found, total, exists in rows:
        count += 1
        if not exists:
            problems.append(f"claim {number} is for prescription {prescription}, which does not exist")
        elif claimed != found:
            problems.append(f"claim {number} claims items that prescription {prescription} does not have")
        elif amount != total:
            problems.append(f"claim {number} is for {amount} pence, its items make {total}")
    missing = s.number(
        "SELECT count(*) FROM prescription WHERE day <= ? AND id NOT IN (SELECT prescription_id FROM claim)", s.day
    )
    if missing:
        problems.append(f"{missing} prescriptions of closed days have no claim")
    return f"{count} claims are within their prescriptions"


def _stock(s: _Subject, problems: list[str]) -> str:
    rows = s.db.execute(
        "SELECT s.product_code, s.on_hand, coalesce(m.total, 0) FROM stock s LEFT JOIN"
        " (SELECT product_code, sum(quantity) AS total FROM stock_move GROUP BY product_code) m"
        " ON m.product_code = s.product_code"
    ).fetchall()
    for code, on_hand, total in rows:
        if on_hand != total or on_hand < 0:
            problems.append(f"stock of {code} is {on_hand}, its movements make {total}")
    return f"stock of {len(rows)} lines is the sum of {s.number('SELECT count(*) FROM stock_move')} movements"


def _messages(s: _Subject, problems: list[str]) -> str:
    closed_on = date_of(s.day) if s.day else FIRST_DATE
    kept_from = (closed_on - timedelta(days=s.profile.message_days)).isoformat()
    # A day that is under way has deleted by its own date already.
    (newest_date,) = s.db.execute("SELECT max(date) FROM trading_day").fetchone()
    newest = date.fromisoformat(newest_date) if newest_date else closed_on
    needed_from = (newest - timedelta(days=s.profile.message_days)).isoformat()
    bad = s.db.execute(
        "SELECT p.id, count(m.id) FROM prescription p LEFT JOIN eps_message m ON m.prescription_id = p.id"
        " WHERE p.day IN (SELECT day FROM trading_day WHERE date >= ? AND day <= ?) GROUP BY p.id"
        " HAVING count(m.id) <> ?",
        (needed_from, s.day, s.profile.rates.messages_per_prescription),
    )
    problems += [f"prescription {number} has {count} EPS messages" for number, count in bad]
    old = s.number("SELECT count(*) FROM eps_message WHERE received_on < ?", kept_from)
    if old:
        problems.append(f"{old} EPS messages are older than {s.profile.message_days} days")
    return f"{s.number('SELECT count(*) FROM eps_message')} EPS messages belong to their prescriptions"


def _fridge(s: _Subject, problems: list[str]) -> str:
    counts = dict(s.db.execute("SELECT date, count(*) FROM fridge GROUP BY date").fetchall())
    last = date_of(s.day) if s.day else FIRST_DATE - timedelta(days=1)
    day: date = FIRST_DATE
    while day <= last:
        found = counts.get(day.isoformat(), 0)
        if found != s.profile.rates.fridge_readings:
            problems.append(f"{found} fridge readings on {day.isoformat()}")
        day += timedelta(days=1)
    return f"fridge readings on every one of {(last - FIRST_DATE).days + 1} days"


def _documents(s: _Subject, problems: list[str]) -> str:
    rows = s.db.execute("SELECT path, size, sha256 FROM document ORDER BY id").fetchall()
    labels = [row[0] for row in s.db.execute("SELECT label_path FROM item WHERE label_path IS NOT NULL ORDER BY id")]
    total = len(rows) + len(labels)
    rng = random.Random(total)
    if total > CHECK_ALL_UP_TO:
        rows = rng.sample(rows, min(len(rows), SAMPLE))
        labels = rng.sample(labels, min(len(labels), SAMPLE))
    for path, size, digest in rows:
        try:
            data = (s.root / path).read_bytes()
        except OSError:
            problems.append(f"{path} is missing")
            continue
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            problems.append(f"{path} is not what was filed")
    for path in labels:
        try:
            data = (s.root / path).read_bytes()
        except OSError:
            problems.append(f"{path} is missing")
            continue
        if not (data.startswith(b"^XA") and data.endswith(b"^XZ\n")):
            problems.append(f"{path} is not a label")
    procedures = sum(1 for path in (s.root / "documents" / "sops").glob("SOP-*") if path.stat().st_size)
    if procedures != s.profile.sops:
        problems.append(f"{procedures} procedures on disk, should be {s.profile.sops}")
    return f"{len(rows) + len(labels)} of {total} filed documents, and {procedures} procedures, are on disk"


CHECKS: tuple[_Check, ...] = (
    _integrity, _foreign_keys, _day_counter, _register_balances, _audit_chain, _claims, _stock, _messages, _fridge,
    _documents,
)  # fmt: skip
