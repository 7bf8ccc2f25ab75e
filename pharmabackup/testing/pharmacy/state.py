"""An open pharmacy: where its next rows go and what its running totals are."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from .profiles import PROFILES, Profile

FIRST_DATE = date(2024, 1, 1)  # a Monday
GENESIS = bytes(32)
AUDIT_COLUMNS = "id, at, actor, action, entity, entity_id, detail, hash"
CD_COLUMNS = "id, product_code, at, received, supplied, balance, party, prescriber, collector, actor, note, hash"


def date_of(day: int) -> date:
    """The date of the nth trading day (from 1): Mondays to Saturdays."""
    weeks, weekday = divmod(day - 1, 6)
    return FIRST_DATE + timedelta(days=7 * weeks + weekday)


def chained(previous: bytes, fields: tuple[object, ...]) -> bytes:
    """The hash of a row that follows the row with this hash."""
    return hashlib.sha256(previous + "|".join(map(str, fields)).encode()).digest()


@dataclass
class Line:
    """A stocked product."""

    code: int
    name: str
    price: int
    on_hand: int
    controlled: bool


class Site:
    """What the running system keeps in memory about its own database; all of it is read from there."""

    def __init__(self, root: Path, connection: sqlite3.Connection) -> None:
        self.root = root
        self.db = connection
        row = connection.execute(
            "SELECT profile, seed, day, step, audit_head, audit_count, ods_code FROM site"
        ).fetchone()
        self.profile: Profile = PROFILES[row[0]]
        self.seed: int = row[1]
        self.day: int = row[2]
        """The last day that was closed."""
        self.step: int = row[3]
        """How many steps of the next day are done."""
        self.audit_head: bytes = row[4]
        self.audit_count: int = row[5]
        self.ods_code: str = row[6]
        self.with_messages = True
        self.with_files = True
        self.with_releases = True
        self.patients: int = connection.execute("SELECT max(id) FROM patient").fetchone()[0]
        self._folders: set[Path] = set()
        self.lines: list[Line] = []
        self.cd: list[Line] = []
        self.by_code: dict[int, Line] = {}
        self.load_stock()
        last = connection.execute("SELECT id, hash FROM cd_register ORDER BY id DESC LIMIT 1").fetchone()
        self.cd_count: int = last[0] if last else 0
        self.cd_head: bytes = last[1] if last else GENESIS

    def load_stock(self) -> None:
        """Read the stocked lines, their names and prices."""
        rows = self.db.execute(
            "SELECT s.product_code, p.name, p.price, s.on_hand, s.controlled"
            " FROM stock s JOIN product p ON p.code = s.product_code ORDER BY s.product_code"
        )
        every = [Line(code, name, price, on_hand, bool(cd)) for code, name, price, on_hand, cd in rows]
        self.lines = [line for line in every if not line.controlled]
        self.cd = [line for line in every if line.controlled]
        self.by_code = {line.code: line for line in every}

    def next_id(self, table: str) -> int:
        """The id the table's next row will get."""
        return int(self.db.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0])

    def add(self, table: str, *values: object) -> int:
        """Insert a row whose id the database chooses, and return that id."""
        marks = ",".join("?" * len(values))
        return self.db.execute(f"INSERT INTO {table} VALUES (NULL,{marks})", values).lastrowid or 0

    def audit(self, at: str, actor: str, action: str, entity: str, entity_id: int, detail: str) -> None:
        """Append to the audit trail."""
        self.audit_count += 1
        fields = (self.audit_count, at, actor, action, entity, entity_id, detail)
        self.audit_head = chained(self.audit_head, fields)
        self.db.execute("INSERT INTO audit VALUES (?,?,?,?,?,?,?,?)", (*fields, self.audit_head))

    def move(self, line: Line, quantity: int, kind: str, reference: str, at: str, actor: str, note: str) -> None:
        """Book stock in (positive) or out (negative)."""
        line.on_hand += quantity
        self.add(
            "stock_move", line.code, at, quantity, kind, reference, f"B{line.code % 99_991:05d}",
            f"20{27 + line.code % 3}-0{1 + line.code % 9}", actor, note,
        )  # fmt: skip
        self.db.execute("UPDATE stock SET on_hand = on_hand + ? WHERE product_code = ?", (quantity, line.code))

    def register(
        self, line: Line, received: int, supplied: int, at: str, party: str, prescriber: str, note: str
    ) -> None:
        """Enter a controlled drug's receipt or supply; the stock itself must have been moved before."""
        self.cd_count += 1
        collector = party if supplied else "delivery driver, identity seen"
        fields = (
            self.cd_count, line.code, at, received, supplied, line.on_hand, party, prescriber, collector,
            "rp.sample", note,
        )  # fmt: skip
        self.cd_head = chained(self.cd_head, fields)
        self.db.execute("INSERT INTO cd_register VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", (*fields, self.cd_head))

    def write(self, path: str, data: bytes, at: str, *, append: bool = False) -> None:
        """Write a file of the site, dated as the site's clock has it."""
        target = self.root / path
        if target.parent not in self._folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(target.parent)
        with open(target, "ab" if append else "wb") as handle:
            handle.write(data)
        moment = int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp())
        os.utime(target, (moment, moment))

    def file(self, kind: str, path: str, data: bytes, at: str, prescription: int | None) -> None:
        """Keep a document: the file, and its row with its checksum."""
        self.write(path, data, at)
        self.add("document", kind, path, hashlib.sha256(data).hexdigest(), len(data), prescription, at)

    def save(self) -> None:
        """Write the state that the next start reads, as part of the current transaction."""
        self.db.execute(
            "UPDATE site SET day = ?, step = ?, audit_head = ?, audit_count = ?",
            (self.day, self.step, self.audit_head, self.audit_count),
        )
