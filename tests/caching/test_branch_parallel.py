"""Branch parallelism: each of two ranks computes one branch, and the clip is the same."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from rank_runs import STEPS, divide, has_context_parallelism, latents, on_ranks
from small_denoisers import trial
from tiny import tiny_wan

from dit_accel import EDCW, AccelConfig, accelerate
from dit_accel.config import QualityConfig, ThresholdConfig, UncachedConfig
from dit_accel.evaluation import speed


def run(pipe, calls=1, **given):
    """The last clip, and how many forwards of the transformer this rank computed for it."""
    counted = []
    blocks = [module.blocks[0] for module in (pipe.transformer, pipe.transformer_2) if module]
    hooks = [one.register_forward_hook(lambda *_: counted.append(1)) for one in blocks]
    with accelerate(pipe, **given) as handle:
        for _ in range(calls):
            counted.clear()
            clip = latents(pipe)
        notes = handle.report().notes
    for hook in hooks:
        hook.remove()
    return clip, len(counted), notes


def test_worked_example():
    """Eight steps of two branches: one process computes 16 forwards.

    Each of two ranks computes both of the first step, as the second branch's text is not known
    before, and one of each other step: 2 + 7 = 9. The next clip has the same negative prompt: 8.
    """

    def work(rank):
        pipe = tiny_wan()
        expected = latents(pipe)
        clip, forwards, notes = run(pipe, branch_parallel=True)
        next_clip, next_forwards, _ = run(pipe, calls=2, branch_parallel=True)
        equal = torch.equal(clip, expected) and torch.equal(next_clip, expected)
        return equal, forwards, next_forwards, notes

    for equal, forwards, next_forwards, notes in on_ranks(work):
        assert equal and (forwards, next_forwards) == (9, 8)
        assert any("two ranks shared 7 of 8 computed steps" in note for note in notes)


def test_the_next_clip_may_have_another_negative_prompt_or_size():
    def work(rank):
        pipe = tiny_wan()
        calls = ({}, {"negative_prompt": "a green star"}, {"num_frames": 17}, {"prompt": ["a"] * 2})
        expected = [latents(pipe, **given) for given in calls]
        with accelerate(pipe, branch_parallel=True):
            clips = [latents(pipe, **given) for given in calls]
        return [torch.equal(a, b) for a, b in zip(clips, expected, strict=True)]

    assert on_ranks(work) == [[True] * 4] * 2


@pytest.mark.composes("plan", "branch parallel")
@pytest.mark.composes("static plan", "branch parallel")
@pytest.mark.composes("packed plan", "branch parallel")
@pytest.mark.parametrize(
    "given",
    [{"speedup": 2.0}, {"speedup": 2.0, "static": True}, {"speedup": 2.0, "cache_memory": 3000}],
)
def test_a_plan_is_that_of_one_process(given):
    def work(rank):
        pipe = tiny_wan()
        expected, forwards, _ = run(pipe, calls=2, **given)
        clip, here, _ = run(pipe, calls=2, branch_parallel=True, **given)
        return torch.equal(clip, expected), forwards, here

    for equal, forwards, here in on_ranks(work):
        assert equal
        assert (forwards, here) == (STEPS, STEPS // 2)


def test_both_experts_share_their_branches():
    """The text that one expert got is foreseen for the other one."""

    def work(rank):
        pipe = tiny_wan(transformer_2=True)
        expected = latents(pipe)
        clip, forwards, _ = run(pipe, branch_parallel=True)
        return torch.equal(clip, expected), forwards

    assert on_ranks(work) == [(True, 9)] * 2


def test_a_text_that_comes_otherwise_than_foreseen_is_computed():
    def other_text(pipe, step, timestep, tensors):
        if step != 3:
            return {}
        return {"negative_prompt_embeds": 0.5 * tensors["negative_prompt_embeds"]}

    names = ["negative_prompt_embeds"]
    change = {
        "callback_on_step_end": other_text, "callback_on_step_end_tensor_inputs": names,
    }  # fmt: skip

    def work(rank):
        pipe = tiny_wan()
        expected = latents(pipe, **change)
        with accelerate(pipe, branch_parallel=True) as handle:
            clip = latents(pipe, **change)
            notes = handle.report().notes
        return torch.equal(clip, expected), torch.equal(clip, latents(pipe)), notes

    for equal, unchanged, notes in on_ranks(work):
        assert equal and not unchanged
        assert any("shared 6 of 8" in note for note in notes)


def test_without_guidance_there_is_nothing_to_share():
    def work(rank):
        pipe = tiny_wan()
        expected = latents(pipe, guidance_scale=1.0)
        with accelerate(pipe, branch_parallel=True) as handle:
            clip = latents(pipe, guidance_scale=1.0)
            notes = handle.report().notes
        return torch.equal(clip, expected), notes

    for equal, notes in on_ranks(work):
        assert equal
        assert any("shared 0 of 8" in note for note in notes)


@has_context_parallelism
def test_branches_and_tokens_can_both_be_divided():
    """Four ranks: two for each branch, and each branch's tokens in two halves."""

    def work(rank):
        mesh = dist.init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("branch", "ring", "ulysses"))
        pipe = tiny_wan()
        expected, *_ = run(pipe, calls=2, speedup=2.0)
        divide(pipe.transformer, ulysses_degree=2, mesh=mesh)
        group = mesh["branch"].get_group()
        clip, forwards, _ = run(pipe, calls=2, speedup=2.0, branch_parallel=group)
        return torch.equal(clip, expected), forwards

    assert on_ranks(work, 4) == [(True, STEPS // 2)] * 4


def test_removal_leaves_nothing():
    def work(rank):
        pipe = tiny_wan()
        expected = latents(pipe)
        before = sorted(vars(pipe.transformer))
        run(pipe, branch_parallel=True)
        return torch.equal(latents(pipe), expected) and sorted(vars(pipe.transformer)) == before

    assert on_ranks(work) == [True, True]


@has_context_parallelism
def test_ranks_that_divide_a_forward_are_refused():
    def work(rank):
        pipe = tiny_wan()
        divide(pipe.transformer, ulysses_degree=2)
        with pytest.raises(ValueError, match="two ranks of one context-parallel group; accepted"):
            accelerate(pipe, branch_parallel=True)

    on_ranks(work)


def test_a_cache_of_diffusers_is_refused():
    from diffusers import FirstBlockCacheConfig

    def work(rank):
        pipe = tiny_wan()
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        with pytest.raises(ValueError, match="cache of diffusers"):
            accelerate(pipe, branch_parallel=True)

    on_ranks(work)


def test_a_group_of_another_size_is_refused():
    def work(rank):
        with pytest.raises(ValueError, match="a process group of two ranks"):
            accelerate(tiny_wan(), branch_parallel=True)

    on_ranks(work, 3)


def test_one_process_alone_is_refused():
    with pytest.raises(ValueError, match=r"True, but .* no process group; accepted: a process"):
        accelerate(tiny_wan(), branch_parallel=True)


def test_branches_in_one_forward_are_refused():
    with pytest.raises(ValueError, match=r"all branches in one forward; accepted: wan"):
        accelerate(speed.build(trial("cogvideox-5b")), branch_parallel=True)


@pytest.mark.composes("UniCP", "branch parallel", refused="a plan")
@pytest.mark.composes("scene", "branch parallel", refused="one process a clip")
@pytest.mark.composes("windows at attention", "branch parallel", refused="a plan")
@pytest.mark.composes("windows at block", "branch parallel", refused="a plan")
@pytest.mark.composes("windows at model", "branch parallel", refused="a plan")
@pytest.mark.parametrize(
    "given",
    [{"threshold": 0.0}, {"accel": "unicp-paper"}, {"config": EDCW()}, {"layout": "a.yaml"}],
)
def test_what_caches_inside_of_a_branch_is_refused(given):
    with pytest.raises(
        ValueError, match=r"branch_parallel is given with .*; accepted: with quality"
    ):
        accelerate(tiny_wan(), branch_parallel=True, **given)


def test_the_setting_is_part_of_a_config():
    config = QualityConfig(32.0, branch_parallel=True)
    assert AccelConfig.from_dict(config.to_dict()) == config
    assert not UncachedConfig().branch_parallel
    with pytest.raises(ValueError, match="branch_parallel is 'yes'"):
        UncachedConfig(branch_parallel="yes")
    with pytest.raises(ValueError, match="ThresholdConfig"):
        ThresholdConfig(branch_parallel=True)
