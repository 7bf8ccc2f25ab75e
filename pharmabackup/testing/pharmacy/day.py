"""The transactions of a trading day. Each reads what it needs and leaves the site consistent."""

from __future__ import annotations

import heapq
import json
import os
import random
from collections.abc import Callable
from datetime import date, timedelta

from . import papers, people, products
from .messages import Facts, message
from .messages import Line as MessageLine
from .people import words
from .plan import CLAIM_BATCH, CLAIM_LAGS, PURGE_BATCHES, Plan, Step
from .state import Line, Site, date_of

DOSES = words(
    "Take one tablet each morning|Take one twice a day|Take one three times a day with food|Take two at night|"
    "Apply thinly twice a day|Inhale two puffs twice a day|One drop in each eye at night|Use as directed"
)
CLAIM_STATUS = ("submitted", "accepted", "paid")
ACTIONS = words("view|search|print|create|update|check|accuracy-check|hand-out|export|login|poll|acknowledge")
ENTITIES = words("patient|prescription|item|claim|stock|product")
SERVICES = words(
    "Pharmacy First|New Medicine Service|Hypertension case-finding|Flu vaccination|Intervention|"
    "Contraception service|Discharge medicines|Smoking cessation"
)
OUTCOMES = words("completed|referred|declined|follow-up due")
PHARMACISTS = (("Elowen Thornbury", "9990001"), ("Idris Calderbrook", "9990002"), ("Juno Maplethorpe", "9990003"))
PROBE = "probe F1 serial 99-0417"
LOG = "logs/pms.log"
LOGS_KEPT = 5


class Day:
    """A trading day in progress at a site."""

    def __init__(self, site: Site, plan: Plan, day: int) -> None:
        self.site = site
        self.db = site.db
        self.plan = plan
        self.day = day
        self.date = date_of(day)
        self.first_prescription = site.next_id("prescription")
        opened = self.db.execute("SELECT first_prescription FROM trading_day WHERE day = ?", (day,)).fetchone()
        if opened:
            self.first_prescription = opened[0]

    def run(self, step: Step) -> None:
        """Do one step; the caller wraps it in a transaction."""
        rng = random.Random(f"{self.site.seed}/{self.day}/{step.number}")
        entity_id = _DO[step.kind](self, rng, step)
        site = self.site
        for i in range(step.audits):
            site.audit(
                step.at,
                rng.choice(people.STAFF),
                step.kind if i == 0 else rng.choice(ACTIONS),
                rng.choice(ENTITIES) if i else step.kind,
                rng.randrange(1, 12_000) if i else entity_id,
                f"terminal {rng.randrange(1, 7)} session {rng.getrandbits(48):012x}; {people.phrases(rng, 138)}",
            )
        site.step = step.number + 1
        if step.kind == "close":
            site.day, site.step = self.day, 0
        site.save()

    def open(self, rng: random.Random, _step: Step) -> int:
        """Start the day; after a Sunday, also take over the fridge logger's readings of that day."""
        claim = self.site.next_id("claim")
        self.db.execute(
            "INSERT INTO trading_day(day, date, first_prescription, first_claim) VALUES (?,?,?,?)",
            (self.day, self.date.isoformat(), self.first_prescription, claim),
        )
        if self.day > 1 and self.date.weekday() == 0:
            for i in range(self.site.profile.rates.fridge_readings):
                self._fridge(rng, self.date - timedelta(days=1), i)
        return self.day

    def close(self, _rng: random.Random, _step: Step) -> int:
        """End the day and note its totals."""
        row = self.db.execute(
            "SELECT count(DISTINCT p.id), count(*) FROM prescription p JOIN item i ON i.prescription_id = p.id"
            " WHERE p.day = ?",
            (self.day,),
        ).fetchone()
        self.db.execute(
            "UPDATE trading_day SET prescriptions = ?, items = ?, audits = ? WHERE day = ?",
            (*row, self.site.profile.rates.audits, self.day),
        )
        return self.day

    def receive(self, rng: random.Random, step: Step) -> int:
        """A prescription arrives: two messages, its row and its items."""
        site, number = self.site, self.first_prescription + step.arg
        patient = rng.randrange(1, site.patients + 1)
        prescriber = rng.choice(people.PRESCRIBERS)
        surgery = rng.choice(people.SURGERIES)
        eps_id = f"{rng.getrandbits(24):06X}-{surgery[-8:-1].strip('(')[:6]}-{rng.getrandbits(24):06X}"
        issued = (self.date - timedelta(days=rng.randrange(3))).isoformat()
        kind = rng.choice(("acute", "repeat", "repeat", "eRD"))
        self.db.execute(
            "INSERT INTO prescription VALUES (?,?,?,?,?,?,?,?,NULL,'received',?,?)",
            (number, eps_id, self.day, patient, prescriber, surgery, issued, step.at, kind, people.phrases(rng, 460)),
        )
        for i in range(self.plan.items[step.arg]):
            if i == 0 and step.arg in self.plan.controlled:
                line = rng.choice(site.cd)
            else:
                line = site.lines[int(len(site.lines) * rng.random() ** 2)]
            site.add(
                "item", number, line.code, people.uuid(rng), line.name, rng.choice((14, 28, 28, 28, 56)), line.price,
                rng.choice(DOSES), people.phrases(rng, 280), "received", None, people.phrases(rng, 280),
            )  # fmt: skip
        self._message(number, "release", step.at)
        self._message(number, "prescription", step.at)
        return number

    def dispense(self, rng: random.Random, step: Step) -> int:
        """Its items leave the shelf: stock, register, labels, scans, owings, a message."""
        site, number = self.site, self.first_prescription + step.arg
        patient, prescriber = self.db.execute(
            "SELECT patient_id, prescriber FROM prescription WHERE id = ?", (number,)
        ).fetchone()
        forename, surname = self.db.execute(
            "SELECT forename, surname FROM patient WHERE id = ?", (patient,)
        ).fetchone()
        name = f"{forename} {surname}"
        today = self.date.isoformat()
        items = self.db.execute(
            "SELECT id, product_code, quantity, dose FROM item WHERE prescription_id = ? ORDER BY id", (number,)
        ).fetchall()
        for i, (item, code, quantity, dose) in enumerate(items):
            line = site.by_code[code]
            supplied = min(quantity, line.on_hand)
            site.move(line, -supplied, "dispensed", f"item {item}", step.at, "disp.fern", people.phrases(rng, 125))
            if line.controlled:
                site.register(line, 0, supplied, step.at, name, prescriber, people.phrases(rng, 365))
            if i == 0 and step.arg in self.plan.owing:
                site.add("owing", item, quantity - supplied or 1, step.at, None, people.phrases(rng, 165))
            path = None
            if site.with_files:
                path = f"documents/labels/{today}/{item}.zpl"
                site.write(path, papers.label(f"{site.seed}/{path}", name, line.name, dose, today), step.at)
            self.db.execute("UPDATE item SET status = 'dispensed', label_path = ? WHERE id = ?", (path, item))
        if site.with_files:
            folder = f"scans/{today[:7]}/{today[8:]}"
            if step.arg in self.plan.scanned:
                path = f"{folder}/token-{number}.jpg"
                site.file("scan", path, papers.jpeg(f"{site.seed}/{path}", 90_000), step.at, number)
            if step.arg in self.plan.signed:
                path = f"{folder}/signature-{number}.tif"
                site.file("signature", path, papers.tiff(f"{site.seed}/{path}", 25_000), step.at, number)
        self.db.execute(
            "UPDATE prescription SET status = 'dispensed', dispensed_at = ? WHERE id = ?", (step.at, number)
        )
        if step.arg in self.plan.visits:
            self.db.execute(
                "UPDATE patient SET last_seen = ?, notes = ? WHERE id = ?",
                (today, people.phrases(rng, 1160), patient),
            )
        self._message(number, "dispense", step.at)
        return number

    def claim(self, rng: random.Random, step: Step) -> int:
        """Claim the dispensed items' prices; one in fifty items is not claimed, unless it is the only one."""
        number = self.first_prescription + step.arg
        items = self.db.execute(
            "SELECT id, price FROM item WHERE prescription_id = ? ORDER BY id", (number,)
        ).fetchall()
        claimed = [item for item in items if rng.random() >= 0.02] or items[:1]
        number_of_claim = self.site.add(
            "claim", number, people.uuid(rng), "endorsed", self.date.isoformat(), step.at,
            sum(price for _, price in claimed), json.dumps([item for item, _ in claimed]),
            f"{step.at} endorsed by act.meadow; {people.phrases(rng, 140)}",
        )  # fmt: skip
        self._message(number, "claim", step.at)
        return number_of_claim

    def progress(self, rng: random.Random, step: Step) -> int:
        """Some claims of an earlier day get their next status."""
        which, batch = step.arg >> 16, step.arg & 0xFFFF
        row = self.db.execute(
            "SELECT first_claim FROM trading_day WHERE day = ?", (self.day - CLAIM_LAGS[which],)
        ).fetchone()
        if row is None:
            return 0
        count = self.site.profile.rates.prescriptions
        first, last = row[0] + batch * CLAIM_BATCH, row[0] + min(count, (batch + 1) * CLAIM_BATCH)
        status = CLAIM_STATUS[which]
        self.db.execute(
            "UPDATE claim SET status = ?, changed_at = ?, history = history || ? WHERE id >= ? AND id < ?",
            (status, step.at, f"\n{step.at} {status} ref {rng.getrandbits(32):08x}", first, last),
        )
        return int(first)

    def newcomer(self, _rng: random.Random, _step: Step) -> int:
        """A patient registers."""
        self.site.patients += 1
        row = people.patient_row(self.site.seed, self.site.patients, self.date)
        self.db.execute(f"INSERT INTO patient VALUES ({','.join('?' * len(row))})", row)
        return self.site.patients

    def delivery(self, rng: random.Random, step: Step) -> int:
        """Goods arrive with an invoice; the first deliveries of a day also bring the scarcest controlled drugs."""
        site, rates = self.site, self.site.profile.rates
        receipts = rates.receipts * (step.arg + 1) // rates.deliveries - rates.receipts * step.arg // rates.deliveries
        controlled = rates.cd_receipts * (step.arg + 1) // rates.deliveries
        controlled -= rates.cd_receipts * step.arg // rates.deliveries
        wholesaler = papers.wholesaler(step.arg)
        reference = f"INV-{self.day:05d}-{step.arg}"
        listed = []
        for line in heapq.nsmallest(min(controlled, receipts), site.cd, key=_scarcity):
            quantity = 28 * max(1, (1200 - line.on_hand) // 28)
            site.move(line, quantity, "received", reference, step.at, "rp.sample", people.phrases(rng, 125))
            site.register(line, quantity, 0, step.at, wholesaler, "-", people.phrases(rng, 365))
            listed.append(f"{line.code} {line.name} {quantity} at {line.price / 100:.2f}")
        for line in heapq.nsmallest(receipts - len(listed), site.lines, key=_scarcity):
            quantity = 28 * max(1, (600 - line.on_hand) // 28 + rng.randrange(4))
            site.move(line, quantity, "received", reference, step.at, "stock-service", people.phrases(rng, 125))
            listed.append(f"{line.code} {line.name} {quantity} at {line.price / 100:.2f}")
        if site.with_files:
            path = f"documents/invoices/{self.date:%Y-%m}/{reference}.pdf"
            data = papers.invoice(f"{site.seed}/{path}", wholesaler, listed)
            site.file("invoice", path, data, step.at, None)
        return step.arg

    def adjust(self, rng: random.Random, step: Step) -> int:
        """A stock count finds a few units more or fewer."""
        line = rng.choice(self.site.lines)
        quantity = max(-line.on_hand, rng.choice((-28, -14, -1, 1, 14)))
        self.site.move(line, quantity, "counted", "stock check", step.at, "disp.rowan", people.phrases(rng, 125))
        return step.arg

    def service(self, rng: random.Random, step: Step) -> int:
        """A service or an intervention is recorded."""
        return self.site.add(
            "service", rng.choice(SERVICES), step.at, rng.randrange(1, self.site.patients + 1),
            "rp.sample", rng.choice(OUTCOMES), people.phrases(rng, 1480),
        )  # fmt: skip

    def settle(self, _rng: random.Random, step: Step) -> int:
        """The oldest open owing is handed out, once it is a day old."""
        row = self.db.execute(
            "SELECT id FROM owing WHERE settled_at IS NULL AND created_at < ? ORDER BY id LIMIT 1",
            (self.date.isoformat(),),
        ).fetchone()
        if row is None:
            return 0
        self.db.execute("UPDATE owing SET settled_at = ? WHERE id = ?", (step.at, row[0]))
        return int(row[0])

    def private(self, rng: random.Random, step: Step) -> int:
        """A private prescription is entered in the register of prescription-only medicines."""
        line = rng.choice(self.site.lines)
        return self.site.add(
            "pom_register", step.at, rng.randrange(1, self.site.patients + 1), line.code, 28,
            rng.choice(people.PRESCRIBERS), line.price * 3, people.phrases(rng, 250),
        )  # fmt: skip

    def fridge(self, rng: random.Random, step: Step) -> int:
        """The fridge logger sends a reading."""
        return self._fridge(rng, self.date, step.arg)

    def _fridge(self, rng: random.Random, day: date, number: int) -> int:
        minutes = number * 1440 // self.site.profile.rates.fridge_readings
        celsius = round(rng.gauss(4.6, 0.7), 2)
        return self.site.add(
            "fridge", day.isoformat(), f"{day.isoformat()}T{minutes // 60:02d}:{minutes % 60:02d}:00", celsius,
            round(celsius - rng.random(), 2), round(celsius + rng.random(), 2), PROBE, people.phrases(rng, 120),
        )  # fmt: skip

    def pharmacist(self, rng: random.Random, step: Step) -> int:
        """The responsible pharmacist signs on, is absent for lunch, signs off."""
        name, gphc = PHARMACISTS[self.day % len(PHARMACISTS)]
        event = ("signed on", "absent for lunch", "signed off")[step.arg % 3]
        return self.site.add("rp_log", step.at, name, gphc, event, people.phrases(rng, 250))

    def purge(self, _rng: random.Random, step: Step) -> int:
        """Delete some of the messages that have been kept long enough."""
        rates = self.site.profile.rates
        cutoff = self.date - timedelta(days=self.site.profile.message_days)
        self.db.execute(
            "DELETE FROM eps_message WHERE id IN"
            " (SELECT id FROM eps_message WHERE received_on < ? ORDER BY received_on LIMIT ?)",
            (cutoff.isoformat(), -(-2 * rates.messages // PURGE_BATCHES)),
        )
        return step.arg

    def log(self, _rng: random.Random, step: Step) -> int:
        """The system logs an hour's work; a full log is rotated and the oldest one dropped."""
        site = self.site
        if site.with_files:
            size = site.profile.log_bytes // (2 * LOGS_KEPT * site.profile.rates.log_chunks)
            current = site.root / LOG
            if current.exists() and current.stat().st_size + size > site.profile.log_bytes // LOGS_KEPT:
                for i in range(LOGS_KEPT - 1, 0, -1):
                    older = site.root / (f"{LOG}.{i - 1}" if i > 1 else LOG)
                    if older.exists():
                        os.replace(older, site.root / f"{LOG}.{i}")
            text = papers.log_text(f"{site.seed}/log/{self.day}/{step.arg}", step.at[:13], size)
            site.write(LOG, text, step.at, append=True)
        return step.arg

    def procedure(self, _rng: random.Random, step: Step) -> int:
        """A standard operating procedure is revised."""
        site = self.site
        write_procedure(site, step.arg, 1 + self.day // 13, step.at)
        return step.arg

    def release(self, _rng: random.Random, step: Step) -> int:
        """The weekly medicines dictionary is loaded."""
        if self.site.with_releases:
            products.replace_all(self.db, self.site.seed, step.arg, self.date)
            self.site.load_stock()
        return step.arg

    def _message(self, prescription: int, kind: str, at: str) -> None:
        """Keep one EPS message about a prescription, made from what the database says of it."""
        if not self.site.with_messages:
            return
        facts = self.db.execute(
            "SELECT p.eps_id, t.nhs_number, t.title, t.forename, t.surname, t.address, t.postcode, t.born, t.sex,"
            " p.prescriber, p.surgery FROM prescription p JOIN patient t ON t.id = p.patient_id WHERE p.id = ?",
            (prescription,),
        ).fetchone()
        lines = [
            MessageLine(*row)
            for row in self.db.execute(
                "SELECT uuid, product_code, name, quantity, dose FROM item WHERE prescription_id = ? ORDER BY id",
                (prescription,),
            )
        ]
        rng = random.Random(f"{self.site.seed}/message/{prescription}/{kind}")
        name, body = message(rng, kind, Facts._make((*facts, self.site.ods_code, at)), lines)
        self.site.add("eps_message", name, kind, prescription, self.date.isoformat(), at, body)


def _scarcity(line: Line) -> int:
    return line.on_hand


def write_procedure(site: Site, number: int, version: int, at: str) -> None:
    """Write a procedure's file as of this version."""
    path = f"documents/sops/SOP-{number:03d}.{'pdf' if number % 2 else 'docx'}"
    site.write(path, papers.procedure(f"{site.seed}/{path}", number, version, site.profile.sop_bytes), at)


_DO: dict[str, Callable[[Day, random.Random, Step], int]] = {
    kind: getattr(Day, kind)
    for kind in words(
        "open|close|receive|dispense|claim|progress|newcomer|delivery|adjust|service|settle|private|fridge|"
        "pharmacist|purge|log|procedure|release"
    )
}
