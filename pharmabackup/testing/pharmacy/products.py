"""The medicines dictionary (dm+d-like), and the weekly release that replaces it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from datetime import date

from .people import phrases, words

DRUGS = words(
    "Alendronic acid|Allopurinol|Amitriptyline|Amlodipine|Amoxicillin|Apixaban|Aspirin|Atenolol|Atorvastatin|"
    "Azathioprine|Baclofen|Beclometasone|Bendroflumethiazide|Bisoprolol|Budesonide|Bumetanide|Candesartan|"
    "Carbamazepine|Carbocisteine|Cetirizine|Citalopram|Clarithromycin|Clopidogrel|Codeine|Colecalciferol|"
    "Dapagliflozin|Diclofenac|Digoxin|Diltiazem|Donepezil|Doxazosin|Doxycycline|Duloxetine|Edoxaban|Enalapril|"
    "Empagliflozin|Escitalopram|Esomeprazole|Ezetimibe|Felodipine|Ferrous fumarate|Fexofenadine|Finasteride|"
    "Flucloxacillin|Fluoxetine|Folic acid|Furosemide|Gabapentin|Gliclazide|Hydrocortisone|Hydroxychloroquine|"
    "Ibuprofen|Indapamide|Irbesartan|Isosorbide|Lamotrigine|Lansoprazole|Latanoprost|Letrozole|Levetiracetam|"
    "Levothyroxine|Linagliptin|Lisinopril|Loperamide|Loratadine|Losartan|Macrogol|Mebeverine|Melatonin|"
    "Metformin|Methotrexate|Metoclopramide|Metronidazole|Mirtazapine|Montelukast|Naproxen|Nicorandil|"
    "Nitrofurantoin|Omeprazole|Paracetamol|Penicillin V|Perindopril|Prednisolone|Pregabalin|Prochlorperazine|"
    "Propranolol|Quetiapine|Ramipril|Risperidone|Rivaroxaban|Salbutamol|Sertraline|Simvastatin|Sitagliptin|"
    "Solifenacin|Spironolactone|Sumatriptan|Tamsulosin|Tiotropium|Topiramate|Trazodone|Valproate|Venlafaxine"
)
FORMS = words(
    "tablets|capsules|modified-release tablets|oral solution|orodispersible tablets|cream|ointment|eye drops|"
    "dry powder inhaler|transdermal patches|suspension for injection|gastro-resistant capsules"
)
STRENGTHS = words("1mg|2mg|2.5mg|5mg|10mg|15mg|20mg|25mg|40mg|50mg|75mg|100mg|150mg|200mg|250mg|500mg")
SUPPLIERS = tuple(
    f"{name} {kind}"
    for name in ("Fictopharm", "Samplex", "Mockley", "Exemplar", "Inventa", "Placebon", "Notional", "Protogen")
    for kind in ("Ltd", "Healthcare", "Generics", "UK", "Laboratories")
)
CONTROLLED = ("Morphine sulfate", "Oxycodone", "Methadone", "Fentanyl", "Methylphenidate", "Buprenorphine")
_DETAILS = (
    '{{"vmp":{vmp},"licence":"{licence}","apid":{apid},"flavour":"{flavour}","availability":"{avail}",'
    '"drug_tariff":{{"category":"{cat}","price_pence":{price},"previous_pence":{old},"from":"{when}"}},'
    '"pack":{{"legal":"{legal}","hospital":false,"disc":"{disc}","acbs":false,"fp10_mda":{mda}}},'
    '"ingredient":[{{"isid":{isid},"basis":"0001","strength":"{strength}","unit":258684004}}],'
    '"route":[{route}],"excipients":"{excipients}","notes":"{notes}"}}'
)
COLUMNS = "code, name, generic, form, supplier, pack_size, price, gtin, bnf, legal, revised, details"


def product_row(seed: int, number: int, revised: date, *, controlled: bool = False) -> tuple[object, ...]:
    """One row of the dictionary; a row's number fixes its code, and its contents with the date."""
    rng = random.Random(seed << 40 ^ number)
    drug = rng.choice(CONTROLLED if controlled else DRUGS)
    strength, form, supplier = rng.choice(STRENGTHS), rng.choice(FORMS), rng.choice(SUPPLIERS)
    pack = rng.choice((7, 14, 28, 28, 28, 30, 56, 60, 84, 100))
    price = int(rng.lognormvariate(6.0, 0.8)) + 20
    legal = "CD2" if controlled else rng.choice(("POM", "POM", "POM", "P", "GSL"))
    details = _DETAILS.format(
        vmp=rng.randrange(10**14, 10**15),
        licence=f"PL {rng.randrange(10_000, 60_000)}/{rng.randrange(10_000):04d}",
        apid=rng.randrange(10**15, 10**16),
        flavour=rng.choice(("plain", "orange", "mint", "none stated", "blackcurrant")),
        avail=rng.choice(("actual product available", "restricted", "not stated")),
        cat=rng.choice(("Part VIIIA category M", "Part VIIIA category A", "Part VIIIA category C")),
        price=price,
        old=price + rng.randrange(-15, 16),
        when=revised.isoformat(),
        legal=legal,
        disc=rng.choice(("current", "current", "current", "to be discontinued")),
        mda="true" if controlled else "false",
        isid=rng.randrange(10**14, 10**15),
        strength=strength,
        route=rng.choice((26643006, 6064005, 54485002, 18679011000001101)),
        excipients=rng.choice(("lactose monohydrate, maize starch", "sorbitol, propylene glycol", "none listed")),
        notes=phrases(rng, 345),
    )
    return (
        10**16 + number * 7_129_003 * 1_000 + 1_104,
        f"{drug} {strength} {form} ({supplier}) {pack}",
        f"{drug} {strength} {form}",
        form,
        supplier,
        pack,
        price,
        f"0{rng.randrange(5 * 10**12, 6 * 10**12)}",
        f"{rng.randrange(1, 16):02d}{rng.randrange(1, 12):02d}{rng.randrange(10**9):09X}"[:15],
        legal,
        revised.isoformat(),
        details,
    )


def product_rows(seed: int, count: int, controlled: int, revised: date) -> Iterator[tuple[object, ...]]:
    """The whole dictionary in order of code; the first rows are the controlled drugs."""
    for number in range(count):
        yield product_row(seed, number, revised, controlled=number < controlled)


def replace_all(connection: sqlite3.Connection, seed: int, week: int, released: date) -> None:
    """Load a weekly release: every row is deleted and inserted again, about 98 % of them unchanged.

    The release is staged in a temporary table. Products that the pharmacy stocks keep their code.
    """
    rng = random.Random(f"{seed}/release/{week}")
    count, last = connection.execute("SELECT count(*), max(code) FROM product").fetchone()
    number = (last - 1_104 - 10**16) // (7_129_003 * 1_000) + 1
    fresh = max(1, count // 2000)
    connection.execute("CREATE TEMP TABLE staged AS SELECT * FROM product ORDER BY code")
    chosen = [rng.randrange(1, count + 1) for _ in range(count // 50)]
    connection.executemany(
        "UPDATE staged SET price = price + ?, revised = ?, details = details || ? WHERE rowid = ?",
        [(rng.randrange(1, 40), released.isoformat(), f" rev {week}", row) for row in chosen],
    )
    connection.executemany(
        "DELETE FROM staged WHERE rowid = ? AND code NOT IN (SELECT product_code FROM stock)",
        [(rng.randrange(1, count + 1),) for _ in range(fresh)],
    )
    connection.execute("DELETE FROM product")
    connection.execute(f"INSERT INTO product({COLUMNS}) SELECT {COLUMNS} FROM staged ORDER BY rowid")
    connection.executemany(
        f"INSERT INTO product({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
        [product_row(seed, number + i, released) for i in range(fresh)],
    )
    connection.execute("DROP TABLE staged")
