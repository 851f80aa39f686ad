"""Claims on jobs: any number of processes, on any machines, share an evaluation's folder.

In: a folder, and the name of a job. Out: a claim, or none while another process has it. A claim is
a file, and its process renews the file's time. A claim lapses if it is not renewed for
`LEASE_SECONDS`, or if its process is known to be dead. Another process then takes it over.
Knows: files and processes. A process that was stopped may continue after its claim lapsed. It then
makes the same result again, and writes it whole over the first one. Nothing is damaged.
Source: ours; leases after Gray and Cheriton (1989).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dit_accel.core.files import locked

LEASE_SECONDS = 60.0
_RENEWALS = 4  # in the time of a lease


class Claims:
    """The claims in a folder, of this process.

    Args:
        folder: on a file system that all processes see; it is made if it does not exist.
        lease_seconds: time after which a claim lapses if it is not renewed; the same in all
            processes.
    """

    def __init__(self, folder: Path, lease_seconds: float = LEASE_SECONDS) -> None:
        self.folder, self.lease_seconds = folder, lease_seconds

    @contextlib.contextmanager
    def claim(self, job: str) -> Iterator[bool]:
        """Whether this process has the job during the body; else another process has it.

        Raises:
            OSError: the folder cannot be written.
        """
        path, mine = self.folder / job, json.dumps(_me())
        if not self._take(path, mine):
            yield False
            return
        renewed = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(path, renewed), daemon=True)
        renewer.start()
        try:
            yield True
        finally:
            renewed.set()
            renewer.join()
            with contextlib.suppress(OSError):
                if path.read_text("utf-8") == mine:  # else another process took it over
                    path.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time run the body, if the file system has locks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            yield

    def _take(self, path: Path, mine: str) -> bool:
        if self._create(path, mine):
            return True
        if not self._has_lapsed(path):
            return False
        with self.locked():  # no other process can take it over between the next two lines
            if self._has_lapsed(path):
                path.unlink(missing_ok=True)
            return self._create(path, mine)

    def _create(self, path: Path, mine: str) -> bool:
        """Make the file, unless it exists."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(mine)
        except FileExistsError:
            return False
        return True

    def _has_lapsed(self, path: Path) -> bool:
        """Whether a claim has lapsed, by the clock of the file system, which is the same for all
        processes."""
        try:
            renewed, text = path.stat().st_mtime, path.read_text("utf-8", "replace")
        except FileNotFoundError:
            return True
        return _is_dead(text) or self._now() - renewed > self.lease_seconds

    def _now(self) -> float:
        probe = self.folder / f".now.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _renew(self, path: Path, ended: threading.Event) -> None:
        while not ended.wait(self.lease_seconds / _RENEWALS):
            with contextlib.suppress(OSError):  # another process took it over, or the disk is gone
                os.utime(path)


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "began": _began(pid), "claim": secrets.token_hex(8)}


def _host() -> str:
    """A name of this machine; in a container also of its namespace of process numbers."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(space) if space.exists() else ''}".strip()


def _is_dead(text: str) -> bool:
    """Whether the process of a claim ran on this machine and has ended; False if this is not
    known."""
    try:
        holder = json.loads(text)
        host, pid, began = holder["host"], holder["pid"], holder["began"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # the file is being written, or is not a claim of ours: the lease decides
    if host != _host() or began is None or not isinstance(pid, int):
        return False
    return _began(pid) != began


def _began(pid: int) -> str | None:
    """When a process of this machine began. This distinguishes it from a later one with the same
    number. "" if it has ended or was killed; None if the system does not say."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = boot.read_text().strip() if boot.exists() else ""
    return "" if fields[0] in "ZX" else f"{name} {fields[19]}"
