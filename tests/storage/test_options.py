"""storage_options are checked and their values not shown; a client that is not installed is said to be missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pharmabackup.errors import InvalidInput
from pharmabackup.storage import ADAPTERS
from pharmabackup.storage.options import Options

OPTIONS = Options(text=("key",), switches=("verify",))


@pytest.mark.parametrize(
    ("said", "meant"),
    [(True, True), ("yes", True), ("1", True), (1, True), (False, False), ("No", False), (0, False)],
)
def test_switches_are_taken_as_words_too(said, meant):
    assert OPTIONS.checked("s3", {"verify": said}).switches == {"verify": meant}


def test_texts_are_taken_as_they_are():
    assert OPTIONS.checked("s3", {"key": ""}).text == {"key": ""}


@pytest.mark.parametrize("given", [{"geheim2": "geheim"}, {"key": b"geheim"}, {"key": None}, {"verify": "geheim"}])
def test_what_is_not_known_is_refused_without_its_value(given):
    with pytest.raises(InvalidInput) as caught:
        OPTIONS.checked("s3", given)
    assert "geheim." not in str(caught.value) and "'geheim'" not in str(caught.value)


def test_what_was_given_shows_no_values():
    assert repr(OPTIONS.checked("s3", {"key": "geheim", "verify": True})) == "Given(['key', 'verify'])"


@pytest.mark.parametrize("scheme", sorted(ADAPTERS))
def test_a_client_that_is_not_installed_is_said_to_be_missing(scheme):
    # In a process of its own, that cannot see what is installed beyond the core's needs.
    code = f"""
import sys
from pharmabackup.errors import Unsupported
from pharmabackup.storage import connect
for name in {CLIENTS!r}:
    sys.modules[name] = None
try:
    connect("{scheme}://place/folder")
except Unsupported as error:
    assert error.kind == "capability" and 'pharmabackup[{ADAPTERS[scheme].extra}]' in error.remedy, error
else:
    raise AssertionError("it did not notice")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


CLIENTS = ("botocore", "tenacity", "httpx", "google.auth", "azure.identity")
