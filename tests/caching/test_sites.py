"""Cache sites inside a model: what is stored, when it is reused, and how the drift is measured."""

from __future__ import annotations

import pytest
import tiny
import torch

from dit_accel import EDCW, accelerate


def test_worked_example():
    """A tiny pipeline whose first block adds one number, and whose other blocks add nothing."""
    adds = [8.0, 10.0, 0.0, 20.0, 20.0, 16.0]  # by step; the 0 of step 2 must never be used
    pipe, stack, outputs = tiny.tiny_wan(), [], []
    blocks = pipe.transformer.blocks
    blocks[0].forward = lambda hidden, *_, **__: hidden + adds[len(outputs)]
    blocks[1].forward = blocks[2].forward = lambda hidden, *_, **__: hidden
    pipe.transformer.patch_embedding.register_forward_hook(
        lambda _, __, patches: stack.append(patches.flatten(2).transpose(1, 2))
    )
    pipe.transformer.norm_out.register_forward_pre_hook(lambda _, rows: outputs.append(rows[0]))
    config = EDCW(threshold=0.25, first=1, last=1, growth="step")
    with accelerate(pipe, site="model", config=config) as handle:
        call = tiny.CALL | {"num_inference_steps": 6, "guidance_scale": 1.0}
        pipe(**call | {"output_type": "latent"}, generator=torch.Generator().manual_seed(0))
        (site,) = handle.report().sites
    # step 0: computed, 8 is stored.       step 1: computed; drift |8 - 10| / 10 = 0.2 < 0.25,
    # so the window grows to 2 steps.      step 2: the stored 10 is added again, no block runs.
    # step 3: computed; |10 - 20| / 20 = 0.5, so the window shrinks to 1.
    # step 4: computed; no drift.          step 5: the last; |20 - 16| / 16 = 0.25.
    assert (site.computed, site.cached) == ((0, 1, 3, 4, 5), (2,))
    assert site.drift == pytest.approx({1: 0.2, 3: 0.5, 4: 0.0, 5: 0.25}, abs=1e-6)
    added = [float((out - before).mean()) for out, before in zip(outputs, stack, strict=True)]
    assert added == pytest.approx([8.0, 10.0, 10.0, 20.0, 20.0, 16.0], abs=1e-4)
