"""The trace: the real transformers and peft code of a run, on meta tensors, without a GPU.

`trace_case` is the entry; it needs torch and a few seconds. See docs/trace.md.
"""

from profiler.trace.session import record_timeline, trace_case

__all__ = ["record_timeline", "trace_case"]
