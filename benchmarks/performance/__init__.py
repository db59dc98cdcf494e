"""How long things take: run `python -m benchmarks.performance`. Nothing here is asserted."""
