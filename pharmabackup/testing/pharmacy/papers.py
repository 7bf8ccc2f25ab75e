"""Files a pharmacy keeps: scans, signatures, labels, invoices, procedures and logs.

Each is a function of a key (a string naming seed and file), so it is the same whenever it is made again.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib

from .people import PHRASES, STAFF, SURNAMES, phrases

# The tables of a baseline grey JPEG: quantisation, then the standard luminance Huffman codes.
_DQT = b"\xff\xdb\x00\x43\x00" + bytes(min(99, 8 + i) for i in range(64))
_DC = bytes((0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)) + bytes(range(12))
_AC_LENGTHS = bytes((0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125))
_AC = _AC_LENGTHS + bytes(run << 4 | size for size in range(1, 11) for run in range(16)) + b"\x00\xf0"
_DHT = b"".join(
    b"\xff\xc4" + struct.pack(">HB", 3 + len(table), kind) + table for kind, table in ((0, _DC), (0x10, _AC))
)


def jpeg(key: str, mean: int) -> bytes:
    """A grey JPEG of about this size; its picture data is noise, with 0xFF stuffed as JPEG wants."""
    rng = random.Random(key)
    size = max(mean // 3, int(rng.gauss(mean, mean / 6)))
    start = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x01\x00\xc8\x00\xc8\x00\x00"
    note = f"scanner 4 {key}".encode()
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(note)) + note
    frame = b"\xff\xc0\x00\x0b\x08" + struct.pack(">HH", 1654, 1169) + b"\x01\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    noise = rng.randbytes(max(1, size - 700)).replace(b"\xff", b"\xff\x00")
    return b"".join((start, comment, _DQT, frame, _DHT, scan, noise, b"\xff\xd9"))


def tiff(key: str, mean: int) -> bytes:
    """A black and white TIFF of about this size, its one strip as dense as Group 4 fax data."""
    rng = random.Random(key)
    size = max(mean // 3, int(rng.gauss(mean, mean / 6)))
    tags = ((256, 4, 1728), (257, 4, 2200), (258, 3, 1), (259, 3, 4), (262, 3, 0), (273, 4, 134), (277, 3, 1),
            (278, 4, 2200), (279, 4, size), (296, 3, 2))  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    return b"II*\x00\x08\x00\x00\x00" + directory + b"\x00" * 4 + rng.randbytes(size)


_LOGO = "".join(
    random.Random("label logo").choices(("FFFFFFFF", "00000000", "0F0F0F0F", "3C3C3C3C", "FFE007FF"), k=580)
)


def label(key: str, patient: str, drug: str, dose: str, when: str) -> bytes:
    """A dispensing label as printer commands (ZPL), about 6 kB, most of it the shop's logo."""
    rng = random.Random(key)
    warnings = "\n".join(
        f"^FO24,{200 + 22 * i}^A0N,18,18^FD{phrase}^FS" for i, phrase in enumerate(rng.choices(PHRASES, k=8))
    )
    return (
        f"^XA\n^CI28\n^PW812^LL406\n^FX {key} ^FS\n^FO24,20^A0N,28,28^FD{drug}^FS\n^FO24,60^A0N,24,24^FD{dose}^FS\n"
        f"^FO24,96^A0N,22,22^FD{patient}^FS\n^FO560,96^A0N,22,22^FD{when}^FS\n{warnings}\n"
        f"^FO24,360^A0N,16,16^FDThe Sample Pharmacy, 1 Example Road, Fictonbury. Keep out of reach of children.^FS\n"
        f"^FO600,200^BQN,2,4^FDQA,{rng.getrandbits(256):064X}^FS\n^FO600,20^GFA,2320,2320,29,{_LOGO}^FS\n^XZ\n"
    ).encode()


def _pdf(title: str, streams: list[tuple[str, bytes]]) -> bytes:
    """A PDF of these stream objects, with a cross-reference table."""
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    objects = [f"<< /Type /Catalog /Title ({title}) >>".encode()]
    objects += [
        f"<< {head} /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream" for head, data in streams
    ]
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    xref = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, xref)
    return bytes(out)


def invoice(key: str, wholesaler: str, lines: list[str]) -> bytes:
    """A wholesaler's invoice, about 150 kB: its lines, the house font, and the signed delivery note's scan."""
    text = "\n".join(f"BT /F1 9 Tf 40 {780 - 11 * (i % 66)} Td ({line}) Tj ET" for i, line in enumerate(lines))
    font = random.Random(f"font/{wholesaler}").randbytes(28_000)
    return _pdf(
        key,
        [
            ("/Filter /FlateDecode", zlib.compress(text.encode(), 6)),
            ("/Type /FontFile2 /Filter /FlateDecode", font),
            ("/Type /XObject /Subtype /Image /Filter /DCTDecode", jpeg(key, 118_000)),
        ],
    )


def _prose(rng: random.Random, paragraphs: int) -> list[str]:
    return [phrases(rng, 600).capitalize() + "." for _ in range(paragraphs)]


def procedure(key: str, number: int, version: int, mean: int) -> bytes:
    """A standard operating procedure: even numbers are Word documents, odd ones PDFs.

    A new version rewrites a paragraph for each revision; its pictures stay as they are.
    """
    rng = random.Random(key)
    size = int(mean * rng.uniform(0.4, 1.6))
    paragraphs = _prose(rng, 60)
    pictures = [jpeg(f"{key}/{i}", size // 3) for i in range(3)]
    for revision in range(1, version):
        change = random.Random(f"{key}/v{revision}")
        paragraphs[change.randrange(len(paragraphs))] = phrases(change, 500)
    title = f"SOP {number:03d} version {version}"
    if number % 2:
        text = "\n".join(f"BT 40 {20 + i} Td ({p}) Tj ET" for i, p in enumerate([title, *paragraphs]))
        images = [("/Type /XObject /Subtype /Image /Filter /DCTDecode", picture) for picture in pictures]
        return _pdf(title, [("/Filter /FlateDecode", zlib.compress(text.encode(), 6)), *images])
    body = "".join(f"<w:p><w:r><w:t>{p}</w:t></w:r></w:p>" for p in [title, *paragraphs])
    parts: list[tuple[str, bytes]] = [
        (
            "[Content_Types].xml",
            b'<?xml version="1.0"?><Types><Default Extension="jpg" ContentType="image/jpeg"/></Types>',
        ),
        ("word/document.xml", f'<?xml version="1.0"?><w:document><w:body>{body}</w:body></w:document>'.encode()),
        *((f"word/media/image{i}.jpg", picture) for i, picture in enumerate(pictures)),
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in parts:
            info = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
            info.create_system = 0
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".jpg") else zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


_EVENTS = (
    "eps-client: polled spine for nominated releases, {a} waiting, round trip {b} ms",
    "pmr-ui: opened patient record {c:06d} from search, {a} rows in {b} ms",
    "pmr-db: statement cache {a} hits, slowest query {b} ms, checkpoint of {c} frames",
    "label-printer: job {c:06d} printed on ZPL-2, {a} labels, paper ok",
    "stock-service: line {c:06d} below reorder level, order proposal {a} packs",
    "robot: pack {c:06d} stored in channel {a}, cycle {b} ms",
    "claim-service: notification {c:08x} acknowledged by spine after {b} ms",
    "fridge-probe: reading accepted from F{a}, battery {b} mV",
)


def log_text(key: str, stamp: str, size: int) -> bytes:
    """About this much of the shop system's log, its lines running on from this hour."""
    rng = random.Random(key)
    lines: list[str] = []
    total, count = 0, max(1, size // 110)
    for i in range(count):
        second = i * 3600 // count
        event = rng.choice(_EVENTS).format(a=rng.randrange(40), b=rng.randrange(4000), c=rng.randrange(999_999))
        clock = f"{stamp}:{second // 60:02d}:{second % 60:02d}.{rng.randrange(1000):03d}"
        line = f"{clock} INFO [{rng.choice(STAFF)}] {event}\n"
        lines.append(line)
        total += len(line)
        if total >= size:
            break
    return "".join(lines).encode()


def wholesaler(number: int) -> str:
    """The name of one of the few wholesalers that deliver here."""
    return f"{SURNAMES[number % 4 * 7]} Wholesale"
