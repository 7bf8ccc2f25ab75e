"""Names that a file system does not take get another one that leads back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmabackup.engine.target import Target
from pharmabackup.engine.target_names import LocalNames, Rules, distinct_name, folded, original_name, portable_name
from tests.engine.entries import codes, entry, folder, link, name_of, put, put_parts, tree
from tests.storage.mounts import image

SAME = [
    "a",
    "Rezept 4711.pdf",
    "ä",
    "50%",
    "50%20off",
    "a%zz",
    "%",
    "con1",
    "COM",
    "COM10",
    "a.CON",
    ".a",
    "NULL",
    "\ud800",
]


@pytest.mark.parametrize("name", SAME)
def test_names_that_windows_takes_stay(name: str) -> None:
    assert portable_name(name.encode("utf-8", "surrogatepass")) == name


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        (b"a:b", "a%3Ab"),
        (b'<>:"|?*\\', "%3C%3E%3A%22%7C%3F%2A%5C"),
        (b"line\nbreak\x00", "line%0Abreak%00"),
        (b"dot.", "dot%2E"),
        (b"dots...", "dots..%2E"),
        (b"space ", "space%20"),
        (b"CON", "%43ON"),
        (b"con.txt", "%63on.txt"),
        (b"Lpt1 .x.y", "%4Cpt1 .x.y"),
        (b"COM\xc2\xb9", "%43OM\u00b9"),
        (b"conin$", "%63onin$"),
        (b"\xff\xc3\xa4", "%FF\u00e4"),
        (b"a%3Ab", "a%253Ab"),
        (b"a%253Ab", "a%25253Ab"),
        (b"100%3A:", "100%253A%3A"),
        (b"%43ON", "%2543ON"),
        (b"%44ON", "%44ON"),
    ],
)
def test_names_that_windows_does_not_take(name: bytes, portable: str) -> None:
    assert portable_name(name) == portable
    assert original_name(portable) == name


PIECES = st.sampled_from([b"%", b"3", b"A", b":", b".", b" ", b"\xff", b"CON", b"25", b"%3A", b"%25", "ä".encode()])
ANY = st.one_of(st.binary(min_size=1, max_size=20), st.lists(PIECES, min_size=1, max_size=6).map(b"".join))


@given(ANY)
def test_every_name_leads_back_and_windows_takes_it(name: bytes) -> None:
    portable = portable_name(name)
    assert original_name(portable) == name  # so no two names become one
    assert not set(portable) & set('<>:"|?*\\/') and min(portable) >= " "
    assert portable[-1] not in ". " and portable.split(".")[0].rstrip().upper() not in ("CON", "PRN", "AUX", "NUL")


@given(st.text(min_size=1, max_size=6, alphabet="aAbBäÄ%6"))
def test_distinct_names_are_distinct(name: str) -> None:
    raw = name.encode()
    distinct = {distinct_name(other.encode()) for other in {name.upper(), name.lower(), name.swapcase(), name}}
    spellings = {name.upper(), name.lower(), name.swapcase(), name}
    assert len({folded(item) for item in distinct}) == len(spellings)
    assert folded(distinct_name(raw)) != folded(raw)


def test_a_name_here_stays_what_it_is() -> None:
    told: list[tuple[bytes, bytes]] = []
    names = LocalNames(Rules(portable=True, folds=True), lambda path, here: told.append((path, here)))
    wanted = [b"README", b"readme", b"Readme", b"a:b", b"A:B", b"%72eadme"]
    first = [names.local(b"docs", name) for name in wanted]
    assert first == [names.local(b"docs", name) for name in wanted]
    assert first[:4] == [b"README", b"%72eadme", b"%52eadme", b"a%3Ab"]
    assert len({folded(name) for name in first}) == len(wanted)
    assert names.local(b"other", b"readme") == b"readme"
    assert sorted(told) == sorted(
        (b"docs/" + name, here) for name, here in zip(wanted, first, strict=True) if name != here
    )


def test_a_disk_that_knows_only_unicode() -> None:
    names = LocalNames(Rules(unicode=True), lambda path, here: None)
    assert names.local(b"", b"a:b") == b"a:b"
    assert names.local(b"", b"\xff:") == b"%FF%3A"


@pytest.mark.slow
@pytest.mark.parametrize("by_path", [False, True], ids=["descriptors", "paths"])
def test_a_disk_of_windows(by_path: bool) -> None:
    with image("vfat", 64 << 20) as disk:
        for merge in (False, True):
            target = Target(disk / "root", merge=merge, by_path=by_path)
            target.folder(folder(b"Docs", 0o700, uid=5))
            target.folder(folder(b"docs"))
            put(target, b"docs/a:b", b"colon")
            put(target, b"Docs/a", b"A")
            put(target, b"Docs/A", b"second", mode=0o4755, uid=7)
            put(target, b"docs/\xff.", b"odd")
            put_parts(target, entry(b"docs/BIG", size=4), b"abcd", 2)
            put_parts(target, entry(b"docs/big", size=4), b"efgh", 2)
            target.special(name_of(b"docs/again", b"docs/a:b", 5))
            target.special(link(b"docs/link", b"a"))
            target.close()
            have = {path: found[3] for path, found in tree(disk / "root").items() if found[3] is not None}
            assert have == {
                b"%64ocs/a%3Ab": b"colon",
                b"%64ocs/%FF%2E": b"odd",
                b"%64ocs/BIG": b"abcd",
                b"%64ocs/%62ig": b"efgh",
                b"%64ocs/again": b"colon",
                b"Docs/a": b"A",
                b"Docs/%41": b"second",
            }
            assert codes(target).count("name-changed") == 5
            assert set(codes(target)) >= {"name-changed", "link-became-copy", "owner-not-restored"}
            assert target.missing == 1  # the link
            assert target.kept == (6 if merge else 0)


def test_nothing_changes_where_all_names_are_taken(tmp_path: Path) -> None:
    target = Target(tmp_path / "root", merge=False)
    for name in (b"a:b", b"A", b"a", b"CON"):
        put(target, name, b"x")
    assert codes(target) == []
