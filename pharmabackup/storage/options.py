"""The storage_options of an adapter: what it takes, and a clear word about anything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pharmabackup.errors import InvalidInput

SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Given:
    """Checked options. Its `repr` shows no values: some are secrets."""

    text: Mapping[str, str]
    switches: Mapping[str, bool]

    def __repr__(self) -> str:
        return f"Given({sorted({*self.text, *self.switches})})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Names of options that are texts, and of those that are true or false (also as words, from a command line)."""

    text: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()

    def checked(self, scheme: str, given: Mapping[str, object]) -> Given:
        """InvalidInput for an option that this adapter has not, or whose value is not of its kind."""
        if unknown := sorted(set(given) - {*self.text, *self.switches}):
            raise InvalidInput(
                f"A {scheme} storage has no option {', '.join(unknown)}.",
                remedy=f"It takes {', '.join(sorted((*self.text, *self.switches)))}.",
            )
        text: dict[str, str] = {}
        switches: dict[str, bool] = {}
        for name, value in given.items():
            if name in self.text:
                if not isinstance(value, str):
                    raise InvalidInput(f"The storage option {name} is no text.", remedy="Give it as a string.")
                text[name] = value
            elif (switch := SWITCH.get(str(value).lower())) is None:
                raise InvalidInput(f"The storage option {name} is a switch.", remedy="Give it as true or false.")
            else:
                switches[name] = switch
        return Given(text, switches)
