"""Failures within the shipped conformance suite show their values; a folder to store in, for the tests here."""

import pytest

from pharmabackup.storage.local import LocalStorage


@pytest.fixture
def path(tmp_path):
    return tmp_path / "repository"


@pytest.fixture
def storage(path):
    storage = LocalStorage.create(path)
    yield storage
    storage.close()
