"""How hard prompts are by their text: fits whose answer is known, and the guarantees."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from profiles import candidate_of, profile_of

from dit_accel import accelerate
from dit_accel.caching.policy import PlanPolicy, Policy
from dit_accel.core.interceptor import RunInfo
from dit_accel.planning.difficulty import MIN_FITTED_CLIPS, PromptDifficulty, pooled
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import Profile
from dit_accel.planning.selection import Target, choose
from dit_accel.planning.text import encode

FAST, SLOW = (0, 2, 4, 8, 14), (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 17, 18)
CLIPS = 100


def drawn(noise: float, clips: int = CLIPS, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts, and PSNR of two plans that falls by 5 dB a unit of the first channel."""
    draw = torch.Generator().manual_seed(0)
    texts = torch.randn(clips, width, generator=draw, dtype=torch.float64)
    rest = noise * torch.randn(2, clips, generator=draw, dtype=torch.float64)
    return texts, torch.tensor([[50.0], [36.0]]) - 5 * texts[:, 0] + rest


def test_what_the_text_decides_is_found():
    """Without noise the line is exact: one unit of the first channel is one deviation harder."""
    texts, psnr = drawn(0.0)
    found = PromptDifficulty.fit(texts, psnr)
    unit = float(found.score(torch.tensor([[1.0] + [0.0] * 5])) - found.score(torch.zeros(1, 6)))
    assert unit == pytest.approx(1 / float(texts[:, 0].std()), rel=0.02)
    others = torch.eye(6)[1:]
    for row in others:
        assert abs(found.score(row[None]) - found.score(torch.zeros(1, 6))) < 0.02


def test_clips_are_predicted_without_themselves():
    """`known` of a clip is what a fit of the others says of it, at the ridge that was chosen."""
    texts, psnr = drawn(5.0)
    whole = PromptDifficulty.fit(texts, psnr)
    without = torch.arange(CLIPS) != 7
    part = PromptDifficulty.fit(texts[without], psnr[:, without])
    assert part.score(texts[7:8]) == pytest.approx(float(whole.held_out[7]), abs=0.02)
    seen = torch.corrcoef(torch.stack([whole.held_out, texts[:, 0]]))[0, 1]
    assert seen > 0.9


def test_a_text_that_decides_nothing_moves_nothing():
    """PSNR of pure noise: leaving clips out shows that nothing can be predicted."""
    texts, _ = drawn(0.0)
    psnr = 40 + 5 * torch.randn(2, CLIPS, generator=torch.Generator().manual_seed(1))
    found = PromptDifficulty.fit(texts, psnr)
    moved = found.shifted(psnr[0].double(), found.score(3 * torch.ones(1, 6))) - psnr[0]
    assert moved.abs().max() < 3


@pytest.mark.parametrize("clips", [3, MIN_FITTED_CLIPS - 1])
def test_few_clips_are_not_fitted(clips):
    assert PromptDifficulty.fit(*drawn(0.0, clips)) is None


def test_texts_that_are_all_alike_are_not_fitted():
    assert PromptDifficulty.fit(torch.ones(CLIPS, 6), drawn(1.0)[1]) is None


def test_more_channels_than_clips_are_no_matter():
    texts, psnr = drawn(1.0, clips=60, width=500)
    found = PromptDifficulty.fit(texts, psnr)
    assert found.weights.shape == (500,)
    assert found.held_out.isfinite().all()


def test_clips_are_shifted_to_the_difficulty_of_the_prompt():
    """Difficulties -1, 0, 1 and PSNR 45, 40, 35: at 2, all of them are 30."""
    known = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    line = PromptDifficulty(torch.zeros(2), torch.zeros(2), known)
    psnr = torch.tensor([45.0, 40.0, 35.0], dtype=torch.float64)
    assert line.shifted(psnr, 2.0).tolist() == pytest.approx([30.0] * 3)
    assert line.shifted(psnr.flip(0), 2.0).tolist() == [35.0, 40.0, 45.0]  # never easier so


def test_pooling_leaves_padding_out():
    text = torch.tensor([[[2.0, 4.0], [4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0]] * 3])
    assert pooled(text).tolist() == [[3.0, 2.0], [0.0, 0.0]]


def test_another_width_is_refused():
    found = PromptDifficulty.fit(*drawn(1.0))
    with pytest.raises(ValueError, match="text has 3 channels; accepted: 6"):
        found.score(torch.zeros(1, 3))


@pytest.fixture
def profile() -> Profile:
    texts, psnr = drawn(1.0)
    candidates = [candidate_of(SLOW, psnr[0].tolist()), candidate_of(FAST, psnr[1].tolist())]
    return dataclasses.replace(profile_of(candidates), difficulty=PromptDifficulty.fit(texts, psnr))


def test_a_hard_prompt_is_given_more_steps(profile):
    """FAST gives 36 dB, give or take 5 by the text: 30 dB hold for an easy prompt, not for all."""
    easy, hard = torch.zeros(1, 6), torch.zeros(1, 6)
    easy[0, 0], hard[0, 0] = -1.0, 1.5
    assert choose(profile, None, Target(32.0)).plan.computed == SLOW
    assert choose(profile, None, Target(32.0), text=easy).plan.computed == FAST
    assert choose(profile, None, Target(32.0), text=hard).plan.computed == SLOW
    assert choose(profile, None, Target(32.0), text=easy).prediction.psnr_db == pytest.approx(
        41, abs=1
    )
    assert choose(profile, None, Target(32.0), text=hard).prediction.psnr_db == pytest.approx(
        42.5, abs=1
    )


def test_of_several_prompts_the_hardest_decides(profile):
    both = torch.zeros(2, 6)
    both[0, 0], both[1, 0] = -1.0, 1.5
    assert choose(profile, None, Target(32.0), text=both).plan.computed == SLOW


def test_static_runs_do_the_same_for_every_prompt(profile):
    easy = torch.zeros(1, 6)
    easy[0, 0] = -1.0
    choice = choose(profile, None, Target(32.0), text=easy, static=True)
    assert choice.plan.computed == choose(profile, None, Target(32.0), static=True).plan.computed


def test_another_text_encoder_changes_nothing(profile):
    assert profile.for_text(torch.zeros(1, 7)) is profile
    assert profile.for_text(None) is profile


def test_it_is_stored_in_the_file(profile, tmp_path):
    profile.save(tmp_path / "p.safetensors")
    again = Profile.load(tmp_path / "p.safetensors")
    for name, value in vars(profile.difficulty).items():
        assert torch.equal(vars(again.difficulty)[name], value)
    bare = dataclasses.replace(profile, difficulty=None)
    bare.save(tmp_path / "q.safetensors")
    assert Profile.load(tmp_path / "q.safetensors").difficulty is None


class KeepingRun(PlanPolicy):
    """Keeps what is known of the run."""

    def start(self, run: RunInfo) -> Policy:
        self.run = run
        return super().start(run)


def test_a_text_is_predicted_as_the_run_will_have_it():
    """What is decided before a run, from the prompt, is what the run itself decides."""
    pipe = tiny.tiny_wan()
    policy = KeepingRun(Plan(2, {}), (1.0, -3.0))
    with accelerate(pipe, plan=policy):
        pipe(
            prompt="a red circle", num_frames=9, height=16, width=16, num_inference_steps=2,
            guidance_scale=4.0, max_sequence_length=16, output_type="latent",
        )  # fmt: skip
    assert torch.allclose(
        encode(pipe, ["a red circle"], 16).pooled, pooled(policy.run.text), atol=1e-6
    )
