"""Makes a profile's candidate plans from the results of all batches of clips.

In: the plans as they were carried out, batch by batch, and the texts of the clips. Out: candidate
plans, and a predictor of each prompt's difficulty from its text.
Knows numbers; no pipeline. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dit_accel.calibration.refine import RefinedPlan
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.difficulty import PromptDifficulty


def candidate(
    batches: Sequence[RefinedPlan], expected: tuple[float, float] | None = None
) -> CandidatePlan:
    """One candidate plan, from its results on every batch.

    The corrections are those of the last batch, because they are fitted to all clips.

    Args:
        expected: as in `CandidatePlan`.
    """
    computed, corrections = batches[0].computed, batches[-1].corrections
    errors = torch.tensor(
        [row for b in batches for row in b.extrapolation_error], dtype=torch.float64
    )
    logs = errors.clamp(1e-9, 1e9).log()
    mean = logs.mean(0).nan_to_num()
    spread = logs.std(0).nan_to_num().clamp_min(1e-3) if len(logs) > 1 else torch.ones_like(mean)
    rows = torch.zeros(len(computed), max(map(len, corrections.values())), dtype=torch.float64)
    for row, step in enumerate(computed):
        if step in corrections:
            rows[row, : len(corrections[step])] = corrections[step]
    return CandidatePlan(
        computed, rows,
        torch.tensor([value for b in batches for value in b.psnr_db], dtype=torch.float64),
        torch.tensor([value for b in batches for value in b.latents_db], dtype=torch.float64),
        mean, spread, torch.zeros(len(logs), dtype=torch.float64),
        None if expected is None else torch.tensor(expected, dtype=torch.float64),
    )  # fmt: skip


def difficulty(
    texts: Sequence[torch.Tensor | None], candidates: Sequence[CandidatePlan]
) -> PromptDifficulty | None:
    """The difficulty of prompts by their texts; None if a text is unknown or there are no plans."""
    known = [text for text in texts if text is not None]
    if not candidates or len(known) < len(texts):
        return None
    psnr = torch.stack([one.psnr_db for one in candidates])
    return PromptDifficulty.fit(torch.stack(known), psnr)
