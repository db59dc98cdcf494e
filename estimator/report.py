"""`MemoryReport`: the one shape in which every source answers (see docs/json.md).

All sizes are int bytes. `None` means not known; 0 means known to be zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from estimator.units import format_both, format_gb, format_gib

SCHEMA_VERSION = 1

NO_INTERVAL = "no interval: there is no calibration for this kind of run"
"""What an estimate assumes until a calibration adds to it (estimator/calibrated.py)."""

COMPONENTS = (
    "weights",
    "gradients",
    "optimizer_states",
    "activations",
    "kv_cache",
    "logits",
    "temporaries",
    "workspace",
    "unattributed",
)


@dataclass(frozen=True, slots=True)
class Components:
    """What the bytes are at the peak instant; they add up to `peak.allocated_bytes`."""

    weights_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_states_bytes: int = 0
    activations_bytes: int = 0
    kv_cache_bytes: int = 0
    logits_bytes: int = 0
    temporaries_bytes: int = 0
    workspace_bytes: int = 0
    unattributed_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum of all components."""
        return sum(getattr(self, field.name) for field in fields(self))

    def largest(self, count: int = 3) -> str:
        """Return the largest components with their shares: `weights 42 %, logits 30 %`."""
        total = self.total_bytes or 1
        sizes = sorted(
            ((getattr(self, f"{name}_bytes"), name) for name in COMPONENTS), reverse=True
        )
        return ", ".join(
            f"{name.replace('_', ' ')} {100 * size / total:.0f} %"
            for size, name in sizes[:count]
            if size > 0
        )

    @classmethod
    def from_names(cls, sizes: dict[str, int]) -> Components:
        """Build from `{"weights": bytes, ...}`; missing names are 0."""
        return cls(**{f"{name}_bytes": int(size) for name, size in sizes.items()})


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval for a counter's peak at a level, and the evidence it rests on."""

    low_bytes: int
    high_bytes: int
    level: float
    basis: str


@dataclass(frozen=True, slots=True)
class Beyond:
    """The counters beyond allocated bytes: points, None where not known, and their intervals."""

    reserved_bytes: int | None = None
    device_bytes: int | None = None
    reserved_interval: Interval | None = None
    device_interval: Interval | None = None


class _Deferred:
    """Works out what is `Beyond` when it is first asked for: it costs more than all the rest."""

    __slots__ = ("_work_out",)
    _work_out: Callable[[], Beyond]

    def __getattr__(self, name: str) -> Any:
        # Reached only for attributes that have no value yet.
        if name not in _BEYOND:
            raise AttributeError(name)
        found = self._work_out()
        for field in _BEYOND:
            object.__setattr__(self, field, getattr(found, field))
        return getattr(found, name)


_BEYOND = tuple(field.name for field in fields(Beyond))


@dataclass(frozen=True, slots=True)
class Peak(_Deferred):
    """The highest instant of the run, by counter, and where it is.

    `instant` names the moment (`backward: loss`), `reason` says in one line why it is the peak.
    `deferred` makes one whose reserved and device bytes are worked out when they are asked for.
    """

    phase: str
    requested_bytes: int | None
    allocated_bytes: int
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    instant: str | None = None
    reason: str | None = None
    reserved_interval: Interval | None = None
    device_interval: Interval | None = None

    @classmethod
    def deferred(cls, work_out: Callable[[], Beyond], **known: Any) -> Peak:
        """Return a peak with `known` fields; the four of `Beyond` come from `work_out`."""
        peak: Peak = cls.__new__(cls)
        for name, value in {**known, "_work_out": work_out}.items():
            object.__setattr__(peak, name, value)
        return peak


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of the run: its highest and its last allocated bytes."""

    name: str
    peak_allocated_bytes: int
    end_allocated_bytes: int


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameter counts, tied ones counted once; quantized ones by their logical number."""

    total: int
    trainable: int


@dataclass(frozen=True, slots=True)
class Counter:
    """What one counter shows at its highest: a point, an interval, or both."""

    name: str
    size_bytes: int | None
    interval: Interval | None

    def html_cells(self) -> str:
        """Return the name, the point in both units, and the interval as cells of a table."""
        size = "" if self.size_bytes is None else format_both(self.size_bytes)
        span = ""
        if self.interval is not None:
            low, high = format_both(self.interval.low_bytes), format_both(self.interval.high_bytes)
            span = f"{self.interval.level:.0%}: {low} to {high}"
        return f"<td>{self.name}</td><td>{size}</td><td>{span}</td>"


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What one source says about one case.

    `source` is `article`, `architecture`, `trace`, `cuda` or `published`; `case` is the
    complete case as a JSON object, with every default filled in.
    """

    source: str
    case: dict[str, Any]
    parameters: Parameters
    peak: Peak
    phases: tuple[Phase, ...]
    components: Components
    interval: Interval | None = None
    assumptions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object of schema version `SCHEMA_VERSION`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "case": self.case,
            "parameters": _as_dict(self.parameters),
            "peak": _as_dict(self.peak),
            "phases": [_as_dict(phase) for phase in self.phases],
            "components": _as_dict(self.components),
            "interval": None if self.interval is None else _as_dict(self.interval),
            "assumptions": list(self.assumptions),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MemoryReport:
        """Read a report that `to_dict` wrote.

        Raises:
            KeyError, TypeError: when a field is missing or unknown.
        """
        interval = data.get("interval")
        return cls(
            source=data["source"],
            case=data["case"],
            parameters=Parameters(**data["parameters"]),
            peak=_read_peak(data["peak"]),
            phases=tuple(Phase(**phase) for phase in data["phases"]),
            components=Components(**data["components"]),
            interval=None if interval is None else Interval(**interval),
            assumptions=tuple(data.get("assumptions", ())),
        )

    def with_assumptions(self, *lines: str) -> MemoryReport:
        """Return a copy with more assumption lines."""
        return replace(self, assumptions=(*self.assumptions, *lines))

    def counters(self) -> tuple[Counter, ...]:
        """Return what is known of each counter at its highest, in the order of their size."""
        peak = self.peak
        known = (
            Counter("requested", peak.requested_bytes, None),
            Counter("allocated", peak.allocated_bytes, self.interval),
            Counter("reserved", peak.reserved_bytes, peak.reserved_interval),
            Counter("device", peak.device_bytes, peak.device_interval),
        )
        return tuple(one for one in known if one.size_bytes is not None or one.interval is not None)

    def __str__(self) -> str:
        peak = self.peak
        text = f"{self.source}: peak {format_both(peak.allocated_bytes)} in {peak.phase}"
        return text if peak.reason is None else f"{text}: {peak.reason}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{name.replace('_', ' ')}</td><td>{format_gb(size)}</td>"
            f"<td>{format_gib(size)}</td></tr>"
            for name in COMPONENTS
            if (size := getattr(self.components, f"{name}_bytes"))
        )
        counters = "".join(f"<tr>{one.html_cells()}</tr>" for one in self.counters())
        return (
            f"<b>{self.source}: peak {format_both(self.peak.allocated_bytes)}</b>, "
            f"in {self.peak.phase}<table>{rows}</table><table>{counters}</table>"
        )


def _read_peak(data: dict[str, Any]) -> Peak:
    intervals = {
        name: Interval(**data[name])
        for name in ("reserved_interval", "device_interval")
        if data.get(name) is not None
    }
    return Peak(**{**data, **intervals})


def _as_dict(item: Any) -> dict[str, Any]:
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    return {
        name: _as_dict(value) if isinstance(value, Interval) else value
        for name, value in values.items()
    }
