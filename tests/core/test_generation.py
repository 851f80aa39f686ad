"""The arguments of a clip's call, and what a clip cost."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from pipeline_rows import ROWS

from dit_accel.core.generation import ClipSpec, Generation, call_arguments

# Pipelines that call the number of frames otherwise, or have the guidance scale in a guider.
FRAMES = {
    "HunyuanVideo15Pipeline": "num_frames",
    "HunyuanVideo15ImageToVideoPipeline": "num_frames",  # its size is that of the picture
    "LattePipeline": "video_length",
    "SanaVideoPipeline": "frames",
    "MotifVideoPipeline": "num_frames",
}


@pytest.mark.parametrize("title", FRAMES)
def test_a_call_has_only_parameters_of_the_pipeline(title: str) -> None:
    row = next(row for row in ROWS if row.title == title)
    if not row.is_there:
        pytest.skip("newer diffusers only")
    pipe = row.build()
    given = call_arguments(pipe, ClipSpec("a cat", None, 0, 10, 4.0, 32, 32, 9))
    known = inspect.signature(pipe.__call__).parameters
    assert {*given} <= {*known} and given[FRAMES[title]] == 9
    for name in ("guidance_scale", "height", "width"):
        assert (name in given) == (name in known)


@pytest.mark.parametrize("denoiser", ["denoise", "denoise, transformer"])
def test_seconds_of_something_else_are_taken_off(denoiser: str) -> None:
    stages = {"text": 1.0, denoiser: 8.0, "denoise, transformer_2": 2.0, "decode": 3.0}
    clip = Generation(np.zeros((1, 1, 1, 3)), np.zeros((1, 1, 1, 1, 1), np.float32),
                      10.0, 14.0, None, stages)  # fmt: skip
    left = clip.without(0.5, 0.25)
    assert (left.denoising_seconds, left.whole_seconds) == (9.5, 13.25)
    assert left.stages == stages | {denoiser: 7.5, "decode": 2.75}
    assert left.frames is clip.frames and clip.stages["decode"] == 3.0
