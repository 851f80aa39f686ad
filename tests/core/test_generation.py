"""What a clip cost."""

from __future__ import annotations

import numpy as np
import pytest

from dit_accel.core.generation import Generation


@pytest.mark.parametrize("denoiser", ["denoise", "denoise, transformer"])
def test_seconds_of_something_else_are_taken_off(denoiser: str) -> None:
    stages = {"text": 1.0, denoiser: 8.0, "denoise, transformer_2": 2.0, "decode": 3.0}
    clip = Generation(np.zeros((1, 1, 1, 3)), np.zeros((1, 1, 1, 1, 1), np.float32),
                      10.0, 14.0, None, stages)  # fmt: skip
    left = clip.without(0.5, 0.25)
    assert (left.denoising_seconds, left.whole_seconds) == (9.5, 13.25)
    assert left.stages == stages | {denoiser: 7.5, "decode": 2.75}
    assert left.frames is clip.frames and clip.stages["decode"] == 3.0
