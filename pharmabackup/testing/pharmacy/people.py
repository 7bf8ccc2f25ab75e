"""Made-up people and phrases: nobody here exists, and every NHS number is from the 999 test range."""

from __future__ import annotations

import random
from datetime import date, timedelta


def words(text: str) -> tuple[str, ...]:
    """The parts of a list written with bars between them."""
    return tuple(text.split("|"))


SURNAMES = words(
    "Abernant|Ashgrove|Barrowdale|Beckmoor|Birchwood|Blythefield|Bracken|Brightholme|Calderbrook|Carrick|"
    "Chalkley|Cloverdale|Copperwell|Cragside|Dalewater|Dunmere|Eastmarsh|Elderfield|Fallowby|Fenwright|"
    "Ferncliffe|Foxmoor|Gallowhill|Glenhaven|Goldcrest|Greystoke|Hallowell|Harrowgate|Hawthwaite|Hazelbank|"
    "Heathersage|Hollowbrook|Ivybridge|Juniperson|Kestrelby|Kingsmarsh|Larkrise|Lavenderly|Lindenthal|"
    "Lowmeadow|Maplethorpe|Marshbank|Merrowby|Millrace|Mossbury|Nettlecombe|Northwold|Oakenshaw|Orchardson|"
    "Otterburn|Pebbleton|Penhallow|Quarryman|Quillfeather|Ravensworth|Redfern|Rookwood|Rowanberry|Saltmarsh|"
    "Sedgewick|Silverdale|Skylarke|Stonebridge|Summerfold|Sycamore|Tamarind|Thistlewood|Thornbury|Underhay|"
    "Valebrook|Waterlow|Westerdale|Whinfell|Willowby|Winterbourne|Wrenfield|Yarrowby|Yewdale|Zellwood"
)
FORENAMES = words(
    "Ada|Alder|Amara|Anwen|Arlo|Aster|Basil|Beatrix|Bryn|Calla|Cedric|Clementine|Coral|Dahlia|Darius|Delphine|"
    "Edwin|Elowen|Esme|Fabian|Farah|Fern|Florian|Gideon|Greta|Hamza|Hazel|Hester|Idris|Imogen|Iris|Jasper|"
    "Jorah|Juno|Kasia|Kiran|Lachlan|Linnea|Lowri|Magnus|Marigold|Mirren|Nadia|Nerys|Ottilie|Otto|Perpetua|"
    "Petra|Primrose|Quentin|Rafiq|Rhiannon|Rosalind|Rufus|Saffron|Silas|Sorrel|Tabitha|Tamsin|Thaddeus|Una|"
    "Viola|Wilfred|Winifred|Xanthe|Yusuf|Zephyr|Zinnia"
)
STREETS = words(
    "Sample Street|Example Road|Placebo Lane|Specimen Avenue|Fiction Close|Invented Way|Mock Terrace|"
    "Demonstration Drive|Imaginary Crescent|Pretend Place|Model Gardens|Testcard Mews|Prototype Hill"
)
TOWNS = ("Fictonbury", "Sampleford", "Mockham", "Little Testing", "Exampleton-on-Sea", "Great Specimen")
SURGERIES = tuple(
    f"{name} {kind} (Y9{i:04d})"
    for i, (name, kind) in enumerate(
        (name, kind)
        for name in ("Sampleford", "Mock Hill", "Riverbend", "Old Example", "Testing Green", "Fiction Park")
        for kind in ("Surgery", "Medical Centre", "Health Centre")
    )
)
PRESCRIBERS = tuple(f"Dr {f[0]} {s} (G9{i:06d})" for i, (f, s) in enumerate(zip(FORENAMES, SURNAMES, strict=False)))
STAFF = (
    "rp.sample", "rp.locum", "act.meadow", "act.brook", "disp.fern", "disp.hazel", "disp.rowan", "counter.ash",
    "counter.elm", "eps-service", "stock-service", "nurse.linden",
)  # fmt: skip
PHRASES = words(
    "prefers large print labels|collects on Thursdays|daughter collects|delivery via side door|"
    "needs easy-open caps|uses compliance aid|counselled on new dose|blood test due|asked about interactions|"
    "reported mild nausea|inhaler technique checked|advised to take with food|reminded to book review|"
    "declined leaflet|weekly dispensing agreed|repeat slip returned|surgery telephoned|awaiting reply from GP|"
    "swallowing difficulty noted|stopped previous brand|switched to generic|monitoring up to date|"
    "yellow card considered|dose increased by consultant|dose reduced after review|no known allergies|"
    "penicillin rash in childhood|latex sensitivity|lactose intolerance|travels abroad in summer|"
    "carer holds spare key|speaks through interpreter|hearing loop needed|exemption certificate seen|"
    "prepayment certificate seen|proof of identity seen|signature obtained|returned medicines destroyed|"
    "checked by second person|batch recorded|fridge line handed over|expiry date checked|"
    "owing explained to patient|text message sent|telephone call not answered|voicemail left|note on bag|"
    "smoking cessation offered|flu vaccination booked|blood pressure recorded|referred to surgery|"
    "urgent supply considered|emergency contact updated|address confirmed|consent recorded|"
    "new medicine service started|follow-up arranged|second call completed|no concerns raised|"
    "renal function considered|interaction checked against formulary|duplicate therapy excluded|"
    "quantity queried with prescriber|endorsement added|price concession applied|broken bulk claimed"
)
_PHRASE = sum(len(phrase) + 2 for phrase in PHRASES) / len(PHRASES)


def phrases(rng: random.Random, length: int) -> str:
    """Free text of about this many characters, as typed by busy staff."""
    parts = rng.choices(PHRASES, k=max(1, round((length - 12) / _PHRASE)))
    parts.append(f"ref {rng.getrandbits(28):07x}")
    return "; ".join(parts)


def uuid(rng: random.Random) -> str:
    """A random (version 4) UUID in the upper case EPS uses."""
    x = f"{rng.getrandbits(128):032X}"
    return f"{x[:8]}-{x[8:12]}-4{x[13:16]}-{'89AB'[int(x[16], 16) & 3]}{x[17:20]}-{x[20:]}"


def check_digit(nine: str) -> int:
    """The modulus 11 check digit of an NHS number; 10 means these nine digits are not used."""
    return (11 - sum(int(d) * (10 - i) for i, d in enumerate(nine)) % 11) % 11


def nhs_number(seed: int, patient: int) -> str:
    """The test-range NHS number of the site's nth patient; different patients get different numbers."""
    pair = 2 * ((patient * 214_741 + seed * 7_919) % 500_000)
    for candidate in (f"999{pair:06d}", f"999{pair + 1:06d}"):
        digit = check_digit(candidate)
        if digit < 10:
            return f"{candidate}{digit}"
    raise AssertionError("two neighbours cannot both lack a check digit")


def patient_row(seed: int, number: int, registered: date) -> tuple[object, ...]:
    """One complete row of the patient table."""
    rng = random.Random(f"{seed}/patient/{number}")
    born = date(1930, 1, 1) + timedelta(days=int(32_000 * rng.random() ** 0.8))
    surname = rng.choice(SURNAMES)
    if rng.random() < 0.06:
        surname += f"-{rng.choice(SURNAMES)}"
    address = f"{rng.randrange(1, 240)} {rng.choice(STREETS)}, {rng.choice(TOWNS)}"
    return (
        number,
        nhs_number(seed, number),
        rng.choice(("Mr", "Mrs", "Ms", "Miss", "Dr", "Mx")),
        surname,
        f"{rng.choice(FORENAMES)} {rng.choice(FORENAMES)}",
        born.isoformat(),
        rng.choice("FM"),
        address,
        f"ZZ{rng.randrange(1, 100)} {rng.randrange(1, 10)}{''.join(rng.choices('ABDEFGHJLNPQRSTUWXYZ', k=2))}",
        f"01632 960{rng.randrange(1000):03d}",
        rng.choice(SURGERIES),
        rng.choice("ABCDEFGHLMNQS"),
        phrases(rng, 220),
        phrases(rng, 1160),
        registered.isoformat(),
        registered.isoformat(),
    )
