"""The error that every part of reading a suite raises."""

from __future__ import annotations

from estimator.errors import GpumemError


class SuiteError(GpumemError):
    """A suite cannot be found or read; the message names the suite, the entry and the field."""
