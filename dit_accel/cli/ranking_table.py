"""The option `--ranking` of `evaluate`: its check before the work, and its table.

In: the options, the evaluation and the rows of the ranking. Out: an error, or a table for a
terminal and one in Markdown.
Knows how numbers are shown; `evaluation/ranking/` computes them. Ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

from dit_accel.cli.common.errors import BadInput
from dit_accel.cli.common.tables import SHOWN

if TYPE_CHECKING:
    from dit_accel.evaluation.jobs import EvaluationSpec
    from dit_accel.evaluation.ranking.table import RankingRow

FEWEST_SEEDS = 3
RANKING_HEADS = ("method", "choice", "Spearman", "first", "chance", "gain")
RANKING_NOTE = (
    "Choice: what the seeds are ranked by; a metric means the closeness to a wanted clip. "
    "First: how often both rankings have the same best seed, and how often by chance. Gain: how "
    "far the chosen seed lies above the mean seed, as a share of the best seed's lead. By chance, "
    "Spearman and gain are 0."
)


def check_ranking(spec: EvaluationSpec) -> None:
    """Refuse an evaluation that could not be ranked, before any clip is made.

    Raises:
        BadInput: there are fewer than three seeds, or clips are not stored.
    """
    if len(spec.seeds) < FEWEST_SEEDS:
        raise BadInput(
            f"--ranking is given, and --seeds has {len(spec.seeds)} seeds; accepted: at least "
            f"{FEWEST_SEEDS} seeds"
        )
    if not spec.keep_clips:
        raise BadInput("--ranking is given; accepted: without --no-keep-clips, as it reads clips")


def ranking_table(rows: tuple[RankingRow, ...]) -> Table:
    """The table, with one row for each method and choice."""
    table = Table(
        box=SIMPLE, title="Draft ranking of seeds", title_justify="left", caption=RANKING_NOTE,
        caption_justify="left",
    )  # fmt: skip
    table.add_column(RANKING_HEADS[0], overflow="fold")
    table.add_column(RANKING_HEADS[1], no_wrap=True)
    for name in RANKING_HEADS[2:]:
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in _shown(rows):
        if before not in (None, row.label):
            table.add_section()
        table.add_row(*_cells(row))
        before = row.label
    return table


def ranking_markdown(rows: tuple[RankingRow, ...]) -> str:
    """The same in Markdown, for below the table of methods; empty if nothing was ranked."""
    if not rows:
        return ""
    lines = ["", "| " + " | ".join(RANKING_HEADS) + " |", "|---" * len(RANKING_HEADS) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in _shown(rows)]
    return "\n".join([*lines, "", RANKING_NOTE]) + "\n"


def _shown(rows: tuple[RankingRow, ...]) -> list[RankingRow]:
    """The choices by the clip alone, and by the metrics that other tables show."""
    from dit_accel.evaluation.ranking.choices import CHOICES

    return [row for row in rows if row.choice in (*CHOICES, *SHOWN)]


def _cells(row: RankingRow) -> list[str]:
    spearman = "–" if row.spearman is None else row.spearman.text(2)
    first, gain = (None if mean is None else mean.value for mean in (row.first, row.gain))
    shares = [_percent(share) for share in (first, row.by_chance, gain)]
    return [row.label, row.choice, spearman, *shares]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
