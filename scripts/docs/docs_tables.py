"""Writes the docs' tables that come from the code: methods, metrics, conventions, denoisers.

What goes together comes from `docs/composition.json`, which the tests recorded; pipelines from
`dit_accel/models/pipelines.json`, which `record_pipelines.py` recorded.

python scripts/docs/docs_tables.py --write
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from dit_accel.evaluation.methods import LISTED, METHODS
from dit_accel.metrics import METRICS
from dit_accel.metrics.conventions import CONVENTIONS
from dit_accel.models.checkpoints import DENOISERS
from dit_accel.models.pipelines import record

DOCS = Path(__file__).parents[2] / "docs"
COMPOSITION = DOCS / "composition.json"


def methods() -> str:
    """One line for each method without `research`: its number with the sweep, and one phrase."""
    lines = []
    for row in (METHODS[name] for name in LISTED):
        sweep = ", ".join(f"{number:g}" for number in row.sweep)
        number = f"{row.number} ({sweep})" if row.number else "–"
        lines.append(f"| `{row.name}` | {number} | {row.summary} |\n")
    return "".join(lines)


def metrics() -> str:
    """One line for each metric: what it is, its unit and range, which direction is better, how slow
    it is."""
    lines = []
    for row in METRICS.values():
        low, high = (f"{end:g}".replace("inf", "∞").replace("-∞", "−∞") for end in row.range)
        seconds = "–" if row.seconds is None else f"{row.seconds:g}"
        unit = f"{row.unit}, " if row.unit else ""
        needs = f" Needs {row.needs}." if row.needs else ""
        lines.append(
            f"| `{row.name}` | {unit}{low} to {high} | {row.direction} | "
            f"{row.convention}.{needs} | {seconds} | {row.version} |\n"
        )
    return "".join(lines)


def conventions() -> str:
    """One line for each tool and metric: how it differs from ours."""
    lines = []
    for tool, rows in CONVENTIONS.items():
        for name, row in rows.items():
            departs = row.convention.partition(": ")[2] or "cannot be had: see the message"
            lines.append(f"| `{tool}` | `{name}` | {departs} |\n")
    return "".join(lines)


def denoisers() -> str:
    """One line for each denoiser: its checkpoint and usual clip."""
    lines = []
    for row in DENOISERS.values():
        clip = f"{row.shape}, {row.steps} steps, guidance {row.guidance:g}"
        lines.append(f"| `{row.name}` | {row.checkpoint} | {clip} | {row.small_shape} |\n")
    return "".join(lines)


def composition() -> str:
    """One line for each companion and one column for each technique. The limits are listed
    below."""
    record = json.loads(COMPOSITION.read_text(encoding="utf-8"))
    cells: list[list[str]] = record["cells"]
    tried = {name for cell in cells for name in cell[:2]}
    techniques = [name for name in record["techniques"] if name in tried]
    companions = [name for name in record["companions"] if name in tried]
    lines = [f"| with | {' | '.join(techniques)} |\n", "|---|" + "---|" * len(techniques) + "\n"]
    for companion in companions:
        row = [[c for c in cells if c[:2] == [name, companion]] for name in techniques]
        lines.append(f"| {companion} | {' | '.join(map(_outcome, row))} |\n")
    return "".join(lines) + "\n" + "".join(_limits(cells))


def _outcome(cells: list[list[str]]) -> str:
    """The outcome of one technique with one companion. A cell is technique, companion, refused,
    limit."""
    works = [not refused for _, _, refused, _ in cells]
    limited = any(refused or limit for _, _, refused, limit in cells)
    return "–" if not cells else "no" if not any(works) else "in part" if limited else "yes"


def _limits(cells: list[list[str]]) -> list[str]:
    """One line for each limit, with all techniques that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for technique, companion, refused, limit in cells:
        text = f"refused; accepted: {refused}" if refused else limit
        if text:
            found.setdefault((companion, text), []).append(technique)
    return [f"- {one} ({', '.join(names)}): {text}.\n" for (one, text), names in found.items()]


def pipelines() -> str:
    """One line for each pipeline that was tried, from the record of the trials."""
    tried_with, tried = record()
    lines = [
        f"Tried with diffusers {tried_with}.\n\n",
        "| pipeline | transformer | row, with its sites | plans |\n|---|---|---|---|\n",
    ]
    for one in tried:
        row = f"{one.family}: {', '.join(one.sites)}" if one.family else "–"
        lines.append(f"| {one.pipeline} | `{one.transformer}` | {row} | {one.outcome} |\n")
    return "".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "metrics": metrics,
    "conventions": conventions,
    "denoisers": denoisers,
    "composition": composition,
    "pipelines": pipelines,
}
PAGES = {"composition": "quickstart.md", "pipelines": "pipelines.md"}


def in_page(name: str) -> str:
    """A table in the form of the page."""
    found = _marks(name).search(_page(name).read_text(encoding="utf-8"))
    return found[2] if found else ""


def write(name: str) -> None:
    """Put a table between its marks."""
    page = _page(name)
    text = page.read_text(encoding="utf-8")
    page.write_text(
        _marks(name).sub(lambda m: m[1] + TABLES[name]() + m[3], text), encoding="utf-8"
    )


def _page(name: str) -> Path:
    return DOCS / PAGES.get(name, "evaluation.md")


def _marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        for name in TABLES:
            write(name)
    else:
        print("\n".join(table() for table in TABLES.values()))


if __name__ == "__main__":
    main()
