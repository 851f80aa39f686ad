"""The journal of an evaluation: a line when a job begins and when it ends.

In: events. Out: the file, and how the work went so far.
Knows: lines of several processes do not mix. Lines that were cut off or are damaged are left out.
Source: ours.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_EVENTS = ("begin", "end")
_LATEST = 253_402_300_799  # seconds, in the year 9999


@dataclass(frozen=True)
class Journal:
    """Numbers of jobs that began, that ended, and that began without an end; processes; first and
    last time (UTC)."""

    begun: int
    ended: int
    open: int
    processes: int
    first: str | None
    last: str | None


def note(path: Path, event: str, job: str) -> None:
    """Add a line."""
    line = json.dumps({"event": event, "job": job, "time": time.time(), "pid": os.getpid()})
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read(path: Path) -> Journal:
    """How the work went so far; all counts are 0 if there is no file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    entries = [entry for line in text.split("\n") if (entry := _event(line)) is not None]
    begun, ended = (
        [entry["job"] for entry in entries if entry["event"] == event] for event in _EVENTS
    )
    times = sorted(float(entry["time"]) for entry in entries)
    return Journal(
        begun=len(begun),
        ended=len(ended),
        open=len(set(begun) - set(ended)),
        processes=len({entry.get("pid") for entry in entries}),
        first=_utc(times[0]) if times else None,
        last=_utc(times[-1]) if times else None,
    )


def _event(line: str) -> dict[str, Any] | None:
    """An entry of the journal; None for a line that was cut off or is of another kind."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("event") not in _EVENTS:
        return None
    at, pid = entry.get("time"), entry.get("pid")
    timed = isinstance(at, (int, float)) and math.isfinite(at) and 0 <= at <= _LATEST
    whole = isinstance(entry.get("job"), str) and isinstance(pid, (int, type(None)))
    return entry if timed and whole else None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
