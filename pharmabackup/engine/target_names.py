"""Names that a file system does not take, and the names that are used there instead.

`%XX` stands for a byte that cannot be in a name: what Windows forbids, control characters, a dot or space at the
end, the first letter of a device's name (CON, LPT1 ...), bytes that are not UTF-8. Lone surrogates, which names
on Windows may hold, stay as they are. Two names never become the same one, and `original_name` leads back: a
name that already looks like the replacement of another one has its own `%` escaped (`a%3Ab` is `a%253Ab`), while
a name like `50%20off` stays.

Where a file system takes `Readme` and `README` for one name, the second to come gets escapes for its capitals
(`%52%45%41%44%4D%45`), or for its first letter if it has none.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

_FORBIDDEN = re.compile(rb'[\x00-\x1f<>:"|?*\\/]')
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")
_DEVICE = re.compile(
    r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|COM[0-9\u00b9\u00b2\u00b3]|LPT[0-9\u00b9\u00b2\u00b3]) *(?:\..*)?",
    re.IGNORECASE | re.DOTALL,
)


def portable_name(name: bytes) -> str:
    """A name that Windows takes too; the same one if it does already."""
    return _portable(name).decode("utf-8", "surrogatepass")


def original_name(portable: str) -> bytes:
    """What `portable_name` was given."""
    raw = portable.encode("utf-8", "surrogatepass")
    plain = _unescape(raw)
    return plain if plain != raw and _portable(plain) == raw else raw


def _portable(name: bytes) -> bytes:
    safe = _escape(_ESCAPE.sub(rb"%25\1", name))
    if _escape(name) != name:
        return safe
    plain = _unescape(name)
    return safe if plain != name and _portable(plain) == name else name


def _escape(name: bytes) -> bytes:
    try:
        name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = name.decode("utf-8", "surrogateescape")
        name = b"".join(
            b"%%%02X" % (ord(char) - 0xDC00) if 0xDC80 <= ord(char) <= 0xDCFF else char.encode() for char in text
        )
    name = _FORBIDDEN.sub(lambda found: b"%%%02X" % found[0][0], name)
    if name[-1:] in (b".", b" "):
        name = name[:-1] + b"%%%02X" % name[-1]
    if _DEVICE.fullmatch(name.decode("utf-8", "surrogatepass")):
        name = b"%%%02X" % name[0] + name[1:]
    return name


def _unescape(name: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), name)


def folded(name: bytes) -> str:
    """Equal for names that a file system may take for one. Folds no less than any of them does."""
    text = name.decode("utf-8", "surrogatepass")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def distinct_name(name: bytes) -> bytes:
    """A name that no spelling of `name` with other capitals is taken for, nor their distinct names."""
    text = name.decode("utf-8", "surrogatepass")
    cased = [i for i, char in enumerate(text) if char != char.casefold()] or [0]
    for i in reversed(cased):
        escaped = "".join(f"%{byte:02X}" for byte in text[i].encode("utf-8", "surrogatepass"))
        text = text[:i] + escaped + text[i + 1 :]
    return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a file system does with names."""

    portable: bool = False  # takes only what Windows takes
    unicode: bool = False  # takes only UTF-8
    folds: bool = False  # takes names that differ in capitals alone for one

    def __bool__(self) -> bool:
        return self.portable or self.unicode or self.folds


class LocalNames:
    """Which name each of a snapshot's names has here. Thread-safe; the same question gets the same answer."""

    def __init__(self, rules: Rules, changed: Callable[[bytes, bytes], None]) -> None:
        self._rules = rules
        self._changed = changed  # path, name here; called once for each
        self._lock = threading.Lock()
        self._taken: dict[int, int] = {}  # hashes: a dict of names would need several times the memory

    def local(self, parent: bytes, name: bytes) -> bytes:
        rules = self._rules
        here = name
        if rules.portable or (rules.unicode and not _is_unicode(name)):
            here = _portable(name)
        if rules.folds:
            return self._unfolded(parent, name, here)
        if here != name:
            self._tell(parent, name, here)
        return here

    def _unfolded(self, parent: bytes, name: bytes, here: bytes) -> bytes:
        if not _is_unicode(here):
            return here  # nothing is known about how it folds
        who = hash(name)
        with self._lock:
            while True:
                owner = self._taken.setdefault(hash((parent, folded(here))), who)
                if owner == who:
                    break
                here = distinct_name(here)
        if here != name:
            self._tell(parent, name, here)
        return here

    def _tell(self, parent: bytes, name: bytes, here: bytes) -> None:
        path = parent + b"/" + name if parent else name
        with self._lock:
            key = hash((parent, name, "told"))
            if key in self._taken:
                return
            self._taken[key] = 0
        self._changed(path, here)


def _is_unicode(name: bytes) -> bool:
    try:
        name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True
