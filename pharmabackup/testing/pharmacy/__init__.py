"""A sample pharmacy to back up: made from a seed, with trading days that can pass and contents to check.

    make("shop", profile="XS", seed=1)
    trade("shop", days=3)
    assert check("shop") == []

Everybody and everything in it is made up; NHS numbers are from the 999 test range.
"""

from .checks import Report, check, inspect
from .profiles import PROFILES, Profile, Rates
from .site import live, make, sites, trade

__all__ = ["PROFILES", "Profile", "Rates", "Report", "check", "inspect", "live", "make", "sites", "trade"]
