"""Makes a profile's candidate plans of what every batch of clips gave.

In: the plans as they were carried out, batch by batch, and the texts of the clips. Out: candidate
plans, and how hard each prompt is by its text.
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
    """One plan, from what it gave on every batch; the corrections of the last know all clips.

    Args:
        expected: of it, as `CandidatePlan` has it.
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
    """Of prompts by their texts; None where a text is unknown, or there are no plans."""
    known = [text for text in texts if text is not None]
    if not candidates or len(known) < len(texts):
        return None
    psnr = torch.stack([one.psnr_db for one in candidates])
    return PromptDifficulty.fit(torch.stack(known), psnr)
