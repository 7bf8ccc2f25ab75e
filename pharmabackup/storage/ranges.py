"""What an answer says of the part of an object that it brings (RFC 9110, 14.4)."""

from __future__ import annotations


def content_range(said: str) -> tuple[int, int, int]:
    """Start, end (exclusive) and the object's size; (-1, -1, -1) for a Content-Range that says none of that."""
    span, _, size = said.removeprefix("bytes ").partition("/")
    first, _, last = span.partition("-")
    try:
        return int(first), int(last) + 1, int(size)
    except ValueError:
        return -1, -1, -1
