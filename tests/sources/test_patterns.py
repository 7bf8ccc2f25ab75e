"""Patterns for names and paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmabackup.errors import InvalidInput
from pharmabackup.patterns import compile_ancestors, compile_following, compile_patterns

MATCHES = [
    ("*.tmp", "a.tmp .tmp x/y/a.tmp *.tmp", "a.tmpx tmp a.tmp/b"),
    ("Thumbs.db", "Thumbs.db x/Thumbs.db", "thumbs.db Thumbs_db xThumbs.db Thumbs.db/x"),
    ("cache", "cache a/cache a/b/cache", "cache/a acache caches"),
    ("cache/", "cache a/cache", "cache/a"),
    ("/cache", "cache", "a/cache cache/a"),
    ("./cache", "cache", "a/cache"),
    ("a/*", "a/b a/.b", "a a/b/c x/a/b"),
    ("a/*/c", "a/b/c", "a/c a/b/b/c"),
    ("a/**", "a/b a/b/c", "a ab/c x/a/b"),
    ("**/a", "a x/a x/y/a", "ba a/b"),
    ("**/a/b", "a/b x/a/b", "a/x/b xa/b"),
    ("a/**/b", "a/b a/x/b a/x/y/b", "ab a/xb x/a/b a/b/c"),
    ("a/**/**/b", "a/b a/x/y/b", "a/x/yb"),
    ("**", "a a/b a/b/c", ""),
    ("**/*", "a a/b", ""),
    ("**/x/**", "x/a a/x/b/c", "x a/x ax/b"),
    ("a**b", "ab axb d/axxb", "a/b axb/c"),
    ("?", "a é x/日 a/b", "ab éa"),
    ("a?c", "abc aéc", "ac a/c abbc"),
    ("a/?", "a/b", "a/bc a//"),
    ("[ab]c", "ac bc x/ac", "cc abc [ab]c"),
    ("[!ab]c", "cc éc", "ac bc c /c a/c"),
    ("[^a]", "^ a", "b"),
    ("[]]", "]", "[]]"),
    ("[!]]", "a", "]"),
    ("[a-c-]", "a b c -", "d"),
    ("[é-í]", "é ê", "e z"),
    ("[*]", "*", "a"),
    ("[a", "[a", "a"),
    ("x[]", "x[]", "x"),
    ("[--0]x", "-x .x 0x", "/x ,x"),
    ("[[:alpha:]]", "[] :]", "b"),
    ("a.b", "a.b", "axb"),
    ("(a|b)+$", "(a|b)+$", "a aa"),
    ("a\\b", "a\\b", "ab a/b"),
    ("~[~&&|]", "~~ ~& ~|", "~x"),
    ("*", "a .a x/y", ""),
    ("*/*", "a/b", "a a/b/c"),
]


@pytest.mark.parametrize(("pattern", "yes", "no"), MATCHES, ids=[row[0] for row in MATCHES])
def test_matches(pattern: str, yes: str, no: str) -> None:
    matches = compile_patterns([pattern], ignore_case=False, backslash=False)
    assert [path for path in yes.split() if not matches(path.encode())] == []
    assert [path for path in no.split() if matches(path.encode())] == []


def test_names_with_spaces_newlines_and_bytes_that_are_no_text() -> None:
    matches = compile_patterns(["a *", "new?line", "latin-?.db"], ignore_case=False)
    for path in (b"a b c", b"x/a b", b"new\nline", b"latin-\xe9.db", b"a \xff\xfe\n"):
        assert matches(path)
    assert not matches(b"latin-\xe9\xe8.db")
    assert not matches(b"a\n")


def test_several() -> None:
    matches = compile_patterns(["*.tmp", "/a/b"], ignore_case=False)
    assert [matches(path) for path in (b"x.tmp", b"a/b", b"a/b/c", b"c/a/b", b"a")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert not compile_patterns([])(b"a")


def test_below() -> None:
    matches = compile_patterns(["docs", "/a/*.d"], below=True, ignore_case=False)
    assert all(map(matches, (b"docs", b"docs/x", b"x/docs/y/z", b"a/b.d", b"a/b.d/c")))
    assert not any(map(matches, (b"docsx", b"docsx/docs2", b"a", b"a/b.dx", b"c/a/b.d")))


def test_windows() -> None:
    matches = compile_patterns(["*.TMP", "Scans\\É?.tif"], ignore_case=True, backslash=True)
    assert all(map(matches, (b"a.tmp", b"x/A.Tmp", "scans/éx.TIF".encode())))
    assert not matches(b"x/scans/ex.tif")


def test_ancestors() -> None:
    leads = compile_ancestors(["a/b/*.pdf", "/x", "c/**/d", "e*/f"], ignore_case=False)
    assert all(map(leads, (b"a", b"a/b", b"c", b"c/p", b"c/p/q", b"e", b"exx")))
    assert not any(map(leads, (b"b", b"a/c", b"a/b/c", b"x", b"x/y", b"f", b"e/f")))
    assert all(map(compile_ancestors(["*.pdf"]), (b"a", b"a/b/c")))
    below = compile_ancestors(["a/**"], ignore_case=False)
    assert all(map(below, (b"", b"a", b"a/b", b"a/b/c"))) and not below(b"b")


FOLLOWING = [  # of each: folders and names that something might come after, and others
    ("a/b/*.pdf", "a/b:z a:a :", "a/b/c:a c:a a:b a:c :a"),
    ("/x", ":w :", ":x :y a:w"),
    ("/x/**", ":w x:z x/y:z", ":x y:z"),
    ("b*/c", ":a :b :bz b:b bz:b", ":c b:c c:a"),
    ("[x]y", ":y", ""),
    ("/[x]y", ":y", ""),
    ("/x[", ":x", ":y"),
    ("*.pdf", ":z a:z", ""),
    ("a/**/d", "a:z a/b:z :", ":a b:a"),
    ("/\udcff", ":z", ""),
]


@pytest.mark.parametrize(("pattern", "yes", "no"), FOLLOWING, ids=[ascii(row[0]) for row in FOLLOWING])
def test_what_might_follow(pattern: str, yes: str, no: str) -> None:
    follows = compile_following([pattern], ignore_case=False, backslash=False)
    for text, wanted in [(text, True) for text in yes.split()] + [(text, False) for text in no.split()]:
        folder, name = text.encode().split(b":")
        assert follows(folder, name) == wanted, text
    assert compile_following(["a/b"], ignore_case=True)(b"A", b"z")


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "a*", "?b", "*", "**", "[ab]"]), min_size=1, max_size=3),
    st.lists(st.sampled_from(["a", "b", "ab", "ba"]), max_size=2),
    st.sampled_from(["a", "aa", "ab", "b", "ba", ""]),
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "bb"]), min_size=1, max_size=2),
)
def test_what_follows_and_matches_might_follow(
    pattern: list[str], folder: list[str], name: str, more: list[str]
) -> None:
    text, path = "/" + "/".join(pattern), "/".join(folder + more).encode()
    if more[0] > name and compile_patterns([text], ignore_case=False)(path):
        follows = compile_following([text], ignore_case=False)
        assert follows("/".join(folder).encode(), name.encode())


@pytest.mark.parametrize("pattern", ["", "/", "//", ".", "..", "../a", "a/../b", "[z-a]"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compile_patterns([pattern])
    assert caught.value.remedy


def test_one_text_is_no_list_of_patterns() -> None:
    with pytest.raises(InvalidInput, match=r"\['\*\.tmp'\]"):
        compile_patterns("*.tmp")


def test_many_stars_take_no_time() -> None:
    assert not compile_patterns(["*a*a*a*a*b"])(b"a" * 60)
