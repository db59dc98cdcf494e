"""Derives a surface from traces: the same run at a few batches and lengths.

In each region of `estimator.surface` three traces tell every storage's size as a polynomial: two
find it, the third checks it. A region in which the run turns out to take the paths of one already
known costs a single trace, at which every size has to agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import UnsupportedError
from estimator.size_polynomials import Point, find_polynomial
from estimator.surface import (
    MIN_LENGTH,
    Instant,
    Span,
    Stream,
    Surface,
    Threshold,
    block_sizes,
)
from estimator.units import round_up
from profiler.surface_cache import at, identity
from profiler.trace.chunked_loss import TOKEN_CHUNK_SIZE
from profiler.trace.scratch import GEMM_4BIT_ROWS, SORT_FREE_INDICES
from profiler.trace.session import TRACED_STEPS, record_timeline
from profiler.trace.timeline import LOAD

POINTS_A_REGION = 3
MASK_ALIGNMENT = 16

_BATCHES = (1, 2, 3, 5, 7, 11)
_OFFSETS = (115, 298, 800, 1197, 1915, 2309, 7, 25, 53, 71, 93, 153, 201)
"""Lengths to trace at, from a threshold, then what lies close to it. Their remainders differ, so
that a length that is rounded up is told from one that is rounded after something was added."""

_SAMPLE_BATCHES = (1, 2, 3, 4, 6, 8, 16, 64, 256)
_SAMPLE_LENGTHS = tuple(round(MIN_LENGTH * 1.7**step) for step in range(18))
_REPLAYED_TOKENS = (300, 700, 1500, 2900, 6100, 13000, 29000)
_WINDOWS = ("sliding_window", "attention_chunk_size")


def new_surface(case: Case) -> Surface:
    """Return the surface of a case without any stream yet; batch and length do not matter.

    Raises:
        UnsupportedError: several GPUs share each sequence, so that not every length can be traced;
            or sizes that no polynomial follows.
    """
    if case.parallelism is not None:
        raise UnsupportedError(
            "a surface is traced at lengths that parallelism.sp_size does not divide: take "
            "gpumem fit without --source trace, or trace the lengths one by one"
        )
    if case.loss == "liger":
        raise UnsupportedError(
            "the chunks of Liger's loss are powers of two, which no surface follows: "
            "use gpumem trace, or --source architecture"
        )
    return Surface(identity(case), tuple(thresholds(case)))


def thresholds(case: Case) -> Iterator[Threshold]:
    """Return where the run may take another path; docs/surfaces.md names the sources."""
    yield Threshold("batch", 2)
    if case.training and _trains_embeddings(case):
        yield Threshold("tokens", SORT_FREE_INDICES + 1)
        # Learned positions are looked up once for all sequences of a batch.
        yield Threshold("length", SORT_FREE_INDICES + 1)
    if case.loss == "chunked":
        # Below, the buffer of logits has as many rows as there are tokens.
        yield Threshold("tokens", TOKEN_CHUNK_SIZE + 1)
    if not case.training and case.quantization in ("nf4", "fp4"):
        yield Threshold("batch", GEMM_4BIT_ROWS + 1)
    more = 0 if case.max_new_tokens is None else case.max_new_tokens
    windows = set(_windows(load_config(case.model).config))
    for window in sorted(windows):
        yield Threshold("length", window)
        if more > 1 and window - more > MIN_LENGTH:
            yield Threshold("length", window - more + 1)
    if case.attention == "sdpa" and windows:
        yield Threshold("alignment", MASK_ALIGNMENT)
    if case.attention == "sdpa" and case.cache == "static":
        yield Threshold("alignment", MASK_ALIGNMENT, more)


def _trains_embeddings(case: Case) -> bool:
    if case.lora is None:
        return True
    names = case.lora.target_modules
    return names != "all-linear" and any("emb" in name or "wte" in name for name in names)


def _windows(config: dict[str, Any]) -> Iterator[int]:
    if config.get("use_sliding_window") is False:
        return
    for name in _WINDOWS:
        if isinstance(config.get(name), int):
            yield config[name]


def extend(surface: Surface, case: Case, batch: int, length: int) -> None:
    """Add the stream of the region of a batch and length; nothing to do where it is known.

    Raises:
        UnsupportedError: the run differs inside the region, or a size is no polynomial: this run
            has no surface, and has to be traced point by point.
        GpumemError: as `trace_case`.
    """
    region = surface.region(batch, length)
    if region in surface.streams:
        return
    points = _points(surface, region)
    if not points:
        raise _too_few(batch, length)
    first = _record(case, points[0])
    for known in surface.streams.values():
        if first.is_of(known, points[0]):
            surface.streams[region] = _with_instants(surface, region, known)
            return
    if len(points) < POINTS_A_REGION:
        raise _too_few(batch, length)
    runs = [first, *(_record(case, point) for point in points[1:])]
    for run, point in zip(runs, points, strict=True):
        if run.shape != first.shape or run.spans != first.spans:
            raise UnsupportedError(
                f"{case.model_name} takes other paths at {_shown(points[0])} than at "
                f"{_shown(point)} (batch x length), so that it has no surface: use gpumem trace, "
                "or --source architecture"
            )
    surface.streams[region] = _with_instants(surface, region, _stream(runs, points, case))


def differs(surface: Surface, case: Case) -> bool:
    """Whether a trace of a case is not what the surface says there, storage by storage."""
    point = (case.batch_size, case.sequence_length)
    return not _record(case, point).is_of(surface.stream(*point), point)


@dataclass(frozen=True, slots=True)
class _Run:
    """A traced run: its events with 0 for every allocation, and the bytes of each in order."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    spans: tuple[Span, ...]

    def is_of(self, stream: Stream, point: Point) -> bool:
        """Whether a stream, with the sizes of a point, is this run."""
        sizes = stream.sizes_at(*point)
        return (
            self.spans == stream.spans
            and self.shape == tuple(min(event, 0) for event in stream.events)
            and self.sizes == tuple(sizes[event] for event in stream.events if event >= 0)
        )


def _record(case: Case, point: Point) -> _Run:
    timeline, _ = record_timeline(at(case, *point))
    first_step = TRACED_STEPS - 1 if case.training else 0
    shape = []
    latest = -1
    for event in timeline.events:
        if event >= 0:
            latest = event
            shape.append(0)
        else:
            shape.append(~(latest - ~event))
    return _Run(
        tuple(shape),
        tuple(allocation.size_bytes for allocation in timeline.allocations),
        tuple(
            Span(span.name, span.name == LOAD or span.step >= first_step, span.first_event)
            for span in timeline.spans
        ),
    )


def _stream(runs: Sequence[_Run], points: Sequence[Point], case: Case) -> Stream:
    """Return the stream of runs that have the same shape."""
    numbers: dict[tuple[int, ...], int] = {}
    order = [
        numbers.setdefault(sizes, len(numbers))
        for sizes in zip(*(run.sizes for run in runs), strict=True)
    ]
    shifts = (0,) if case.max_new_tokens is None else (0, case.max_new_tokens)
    sizes = [find_polynomial(values, points, shifts) for values in numbers]
    for values, size in zip(numbers, sizes, strict=True):
        if size is None:
            raise UnsupportedError(
                f"a tensor of {case.model_name} of {values[0]} bytes at {_shown(points[0])} grows "
                "by no rule that a surface knows: use gpumem trace, or --source architecture"
            )
    allocations = iter(order)
    events = tuple(next(allocations) if event == 0 else event for event in runs[0].shape)
    return Stream(tuple(size for size in sizes if size is not None), events, runs[0].spans)


def _points(surface: Surface, region: str) -> list[Point]:
    """Return up to three generic points of a region, different in both as far as it allows."""
    starts = {MIN_LENGTH} | {
        t.bound for t in surface.thresholds if t.quantity in ("length", "tokens")
    }
    lengths = [start + offset for offset in _OFFSETS for start in sorted(starts)]
    for cut in surface.thresholds:
        if cut.quantity == "alignment":
            lengths += [round_up(s + cut.shift, cut.bound) - cut.shift for s in lengths]
    chosen: dict[int, int] = {}
    for other_batches in (True, False):
        for length in lengths:
            for batch in _BATCHES:
                fresh = batch not in chosen.values() or not other_batches
                if fresh and surface.region(batch, length) == region:
                    chosen.setdefault(length, batch)
            if len(chosen) >= POINTS_A_REGION:
                break
    return [(batch, length) for length, batch in chosen.items()][:POINTS_A_REGION]


def _with_instants(surface: Surface, region: str, stream: Stream) -> Stream:
    """Return a stream with the instants that are the highest of a phase anywhere in a region."""
    samples = [
        (batch, length)
        for length in _SAMPLE_LENGTHS
        for batch in _SAMPLE_BATCHES
        if surface.region(batch, length) == region
    ] or _points(surface, region)
    batch, length = (np.array(axis, np.int64) for axis in zip(*samples, strict=True))
    blocks = block_sizes(stream, batch, length, 1.0)
    instants: list[Instant] = []
    for phase, counts in _local_peaks(stream).items():
        rows = np.unique(counts, axis=0)
        winners = np.unique((rows.astype(np.float64) @ blocks).argmax(axis=0))
        instants += [Instant(phase, tuple(map(int, rows[winner]))) for winner in winners]
    tokens = batch * length
    nearest = {samples[int(np.abs(tokens - wanted).argmin())] for wanted in _REPLAYED_TOKENS}
    return _with_rests(replace(stream, instants=tuple(instants)), sorted(nearest))


def _local_peaks(stream: Stream) -> dict[str, Any]:
    """Return by counted phase how many storages of each size are alive before each free."""
    counts = np.zeros(len(stream.sizes), np.int32)
    alive: list[int] = []
    found: dict[str, list[Any]] = {}
    ends = [span.first_event for span in stream.spans[1:]] + [len(stream.events)]
    for span, end in zip(stream.spans, ends, strict=True):
        rows = found.setdefault(span.phase, []) if span.counted else []
        rising = True
        for event in stream.events[span.first_event : end]:
            if event >= 0:
                alive.append(event)
                counts[event] += 1
            else:
                if rising:
                    rows.append(counts.copy())
                counts[alive[len(alive) + event]] -= 1
            rising = event >= 0
        rows.append(counts.copy())
    return {phase: np.array(rows) for phase, rows in found.items()}


def _with_rests(stream: Stream, points: Sequence[Point]) -> Stream:
    """Return a stream that knows what replays at some points have beyond the blocks themselves.

    A line through (what could stay unsplit, what is missing), of one slope for all phases: the
    slope is the share of rests that stay, and what is left over belongs to constant sizes.
    """
    seen: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        batch, length = (np.array([value], np.int64) for value in point)
        exact, whole = (block_sizes(stream, batch, length, share)[:, 0] for share in (0.0, 1.0))
        for phase in stream.replay(*point).phases:
            rows = np.array([i.counts for i in stream.instants if i.phase == phase.name])
            highest = rows[(rows @ whole).argmax()]
            missing = phase.peak_allocated_bytes - highest @ exact
            seen.setdefault(phase.name, []).append((highest @ (whole - exact), missing))
    means = {phase: np.mean(pairs, axis=0) for phase, pairs in seen.items()}
    apart = np.concatenate([np.array(pairs) - means[phase] for phase, pairs in seen.items()])
    spread = float((apart[:, 0] ** 2).sum())
    slope = float((apart[:, 0] * apart[:, 1]).sum()) / spread if spread else 0.0
    unsplit = min(1.0, max(0.0, slope))
    rests = {phase: max(0, round(mean[1] - unsplit * mean[0])) for phase, mean in means.items()}
    instants = tuple(replace(i, unsplit_bytes=rests[i.phase]) for i in stream.instants)
    return replace(stream, instants=instants, unsplit=unsplit)


def _too_few(batch: int, length: int) -> UnsupportedError:
    return UnsupportedError(
        f"too few lengths are like {length} at batch {batch} for a surface: use gpumem trace for it"
    )


def _shown(point: Point) -> str:
    return f"{point[0]}x{point[1]}"
