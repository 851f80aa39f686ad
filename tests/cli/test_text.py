"""What the command prints is the text itself, on a console and in a pipe of any encoding.

A worked example: by default, rich reads `[red]` as a colour and `:b:` as an emoji.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from commands import invoke
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import dit_accel.cli.app
from dit_accel.cli.common import text
from dit_accel.cli.common.files import print_json

NAME = "a:b:c [red]d[/red] [/e]"


def test_a_message_is_printed_as_it_is(here: Path) -> None:
    result = invoke("generate", "a", "--lora", NAME)
    assert f"{here / NAME}'" in result.stderr


@pytest.mark.parametrize("wide", [True, False])
def test_a_cell_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    file = io.StringIO()

    def console(*, stderr: bool = False, width: int | None = None) -> Console:
        real = text_console(stderr=stderr, width=width)
        real.file, real._force_terminal, real.no_color = file, not wide, True
        real._width = width or (200 if wide else 20)
        return real

    text_console = text.plain_console
    monkeypatch.setattr(text, "plain_console", console)
    table = Table("name", box=SIMPLE, title=f"title {NAME}", caption=f"caption {NAME}")
    table.add_row(NAME)
    text.print_table(table)
    printed = " ".join(file.getvalue().split())
    assert printed.count("d[/red] [/e]") == 3 and printed.count("a:b:c") == 3


def test_a_prompt_of_a_file_gives_the_terminal_no_commands(here: Path, model_folder: Path) -> None:
    (here / "p.jsonl").write_text(json.dumps({"prompt": "a \x1b[31mred \x9b0m circle"}))
    words = ["--prompt-file", "p.jsonl", "--model", str(model_folder)]
    shown = invoke("generate", *words, "--dry-run").stdout
    assert "a \\x1b[31mred \\x9b0m circle" in shown and "\x1b" not in shown
    said = invoke("generate", *words, "--threshold", "1").stderr  # unknown words
    assert "\\x1b[31mred" in said and "\x1b" not in said


def test_a_sign_that_the_output_cannot_encode_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container without a locale, or on a console of Windows."""
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="latin-1"))
    monkeypatch.setattr(dit_accel.cli.app, "app", lambda prog_name: print("a \U0001f7e5 é"))
    dit_accel.cli.main()
    print_json({"prompt": "a \U0001f7e5 é"})
    sys.stdout.flush()
    line, *rest = printed.getvalue().decode("latin-1").splitlines()
    assert line == "a \\U0001f7e5 é"
    assert json.loads("\n".join(rest)) == {"prompt": "a \U0001f7e5 é"}


@pytest.mark.parametrize("columns", [40, 79, 80])
def test_the_help_names_every_option_at_any_width(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = invoke("evaluate", "--help").stdout
    assert not re.search("--[a-z-]*…", shown)
    assert {"--guidance-2", "--attention-backend", "--no-keep-clips"} <= set(
        re.findall(r"--[\w-]+", shown)
    )


def test_a_narrow_terminal_shows_every_number_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = invoke("plan").stdout
    assert "…" not in shown and "25 of 50" in shown and "PSNR, mean" in shown


def test_a_record_in_a_narrow_terminal_has_long_cells_below_their_headings() -> None:
    console = Console(width=24, file=io.StringIO(), force_terminal=True, no_color=True)
    table = Table("name", "value", "a longer heading")
    table.add_row("first", "1.5 dB", "one\ntwo")
    table.add_row("second", "2.5 dB", "a line that does not fit")
    text._print_records(console, table)
    lines = re.sub("\x1b\\[[0-9;]*m", "", console.file.getvalue()).splitlines()
    beside = "  value             1.5 dB"
    assert len(beside) > 24  # so it stands below
    assert lines == [
        "first", "  value", "    1.5 dB", "  a longer heading", "    one", "    two",
        "second", "  value", "    2.5 dB", "  a longer heading", "    a line that does not fit",
    ]  # fmt: skip


def test_closed_streams_lose_what_is_printed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(dit_accel.cli.app, "app", lambda prog_name: print_json({"prompt": "é"}))
    dit_accel.cli.main()
    assert sys.stdout.name == sys.stderr.name == os.devnull


def test_a_help_that_cannot_be_written_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(prog_name: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dit_accel.cli.app, "app", full)
    with pytest.raises(SystemExit, match="1"):
        dit_accel.cli.main()
    assert capsys.readouterr().err == "error: the disk is full: No space left on device\n"


def test_ctrl_c_during_the_imports_of_the_command_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.__import__", interrupt)
    with pytest.raises(SystemExit, match="130"):
        dit_accel.cli.main()
