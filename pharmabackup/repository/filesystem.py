"""pharmabackup://dataset/path: a repository's newest snapshots as one read-only file system, for what uses fsspec."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

from pharmabackup.errors import InvalidInput, NotFound
from pharmabackup.repository import Repository


class RepositoryFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """`fsspec.filesystem("pharmabackup", repository=repo)`: a folder for each dataset, with what its snapshot holds.

    A dataset's snapshot is its newest from `before` that time, chosen when it is first looked into; from then on it
    stays the same. What is read is fetched and verified, and nothing is written anywhere. The repository has to stay
    open. FileNotFoundError, and what reading in a snapshot raises.
    """

    protocol = "pharmabackup"
    cachable = False
    root_marker = ""

    def __init__(
        self, *args: Any, repository: Repository | None = None, before: datetime | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        if not isinstance(repository, Repository):
            raise InvalidInput(
                "pharmabackup:// needs an open repository.",
                remedy='Give it as an option: fsspec.open("pharmabackup://…", repository=repo).',
            )
        self._repository = repository
        self._before = before
        self._chosen: dict[str, AbstractFileSystem] = {}
        self._lock = threading.Lock()

    def _inside(self, path: str) -> tuple[str, AbstractFileSystem, str]:
        """The dataset of a path, its snapshot, and the path in that."""
        dataset, _, rest = self._strip_protocol(path).partition("/")
        with self._lock:
            if dataset not in self._chosen:
                try:
                    snapshot = self._repository.snapshot(dataset, before=self._before)
                except NotFound as error:
                    raise FileNotFoundError(path) from error
                self._chosen[dataset] = snapshot.filesystem()
            return dataset, self._chosen[dataset], rest

    def info(self, path: str, **_: Any) -> dict[str, object]:
        if not self._strip_protocol(path):
            return _folder("")
        dataset, snapshot, rest = self._inside(path)
        try:
            return _named(dataset, snapshot.info(rest))
        except FileNotFoundError:
            raise FileNotFoundError(path) from None

    def modified(self, path: str) -> object:
        return self.info(path).get("mtime")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found: list[dict[str, object]]
        if self._strip_protocol(path):
            dataset, snapshot, rest = self._inside(path)
            try:
                found = [_named(dataset, facts) for facts in snapshot.ls(rest, detail=True)]
            except FileNotFoundError:
                raise FileNotFoundError(path) from None
        else:
            listed = self._repository.snapshots(before=self._before)
            names = {each.dataset for each in listed if not each.forgotten}
            found = [_folder(name) for name in sorted(names)]
        return found if detail else [item["name"] for item in found]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        snapshot, rest = self._inside(path)[1:]
        try:
            return snapshot.open(rest, mode)
        except FileNotFoundError:
            raise FileNotFoundError(path) from None


def _named(dataset: str, facts: dict[str, object]) -> dict[str, object]:
    return facts | {"name": f"{dataset}/{facts['name']}".rstrip("/")}


def _folder(name: str) -> dict[str, object]:
    return {"name": name, "size": 0, "type": "directory"}
