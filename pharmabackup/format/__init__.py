"""Bytes and frozen records, both ways. No I/O and no keys; docs/format.md is the text of it."""
