"""Rows of files: fitted in size and time, noised to the step's level, and cut off again."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from tiny import tiny_wan

from dit_accel.scenes.references import ReferenceClips, fitted


def session(time=250.0, branch="cond"):
    config = SimpleNamespace(num_train_timesteps=1000)
    return SimpleNamespace(
        time=time, branch=branch, pipe=SimpleNamespace(scheduler=SimpleNamespace(config=config))
    )


def encoded(seed=0):
    """One clip, encoded for latents of 3 x 4 x 4."""
    clips = ReferenceClips([torch.full((1, 8, 8, 3), 0.25)], ["red"], seed, 1)
    clips._encode(tiny_wan(), torch.zeros(1, 16, 3, 4, 4))
    return clips


def given(rows=2):
    return {
        "hidden_states": torch.ones(rows, 16, 3, 4, 4),
        "timestep": torch.full((rows,), 250.0),
        "encoder_hidden_states": torch.ones(rows, 5, 32),
        "return_dict": False,
    }


TEXTS = SimpleNamespace(encoded={(1, 1): torch.zeros(1, 5, 32)})


@pytest.mark.parametrize(
    ("length", "frames", "chosen"),
    [(1, 4, [0, 0, 0, 0]), (3, 5, [0, 0, 1, 2, 2]), (9, 5, [0, 2, 4, 6, 8]), (4, 1, [0])],
)
def test_a_clip_is_fitted_in_time_with_its_ends(length, frames, chosen):
    clip = torch.arange(length)[:, None, None, None].expand(length, 2, 2, 3) / 16
    found = fitted(clip, frames, [2, 2])
    assert found.shape == (3, frames, 2, 2)
    assert (found[0, :, 0, 0] * 16).tolist() == chosen


def test_a_clip_is_fitted_in_size_by_area():
    clip = torch.zeros(1, 4, 8, 3)
    clip[:, :, 4:] = 1
    small = fitted(clip, 1, [2, 2])
    assert small.shape == (3, 1, 2, 2) and float(small[0, 0, 0, 0]) < 0.2
    assert float(small[0, 0, 0, 1]) > 0.8


def test_a_row_is_noised_to_the_level_of_the_step_with_the_same_noise():
    clips = encoded()
    for time in (1000.0, 250.0, 0.0):
        _, kwargs = clips.extend((), given(), session(time), TEXTS)
        sigma = time / 1000
        row = kwargs["hidden_states"][2:]
        torch.testing.assert_close(row, (1 - sigma) * clips.clean + sigma * clips.noise)
    assert torch.equal(encoded().noise, clips.noise)
    assert not torch.equal(encoded(seed=1).noise, clips.noise)


def test_latents_are_those_of_the_pipelines_own_normalisation():
    pipe, clips = tiny_wan(), encoded()
    pixels = torch.full((1, 3, 9, 32, 32), -0.5)
    with torch.no_grad():
        raw = pipe.vae.encode(pixels).latent_dist.mode()
    mean, deviation = (
        torch.tensor(pipe.vae.config[name]).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    torch.testing.assert_close(clips.clean, (raw - mean) / deviation)


def test_own_text_in_the_conditional_branch_and_the_users_in_the_other():
    clips = encoded()
    for branch, value in (("cond", 0.0), ("uncond", 1.0)):
        _, kwargs = clips.extend((), given(), session(branch=branch), TEXTS)
        assert kwargs["encoder_hidden_states"].shape == (3, 5, 32)
        assert bool((kwargs["encoder_hidden_states"][2] == value).all())
    longer = SimpleNamespace(encoded={(1, 1): torch.zeros(1, 7, 32)})
    _, kwargs = clips.extend((), given(), session(), longer)
    assert bool((kwargs["encoder_hidden_states"][2] == 1).all()), "another length does not fit"


def test_arguments_by_position_and_timesteps_by_token_are_taken():
    clips, names = encoded(), ("hidden_states", "timestep", "encoder_hidden_states")
    kwargs = given() | {"timestep": torch.full((2, 12), 250.0)}
    args = tuple(kwargs.pop(name) for name in names)
    left, extended = clips.extend(args, kwargs, session(), TEXTS)
    assert left == () and extended["timestep"].shape == (3, 12)
    assert extended["return_dict"] is False


def test_the_output_comes_back_in_its_form():
    clips = encoded()
    sample = torch.arange(3.0)
    assert clips.cut((sample,), 2)[0].tolist() == [0, 1]
    made = clips.cut(Transformer2DModelOutput(sample=sample), 2)
    assert isinstance(made, Transformer2DModelOutput) and made.sample.tolist() == [0, 1]
    none = ReferenceClips([], [], 0, 1)
    whole = (sample,)
    assert none.cut(whole, 2) is whole


def test_a_transformer_that_is_called_by_itself_has_no_clips():
    clips = ReferenceClips([torch.zeros(1, 8, 8, 3)], ["red"], 0, 1)
    with pytest.raises(RuntimeError, match="encoded in the pipeline's own call"):
        clips.extend((), given(), session(), TEXTS)


def test_encoding_moves_no_global_generator():
    before = torch.random.get_rng_state()
    encoded()
    assert torch.equal(torch.random.get_rng_state(), before)
