"""Our own formulas: memory from a model's real architecture, instant by instant."""

from estimator.architecture.estimate import estimate_architecture

__all__ = ["estimate_architecture"]
