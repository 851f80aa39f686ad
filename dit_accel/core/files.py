"""Write a file whole or not at all.

A path comes in; a path beside it goes out, which takes its place when it is whole and on the disk.
A full disk, an error, Ctrl-C or a power cut leave the file that was there before.
It knows no format. Source: ours.
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
    """A path to write to; the file takes the target's place at the end.

    Args:
        lasting: whether it waits until the file is on the disk. Else a power cut may damage it.

    Raises:
        OSError: it cannot be written; names the target.
    """
    scratch = target.with_name(f".{target.name[-100:]}.{secrets.token_hex(4)}")
    try:
        yield scratch
        if lasting:
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())  # a file that has its name is whole, also after a power cut
        os.replace(scratch, target)
    except OSError as error:
        raise _named(error, scratch, target) from error
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, where the system and the file system have locks.

    Args:
        path: of a file that only the lock is for; a process that ends leaves no lock.
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
    """Whether nothing more can be written beside a path: some writers do not say so."""
    try:
        return shutil.disk_usage(path.absolute().parent).free < _LEAST_FREE
    except OSError:
        return False


def _named(error: OSError, scratch: Path, target: Path) -> OSError:
    """The error with the target's name in the place of the scratch file's."""
    if error.errno is None or (error.filename is not None and str(error.filename) != str(scratch)):
        return error
    return OSError(error.errno, os.strerror(error.errno), str(target))
