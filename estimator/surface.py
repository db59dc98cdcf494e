"""A surface: peak memory for any batch size and sequence length, from a handful of traces.

A trace is a stream of allocations and frees. As long as the run takes the same paths, the stream
of another batch and length has the same order, and each storage's size is a polynomial in both
(`estimator.size_polynomials`). A surface keeps a stream for each region in which the paths are the
same, and answers in two ways:

- `point` plays the stream with the sizes of one batch and length through the allocator model: the
  same bytes as a trace there;
- `grid` sums, for many points at once, what is alive at the few instants that can be the highest.

Where the paths differ is said by thresholds (docs/surfaces.md names them and their sources).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from estimator.allocator import (
    LARGE_SEGMENT_BYTES,
    MIN_BLOCK_BYTES,
    MIN_LARGE_BYTES,
    ROUND_LARGE_BYTES,
    SMALL_BYTES,
    Block,
    CachingAllocator,
)
from estimator.errors import EnvironmentUnavailable, UnsupportedError
from estimator.report import Phase
from estimator.size_polynomials import Polynomial, evaluate

MIN_LENGTH = 16
"""Shorter sequences take paths of their own (a prefill of one token is a decode step)."""


class UnknownRegion(UnsupportedError):
    """The surface has no stream for a batch and length: it has to be traced there first."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where a run takes another path.

    `quantity` is `batch`, `length` or `tokens` (their product), and the path changes where it is
    at least `bound`; or `alignment`, and it changes where S + `shift` is no multiple of `bound`.
    """

    quantity: str
    bound: int
    shift: int = 0

    def beyond(self, batch: Any, length: Any) -> Any:
        """Say on which side a batch and length are; for arrays, each."""
        if self.quantity == "alignment":
            return (length + self.shift) % self.bound != 0
        if self.quantity == "batch":
            return batch >= self.bound
        if self.quantity == "length":
            return length >= self.bound
        return batch * length >= self.bound


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a stream: its phase, whether peaks are read in it, and its first event."""

    phase: str
    counted: bool
    first_event: int


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment that may be the highest: its phase and how many storages of each size are alive.

    `unsplit_bytes` is what those of constant size occupy beyond their own blocks.
    """

    phase: str
    counts: tuple[int, ...]
    unsplit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SurfacePoint:
    """What a surface says of one batch and length: the counters of `MemoryReport`, in bytes."""

    phase: str
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """The allocations and frees of a run, whatever its batch and length in a region.

    An event is the number of a size (an allocation), or `~age` for the free of the storage that was
    allocated `age` allocations before the latest. `unsplit` is the share of rests (up to 1 MiB of a
    segment) that were not split off, as seen in replays. Only `grid` uses it and the instants.
    """

    sizes: tuple[Polynomial, ...]
    events: tuple[int, ...]
    spans: tuple[Span, ...]
    instants: tuple[Instant, ...] = ()
    unsplit: float = 1.0

    def sizes_at(self, batch: int, length: int) -> list[int]:
        """Return each size in bytes."""
        return [evaluate(size, batch, length) for size in self.sizes]

    def replay(self, batch: int, length: int) -> SurfacePoint:
        """Play the stream through the allocator model."""
        return replay(self, self.sizes_at(batch, length))


@dataclass(slots=True)
class Surface:
    """Streams by region, and what they were traced from.

    `identity` is what must be equal for the surface to be another's answer: the case without batch
    size and length, the versions of the libraries and of the tracing code.
    """

    identity: dict[str, Any]
    thresholds: tuple[Threshold, ...]
    streams: dict[str, Stream] = field(default_factory=dict)

    def region(self, batch: int, length: int) -> str:
        """Return the name of a region: a digit a threshold, 1 where it is beyond it."""
        return "".join("01"[bool(t.beyond(batch, length))] for t in self.thresholds)

    def stream(self, batch: int, length: int) -> Stream:
        """Return the stream that holds for a batch and length.

        Raises:
            UnknownRegion: there is none yet.
        """
        known = self.streams.get(self.region(batch, length))
        if known is None or length < MIN_LENGTH:
            raise UnknownRegion(
                f"the surface does not reach batch {batch} and length {length}: "
                "trace it there (gpumem trace)"
            )
        return known

    def point(self, batch: int, length: int) -> SurfacePoint:
        """Return the peaks at one batch and length, to the byte as a trace there would.

        Raises:
            UnknownRegion: the surface has no stream there.
        """
        return self.stream(batch, length).replay(batch, length)

    def grid(
        self,
        batches: Sequence[int],
        lengths: Sequence[int],
        phase: str | None = None,
        counter: str = "allocated",
    ) -> list[list[int]]:
        """Return peak bytes, a row a batch and a column a length.

        Requested bytes are sums of the tensors' own sizes. For allocated bytes, blocks are taken as
        the allocator rounds them, with the mean share of rests that it does not split off: which
        rests those are only `point` knows, which plays the allocator.

        Args:
            phase: the peak of one phase only; None for the run's.
            counter: `allocated` or `requested`.

        Raises:
            UnknownRegion: the surface has no stream for some of the points.
            EnvironmentUnavailable: numpy is not installed.
        """
        try:
            import numpy as np
        except ImportError:
            raise EnvironmentUnavailable(
                "a grid of a surface needs numpy, not installed here: pip install numpy"
            ) from None
        batch, length = (
            axis.ravel()
            for axis in np.meshgrid(
                np.array(batches, np.int64), np.array(lengths, np.int64), indexing="ij"
            )
        )
        code = np.zeros(batch.shape, np.int64)
        for threshold in self.thresholds:
            code = 2 * code + threshold.beyond(batch, length)
        result = np.zeros(batch.shape, np.int64)
        for number in np.unique(code):
            chosen = np.nonzero(code == number)[0]
            B, S = batch[chosen], length[chosen]
            shortest = int(S.argmin())
            stream = self.stream(int(B[shortest]), int(S[shortest]))
            result[chosen] = _highest(stream, B, S, phase, counter)
        rows: list[list[int]] = result.reshape(len(batches), len(lengths)).tolist()
        return rows


def _highest(stream: Stream, batch: Any, length: Any, phase: str | None, counter: str) -> Any:
    import numpy as np

    if counter == "requested":
        blocks = requested_sizes(stream, batch, length)
    else:
        blocks = block_sizes(stream, batch, length, stream.unsplit)
    chosen = [i for i in stream.instants if phase is None or i.phase == phase]
    if not chosen:
        raise UnsupportedError(f"the run has no phase {phase!r}")
    # Sums stay below 2**53, so that float64 and its fast product are exact.
    totals = np.array([i.counts for i in chosen], np.float64) @ blocks
    if counter != "requested":
        totals += np.array([[i.unsplit_bytes] for i in chosen], np.float64)
    return np.rint(totals.max(axis=0)).astype(np.int64)


def requested_sizes(stream: Stream, batch: Any, length: Any) -> Any:
    """Return what each size asks for: [sizes, points] in float64, for int64 arrays of points."""
    import numpy as np

    sizes = [np.broadcast_to(evaluate(size, batch, length), batch.shape) for size in stream.sizes]
    return np.array(sizes, np.float64)


def block_sizes(stream: Stream, batch: Any, length: Any, unsplit: float) -> Any:
    """Return mean block sizes: [sizes, points] in float64, for int64 arrays of points.

    The last block of a segment keeps the rest of it where that is too small to be split off;
    `unsplit` is how many of those that could do so do. Segments of 20 MiB hold several blocks.
    """
    import numpy as np

    rows = []
    for size in stream.sizes:
        block = -(-evaluate(size, batch, length) // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        large = block >= MIN_LARGE_BYTES
        several = LARGE_SEGMENT_BYTES // np.maximum(block, 1)
        rest = np.where(
            large,
            -(-block // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES - block,
            LARGE_SEGMENT_BYTES - several * block,
        )
        kept = (block > SMALL_BYTES) & (rest <= SMALL_BYTES)
        varies = any(term.batch or term.length or term.multiple for term in size)
        share = unsplit * varies / np.where(large, 1, np.maximum(several, 1))
        rows.append(block + share * (rest * kept))
    return np.array(rows, np.float64)


def replay(stream: Stream, sizes: Sequence[int]) -> SurfacePoint:
    """Play a stream with given sizes in bytes.

    Peaks are those of the counted spans, as in a trace; phases of one name are joined.
    """
    allocator = CachingAllocator()
    blocks: list[Block | None] = []
    by_phase: dict[str, list[int]] = {}
    best, requested, where = -1, 0, ""
    ends = [span.first_event for span in stream.spans[1:]] + [len(stream.events)]
    for span, end in zip(stream.spans, ends, strict=True):
        allocator.reset_peaks()
        for event in stream.events[span.first_event : end]:
            if event >= 0:
                blocks.append(allocator.allocate(sizes[event]))
            else:
                allocator.release(blocks[len(blocks) + event])
        if not span.counted:
            continue
        peak = allocator.peak_allocated_bytes
        known = by_phase.setdefault(span.phase, [0, 0])
        known[0], known[1] = max(known[0], peak), allocator.allocated_bytes
        requested = max(requested, allocator.peak_requested_bytes)
        if peak > best:
            best, where = peak, span.phase
    return SurfacePoint(
        phase=where,
        requested_bytes=requested,
        allocated_bytes=best,
        reserved_bytes=allocator.peak_reserved_bytes,
        phases=tuple(Phase(name, peak, last) for name, (peak, last) in by_phase.items()),
    )
