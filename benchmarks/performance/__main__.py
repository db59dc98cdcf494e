"""Times what users wait for: `python -m benchmarks.performance [--trace] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.performance.timings import MEASUREMENTS, Timing


def main() -> int:
    """Run the measurements and print one line each: the median and the fastest."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description=__doc__)
    parser.add_argument(
        "--trace", action="store_true", help="also what takes seconds: a trace, accelerate"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the timings")
    options = parser.parse_args()
    timings: list[Timing] = []
    for name, (measure, slow) in MEASUREMENTS.items():
        if slow and not options.trace:
            continue
        timing = measure(name)
        timings.append(timing)
        print(f"{timing.name}: median {timing.median_s:.4f} s, fastest {timing.fastest_s:.4f} s")
    if options.json is not None:
        rows = [timing.to_dict() for timing in timings]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
