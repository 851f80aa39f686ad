"""Write the docs' tables that are tables of the code: methods, metrics, conventions, denoisers.

python scripts/docs_tables.py --write
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from dit_accel.denoisers import DENOISERS
from dit_accel.methods import LISTED, METHODS
from dit_accel.metrics import METRICS
from dit_accel.metrics.conventions import CONVENTIONS

DOCS = Path(__file__).parents[1] / "docs"


def methods() -> str:
    """One line a method, research left out: its number with the sweep, and one phrase."""
    lines = []
    for row in (METHODS[name] for name in LISTED):
        sweep = ", ".join(f"{number:g}" for number in row.sweep)
        number = f"{row.number} ({sweep})" if row.number else "–"
        lines.append(f"| `{row.name}` | {number} | {row.summary} |\n")
    return "".join(lines)


def metrics() -> str:
    """One line a metric: what it is, in which unit and range, which way is better."""
    lines = []
    for row in METRICS.values():
        low, high = (("∞" if math.isinf(end) else f"{end:g}") for end in row.range)
        unit = f"{row.unit}, " if row.unit else ""
        needs = f" Needs {row.needs}." if row.needs else ""
        lines.append(
            f"| `{row.name}` | {unit}{low} to {high} | {row.direction} | "
            f"{row.convention}.{needs} | {row.version} |\n"
        )
    return "".join(lines)


def conventions() -> str:
    """One line a tool and metric: how it departs from ours."""
    lines = []
    for tool, rows in CONVENTIONS.items():
        for name, row in rows.items():
            departs = row.convention.partition(": ")[2] or "cannot be had: see the message"
            lines.append(f"| `{tool}` | `{name}` | {departs} |\n")
    return "".join(lines)


def denoisers() -> str:
    """One line a denoiser: its checkpoint and usual clip."""
    lines = []
    for row in DENOISERS.values():
        clip = f"{row.shape}, {row.steps} steps, guidance {row.guidance:g}"
        lines.append(f"| `{row.name}` | {row.checkpoint} | {clip} | {row.small_shape} |\n")
    return "".join(lines)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "methods": ("evaluate.md", methods),
    "metrics": ("metrics.md", metrics),
    "conventions": ("metrics.md", conventions),
    "denoisers": ("bench.md", denoisers),
}


def in_page(name: str) -> str:
    """A table as its page has it."""
    found = _marks(name).search((DOCS / TABLES[name][0]).read_text(encoding="utf-8"))
    return found[2] if found else ""


def write(name: str) -> None:
    """Put a table between its page's marks."""
    page, table = DOCS / TABLES[name][0], TABLES[name][1]()
    text = page.read_text(encoding="utf-8")
    page.write_text(_marks(name).sub(lambda m: m[1] + table + m[3], text), encoding="utf-8")


def _marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        for name in TABLES:
            write(name)
    else:
        print("\n".join(table() for _, table in TABLES.values()))


if __name__ == "__main__":
    main()
