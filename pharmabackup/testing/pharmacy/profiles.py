"""How large a sample pharmacy is and how busy its days are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

NORMAL_ITEMS_PER_MONTH = 9290
TRADING_DAYS_PER_MONTH = 26


@dataclass(frozen=True)
class Rates:
    """What one trading day adds, in rows and files."""

    prescriptions: int
    items: int
    new_patients: int
    patient_updates: int
    audits: int
    stock_moves: int
    adjustments: int
    deliveries: int
    cd_supplies: int
    cd_receipts: int
    services: int
    owings: int
    scans: int
    signatures: int
    rp_entries: int = 3
    pom_entries: int = 3
    fridge_readings: int = 96
    messages_per_prescription: int = 4
    log_chunks: int = 24

    @property
    def messages(self) -> int:
        """EPS messages a day: release, prescription, dispense and claim for each prescription."""
        return self.prescriptions * self.messages_per_prescription

    @property
    def receipts(self) -> int:
        """Stock movements a day that are goods received."""
        return self.stock_moves - self.items - self.adjustments


@dataclass(frozen=True)
class Profile:
    """The size of a site and how much history it holds when it is made."""

    name: str
    items_per_month: int
    patients: int
    products: int
    stock_lines: int
    cd_lines: int
    history_days: int
    """Trading days that have passed (six a week)."""
    message_days: int
    """Calendar days an EPS message is kept."""
    file_days: int
    """Latest trading days whose labels, scans and invoices are on disk."""
    sops: int
    sop_bytes: int
    """Mean size of one standard operating procedure."""
    log_bytes: int
    """What all rotated logs together may take."""
    sites: int = 1

    @property
    def scale(self) -> float:
        """This site's business as a share of a normal pharmacy's."""
        return self.items_per_month / NORMAL_ITEMS_PER_MONTH

    @cached_property
    def rates(self) -> Rates:
        """A normal pharmacy's day, scaled to this site's items per month."""

        def of(normal: int, least: int = 1) -> int:
            return max(least, round(normal * self.scale))

        return Rates(
            prescriptions=of(170, 4),
            items=max(of(170, 4), round(self.items_per_month / TRADING_DAYS_PER_MONTH)),
            new_patients=of(6),
            patient_updates=of(60),
            audits=of(4000, 200),
            stock_moves=of(650, 20),
            adjustments=of(17),
            deliveries=of(6),
            cd_supplies=of(10),
            cd_receipts=of(2),
            services=of(12),
            owings=of(15),
            scans=of(60),
            signatures=of(40),
        )


MIB = 1 << 20

_NORMAL = NORMAL_ITEMS_PER_MONTH
_PROFILES = (
    Profile("XS", 560, 600, 2_000, 120, 6, 20, 9, 5, 8, 130_000, MIB),
    Profile("S", _NORMAL, 12_000, 150_000, 1_200, 24, 30, 14, 6, 150, 533_000, 20 * MIB),
    Profile("B", _NORMAL, 12_000, 150_000, 1_200, 24, 102, 41, 20, 150, 533_000, 20 * MIB),
    Profile("M", _NORMAL, 12_000, 150_000, 1_200, 24, 1_560, 400, 1_560, 150, 533_000, 20 * MIB),
    Profile("L", 30_000, 38_800, 150_000, 2_400, 36, 3_120, 400, 3_120, 150, 533_000, 20 * MIB),
    Profile("CHAIN", _NORMAL, 12_000, 150_000, 1_200, 24, 1_560, 400, 1_560, 150, 533_000, 20 * MIB, 50),
)
PROFILES: dict[str, Profile] = {p.name: p for p in _PROFILES}
