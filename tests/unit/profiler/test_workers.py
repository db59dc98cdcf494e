"""Workers under every fault that we know: each is a scripted process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from estimator.case import Case
from profiler import workers
from profiler.record import Record
from profiler.requests import HowToRun
from profiler.worker_process import worker_variables
from profiler.workers import Worker

CASE = Case.from_dict({"model": "openai-community/gpt2"})
OTHER = Case.from_dict({"model": "openai-community/gpt2", "batch_size": 2})

GOOD = """
    import os
    from estimator.report import *
    from profiler.record import Measurement, Record
    from profiler.worker_main import serve

    def answer(request):
        print("libraries print on stdout")
        report = MemoryReport(
            source=request.source, case=request.case.to_dict(), parameters=Parameters(1, 1),
            peak=Peak("decode", os.getpid(), request.how.repeat), phases=(),
            components=Components(weights_bytes=request.how.repeat),
        )
        return Record.from_report(report, None, None, Measurement())
"""


def script(body: str, good: bool = False) -> list[str]:
    text = textwrap.dedent(GOOD if good else "") + textwrap.dedent(body)
    return [sys.executable, "-c", text]


SERVE = script("serve(answer)", good=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie whose parent has not looked yet is dead enough.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not is_alive(pid):
            return True
        time.sleep(0.01)
    return False


def pid_of(record: Record) -> int:
    assert record.peak is not None
    assert record.peak.requested_bytes is not None
    return record.peak.requested_bytes


def run_one(body: str, timeout_s: float = 20.0, source: str = "trace") -> Record:
    with Worker(source, timeout_s, script(body)) as worker:
        return worker.run(CASE)


def test_a_trace_worker_is_used_again_and_gone_at_the_end() -> None:
    with Worker("trace", 20, SERVE) as worker:
        first, second = worker.run(CASE), worker.run(OTHER, how=HowToRun(repeat=3))
        assert worker.pid == pid_of(first) == pid_of(second)
    assert (first.status, second.status) == ("ok", "ok")
    assert second.peak is not None
    assert second.peak.allocated_bytes == 3
    assert not is_alive(pid_of(first))


def test_a_worker_that_was_prepared_is_the_one_that_answers() -> None:
    with Worker("cuda", 20, SERVE) as worker:
        worker.prepare()
        ready = worker.pid
        worker.prepare()
        assert worker.pid == ready
        assert pid_of(worker.run(CASE)) == ready
        assert worker.pid is None
        worker.prepare()
        waiting = worker.pid
    assert waiting is not None
    assert waiting != ready
    assert not is_alive(waiting)


def test_a_worker_that_cannot_be_prepared_is_told_by_its_case() -> None:
    with Worker("cuda", 20, ["/nowhere/python"]) as worker:
        worker.prepare()
        record = worker.run(CASE)
    assert record.error is not None
    assert record.error.message.startswith("the worker cannot be started: No such file")


def test_a_worker_that_was_killed_prepares_nothing() -> None:
    with Worker("cuda", 20, SERVE) as worker:
        worker.kill()
        worker.prepare()
        assert worker.pid is None


def test_every_cuda_case_has_a_fresh_worker() -> None:
    with Worker("cuda", 20, SERVE) as worker:
        first, second = worker.run(CASE), worker.run(CASE)
        assert worker.pid is None
    assert pid_of(first) != pid_of(second)
    assert (first.status, first.flags) == ("ok", ())


def test_a_worker_that_ends_silently() -> None:
    record = run_one("print('bye')")
    assert record.status == "error"
    assert record.error is not None
    assert record.error.message == "the worker ended with exit code 0 before it answered: bye"
    assert (record.error.kind, record.error.exit_code) == ("no_answer", 0)


def test_a_worker_that_fails_leaves_its_exit_code_and_last_lines() -> None:
    record = run_one("import sys; print('one'); print('two', file=sys.stderr); sys.exit(7)")
    assert record.error is not None
    assert record.error.message == "the worker ended with exit code 7 before it answered: two"
    assert (record.error.kind, record.error.exit_code) == ("exit", 7)
    assert record.error.details == "one\ntwo"
    assert record.environment is not None
    assert record.provenance is not None


@pytest.mark.parametrize(
    ("name", "hint"), [("SIGKILL", "memory may have run out"), ("SIGSEGV", "")]
)
def test_a_worker_that_is_killed(name: str, hint: str) -> None:
    record = run_one(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert record.status == "error"
    assert record.error is not None
    assert (record.error.kind, record.error.signal) == ("signal", name)
    assert record.error.message.startswith(f"the worker was killed by {name}")
    assert hint in record.error.message


def test_the_output_that_is_kept_is_bounded() -> None:
    record = run_one("import sys; print('x' * 10**7); sys.exit(1)")
    assert record.error is not None
    assert record.error.details is not None
    assert len(record.error.details) <= 8192


@pytest.mark.parametrize("text", ["hello", "{}", "[]", "", '{"schema_version": 99}', "\\xff"])
def test_a_worker_that_answers_with_garbage(text: str) -> None:
    record = run_one(
        f"""
        import os, sys
        sys.stdin.readline()
        os.write(int(os.environ["GPUMEM_RECORD_FD"]), b'{text}\\n')
        sys.stdin.read()
        """
    )
    assert record.status == "error"
    assert record.error is not None
    assert record.error.kind == "garbage"
    assert record.error.message.startswith("the worker answered with garbage (")


def test_an_answer_for_another_case_is_garbage() -> None:
    body = """
    from dataclasses import replace
    serve(lambda request: answer(replace(request, case=replace(request.case, batch_size=9))))
    """
    with Worker("trace", 20, script(body, good=True)) as worker:
        record = worker.run(CASE)
    assert record.error is not None
    assert "for another case" in record.error.message


def test_half_an_answer_is_no_answer() -> None:
    record = run_one("""import os; os.write(int(os.environ["GPUMEM_RECORD_FD"]), b'{"schema')""")
    assert record.error is not None
    assert record.error.kind == "no_answer"


def test_a_worker_that_hangs_is_killed_with_its_children_in_time(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    start = time.monotonic()
    record = run_one(
        f"""
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
        time.sleep(600)
        """,
        timeout_s=1.0,
    )
    assert time.monotonic() - start < 8
    assert record.status == "timeout"
    assert record.error is not None
    assert record.error.message == "the worker took longer than its 1 s"
    assert (record.error.kind, record.error.exit_code) == ("timeout", None)
    for pid in map(int, pids.read_text().split()):
        assert wait_until_gone(pid)


def test_a_child_that_holds_the_pipe_open_does_not_hide_the_worker_s_death() -> None:
    start = time.monotonic()
    record = run_one(
        """
        import os, subprocess, sys
        fd = int(os.environ["GPUMEM_RECORD_FD"])
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=(fd,))
        sys.exit(3)
        """
    )
    assert time.monotonic() - start < 8
    assert record.error is not None
    assert record.error.exit_code == 3


def test_a_worker_that_never_reads_a_large_case_is_stopped_in_time() -> None:
    large = Case.from_dict({"model": {"model_type": "llama", "note": "x" * 10**6}})
    with Worker("trace", 1.0, script("import time; time.sleep(600)")) as worker:
        assert worker.run(large).status == "timeout"


def test_a_large_case_arrives_whole() -> None:
    large = Case.from_dict({"model": {"model_type": "llama", "note": "x" * 10**6}})
    with Worker("trace", 20, SERVE) as worker:
        record = worker.run(large)
    assert record.status == "ok"
    assert record.case == large.to_dict()


def test_a_worker_that_died_is_replaced_at_the_next_case() -> None:
    body = """
    def maybe(request):
        if request.case.batch_size == 2:
            os._exit(9)
        return answer(request)
    serve(maybe)
    """
    with Worker("trace", 20, script(body, good=True)) as worker:
        records = [worker.run(case) for case in (CASE, OTHER, CASE)]
    assert [record.status for record in records] == ["ok", "error", "ok"]
    assert pid_of(records[0]) != pid_of(records[2])


def test_an_exception_in_a_case_is_its_record_and_the_worker_goes_on() -> None:
    body = """
    from estimator.errors import UnsupportedError
    def fail(request):
        if request.how.repeat == 1:
            raise UnsupportedError("not this; try that")
        if request.how.repeat == 2:
            raise ValueError("one\\ntwo")
        return answer(request)
    serve(fail)
    """
    with Worker("trace", 20, script(body, good=True)) as worker:
        records = [worker.run(CASE, how=HowToRun(repeat=number)) for number in (1, 2, 3)]
    errors = [record.error for record in records]
    assert errors[0] is not None
    assert (errors[0].kind, errors[0].message) == ("UnsupportedError", "not this; try that")
    assert errors[1] is not None
    assert (errors[1].kind, errors[1].message) == ("ValueError", "ValueError: one")
    assert "Traceback" in str(errors[1].details)
    assert records[2].status == "ok"


def test_a_worker_that_dies_after_its_answer_is_flagged() -> None:
    body = """
    import atexit
    atexit.register(lambda: os._exit(5))
    serve(answer)
    """
    with Worker("cuda", 20, script(body, good=True)) as worker:
        record = worker.run(CASE)
    assert record.status == "ok"
    assert record.flags == ("the worker answered and then ended with exit code 5",)


def test_a_worker_that_does_not_end_after_its_answer_is_killed_and_flagged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "_EXIT_GRACE_S", 0.2)
    body = """
    import atexit, time
    atexit.register(lambda: time.sleep(600))
    serve(answer)
    """
    with Worker("cuda", 20, script(body, good=True)) as worker:
        record = worker.run(CASE)
    assert record.status == "ok"
    assert record.flags == ("the worker did not end after it answered and was killed",)
    assert wait_until_gone(pid_of(record))


def test_a_command_that_cannot_start() -> None:
    with Worker("cuda", 5, ["/nonexistent/python"]) as worker:
        record = worker.run(CASE)
    assert record.status == "error"
    assert record.error is not None
    assert record.error.message == (
        "the worker cannot be started: No such file or directory: /nonexistent/python"
    )


def test_kill_from_another_thread_ends_the_case_and_every_later_one() -> None:
    with Worker("trace", 60, script("import time; time.sleep(600)")) as worker:
        timer = threading.Timer(0.5, worker.kill)
        timer.start()
        start = time.monotonic()
        records = [worker.run(CASE), worker.run(CASE)]
        assert time.monotonic() - start < 8
        timer.join()
    assert [record.error.kind for record in records if record.error] == ["stopped", "stopped"]


RUNNER = """
import os, sys
from estimator.case import Case
from profiler.workers import Worker
code = '''
import os, time
from profiler.worker_main import serve
def hang(request):
    open({pid_file!r}, "w").write(str(os.getpid()))
    time.sleep(600)
serve(hang)
'''
with Worker("trace", 600, [sys.executable, "-c", code]) as worker:
    worker.run(Case.from_dict({{"model": "gpt2"}}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_runner(number: signal.Signals, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER.format(pid_file=str(pid_file))],
        env=worker_variables(),
        stderr=subprocess.DEVNULL,
        # A test run in a shell's background ignores it, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    worker_pid = int(pid_file.read_text())
    assert is_alive(worker_pid)
    runner.send_signal(number)
    runner.wait(10)
    assert wait_until_gone(worker_pid)


def test_a_worker_is_quiet_and_offline_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    variables = worker_variables()
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["TOKENIZERS_PARALLELISM"] == "false"
    assert variables["PYTHONUNBUFFERED"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert worker_variables()["HF_HUB_OFFLINE"] == "0"


def test_worker_main_by_hand_says_who_starts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "profiler.worker_main"],
        env=worker_variables(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "gpumem: this is a worker; `gpumem profile` and `gpumem run` start it\n"
