"""The pharmacy's database: its tables, its indexes and how it is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

DATABASE = "pmr.db"

SCHEMA = """
CREATE TABLE site(
  id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL, ods_code TEXT NOT NULL,
  profile TEXT NOT NULL, seed INTEGER NOT NULL, day INTEGER NOT NULL, step INTEGER NOT NULL,
  audit_head BLOB NOT NULL, audit_count INTEGER NOT NULL);
CREATE TABLE trading_day(
  day INTEGER PRIMARY KEY, date TEXT NOT NULL UNIQUE,
  first_prescription INTEGER NOT NULL, first_claim INTEGER NOT NULL,
  prescriptions INTEGER, items INTEGER, audits INTEGER);
CREATE TABLE patient(
  id INTEGER PRIMARY KEY, nhs_number TEXT NOT NULL UNIQUE, title TEXT NOT NULL, surname TEXT NOT NULL,
  forename TEXT NOT NULL, born TEXT NOT NULL, sex TEXT NOT NULL, address TEXT NOT NULL,
  postcode TEXT NOT NULL, phone TEXT NOT NULL, surgery TEXT NOT NULL, exemption TEXT NOT NULL,
  allergies TEXT NOT NULL, notes TEXT NOT NULL, registered TEXT NOT NULL, last_seen TEXT NOT NULL);
CREATE INDEX patient_name ON patient(surname, forename, born);
CREATE INDEX patient_postcode ON patient(postcode);
CREATE TABLE product(
  code INTEGER PRIMARY KEY, name TEXT NOT NULL, generic TEXT NOT NULL, form TEXT NOT NULL,
  supplier TEXT NOT NULL, pack_size INTEGER NOT NULL, price INTEGER NOT NULL, gtin TEXT NOT NULL,
  bnf TEXT NOT NULL, legal TEXT NOT NULL, revised TEXT NOT NULL, details TEXT NOT NULL);
CREATE INDEX product_name ON product(name);
CREATE INDEX product_gtin ON product(gtin);
CREATE TABLE stock(
  product_code INTEGER PRIMARY KEY REFERENCES product(code), on_hand INTEGER NOT NULL,
  controlled INTEGER NOT NULL);
CREATE TABLE stock_move(
  id INTEGER PRIMARY KEY, product_code INTEGER NOT NULL REFERENCES stock(product_code),
  at TEXT NOT NULL, quantity INTEGER NOT NULL, kind TEXT NOT NULL, reference TEXT NOT NULL,
  batch TEXT NOT NULL, expires TEXT NOT NULL, actor TEXT NOT NULL, note TEXT NOT NULL);
CREATE INDEX stock_move_product ON stock_move(product_code, at);
CREATE TABLE prescription(
  id INTEGER PRIMARY KEY, eps_id TEXT NOT NULL UNIQUE, day INTEGER NOT NULL REFERENCES trading_day(day),
  patient_id INTEGER NOT NULL REFERENCES patient(id), prescriber TEXT NOT NULL, surgery TEXT NOT NULL,
  issued TEXT NOT NULL, received_at TEXT NOT NULL, dispensed_at TEXT, status TEXT NOT NULL,
  kind TEXT NOT NULL, notes TEXT NOT NULL);
CREATE INDEX prescription_patient ON prescription(patient_id, issued);
CREATE INDEX prescription_day ON prescription(day, status);
CREATE TABLE item(
  id INTEGER PRIMARY KEY, prescription_id INTEGER NOT NULL REFERENCES prescription(id),
  product_code INTEGER NOT NULL REFERENCES product(code), uuid TEXT NOT NULL, name TEXT NOT NULL,
  quantity INTEGER NOT NULL, price INTEGER NOT NULL, dose TEXT NOT NULL, warnings TEXT NOT NULL,
  status TEXT NOT NULL, label_path TEXT, checks TEXT NOT NULL);
CREATE INDEX item_prescription ON item(prescription_id);
CREATE INDEX item_product ON item(product_code);
CREATE TABLE eps_message(
  id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  prescription_id INTEGER NOT NULL REFERENCES prescription(id), received_on TEXT NOT NULL,
  received_at TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX eps_message_prescription ON eps_message(prescription_id);
CREATE INDEX eps_message_date ON eps_message(received_on);
CREATE TABLE claim(
  id INTEGER PRIMARY KEY, prescription_id INTEGER NOT NULL UNIQUE REFERENCES prescription(id),
  uuid TEXT NOT NULL UNIQUE, status TEXT NOT NULL, claimed_on TEXT NOT NULL, changed_at TEXT NOT NULL,
  amount INTEGER NOT NULL, item_ids TEXT NOT NULL, history TEXT NOT NULL);
CREATE INDEX claim_status ON claim(status, claimed_on);
CREATE TABLE audit(
  id INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
  entity TEXT NOT NULL, entity_id INTEGER NOT NULL, detail TEXT NOT NULL, hash BLOB NOT NULL);
CREATE INDEX audit_entity ON audit(entity, entity_id);
CREATE TABLE cd_register(
  id INTEGER PRIMARY KEY, product_code INTEGER NOT NULL REFERENCES stock(product_code), at TEXT NOT NULL,
  received INTEGER NOT NULL, supplied INTEGER NOT NULL, balance INTEGER NOT NULL, party TEXT NOT NULL,
  prescriber TEXT NOT NULL, collector TEXT NOT NULL, actor TEXT NOT NULL, note TEXT NOT NULL,
  hash BLOB NOT NULL);
CREATE INDEX cd_register_product ON cd_register(product_code, id);
CREATE TABLE rp_log(
  id INTEGER PRIMARY KEY, at TEXT NOT NULL, pharmacist TEXT NOT NULL, gphc TEXT NOT NULL,
  event TEXT NOT NULL, note TEXT NOT NULL);
CREATE TABLE pom_register(
  id INTEGER PRIMARY KEY, at TEXT NOT NULL, patient_id INTEGER NOT NULL REFERENCES patient(id),
  product_code INTEGER NOT NULL REFERENCES product(code), quantity INTEGER NOT NULL,
  prescriber TEXT NOT NULL, price INTEGER NOT NULL, note TEXT NOT NULL);
CREATE INDEX pom_register_patient ON pom_register(patient_id);
CREATE TABLE service(
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, at TEXT NOT NULL,
  patient_id INTEGER NOT NULL REFERENCES patient(id), actor TEXT NOT NULL, outcome TEXT NOT NULL,
  notes TEXT NOT NULL);
CREATE INDEX service_patient ON service(patient_id, at);
CREATE TABLE owing(
  id INTEGER PRIMARY KEY, item_id INTEGER NOT NULL REFERENCES item(id), quantity INTEGER NOT NULL,
  created_at TEXT NOT NULL, settled_at TEXT, note TEXT NOT NULL);
CREATE INDEX owing_open ON owing(settled_at, id);
CREATE TABLE fridge(
  id INTEGER PRIMARY KEY, date TEXT NOT NULL, at TEXT NOT NULL, celsius REAL NOT NULL,
  low REAL NOT NULL, high REAL NOT NULL, probe TEXT NOT NULL, note TEXT NOT NULL);
CREATE INDEX fridge_date ON fridge(date);
CREATE TABLE document(
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, path TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL,
  size INTEGER NOT NULL, prescription_id INTEGER REFERENCES prescription(id), created_at TEXT NOT NULL);
CREATE INDEX document_prescription ON document(prescription_id);
"""


def connect(root: Path) -> sqlite3.Connection:
    """Open the site's existing database as its PMR would: WAL, ordinary durability, patient locking."""
    path = root / DATABASE
    if not path.is_file():
        raise FileNotFoundError(f"no pharmacy database at {path}")
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0, cached_statements=256)
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -131072")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def create(root: Path) -> sqlite3.Connection:
    """Create an empty database, tuned for filling it quickly; `seal` makes it an ordinary one."""
    connection = sqlite3.connect(root / DATABASE, isolation_level=None, cached_statements=256)
    for pragma in ("page_size = 4096", "journal_mode = OFF", "synchronous = OFF", "cache_size = -262144"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.executescript(SCHEMA)
    return connection


def seal(connection: sqlite3.Connection) -> None:
    """Switch a freshly filled database to WAL and close it, leaving one file."""
    connection.execute("PRAGMA main.synchronous = FULL").fetchall()
    connection.execute("PRAGMA main.journal_mode = WAL").fetchall()
    close(connection)


def close(connection: sqlite3.Connection) -> None:
    """Fold the WAL back into the database, as far as other readers let us, and close it."""
    connection.execute("PRAGMA main.wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
