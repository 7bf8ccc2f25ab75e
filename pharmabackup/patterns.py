"""Patterns for names and paths: shell globs, close to those of .gitignore but simpler.

A pattern without a slash names something at any depth: `*.tmp`, `Thumbs.db`, `cache`. One with a slash is relative
to the root: `scans/2024/*.tif`, `/cache` (a leading slash only says that; a trailing one says nothing).

    *       any characters of one name, also a leading dot
    ?       one character
    [a-z]   one of these characters; [!a-z] any other. [*] is a star itself: a backslash escapes nothing
    **      as a whole component: any number of folders. `**/x` is x anywhere, `a/**` everything below a, not a

Case matters, except on Windows. Names are compared as they are: é as one character is not é as two.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence

from pharmabackup.errors import InvalidInput

Matcher = Callable[[bytes], bool]
_WINDOWS = sys.platform == "win32"
_LITERAL = re.compile("[^*?\\[\ud800-\udfff]*")


def compile_patterns(
    patterns: Sequence[str], *, below: bool = False, ignore_case: bool = _WINDOWS, backslash: bool = _WINDOWS
) -> Matcher:
    """Whether a path from the root ("/" between names) matches one of the patterns. InvalidInput.

    `below`: what lies in a folder that matches does, too. `backslash`: it separates names, as on Windows.
    """
    tail = "(?:/.*)?" if below else ""
    return _matcher((_whole(parts) + tail for parts in _split_all(patterns, backslash)), ignore_case)


def compile_ancestors(
    patterns: Sequence[str], *, ignore_case: bool = _WINDOWS, backslash: bool = _WINDOWS
) -> Matcher:
    """Whether something in a folder, however deep, might match: others need not be entered. InvalidInput."""
    return _matcher(map(_above, _split_all(patterns, backslash)), ignore_case)


def compile_following(
    patterns: Sequence[str], *, ignore_case: bool = _WINDOWS, backslash: bool = _WINDOWS
) -> Callable[[bytes, bytes], bool]:
    """Whether a name in this folder that comes after that one, or what lies below it, might match. InvalidInput.

    Names come in the order of their bytes. Where case does not matter that says nothing, and any name might match.
    """
    split = [(parts, _matcher([_above(parts)], ignore_case)) for parts in _split_all(patterns, backslash)]

    def might_follow(folder: bytes, name: bytes) -> bool:
        depth = folder.count(b"/") + 1 if folder else 0
        return any(
            leads(folder) and (ignore_case or "**" in parts[: depth + 1] or _may_follow(parts[depth], name))
            for parts, leads in split
        )

    return might_follow


def _may_follow(component: str, name: bytes) -> bool:
    """Whether a name that matches may come after this one."""
    literal = _LITERAL.match(component)
    assert literal is not None
    begin = literal[0].encode()
    return begin > name if literal[0] == component else begin >= name[: len(begin)]


def _matcher(expressions: Iterable[str], ignore_case: bool) -> Matcher:
    try:
        found = re.compile("|".join(expressions), re.DOTALL | (re.IGNORECASE if ignore_case else 0)).fullmatch
    except re.error as error:
        raise InvalidInput(
            f"One of the patterns cannot be understood ({error.msg}).", remedy="Put a range in order, as in [a-z]."
        ) from None

    def matches(path: bytes) -> bool:
        return found(path.decode("utf-8", "surrogateescape")) is not None

    return matches


def _split_all(patterns: Sequence[str], backslash: bool) -> list[list[str]]:
    """Each pattern's components from the root."""
    if isinstance(patterns, str):
        raise InvalidInput("Patterns are a list, not one text.", remedy=f"Write [{patterns!r}].")
    return [_split(pattern, backslash) for pattern in patterns]


def _split(pattern: str, backslash: bool) -> list[str]:
    text = (pattern.replace("\\", "/") if backslash else pattern).rstrip("/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise InvalidInput(
            f"{pattern!r} is not a pattern.", remedy='Patterns are names ("*.tmp") or paths from the root ("a/b").'
        )
    if "/" not in text:
        parts.insert(0, "**")
    return [part for i, part in enumerate(parts) if part != "**" or parts[i - 1 : i] != ["**"]]


def _whole(parts: list[str]) -> str:
    expression = ""
    for part in parts[:-1]:
        expression += "(?:[^/]+/)*" if part == "**" else _component(part) + "/"
    return expression + (".+" if parts[-1] == "**" else _component(parts[-1]))


def _above(parts: list[str]) -> str:
    """What matches the folders that something that matches may lie in."""
    return _leading(parts if parts[-1] == "**" else parts[:-1])


def _leading(parts: list[str]) -> str:
    """What matches the folder of the first component, or of the first two, and so on."""
    expression = "(?:)"
    for part in reversed(parts):
        expression = ".*" if part == "**" else f"{_component(part)}(?:/{expression})?"
    return f"(?:{expression})?"


def _component(part: str) -> str:
    """A glob within one name as a regular expression."""
    expression, at = "", 0
    while at < len(part):
        character = part[at]
        at += 1
        if character == "*":
            at += len(part[at:]) - len(part[at:].lstrip("*"))
            expression += "[^/]*"
        elif character == "?":
            expression += "[^/]"
        elif character == "[" and (end := _class_end(part, at)) > 0:
            negated, characters = part[at] == "!", part[at:end]
            escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", characters[negated:])
            expression += f"(?!/)[{'^' if negated else ''}{escaped}]"
            at = end + 1
        else:
            expression += re.escape(character)
    return expression


def _class_end(part: str, start: int) -> int:
    """Where a class of characters ends that begins at `start`; -1 if it does not. Its first may be a bracket."""
    return part.find("]", start + 1 + part.startswith("!", start))
