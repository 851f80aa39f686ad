"""Shows numbers, plans and tables as text, for a terminal of any width or for a pipe.

In: numbers or a table. Out: text, or lines on a console: nothing is cut off.
Knows no report and no file. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from dit_accel.core.document import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    Row = tuple[str, str | Text]

SHADES = "·░▒▓█"
PLAIN_SHADES = ".-+x#"
STRIP_WIDTH = 50
LABEL_WIDTH = 16
WIDEST = 10_000  # columns of a table in a pipe


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints text as it is: names and messages are neither markup nor emoji codes.

    Style parts of a line with `rich.text.Text`.
    """
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def spinner(text: str) -> AbstractContextManager[object]:
    """A spinner on stderr with a text, while a block runs."""
    from rich.text import Text

    return plain_console(stderr=True).status(Text(f"{text} ..."))


def strip(shares: Sequence[float], shades: str = SHADES) -> str:
    """One sign for each step: the share of the sites that were computed, from none to all."""
    signs = [shades[_shade(share, len(shades))] for share in shares]
    lines = [signs[at : at + STRIP_WIDTH] for at in range(0, len(signs), STRIP_WIDTH)]
    return "\n".join("".join(line) for line in lines)


def shades_of(console: Console) -> str:
    """Signs that the console's encoding has."""
    return SHADES if console.encoding.lower().startswith("utf") else PLAIN_SHADES


def seconds_text(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 20 s`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def bytes_text(count: int) -> str:
    """Bytes in the unit with one to four digits before the point."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """`1 shot`, `2 shots`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_aligned(console: Console, rows: Sequence[Row]) -> None:
    """Print a label and a value on each line. Long values are not wrapped, so that paths can be
    copied."""
    from rich.text import Text

    for label, value in rows:
        text = value if isinstance(value, Text) else Text(visible(value))
        for index, line in enumerate(text.split("\n", allow_blank=True)):
            start = f"{label if index == 0 else '':<{LABEL_WIDTH}}"
            shown = Text.assemble((start, "dim"), line) if line else Text()
            console.print(shown, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table on stdout without cutting it: in a pipe at its full width, in a terminal that
    is too narrow as one record for each row."""
    console = plain_console()
    width = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    if console.is_terminal and width > console.width:
        _print_records(console, table)
    else:
        plain_console(width=max(width, console.width)).print(table)


def _print_records(console: Console, table: Table) -> None:
    """Print each row as its first cell, and the other cells with their headings."""
    if table.title:
        console.print(table.title)
    headings = [str(column.header).replace("\n", " ").strip() for column in table.columns]
    label = max(map(len, headings))
    for first, *rest in zip(*(column.cells for column in table.columns), strict=True):
        console.print(first, style="bold")
        for heading, cell in zip(headings[1:], rest, strict=True):
            _print_cell(console, f"  {heading:<{label}}", str(cell).split("\n"))
    if table.caption:
        console.print(table.caption)


def _print_cell(console: Console, heading: str, lines: list[str]) -> None:
    """Print a cell of one line beside its heading, if it fits there; else below it."""
    from rich.text import Text

    if len(lines) == 1 and len(heading) + 2 + len(lines[0]) <= console.width:
        console.print(Text.assemble((heading, "dim"), f"  {lines[0]}"))
        return
    console.print(Text(heading.rstrip(), style="dim"))
    for line in lines:
        console.print(f"    {line}", soft_wrap=True)


def _shade(share: float, count: int) -> int:
    """The sign for a share. 0 and 1 have their own signs, which no other share gets."""
    if share <= 0 or share >= 1:
        return 0 if share <= 0 else count - 1
    return 1 + min(count - 3, int(share * (count - 2)))
