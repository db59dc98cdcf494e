"""Gives an estimate what a calibration knows: intervals, and what the driver shows.

Without a calibration that has evidence for the kind of run, the estimate stays as it is. How the
coefficients were fitted, and what was refused, is in docs/calibration.md.
"""

from __future__ import annotations

import math
from dataclasses import replace

from estimator.article import ArticleCoefficients, estimate_article
from estimator.case import Case
from estimator.coefficients import (
    ANY_GPU,
    Calibration,
    CalibrationError,
    Fit,
    IntervalRule,
    run_kind,
)
from estimator.gpus import find_gpu
from estimator.headroom import CONTEXT_LOW_BYTES
from estimator.report import (
    NO_INTERVAL,
    Beyond,
    Components,
    Interval,
    MemoryReport,
    Peak,
    Phase,
)


def calibrated(report: MemoryReport, case: Case, calibration: Calibration) -> MemoryReport:
    """Return the estimate of a case with what a calibration adds to it.

    `interval` is around peak allocated bytes. `reserved_bytes` and `device_bytes` become points,
    with intervals; the device's is a one-sided bound, for the allocator's cache depends on what ran
    before (docs/counters.md). Both stay what they were where the calibration has nothing for the
    kind of run.
    """
    kind = run_kind(case)
    lines = [line for line in report.assumptions if line != NO_INTERVAL]
    scratch = calibration.fit("scratch")
    if scratch is not None:
        report = _scaled(report, scratch)
        lines.append(f"workspaces and temporaries: {_from(calibration, scratch)}")
    interval = _interval(report, calibration, calibration.interval("allocated", kind))
    if interval is None:
        lines.append(f"no interval: calibration {calibration.name} has none for {kind}")
    peak = report.peak
    return replace(
        report,
        peak=Peak.deferred(
            lambda: _beyond(report, case, calibration),
            phase=peak.phase,
            requested_bytes=peak.requested_bytes,
            allocated_bytes=peak.allocated_bytes,
            instant=peak.instant,
            reason=peak.reason,
        ),
        interval=interval,
        assumptions=tuple(lines),
    )


def calibrated_article(case: Case, calibration: Calibration) -> MemoryReport:
    """Answer a case by the article's formulas with fitted constants.

    Raises:
        CalibrationError: the calibration has no fit of them that was accepted.
        GpumemError: as `estimator.article.estimate_article`.
    """
    fit = calibration.fit("article")
    if fit is None:
        raise CalibrationError(
            f"calibration {calibration.name} has no fit of the article's constants that held on "
            "left-out families: leave out --calibration"
        )
    report = estimate_article(case, ArticleCoefficients(**fit.values()))
    return report.with_assumptions(f"the article's constants: {_from(calibration, fit)}")


def moving_bytes(peak: Peak, components: Components) -> int:
    """Return what comes and goes in a step at the peak: all but weights and optimizer states.

    What stays leaves no cache behind; fragmentation grows with what is allocated and freed.
    """
    static = components.weights_bytes + components.optimizer_states_bytes
    return max(0, peak.allocated_bytes - static)


def predicted_reserved(fit: Fit, case: Case, report: MemoryReport) -> int | None:
    """Return reserved bytes by a fit of fragmentation, None where it does not suit the report.

    `fragmentation_TASK` is the share of the moving bytes above allocated; `correction_TASK` above
    the reserved bytes that the formulas gave themselves.
    """
    values, own = fit.values(), report.peak.reserved_bytes
    moving = moving_bytes(report.peak, report.components)
    if own is None:
        share, base = values.get(f"fragmentation_{case.task}"), report.peak.allocated_bytes
    else:
        share, base = values.get(f"correction_{case.task}"), own
    if share is None:
        return None
    allocated = report.peak.allocated_bytes
    return max(allocated, capped(base + _round(share, moving), allocated, case.gpu))


def predicted_device(fit: Fit, case: Case, report: MemoryReport) -> int | None:
    """Return device bytes by a fit, None where it does not suit the report.

    They are allocated bytes and `cache_TASK` of the moving bytes (or the reserved bytes that the
    formulas gave themselves and `beyond_TASK` of the moving bytes), and the context.
    """
    values, own = fit.values(), report.peak.reserved_bytes
    context = values.get(context_name(case), values.get(f"context_{ANY_GPU}"))
    if own is None:
        share, base = values.get(f"cache_{case.task}"), report.peak.allocated_bytes
    else:
        share, base = values.get(f"beyond_{case.task}"), own
    if share is None or context is None:
        return None
    return base + _round(share, moving_bytes(report.peak, report.components)) + round(context)


def context_name(case: Case) -> str:
    """Return the name of the coefficient for the context on a case's card."""
    return f"context_{ANY_GPU if case.gpu is None else find_gpu(case.gpu).name}"


def capped(size_bytes: int, allocated_bytes: int, gpu: str | None) -> int:
    """Return reserved or device bytes as the card can show them: at most its memory.

    Near its end the allocator gives its cache back; a run that does not fit is not ended here.
    """
    if gpu is None:
        return size_bytes
    memory = find_gpu(gpu).memory_bytes
    return min(size_bytes, memory) if allocated_bytes < memory else size_bytes


def _round(share: float, size: int) -> int:
    return math.ceil(share * size)


def _interval(
    report: MemoryReport, calibration: Calibration, rule: IntervalRule | None
) -> Interval | None:
    if rule is None or rule.low_ratio is None or rule.high_ratio is None:
        return None
    allocated = report.peak.allocated_bytes
    return Interval(
        low_bytes=math.floor(rule.low_ratio * allocated),
        high_bytes=math.ceil(rule.high_ratio * allocated),
        level=rule.level,
        basis=_basis(calibration, rule),
    )


def _beyond(report: MemoryReport, case: Case, calibration: Calibration) -> Beyond:
    reserved, reserved_interval = _reserved(report, case, calibration)
    spread = 0
    if reserved is not None and reserved_interval is not None:
        spread = max(0, reserved_interval.high_bytes - reserved)
    device, device_interval = _device(report, case, calibration, reserved, spread)
    return Beyond(reserved, device, reserved_interval, device_interval)


def _reserved(
    report: MemoryReport, case: Case, calibration: Calibration
) -> tuple[int | None, Interval | None]:
    peak = report.peak
    fit = calibration.fit("fragmentation")
    rule = calibration.interval("reserved", run_kind(case))
    if fit is None or rule is None or rule.low_ratio is None or rule.high_ratio is None:
        return peak.reserved_bytes, peak.reserved_interval
    size = predicted_reserved(fit, case, report)
    if size is None:
        return peak.reserved_bytes, peak.reserved_interval
    low, high = math.floor(rule.low_ratio * size), math.ceil(rule.high_ratio * size)
    return size, Interval(low, high, rule.level, _basis(calibration, rule))


def _device(
    report: MemoryReport, case: Case, calibration: Calibration, reserved: int | None, spread: int
) -> tuple[int | None, Interval | None]:
    """Return the point and the bound; `spread` is how far reserved bytes may lie above theirs."""
    peak = report.peak
    fit = calibration.fit("device")
    rule = calibration.interval("device", run_kind(case))
    if fit is None or rule is None or rule.high_ratio is None:
        return peak.device_bytes, peak.device_interval
    point = predicted_device(fit, case, report)
    if point is None:
        return peak.device_bytes, peak.device_interval
    allocated = peak.allocated_bytes
    # Whatever a fit says, the driver shows more than the allocator has.
    point = max(point, (reserved or allocated) + CONTEXT_LOW_BYTES)
    point = capped(point, allocated, case.gpu)
    bound = math.ceil(rule.high_ratio * (point + spread))
    bound = capped(max(bound, point), allocated, case.gpu)
    # From above alone: the cache may have been given back when the driver was asked.
    low = min(point, allocated + CONTEXT_LOW_BYTES)
    return point, Interval(low, bound, rule.level, _basis(calibration, rule))


def _basis(calibration: Calibration, rule: IntervalRule) -> str:
    return (
        f"calibration {calibration.name}: {rule.runs} runs {calibration.evidence}; of the "
        f"model families {', '.join(rule.families)}, each left out in turn, it held "
        f"{100 * (rule.coverage or 0):.0f} %"
    )


def _scaled(report: MemoryReport, fit: Fit) -> MemoryReport:
    """Return a report whose workspaces and temporaries are multiplied by fitted factors."""
    values, parts = fit.values(), report.components
    workspace = round(values["workspace_scale"] * parts.workspace_bytes)
    temporaries = round(values["temporaries_scale"] * parts.temporaries_bytes)
    more = workspace + temporaries - parts.workspace_bytes - parts.temporaries_bytes
    peak = report.peak
    allocated = peak.allocated_bytes + more
    requested = None if peak.requested_bytes is None else min(peak.requested_bytes, allocated)
    return replace(
        report,
        peak=replace(peak, allocated_bytes=allocated, requested_bytes=requested),
        components=replace(parts, workspace_bytes=workspace, temporaries_bytes=temporaries),
        phases=tuple(
            Phase(phase.name, allocated, min(allocated, phase.end_allocated_bytes))
            if phase.name == peak.phase
            else phase
            for phase in report.phases
        ),
    )


def _from(calibration: Calibration, fit: Fit) -> str:
    count = len(fit.families)
    return f"calibration {calibration.name}, fitted to {fit.runs} runs of {count} model families"
