"""Write a file whole or not at all.

A path comes in; a path beside it goes out, which takes its place when it is whole and on the disk.
A full disk, an error, Ctrl-C or a power cut leave the file that was there before.
It knows no format. Source: ours.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A path to write to; the file takes the target's place at the end.

    Raises:
        OSError: it cannot be written; names the target.
    """
    scratch = target.with_name(f".{target.name[-100:]}.{secrets.token_hex(4)}")
    try:
        yield scratch
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())  # a file that has its name is whole, also after a power cut
        os.replace(scratch, target)
    except OSError as error:
        raise _named(error, scratch, target) from error
    finally:
        scratch.unlink(missing_ok=True)


def _named(error: OSError, scratch: Path, target: Path) -> OSError:
    """The error with the target's name in the place of the scratch file's."""
    if error.errno is None or (error.filename is not None and str(error.filename) != str(scratch)):
        return error
    return OSError(error.errno, os.strerror(error.errno), str(target))
