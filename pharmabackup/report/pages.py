"""The one door to the template library."""

from __future__ import annotations

from collections.abc import Mapping

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
