"""Measures how well one scoring of a prompt's seeds predicts the choice of another.

    spearman = correlation of the two rankings, ties sharing their mean rank
    first    = whether the draft's best seed is the final's best one, too
    gain     = (final score of the draft's best - mean final score) / (best - mean final score)

In: a final and a draft score for each seed, higher being better. Out: three numbers.
Knows: a random choice gives on average 0, 1 / (number of seeds), and 0. If the draft has several
best seeds, the numbers are means over them. Source: ours; `spearman` by its definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 2


@dataclass(frozen=True)
class Agreement:
    """The agreement for one prompt's seeds. Values are None if all final scores (for `spearman`
    also: all draft scores) are equal."""

    spearman: float | None
    first: float
    gain: float | None


def agree(final: Sequence[float], draft: Sequence[float]) -> Agreement:
    """Compare two scorings of the same seeds.

    Args:
        final: finite; higher is better.
        draft: the same number of scores.

    Raises:
        ValueError: there are fewer than two seeds, or the numbers of scores differ.

    Example:
        >>> agree([1.0, 2.0, 3.0, 6.0], [1.0, 3.0, 4.0, 2.0])
        Agreement(spearman=0.4, first=0.0, gain=0.0)
    """
    if len(final) != len(draft) or len(final) < FEWEST:
        raise ValueError(
            f"final has {len(final)} scores, draft has {len(draft)}; accepted: equal numbers of "
            f"scores, {FEWEST} or more"
        )
    finals, drafts = np.asarray(final, float), np.asarray(draft, float)
    chosen = finals[drafts == drafts.max()]
    best, mean = finals.max(), finals.mean()
    return Agreement(
        spearman=_spearman(finals, drafts),
        first=float((chosen == best).mean()),
        gain=float((chosen.mean() - mean) / (best - mean)) if best > mean else None,
    )


def _spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    from scipy.stats import rankdata

    ranks = [rankdata(scores) - (len(scores) + 1) / 2 for scores in (one, other)]
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return round(float((ranks[0] * ranks[1]).sum()) / size, 12) if size else None
