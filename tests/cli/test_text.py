"""What the command prints is the text itself, on a console and in a pipe of any encoding.

A worked example: by default, rich reads `[red]` as a colour and `:b:` as an emoji.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from commands import invoke
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import dit_accel.cli
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
    monkeypatch.setattr(dit_accel.cli, "app", lambda prog_name: print("a \U0001f7e5 é"))
    dit_accel.cli.main()
    print_json({"prompt": "a \U0001f7e5 é"})
    sys.stdout.flush()
    line, *rest = printed.getvalue().decode("latin-1").splitlines()
    assert line == "a \\U0001f7e5 é"
    assert json.loads("\n".join(rest)) == {"prompt": "a \U0001f7e5 é"}
