"""Where data is cut: by content (FastCDC 2020), so that an insertion moves no later cut."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from pyfastcdc import FastCDC

FINER = 8


@dataclass(frozen=True, slots=True)
class ContentCutter:
    """FastCDC with a repository's sizes (bytes) and seed. Cuts are the same for the same content."""

    minimum: int
    average: int
    maximum: int
    normalization: int
    seed: int

    def finer(self) -> ContentCutter:
        """For dumps of databases, in which single rows change: an eighth of the sizes."""
        return replace(
            self, minimum=self.minimum // FINER, average=self.average // FINER, maximum=self.maximum // FINER
        )

    def cuts(self, data: memoryview) -> list[int]:
        """The lengths of the chunks of `data`. The last one ends where `data` ends, by content or not."""
        chunker = self._chunker()
        return [chunk.length for chunk in chunker.cut_buf(data)]

    def _chunker(self) -> FastCDC:
        made: dict[ContentCutter, FastCDC] = _local.__dict__.setdefault("chunkers", {})
        if self not in made:
            made[self] = FastCDC(
                self.average,
                min_size=self.minimum,
                max_size=self.maximum,
                normalized_chunking=self.normalization,  # type: ignore[arg-type]
                seed=self.seed,
            )
        return made[self]


_local = threading.local()  # a FastCDC object belongs to one thread at a time
