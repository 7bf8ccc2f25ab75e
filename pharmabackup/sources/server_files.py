"""A whole server as its files: backed up through the server, and restored into the folder that becomes its own."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pharmabackup.errors import InvalidInput
from pharmabackup.sources.base import Served, Source, StrPath
from pharmabackup.sources.data_folder import DataFolder


class Reached(Protocol):
    """A server, as its own module has it."""

    def served(self, dataset: str, *, whole: bool) -> Served: ...


class ServerFiles(Source):
    """`server`: where it is backed up from; `data`: what it is restored into. One of them. InvalidInput."""

    stop: str
    """What to do where a server still runs in the folder."""

    def __init__(self, name: str, tier: int, *, server: Reached | None, data: StrPath | None) -> None:
        super().__init__(name, tier)
        if (server is None) == (data is None):
            raise InvalidInput("A server is backed up by its url, or restored into data.", remedy="Give one of them.")
        self._reached = server
        self._data = None if data is None else Path(os.path.realpath(data))

    @property
    @abstractmethod
    def runs(self) -> Callable[[Path], bool]:
        """Whether a server runs in such a folder."""

    def served(self) -> Served | None:
        return None if self._reached is None else self._reached.served(self.name, whole=True)

    def location(self) -> Path | None:
        return self._data

    def target(self) -> DataFolder:
        """Where it is restored to. InvalidInput where it is none that can be restored into."""
        if self._data is None:
            raise InvalidInput("A server is restored into a data folder.", remedy="Give data=, not url.")
        return DataFolder(self._data, dataset=self.name, runs=self.runs, stop=self.stop)
