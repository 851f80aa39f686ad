"""Makes the page's table of draft ranking, with a row for each method and a column for each choice.

In: the rows of the ranking. Out: the table for the template; it is empty if nothing was ranked.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dit_accel.evaluation.html import figures
from dit_accel.evaluation.ranking.choices import CHOICES
from dit_accel.evaluation.ranking.table import RankingRow


@dataclass(frozen=True)
class SeedTable:
    """(name, meaning, `first` by chance) of the columns; (method, cells) of the rows."""

    choices: list[tuple[str, str, float | None]]
    rows: list[tuple[str, list[RankingRow]]]


def table(rows: Sequence[RankingRow], metrics: Sequence[str]) -> SeedTable:
    """The table for the choices by the clip alone, and for those by these metrics."""
    shown = [row for row in rows if row.choice in (*CHOICES, *metrics)]
    choices = list(dict.fromkeys(row.choice for row in shown))
    labels = list(dict.fromkeys(row.label for row in shown))
    cells = {(row.label, row.choice): row for row in shown}
    return SeedTable(
        choices=[
            (*_heading(c), next(r.by_chance for r in shown if r.choice == c)) for c in choices
        ],
        rows=[(label, [cells[label, choice] for choice in choices]) for label in labels],
    )


def _heading(choice: str) -> tuple[str, str]:
    if choice in CHOICES:
        return choice, CHOICES[choice].summary
    name = figures.title(choice).split(",")[0]
    return name, "closest to a wanted clip"
