"""The one door to the template library, and how a page comes to lie on a disk: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pharmabackup as pb


def rendered(template: str, facts: Mapping[str, object]) -> str:
    """A page; whatever is in `facts` is text and cannot be markup. Unsupported without the extra."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise pb.Unsupported(
            "Pages need a library that is not installed.",
            kind="extra-missing",
            remedy='pip install "pharmabackup[reports]".',
        ) from None
    environment = Environment(
        loader=PackageLoader("pharmabackup.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    return environment.get_template(template).render(facts)


def _printable(value: object) -> object:
    """What nobody can see, or what turns the direction of writing, is spelled out."""
    if isinstance(value, str) and not value.isprintable():
        shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in value)
        return type(value)("".join(shown))
    return value


def write_page(path: str | os.PathLike[str], text: str) -> Path:
    """In place of what is there. SourceFailed; then what was there stays."""
    target, fresh = Path(path), None
    try:
        descriptor, fresh = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, target)
    except OSError as error:
        if fresh is not None:
            Path(fresh).unlink(missing_ok=True)
        raise pb.SourceFailed(
            f"{target} cannot be written: {error.strerror}.",
            kind="output",
            remedy="Free some space, or give another file.",
        ) from None
    return target
