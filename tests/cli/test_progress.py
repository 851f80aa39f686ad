"""Progress on terminals: a bar where it fits, else a line for each piece, with nothing cut off."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console

from dit_accel.cli.common import progress


def shown(monkeypatch: pytest.MonkeyPatch, width: int, term: str = "xterm") -> list[str]:
    """What an evaluation, a run and a calibration show, as lines."""
    printed, environ = io.StringIO(), {"TERM": term}
    terminal = partial(Console, file=printed, force_terminal=True, width=width, _environ=environ)
    monkeypatch.setattr(progress, "Console", lambda stderr: terminal())
    monkeypatch.setattr(sys, "stderr", printed)
    left = SimpleNamespace(left=420.0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress.clips_bar(1000, 3, quiet=False))(1, "edcw:0.1 first")
    with progress.StepBar("accelerated", 50, quiet=False) as bar:
        bar.loop_begins()
        bar.steps_done(12)
    with progress.minutes_bar(10, left, quiet=False) as begins:
        begins("candidates", 3, 40)
    plain = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", printed.getvalue())
    return [line for line in re.split("[\r\n]", plain) if line.strip()]


@pytest.mark.parametrize(("width", "term"), [(40, "xterm"), (79, "xterm"), (100, "dumb")])
def test_a_terminal_that_can_show_no_bar_gets_a_line_for_each_piece(monkeypatch, width, term):
    lines = shown(monkeypatch, width, term)
    assert lines[0].startswith("4 of 1000  edcw:0.1 first, 0:")
    assert lines[1:] == [
        "accelerated: denoising", "accelerated: done",
        " 3.0 of 10 min  running candidate plans 4 of 40",
    ]  # fmt: skip


def test_a_bar_of_80_columns_has_counts_and_times_in_full(monkeypatch):
    lines = shown(monkeypatch, 80)
    assert not any("…" in line for line in lines)
    for part in ("edcw:0.1 first", "4/1000", "12/50 steps", "0:00:00 elapsed, -:--:-- "):
        assert any(part in line for line in lines), (part, lines)
