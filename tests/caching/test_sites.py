"""Cache sites inside a model: what is stored, when it is reused, and how the drift is measured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch

from dit_accel import EDCW, accelerate
from dit_accel.caching.sites import SiteCache
from dit_accel.core.families import FAMILIES


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


class Doubles:
    """Sites of a family without a model, at steps that the test sets."""

    def __init__(self, name, site, threshold=0.25):
        family = next(row for row in FAMILIES.values() if row.name == name)
        session = SimpleNamespace(
            step=-1, branch="cond", role="target", groups=(), changes_denoiser=lambda step: False
        )
        config = EDCW(threshold=threshold, first=1, last=1, growth="step")
        self.cache = SiteCache(session, family, site, config)
        self.cache.run_begins(6)
        self.session, self.site = session, self.cache._add("transformer", "blocks.0")

    def begin(self):
        self.session.step += 1
        self.cache.step_begins(self.session.step)

    def trace(self):
        self.cache.flush()
        return self.site.traces["cond"]


def rows(number):
    return torch.full((1, 2, 1), float(number))


def test_worked_example_of_two_streams():
    """LTX-2: the audio's drift decides for the video too, and both are taken from the cache."""
    video, audio = [8.0, 10.0, 0.0, 10.0], [4.0, 4.0, 0.0, 8.0]  # what the block adds, by step
    doubles, found, calls = Doubles("ltx-2", "block"), [], []

    def block(*, hidden_states, audio_hidden_states):
        calls.append(doubles.session.step)
        step = doubles.session.step
        return hidden_states + video[step], audio_hidden_states + audio[step]

    streams = doubles.cache.family.streams("transformer_blocks")
    wrapped = doubles.site.wrap_stack([torch.nn.Identity()], streams, 2)(0, block)
    for step in range(4):
        doubles.begin()
        both = wrapped(hidden_states=rows(step), audio_hidden_states=rows(100 + step))
        found.append(tuple(float(one.mean()) for one in both))
    # step 1: |8 - 10| / 10 = 0.2 of the video, 0 of the audio: 0.2 < 0.25, the window grows to 2.
    # step 2: both are cached.   step 3: 0 of the video, |4 - 8| / 8 = 0.5 of the audio.
    assert calls == [0, 1, 3]
    assert found == [(8.0, 104.0), (11.0, 105.0), (12.0, 106.0), (13.0, 111.0)]
    assert doubles.trace().drift == pytest.approx({1: 0.2, 3: 0.5})


def test_two_attentions_are_one_site():
    """The first one decides, and the second one has its own tensor."""
    doubles, ran = Doubles("ltx-2", "attention", threshold=9.0), []

    def attention(name):
        return lambda tokens: ran.append(name) or tokens + doubles.session.step

    wrap = doubles.site.wrap_attentions(2)
    video, audio = (wrap(i, attention(name)) for i, name in enumerate(("video", "audio")))
    for _ in range(3):
        doubles.begin()
        outputs = video(rows(10)), audio(rows(20))
    assert ran == ["video", "audio"] * 2, "the third step was cached"
    assert [float(one.mean()) for one in outputs] == [11.0, 21.0]
    assert doubles.trace().cached == [2]


def test_a_forward_that_was_aborted_between_two_attentions_leaves_nothing():
    doubles = Doubles("ltx-2", "attention", threshold=9.0)
    wrap = doubles.site.wrap_attentions(2)
    video, audio = wrap(0, lambda tokens: tokens), wrap(1, lambda tokens: tokens * 2)
    doubles.begin()
    video(rows(1))  # and then there was no memory for the other one
    doubles.cache.run_begins(6)
    doubles.session.step = -1
    for number in (3, 4):
        doubles.begin()
        outputs = video(rows(number)), audio(rows(number))
    assert [float(one.mean()) for one in outputs] == [4.0, 8.0]
    assert [len(one.value) for one in doubles.site.cached["target", "cond"]] == [2]


def test_a_hint_is_cached_as_it_is_and_its_control_tokens_as_a_residual():
    """Wan VACE: the block's hint is added elsewhere, so a residual would add its input twice."""
    doubles = Doubles("wan-vace", "block", threshold=9.0)
    streams = doubles.cache.family.streams("vace_blocks")

    def block(hidden, text, control_hidden_states):
        return 7 * control_hidden_states, control_hidden_states + 1

    wrapped = doubles.site.wrap_stack([torch.nn.Identity()], streams, 2)(0, block)
    for number in (1, 2, 30):
        doubles.begin()
        hint, control = wrapped(rows(0), rows(0), rows(number))
    assert (float(hint.mean()), float(control.mean())) == (14.0, 31.0)
    assert doubles.trace().cached == [2]


def test_text_that_leaves_the_whole_stack_is_not_cached():
    doubles = Doubles("cogvideox", "model", threshold=9.0)
    streams = doubles.cache.family.streams("transformer_blocks")
    wrapped = doubles.site.wrap_stack([torch.nn.Identity()], streams, 1)(
        0, lambda tokens, text: (tokens + 1, text + 5)
    )
    for number in (1, 2, 30):
        doubles.begin()
        tokens, text = wrapped(rows(number), rows(number))
    assert (float(tokens.mean()), float(text.mean())) == (31.0, 30.0)


@pytest.mark.parametrize("drifts", [[0.1, float("nan")], [float("inf"), 0.1]])
def test_a_stream_that_is_not_finite_is_the_worst(drifts):
    from dit_accel.caching.sites import _worst

    assert not torch.tensor(_worst(drifts)).isfinite()
