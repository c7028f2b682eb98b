"""Files that processes of one mesh leave for each other on one host, in memory: whose they are, and when they go.

A file belongs to the process that holds its lock, which the kernel frees however that process ends. What a dead one
left stays for a minute, since others may have use for it; then whoever looks removes it, whatever mesh it was of. A
folder is named after what the processes of a mesh share, and nobody but their user may open it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from janus_runtime.errors import FailedPrecondition

MEMORY = Path("/dev/shm")
"""Where files are memory, on Linux."""
DEAD_S = 60.0
"""What a dead process left is kept for so long from when somebody has noticed."""
_PREFIX = "janus-"
_SCRATCH = ".new"
_ATTEMPTS = 5
_NOTICED = 0o400
"""Mode of a file whose owner is known to be dead; its time of change says since when."""


def shared_folder(redis_url: str, namespace: str, base: Path = MEMORY) -> Path:
    """Where processes of one mesh, user and host find each other's files."""
    url = urlsplit(redis_url)
    # Without its user and password, which a name that all can see must not give away.
    shared = f"{url.hostname}:{url.port}{url.path}\n{namespace}"
    return base / f"{_PREFIX}{os.geteuid()}-{hashlib.sha256(shared.encode()).hexdigest()[:16]}"


def create(folder: Path, name: str, nbytes: int) -> int:
    """A file of this process: descriptor, open for reading and writing; its lock is held as long as that is open.

    Raises FailedPrecondition where there can be none.
    """
    scratch = folder / f"{name}{_SCRATCH}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        for attempt in range(_ATTEMPTS):
            folder.mkdir(mode=0o700, exist_ok=True)
            _check(folder)
            try:
                descriptor = os.open(scratch, flags, 0o600)
                break
            except FileNotFoundError:  # who tidies removes empty folders
                if attempt == _ATTEMPTS - 1:
                    raise
        try:
            # Under its name only once it is locked: unlocked it would be taken for a dead one's.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, nbytes)
            scratch.rename(folder / name)
        except BaseException:
            scratch.unlink(missing_ok=True)
            os.close(descriptor)
            raise
    except OSError as error:
        raise FailedPrecondition(
            f"cannot keep a file in {folder}: {error.strerror}",
            next_step="Make the folder writable for this user alone, or switch off what is kept there.",
        ) from error
    return descriptor


def _check(folder: Path) -> None:
    """Somebody else may have made it first, in a place where all may."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(0, "it belongs to another user, or others may open it")


def names(folder: Path) -> list[str]:
    """Of the files that are there; none where the folder is not to be trusted."""
    try:
        _check(folder)
        return sorted(name for name in os.listdir(folder) if not name.endswith(_SCRATCH))
    except OSError:
        return []


@contextlib.contextmanager
def opened(folder: Path, name: str) -> Iterator[int]:
    """A file to read, of whoever. Raises OSError, also for what is no plain file of this user."""
    descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(0, "it is no file of this user")
        yield descriptor
    finally:
        os.close(descriptor)


def tidy(base: Path = MEMORY, *, dead_s: float = DEAD_S) -> int:
    """Remove what processes of this user left that have been known to be dead for ``dead_s``; how many files went."""
    removed = 0
    for folder in base.glob(f"{_PREFIX}{os.geteuid()}-*"):
        try:
            _check(folder)
            found = os.listdir(folder)
        except OSError:
            continue
        for name in found:
            with contextlib.suppress(OSError), opened(folder, name) as descriptor:
                if name.endswith(_SCRATCH) and time.time() - os.fstat(descriptor).st_mtime < DEAD_S:
                    continue  # just being made
                removed += _dead(descriptor, dead_s) and _remove(folder / name)
        with contextlib.suppress(OSError):
            folder.rmdir()  # where it is empty
    return removed


def _dead(descriptor: int, dead_s: float) -> bool:
    """Whether its owner has been known to be dead for so long; the first to notice leaves a mark."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    found = os.fstat(descriptor)
    if stat.S_IMODE(found.st_mode) != _NOTICED:
        os.utime(descriptor)
        os.fchmod(descriptor, _NOTICED)
        return dead_s <= 0
    return time.time() - found.st_mtime >= dead_s


def _remove(path: Path) -> bool:
    path.unlink(missing_ok=True)
    return True


def remove_folder(folder: Path) -> None:
    """A mesh has ended: all that its processes left goes."""
    shutil.rmtree(folder, ignore_errors=True)


__all__ = ["DEAD_S", "MEMORY", "create", "names", "opened", "remove_folder", "shared_folder", "tidy"]
