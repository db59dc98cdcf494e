"""The trace: the real transformers and peft code of a run, on meta tensors, without a GPU.

`trace_case` is the entry; it needs torch and a few seconds. See docs/trace.md.
"""

from profiler.trace.session import Trace, record_timeline, trace_case, trace_run

__all__ = ["Trace", "record_timeline", "trace_case", "trace_run"]
