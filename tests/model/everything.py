"""All cases and mutants."""

from __future__ import annotations

from tests.model import safe_collections, safe_others, safe_replicas, safe_revoked, safe_shunned, safe_together
from tests.model.cases import SETTINGS as CASES
from tests.model.cases import make
from tests.model.explore import Case
from tests.model.mutants import MUTANTS, build_mutant

__all__ = [
    "CASES",
    "MUTANTS",
    "build",
    "safe_collections",
    "safe_others",
    "safe_replicas",
    "safe_revoked",
    "safe_shunned",
    "safe_together",
]


def build(code: str) -> Case:
    """A case or a mutant. KeyError."""
    return build_mutant(code) if code in MUTANTS else make(code)
