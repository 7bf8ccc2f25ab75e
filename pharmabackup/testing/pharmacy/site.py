"""Make a sample pharmacy, let days pass in it, keep it busy."""

from __future__ import annotations

import random
import sqlite3
import threading
from pathlib import Path

from . import people, products, schema
from .day import Day, write_procedure
from .plan import plan
from .profiles import PROFILES, Profile
from .state import FIRST_DATE, GENESIS, Site, date_of

SPARE_WEEKS = 1
"""Weeks of messages that are made only to be purged again, so that the file has free pages as a real one has."""


def sites(target: Path | str) -> list[Path]:
    """The pharmacies at this place: itself, or one for each folder of a chain."""
    root = Path(target)
    if (root / schema.DATABASE).is_file():
        return [root]
    found = sorted(path.parent for path in root.glob(f"site-*/{schema.DATABASE}"))
    if not found:
        raise FileNotFoundError(f"no pharmacy database at {root / schema.DATABASE}")
    return found


def make(target: Path | str, *, profile: str | Profile = "XS", seed: int = 1) -> None:
    """Make a pharmacy (a chain: fifty of them) in a folder that has none yet.

    The same profile and seed always make the same files and the same database contents.
    """
    root = Path(target)
    size = PROFILES[profile] if isinstance(profile, str) else profile
    if PROFILES.get(size.name) != size:
        raise ValueError(f"profile {size.name} is not one of {', '.join(PROFILES)}")
    if (root / schema.DATABASE).exists() or any(root.glob("site-*")):
        raise FileExistsError(f"there is already a pharmacy at {root}")
    if size.sites > 1:
        for number in range(1, size.sites + 1):
            _make(root / f"site-{number:03d}", size, seed * 1000 + number)
    else:
        _make(root, size, seed)


def _make(root: Path, profile: Profile, seed: int) -> None:
    for folder in ("documents/labels", "documents/invoices", "documents/sops", "scans", "logs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    connection = schema.create(root)
    connection.execute("BEGIN")
    _found(connection, profile, seed)
    site = Site(root, connection)
    _open_stock(site)
    for number in range(profile.sops):
        write_procedure(site, number, 1, f"{FIRST_DATE.isoformat()}T08:00:00")
    connection.execute("COMMIT")
    for day in range(1, profile.history_days + 1):
        to_go = profile.history_days - day
        site.with_files = to_go < profile.file_days
        age = (date_of(profile.history_days) - date_of(day)).days
        site.with_messages = age <= profile.message_days + 7 * SPARE_WEEKS
        site.with_releases = to_go < 6
        connection.execute("BEGIN")
        today = plan(profile, seed, day)
        work = Day(site, today, day)
        for step in today.steps:
            work.run(step)
        connection.execute("COMMIT")
    schema.seal(connection)


def _found(connection: sqlite3.Connection, profile: Profile, seed: int) -> None:
    """The pharmacy before its first day: patients, dictionary, stocked lines."""
    rng = random.Random(f"{seed}/site")
    ods_code = f"FZ{rng.randrange(100, 1000)}"
    name = f"The {rng.choice(people.SURNAMES)} Sample Pharmacy"
    connection.execute(
        "INSERT INTO site VALUES (1, ?, ?, ?, ?, 0, 0, ?, 0)", (name, ods_code, profile.name, seed, GENESIS)
    )
    connection.executemany(
        f"INSERT INTO patient VALUES ({','.join('?' * 16)})",
        (people.patient_row(seed, number, FIRST_DATE) for number in range(1, profile.patients + 1)),
    )
    marks = ",".join("?" * 12)
    connection.executemany(
        f"INSERT INTO product({products.COLUMNS}) VALUES ({marks})",
        products.product_rows(seed, profile.products, profile.cd_lines, FIRST_DATE),
    )
    codes = [row[0] for row in connection.execute("SELECT code FROM product ORDER BY code")]
    chosen = rng.sample(codes[profile.cd_lines :], profile.stock_lines - profile.cd_lines)
    connection.executemany("INSERT INTO stock VALUES (?, 0, 1)", ((c,) for c in codes[: profile.cd_lines]))
    connection.executemany("INSERT INTO stock VALUES (?, 0, 0)", ((c,) for c in sorted(chosen)))


def _open_stock(site: Site) -> None:
    """Count the opening stock in, the controlled drugs with an entry in the register."""
    at = f"{FIRST_DATE.isoformat()}T08:00:00"
    rng = random.Random(f"{site.seed}/opening stock")
    for line in site.cd:
        quantity = 28 * rng.randrange(30, 60)
        site.move(line, quantity, "opening", "opening stock", at, "rp.sample", "counted by two people")
        site.register(line, quantity, 0, at, "opening balance", "-", "counted by two people")
    for line in site.lines:
        quantity = 28 * rng.randrange(10, 30)
        site.move(line, quantity, "opening", "opening stock", at, "rp.sample", "counted by two people")
    site.save()


def trade(target: Path | str, days: int = 1) -> None:
    """Let trading days pass, each in the many small transactions of a live system."""
    for root in sites(target):
        site = Site(root, schema.connect(root))
        try:
            for _ in range(days):
                _trade_day(site, threading.Event())
        finally:
            schema.close(site.db)


def live(target: Path | str, stop: threading.Event, *, pause: float = 0.0) -> int:
    """Trade without end until told to stop, and return how many transactions were committed.

    Stopping in the middle of a day is fine: the next call of `trade` or `live` goes on from there.
    `pause` is how long to wait after each transaction, in seconds.
    """
    [root] = sites(target)
    site = Site(root, schema.connect(root))
    done = 0
    try:
        while not stop.is_set():
            done += _trade_day(site, stop, pause)
    finally:
        schema.close(site.db)
    return done


def _trade_day(site: Site, stop: threading.Event, pause: float = 0.0) -> int:
    """Do what is left of the next trading day, and return how many transactions that took."""
    db, day, done = site.db, site.day + 1, 0
    today = plan(site.profile, site.seed, day)
    work = Day(site, today, day)
    for step in today.steps[site.step :]:
        if stop.is_set():
            break
        if step.kind == "release":
            db.execute("PRAGMA foreign_keys = OFF")
        db.execute("BEGIN IMMEDIATE")
        try:
            work.run(step)
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
        if step.kind == "release":
            db.execute("PRAGMA foreign_keys = ON")
        done += 1
        if pause:
            stop.wait(pause)
    return done
