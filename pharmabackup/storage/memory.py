"""Objects in this process's memory: for tests, examples and demonstrations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from pharmabackup.errors import Conflict, Damaged, Error, NotFound
from pharmabackup.mutex import Mutex
from pharmabackup.storage.base import Buffer, Capabilities, ObjectInfo, Storage, Upload, checked


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    info: ObjectInfo


class MemoryStorage(Storage):
    """Everything is gone when the process ends. `named` is how others in the process reach the same objects."""

    capabilities = Capabilities(exclusive_create=True, fresh_listing=True)

    def __init__(self, name: str = "") -> None:
        self.location = f"memory://{name}"
        self._objects: dict[str, _Object] = {}
        self._lock = Mutex()

    @classmethod
    def named(cls, name: str) -> MemoryStorage:
        """The one of this name, made when it is first asked for."""
        with _naming.own:
            return _named.setdefault(name, cls(name))

    def upload(self) -> Upload:
        return _MemoryUpload(self)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        data = self._object(name).data[offset : offset + length]
        if len(data) < length:
            raise self._damaged(name, f"ends before byte {offset + length}")
        return data

    def get(self, name: str, *, limit: int) -> bytes:
        data = self._object(name).data
        if len(data) > limit:
            raise self._damaged(name, f"is larger than {limit} bytes")
        return data

    def info(self, name: str) -> ObjectInfo:
        return self._object(name).info

    def checksum(self, name: str) -> tuple[int, int]:
        data = self._object(name).data
        return len(data), crc32(data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        below = f"{checked(prefix)}/" if prefix else ""
        with self._lock.own:
            found = [item.info for name, item in self._objects.items() if name.startswith(below)]
        return iter(found)

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        for name in names:
            checked(name)
        with self._lock.own:
            for name in names:
                self._objects.pop(name, None)
        return dict.fromkeys(names)

    def _object(self, name: str) -> _Object:
        try:
            return self._objects[checked(name)]
        except KeyError as error:
            raise NotFound(
                f"{self.location} has no object {name}.", kind="object", remedy="Run check to see what that means."
            ) from error

    def _damaged(self, name: str, how: str) -> Damaged:
        return Damaged(
            f"The object {name} in {self.location} {how}.",
            kind="object",
            remedy="Run check to see what is affected, and restore from another location.",
        )

    def _publish(self, name: str, data: bytes) -> ObjectInfo:
        info = ObjectInfo(name=checked(name), size=len(data), modified=time.time_ns())
        with self._lock.own:
            if name in self._objects:
                raise Conflict(
                    f"{self.location} has an object {name} already.",
                    kind="object-exists",
                    remedy="Look at what it is before going on.",
                )
            self._objects[name] = _Object(data, info)
        return info


class _MemoryUpload(Upload):
    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self._data = bytearray()

    def write(self, data: Buffer) -> None:
        self._data += data

    def publish(self, name: str) -> ObjectInfo:
        return self._storage._publish(name, bytes(self._data))

    def discard(self) -> None:
        self._data = bytearray()


_named: dict[str, MemoryStorage] = {}
_naming = Mutex()
