"""Failures within the shipped conformance suite show their values."""

import pytest

pytest.register_assert_rewrite("pharmabackup.testing.storage")
