"""A storage in memory that goes wrong as it is told to: the same seed and the same calls give the same faults.

    storage = SimulatedStorage(seed=7)
    storage.faults = Faults(before=0.05, torn=0.01)       # from now on
    storage.faults = Faults(planned=(Planned(call="publish snapshots/", fault="again"),))
    storage.faults = Faults()                             # from now on it keeps all promises

Without faults it passes the conformance suite. What it does is one call after the other, so that together with
`pharmabackup.testing.scheduler` all that several clients do can be done again.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from pharmabackup.errors import Conflict, Damaged, Error, NotFound, StorageFailed
from pharmabackup.storage.base import Buffer, Capabilities, ObjectInfo, Storage, Upload, checked
from pharmabackup.testing.faults import Fault, Faults, Injury, SimulatedClock


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    info: ObjectInfo


@dataclass(slots=True)
class _Coming:
    """A request that arrives later."""

    at: int  # number of the call before which it does
    what: str
    effect: Callable[[], None]


class SimulatedStorage(Storage):
    """Objects in a dictionary, faults by `faults`. Any thread; one call after the other.

    `exclusive`: whether a name can be created only once. `log`: all calls, and what came late. `torn`: names of
    objects of which only the beginning was kept. `suffered`: how often each fault came to be, "full" too.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        name: str = "simulated",
        clock: SimulatedClock | None = None,
        faults: Faults | None = None,
        exclusive: bool = True,
    ) -> None:
        self.location = f"simulated://{name}"
        self.clock = clock or SimulatedClock()
        self.log: list[str] = []
        self.injuries: list[Injury] = []
        self.torn: list[str] = []
        self.suffered: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._exclusive = exclusive
        self._objects: dict[str, _Object] = {}
        self._ghosts: list[tuple[_Object, int]] = []  # deleted, and when: listings may be stale
        self._coming: list[_Coming] = []
        self._seen: dict[str, int] = {}  # calls since the faults were set, by the text that a plan waits for
        self._lock = threading.RLock()
        self.faults = faults or Faults()

    @property
    def capabilities(self) -> Capabilities:
        """What it claims: that listings are fresh, too. The probe has to find out."""
        return Capabilities(exclusive_create=self._exclusive, fresh_listing=True)

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults = faults
            self._seen = {}

    @property
    def used(self) -> int:
        """Bytes of all objects."""
        return sum(len(item.data) for item in self._objects.values())

    def names(self) -> list[str]:
        """Of all objects, in order, whatever a listing would show."""
        return sorted(self._objects)

    # ------------------------------------------------------------ the protocol

    def upload(self) -> Upload:
        with self._lock:
            self._begin("upload")
            return _SimulatedUpload(self)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        with self._lock:
            self._begin(f"get_range {checked(name)}")
            data = self._object(name).data[offset : offset + length]
        if len(data) < length:
            raise self._damaged(name, f"ends before byte {offset + length}")
        return data

    def get(self, name: str, *, limit: int) -> bytes:
        with self._lock:
            self._begin(f"get {checked(name)}")
            data = self._object(name).data
        if len(data) > limit:
            raise self._damaged(name, f"is larger than {limit} bytes")
        return data

    def info(self, name: str) -> ObjectInfo:
        with self._lock:
            self._begin(f"info {checked(name)}")
            return self._object(name).info

    def checksum(self, name: str) -> tuple[int, int]:
        with self._lock:
            self._begin(f"checksum {checked(name)}")
            data = self._object(name).data
            return len(data), crc32(data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        below = f"{checked(prefix)}/" if prefix else ""
        with self._lock:
            self._begin(f"list {prefix}")
        return self._pages(prefix, below)

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        for name in names:
            checked(name)
        results: dict[str, Error | None] = {}
        for name in names:
            with self._lock:
                try:
                    self._delete(name)
                    results[name] = None
                except StorageFailed as error:
                    results[name] = error
        return results

    def _delete(self, name: str) -> None:
        what = f"delete {name}"
        fault = self._begin(what, "after", "twice", "late")
        if fault != "late":
            self._remove(name)
        if fault in ("twice", "late"):
            self._later(what, lambda: self._remove(name))
        if fault in ("after", "late"):
            raise self._failed(what)

    def _publish(self, name: str, data: bytes) -> ObjectInfo:
        what = f"publish {checked(name)}"
        with self._lock:
            fault = self._begin(what, "after", "again", "torn", "lost", "twice", "late")
            self._need_room(len(data))
            if fault == "late":
                self._later(what, lambda: self._arrive(name, data))
                raise self._failed(what)
            kept = data[: self._random.randrange(len(data))] if fault == "torn" and data else data
            info = self._create(name, kept)
            if fault == "torn":
                self.torn.append(name)
            if fault == "lost":
                del self._objects[name]
            if fault == "twice":
                self._later(what, lambda: self._arrive(name, data))
            if fault == "after":
                raise self._failed(what)
            if fault == "again":
                raise self._exists(name)
            return ObjectInfo(name=name, size=len(data), modified=info.modified)

    # ------------------------------------------------------------ what comes late

    @property
    def settled(self) -> bool:
        """Whether nothing is under way."""
        return not self._coming

    def settle(self) -> None:
        """All that is under way arrives now."""
        with self._lock:
            coming, self._coming = self._coming, []
            for item in coming:
                self._take(item)

    def _later(self, what: str, effect: Callable[[], None]) -> None:
        at = len(self.log) + self._random.randint(1, self._faults.arrives)
        self._coming.append(_Coming(at, what, effect))

    def _take(self, item: _Coming) -> None:
        self.log.append(f"late {item.what}")
        item.effect()

    def _arrive(self, name: str, data: bytes) -> None:
        if name not in self._objects or not self._exclusive:
            self._create(name, data)

    # ------------------------------------------------------------ damage on purpose

    def flip(self, name: str, at: int = 0, bit: int = 0) -> None:
        """Turn one bit of the byte at this place, counted round."""
        data = bytearray(self._objects[name].data)
        data[at % len(data)] ^= 1 << bit
        self._injure(name, "flipped", bytes(data))

    def cut(self, name: str, size: int = 0) -> None:
        """Keep this many bytes, counted round."""
        data = self._objects[name].data
        self._injure(name, "cut", data[: size % len(data)])

    def remove(self, name: str) -> None:
        """As if it had never been there: no listing shows it any more."""
        self._injure(name, "removed", None)

    def heal(self) -> None:
        """Undo all that was spoilt on purpose, the last first."""
        with self._lock:
            while self.injuries:
                injury = self.injuries.pop()
                info = ObjectInfo(name=injury.name, size=len(injury.before), modified=injury.modified)
                self._objects[injury.name] = _Object(injury.before, info)

    def _injure(self, name: str, how: str, data: bytes | None) -> None:
        with self._lock:
            old = self._objects.pop(name)
            self.injuries.append(Injury(name, how, old.data, old.info.modified))
            if data is not None:
                info = ObjectInfo(name=name, size=len(data), modified=old.info.modified)
                self._objects[name] = _Object(data, info)

    # ------------------------------------------------------------ inside

    def _begin(self, what: str, *able: Fault) -> Fault | None:
        """What goes wrong with this call, of what it is able to suffer. StorageFailed when it does not happen."""
        self.log.append(what)
        due = [item for item in self._coming if item.at <= len(self.log)]
        self._coming = [item for item in self._coming if item.at > len(self.log)]
        for item in due:
            self._take(item)
        fault = self._fault(what, ("before", *able))
        if fault == "before":
            raise self._failed(what)
        return fault

    def _fault(self, what: str, able: Sequence[Fault]) -> Fault | None:
        found: Fault | None = None
        for plan in dict.fromkeys(self._faults.planned):
            key = f"{plan.fault} {plan.nth} {plan.call}"
            if what.startswith(plan.call):
                self._seen[key] = self._seen.get(key, -1) + 1
                if self._seen[key] == plan.nth and plan.fault in able:
                    found = plan.fault
        for fault in able:
            likely: float = getattr(self._faults, fault)
            if found is None and likely and self._random.random() < likely:
                found = fault
        if found is not None:
            self.suffered[found] += 1
        return found

    def _need_room(self, size: int) -> None:
        if self._faults.capacity is not None and self.used + size > self._faults.capacity:
            self.suffered["full"] += 1
            raise StorageFailed(
                f"{self.location} is full.",
                kind="full",
                remedy="Free some space there or use a larger disk; what was stored before is unharmed.",
                location=self.location,
            )

    def _create(self, name: str, data: bytes) -> ObjectInfo:
        if self._exclusive and name in self._objects:
            raise self._exists(name)
        now = self.clock.tick()
        info = ObjectInfo(name=name, size=len(data), modified=now)
        self._objects[name] = _Object(data, info)
        return info

    def _remove(self, name: str) -> None:
        gone = self._objects.pop(name, None)
        if gone is not None:
            self._ghosts.append((gone, self.clock.tick()))

    def _pages(self, prefix: str, below: str) -> Iterator[ObjectInfo]:
        """Each page but the first is a call of its own: it may fail, and what comes late may come before it."""
        last = ""
        while True:
            with self._lock:
                shown = self._shown()
                page = sorted(name for name in shown if name > last and name.startswith(below))[: self._faults.page]
                infos = [shown[name] for name in page]
            yield from infos
            if len(page) < self._faults.page:
                return
            last = page[-1]
            with self._lock:
                self._begin(f"list {prefix}")

    def _shown(self) -> Mapping[str, ObjectInfo]:
        """What a listing shows now, which may be what was there some time ago."""
        stale = self._faults.stale.total_seconds()
        if not stale:
            return {name: item.info for name, item in self._objects.items()}
        then = self.clock.now - int(stale * 1e9)
        ghosts = {item.info.name: item.info for item, gone in self._ghosts if item.info.modified <= then < gone}
        return ghosts | {name: item.info for name, item in self._objects.items() if item.info.modified <= then}

    def _object(self, name: str) -> _Object:
        try:
            return self._objects[name]
        except KeyError:
            raise NotFound(
                f"{self.location} has no object {name}.", kind="object", remedy="Run check to see what that means."
            ) from None

    def _exists(self, name: str) -> Conflict:
        return Conflict(
            f"{self.location} has an object {name} already.",
            kind="object-exists",
            remedy="Look at what it is before going on.",
        )

    def _damaged(self, name: str, how: str) -> Damaged:
        return Damaged(
            f"The object {name} in {self.location} {how}.",
            kind="object",
            remedy="Run check to see what is affected, and restore from another location.",
        )

    def _failed(self, what: str) -> StorageFailed:
        return StorageFailed(
            f"{self.location} did not answer: {what.partition(' ')[0]}.",
            kind="unreachable",
            retryable=True,
            location=self.location,
            remedy="Check that it is connected and healthy, then run it again.",
        )


class _SimulatedUpload(Upload):
    def __init__(self, storage: SimulatedStorage) -> None:
        self._storage = storage
        self._data = bytearray()

    def write(self, data: Buffer) -> None:
        with self._storage._lock:
            self._storage._begin("write")
            self._data += data

    def publish(self, name: str) -> ObjectInfo:
        return self._storage._publish(name, bytes(self._data))

    def discard(self) -> None:
        self._data = bytearray()
