"""Pages for people. It sees what the public API gives, and nothing else. Extra: reports."""

from pharmabackup.report.kit import Place, recovery_kit

__all__ = ["Place", "recovery_kit"]
