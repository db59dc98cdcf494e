"""One lock file a case, so that two runners on one results folder never run a case twice.

The kernel drops an `flock` with the process that holds it, however that process dies; the file
that a killed runner leaves behind is therefore free for the next one. The process id inside is
for people. Unlike a test whether that process lives, this also holds across containers and hosts
that share the folder.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class CaseLock:
    """A lock that this process holds until `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back and remove its file."""
        # Removed while it is still held: nobody can take the file between the two steps.
        with suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


def try_lock(path: Path) -> CaseLock | None:
    """Take the lock `path`, or return None if somebody has it.

    Raises:
        OSError: when the file cannot be made, or the file system knows no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return CaseLock(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # The holder removed the file after we had opened it: our lock is on a file without a name.
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
