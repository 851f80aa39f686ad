"""By how much a quality may be lowered for each prompt, so that enough clips still reach it.

In: a profile and a quality. Out: the largest margin with which enough clips still reach the
quality. To find it, the whole selection is tried on calibration's own clips, each with its held-out
difficulty. Without a margin, the few worst clips count against every prompt, so each choice is too
cautious.
Knows numbers; no tensors of a model.
Source: ours (docs/how-it-works.md, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_accel.planning.prediction import COVERAGE, MIN_COUNTED_CLIPS, clopper_pearson_lower
from dit_accel.planning.profile import Profile

MARGIN_STEP_DB, MAX_MARGIN_DB = 0.25, 6.0  # the margins that are tried


@dataclass(frozen=True)
class QualityMargin:
    """How much is subtracted from a quality if the plan of each clip is chosen for its own text.

    Args:
        db: what is subtracted, in dB, >= 0.
        reach: guaranteed share of clips that still reach the quality; None: there is no margin.
    """

    db: float = 0.0
    reach: float | None = None

    @classmethod
    def of(cls, profile: Profile, quality: float) -> QualityMargin:
        """The largest margin; none if the profile has few clips or does not know their difficulty.

        Args:
            profile: as calibrated, not shifted to a text.
            quality: PSNR in dB.
        """
        difficulty, candidates = profile.difficulty, profile.candidates
        number = len(difficulty.held_out) if difficulty is not None else 0
        if difficulty is None or number < MIN_COUNTED_CLIPS or not candidates:
            return cls()
        enough = next(
            (c for c in range(number + 1) if clopper_pearson_lower(c, number) >= COVERAGE),
            number + 1,
        )
        order = sorted(candidates, key=lambda candidate: len(candidate.computed))
        psnr = torch.stack([candidate.psnr_db.double() for candidate in order])  # (plans, clips)
        reaches = psnr >= quality
        at_zero = torch.stack([difficulty.shifted(row, 0.0) for row in psnr]).sort(1).values
        slopes = torch.stack([difficulty.slope(row) for row in psnr])[:, None]
        shifts = slopes * difficulty.held_out  # from score 0 to each clip's score
        found = cls()
        for place in range(int(MAX_MARGIN_DB / MARGIN_STEP_DB) + 1):
            # For each clip, find the plan that its text would get: the fastest plan with which
            # enough clips, shifted to its difficulty, reach the lowered quality.
            lowered = (quality - place * MARGIN_STEP_DB - shifts).contiguous()
            counts = number - torch.searchsorted(at_zero, lowered)  # (plans, clips)
            chosen = (counts >= enough).double().argmax(0)
            planned = (counts >= enough).any(0)  # for the other clips every step is computed
            reached = reaches.gather(0, chosen[None])[0] | ~planned
            reach = clopper_pearson_lower(int(reached.sum()), number)
            if reach < COVERAGE:
                break
            found = cls(place * MARGIN_STEP_DB, reach)
        return found
