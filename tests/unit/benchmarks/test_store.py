"""The store: whole records or none, nothing overwritten, nothing damaged read as a record."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.locks import try_lock
from benchmarks.store import CaseKey, RecordStore, read_records
from estimator.case import Case
from estimator.errors import RecordError


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    made = RecordStore(tmp_path / "records")
    made.prepare()
    return made


def key_of(make: SimpleNamespace, case: Case) -> CaseKey:
    return CaseKey(case.case_id, "trace", make.environment_id)


def test_a_record_comes_back_as_it_went(store: RecordStore, make: SimpleNamespace) -> None:
    case = make.case()
    record = make.record(case)
    path = store.write(record, key_of(make, case))
    assert path.name == f"gpt2-{case.case_id}-trace-{make.environment_id}-r1.json"
    assert [stored.record for stored in store.read().records] == [record]
    assert store.by_case() == {key_of(make, case): (record,)}
    assert store.of_case(key_of(make, case)) == (record,)
    assert sorted(item.name for item in store.folder.iterdir()) == [path.name]


def test_a_repeat_never_overwrites(store: RecordStore, make: SimpleNamespace) -> None:
    key = key_of(make, make.case())
    for number in range(1, 12):
        store.write(make.record(make.case(), allocated_bytes=number), key)
    peaks = [record.peak.allocated_bytes for record in store.of_case(key) if record.peak]
    assert peaks == list(range(1, 12))
    assert store.next_repeat(key) == 12


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"not json", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"\xff\x00", "not UTF-8"),
        (b'{"schema_version": 99}', "newer gpumem"),
        (b'{"schema_version": 1}', "not a gpumem record"),
    ],
)
def test_a_damaged_file_is_told_and_kept(
    store: RecordStore, make: SimpleNamespace, content: bytes, said: str
) -> None:
    key = key_of(make, make.case())
    path = store.write(make.record(make.case()), key)
    path.write_bytes(content)
    found = store.read()
    assert found.records == ()
    assert [problem.path for problem in found.problems] == [path]
    assert said in found.problems[0].message
    assert store.by_case() == {}
    second = store.write(make.record(make.case()), key)
    assert second.name.endswith("-r2.json")
    assert path.read_bytes() == content
    with pytest.raises(RecordError, match=path.name):
        read_records(path)


def test_a_record_cut_anywhere_is_never_a_record(store: RecordStore, make: SimpleNamespace) -> None:
    path = store.write(make.record(make.case()), key_of(make, make.case()))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:length])
        found = store.read()
        assert (len(found.records), len(found.problems)) == (0, 1), length


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
def test_a_full_disk_leaves_no_file_and_one_sentence(
    store: RecordStore, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    key = key_of(make, make.case())
    kept = store.write(make.record(make.case()), key)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(RecordError, match="no space left on device") as caught:
            store.write(make.record(make.case()), key)
    assert "\n" not in str(caught.value)
    assert list(store.folder.iterdir()) == [kept]


def test_a_disk_that_takes_a_little_at_a_time_gets_all(
    store: RecordStore, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:100])))
    record = make.record(make.case())
    store.write(record, key_of(make, make.case()))
    assert [stored.record for stored in store.read().records] == [record]


def test_a_folder_that_vanishes(store: RecordStore, make: SimpleNamespace) -> None:
    store.folder.rmdir()
    with pytest.raises(RecordError, match="cannot be read"):
        store.read()
    with pytest.raises(RecordError, match="no such file"):
        store.write(make.record(make.case()), key_of(make, make.case()))
    with (
        pytest.raises(RecordError, match="cannot be locked"),
        store.claim(key_of(make, make.case())),
    ):
        pytest.fail("claimed in a folder that is not there")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    with pytest.raises(RecordError, match="cannot be written: not a directory"):
        RecordStore(file / "below").prepare()
    with pytest.raises(RecordError, match="cannot be written: file exists"):
        RecordStore(file).prepare()
    with pytest.raises(RecordError, match="neither a folder of records nor a record file"):
        read_records(tmp_path / "none")


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Patched rather than chmod: the tests may run as root, whom no permission stops.
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(RecordError, match="cannot be written: permission denied"):
        RecordStore(tmp_path).prepare()


def test_one_claim_at_a_time(store: RecordStore, make: SimpleNamespace) -> None:
    key = key_of(make, make.case())
    other = CaseKey("f" * 12, "trace", make.environment_id)
    with store.claim(key) as first, store.claim(key) as second, store.claim(other) as third:
        assert (first, second, third) == (True, False, True)
    with store.claim(key) as again:
        assert again
    assert list(store.folder.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from benchmarks.locks import try_lock\n"
        "lock = try_lock(Path(sys.argv[1])); print('held', lock is not None, flush=True)\n"
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held True\n"
        assert try_lock(path) is None
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    assert path.read_text(encoding="utf-8") == f"{holder.pid}\n"
    lock = try_lock(path)
    assert lock is not None
    lock.release()
    assert not path.exists()


def test_many_threads_never_hold_one_lock_together(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(200):
            lock = try_lock(path)
            if lock is not None:
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most
    assert max(most) == 1
