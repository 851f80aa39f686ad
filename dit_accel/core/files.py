"""Write a file completely or not at all.

A path comes in; the path of a scratch file beside it goes out. Once the scratch file is complete
and on the disk, it replaces the target. After a full disk, an error, Ctrl-C or a power cut the old
file is still there. The module knows no format. Source: ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = "the disk is full"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEAST_FREE = 1 << 16  # bytes
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def placed(target: Path, *, lasting: bool = True) -> Iterator[Path]:
    """A path to write to. At the end that file replaces the target.

    Args:
        target: the path of the file.
        lasting: whether to wait until the file is on the disk. Else a power cut may damage it.

    Raises:
        OSError: the file cannot be written. The error has the target's name.
    """
    scratch = target.with_name(f".{target.name[-100:]}.{secrets.token_hex(4)}")
    try:
        yield scratch
        if lasting:
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())  # before the rename, so a power cut leaves no partial file
        os.replace(scratch, target)
    except OSError as error:
        raise _named(error, scratch, target) from error
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time run a block, if the system and the file system have locks.

    Args:
        path: of a file that is used only for the lock. When a process ends, its lock ends too.
    """
    with path.open("a") as file:
        _lock(file.fileno())
        yield  # closing the file ends the lock


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def reason_of(error: OSError) -> str:
    """Why a file cannot be read or written, in words."""
    text = error.strerror or str(error)
    known = error.errno not in _FULL or FULL in text
    return text if known else f"{FULL}: {text}"


def is_full(path: Path) -> bool:
    """Whether the disk of a path is full. Some writers do not report that."""
    try:
        return shutil.disk_usage(path.absolute().parent).free < _LEAST_FREE
    except OSError:
        return False


def _named(error: OSError, scratch: Path, target: Path) -> OSError:
    """The error, with the target's name in place of the scratch file's."""
    if error.errno is None or (error.filename is not None and str(error.filename) != str(scratch)):
        return error
    return OSError(error.errno, os.strerror(error.errno), str(target))
