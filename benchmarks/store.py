"""Records as files: one JSON file a record, whole or not there at all.

A file is `<model>-<case_id>-<source>-<environment_id>-r<repeat>.json`, with `-trainer` before the
repeat where transformers.Trainer played the loop. It is written to a hidden
file beside it, synced and renamed, so that neither a killed runner nor a full disk leaves half a
record under a record's name. No file is ever overwritten: a repeat gets the next free number.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.case_ids import model_slug
from benchmarks.locks import try_lock
from estimator.case import Case
from estimator.errors import RecordError
from profiler.record import OWN_LOOP, TRAINER_LOOP, Loop, Record

_NAME = re.compile(
    r".*?(?P<case_id>[0-9a-f]{12})-(?P<source>[a-z]+)-(?P<environment_id>[0-9a-f]{12})"
    r"(?:-(?P<loop>trainer))?-r(?P<repeat>\d{1,9})\.json"
)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record and the file that it was read from."""

    path: Path
    record: Record


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that holds no readable record, and why; it is left as it is."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a folder (or one file) holds: the records in the order of their names, and the rest."""

    records: tuple[StoredRecord, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class CaseKey:
    """What a resumed run asks for: this case, from this source, in this environment, by a loop."""

    case_id: str
    source: str
    environment_id: str
    loop: Loop = OWN_LOOP


class RecordStore:
    """A folder of records. Any number of processes may read and write it at once."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def prepare(self) -> None:
        """Make the folder, and prove that a file can be written in it.

        Raises:
            RecordError: when it cannot; nothing has been run by then.
        """
        probe = self.folder / f".probe-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"gpumem")
        except OSError as error:
            raise RecordError(
                f"results folder {str(self.folder)!r} cannot be written: {_reason(error)}"
            ) from None
        finally:
            with suppress(OSError):
                probe.unlink()

    def read(self) -> Contents:
        """Return all records, and a problem for each file that holds none.

        Raises:
            RecordError: when the folder cannot be listed.
        """
        names = sorted(n for n in self._names() if n.endswith(".json") and not n.startswith("."))
        return _read_all([self.folder / name for name in names])

    def by_case(self) -> dict[CaseKey, tuple[Record, ...]]:
        """Return the readable records, first repeat first, under the keys in their files' names.

        Raises:
            RecordError: when the folder cannot be listed.
        """
        found: dict[CaseKey, list[tuple[int, Record]]] = {}
        for stored in self.read().records:
            if named := _parse_name(stored.path.name):
                found.setdefault(named[0], []).append((named[1], stored.record))
        return {
            key: tuple(record for _, record in sorted(repeats, key=lambda item: item[0]))
            for key, repeats in found.items()
        }

    def of_case(self, key: CaseKey) -> tuple[Record, ...]:
        """Return one case's readable records, first repeat first.

        Raises:
            RecordError: when the folder cannot be listed.
        """
        paths = [self.folder / name for _, name in self._repeats(key)]
        return tuple(stored.record for stored in _read_all(paths).records)

    def next_repeat(self, key: CaseKey) -> int:
        """Return the number after the last repeat, unreadable files included; 1 for the first."""
        return max((repeat for repeat, _ in self._repeats(key)), default=0) + 1

    def path(self, case: Case, key: CaseKey, repeat: int) -> Path:
        """Return the file that holds a case's record, or will hold it."""
        loop = "" if key.loop == OWN_LOOP else f"-{key.loop}"
        name = f"{model_slug(case)}-{key.case_id}-{key.source}-{key.environment_id}{loop}"
        return self.folder / f"{name}-r{repeat}.json"

    def write(self, record: Record, key: CaseKey, repeat: int | None = None) -> Path:
        """Write a record as its case's next repeat and return the file; call it under `claim`.

        Args:
            repeat: what `next_repeat` said under the same claim, to save asking again.

        Raises:
            RecordError: when it cannot be written (disk full, folder gone); no file is left then.
        """
        try:
            path = self.path(Case.from_dict(record.case), key, repeat or self.next_repeat(key))
            write_whole(path, record.to_json(indent=1) + "\n")
        except OSError as error:
            raise RecordError(
                f"a record cannot be written to {str(self.folder)!r}: {_reason(error)}; "
                "what was recorded before is safe: mend it and run again to go on"
            ) from None
        return path

    @contextmanager
    def claim(self, key: CaseKey) -> Iterator[bool]:
        """Keep other runners off a case for the length of the block; False if one is at it.

        Raises:
            RecordError: when no lock can be made in the folder.
        """
        try:
            lock = try_lock(self.folder / f".{key.case_id}-{key.source}-{key.loop}.lock")
        except OSError as error:
            raise RecordError(
                f"results folder {str(self.folder)!r} cannot be locked: {_reason(error)}"
            ) from None
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except OSError as error:
            raise RecordError(
                f"results folder {str(self.folder)!r} cannot be read: {_reason(error)}"
            ) from None

    def _repeats(self, key: CaseKey) -> list[tuple[int, str]]:
        """Return the numbers and names of one case's files, first repeat first."""
        # Most names are another case's, and this is asked before and after every case.
        names = [name for name in self._names() if key.case_id in name and name[0] != "."]
        parsed = ((_parse_name(name), name) for name in names)
        return sorted((named[1], name) for named, name in parsed if named and named[0] == key)


def _parse_name(name: str) -> tuple[CaseKey, int] | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    loop = TRAINER_LOOP if match["loop"] else OWN_LOOP
    key = CaseKey(match["case_id"], match["source"], match["environment_id"], loop)
    return key, int(match["repeat"])


def read_records(path: Path | str) -> Contents:
    """Return the records of a folder, those of a JSON Lines file, or the one of a file.

    Raises:
        RecordError: when there is nothing to read at `path`, or the one file is no record.
    """
    path = Path(path)
    if path.is_dir():
        return RecordStore(path).read()
    if not path.exists():
        raise RecordError(f"{str(path)!r} is neither a folder of records nor a record file")
    if path.suffix == ".jsonl":
        return _read_lines(path)
    contents = _read_all([path])
    if contents.problems:
        raise RecordError(str(contents.problems[0]))
    return contents


def write_whole(path: Path, text: str) -> None:
    """Write a file so that `path` holds either all of `text` or what it held before.

    Raises:
        OSError: when it cannot be written; the half-written file is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            data = memoryview(text.encode())
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_all(paths: list[Path]) -> Contents:
    records: list[StoredRecord] = []
    problems: list[Problem] = []
    with _collector_paused():
        for path in paths:
            found = _read_one(path)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                records.append(found)
    return Contents(tuple(records), tuple(problems))


def _read_one(path: Path) -> StoredRecord | Problem:
    try:
        return StoredRecord(path, Record.from_json(path.read_text(encoding="utf-8")))
    except RecordError as error:
        return Problem(path, str(error))
    except UnicodeDecodeError:
        return Problem(path, "the record is not UTF-8 text")
    except OSError as error:
        return Problem(path, f"cannot be read: {_reason(error)}")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's cycle collector out while thousands of records are made.

    Records form no cycles, and each pass of the collector would walk all those read so far.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_lines(path: Path) -> Contents:
    records: list[StoredRecord] = []
    problems: list[Problem] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise RecordError(f"{path}: the records are not UTF-8 text") from None
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {_reason(error)}") from None
    with _collector_paused():
        for number, line in enumerate(lines, start=1):
            try:
                records.append(StoredRecord(path, Record.from_json(line)))
            except RecordError as error:
                problems.append(Problem(path, f"line {number}: {error}"))
    return Contents(tuple(records), tuple(problems))


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
