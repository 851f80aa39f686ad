"""Print the METHODS table for docs/evaluate.md, or write it there.

python scripts/methods_table.py --write
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dit_accel.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "evaluate.md"
MARKS = re.compile(r"(<!-- methods -->\n)(.*?)(<!-- /methods -->)", re.DOTALL)


def table() -> str:
    """One line a method: its number with the sweep, and one phrase."""
    lines = []
    for row in METHODS.values():
        sweep = ", ".join(f"{number:g}" for number in row.sweep)
        number = f"{row.number} ({sweep})" if row.number else "–"
        lines.append(f"| `{row.name}` | {number} | {row.summary} |\n")
    return "".join(lines)


def in_page() -> str:
    """The table as the page has it."""
    found = MARKS.search(PAGE.read_text(encoding="utf-8"))
    return found[2] if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(MARKS.sub(lambda m: m[1] + table() + m[3], text), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
