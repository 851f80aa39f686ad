"""Scenes on real, tiny pipelines: neutral is identity, exact isolation, references, caches."""

import contextlib

import numpy as np
import pytest
import torch
from calls import LargestTensor, call, state_of
from diffusers import WanPipeline
from tiny import CALL, tiny_wan

from dit_accel import (
    QualityConfig,
    SpeedupConfig,
    ThresholdConfig,
    UncachedConfig,
    UniCPConfig,
    accelerate,
)
from dit_accel.core.families import family_of
from dit_accel.core.flops import FlopMeter
from dit_accel.handle import Handle
from dit_accel.scenes.isolation import SceneAttention
from dit_accel.scenes.references import ReferenceClips
from dit_accel.scenes.rows import ClipRow, ReferenceLink, SceneConfig

TWO = ["a red circle moving right", "a blue square moving left"]
UNCACHED = UncachedConfig()
SPLIT = {"height": 32, "width": 64}  # 2 x 4 tokens, 3 latent frames


def cover(grid, *spans):
    """Coverage of boxes in fractions (x0, x1) of the width, over all rows and frames."""
    edges = torch.arange(grid.width + 1) / grid.width
    shares = [
        ((edges[1:].clamp(max=b) - edges[:-1].clamp(min=a)) * grid.width).clamp(0, 1)
        for a, b in spans
    ]
    shape = (len(spans), grid.frames, grid.height, grid.width)
    return torch.stack(shares)[:, None, None].expand(shape)


def rows(*shots, readings=None):
    """Rows of shots, each a list of spans."""

    def made(grid):
        return [
            ClipRow(
                f"shot {i + 1}", cover(grid, *spans), tuple(range(len(spans))),
                (readings or {}).get(i, ()),
            )
            for i, spans in enumerate(shots)
        ]  # fmt: skip

    return made


@contextlib.contextmanager
def scene(pipe, made, how=None, shots=1, clips=None, texts=(), config=UNCACHED):
    """A handle with a scene of rows made by hand."""

    def prepared(session):
        given = clips or ReferenceClips((), (), 0, shots)
        prompts = [*texts] + [()] * (shots - len(texts))
        return SceneAttention(session, family_of(pipe), how or SceneConfig(), prompts, made, given)

    handle = Handle(pipe, config, prepared)
    try:
        yield handle
    finally:
        handle.remove()


def run(pipe, **changes):
    return call(pipe, **{"num_inference_steps": 4, **SPLIT, **changes})


# --- neutral is identity ---


@pytest.mark.parametrize("experts", [False, True], ids=["wan2.1", "wan2.2"])
@pytest.mark.parametrize("background", ["open", "closed"])
def test_one_subject_covering_all_is_bit_equal_and_removal_restores(experts, background):
    pipe = tiny_wan(transformer_2=experts)
    stock, before = run(pipe), state_of(pipe)
    processors = [b.attn2.processor for b in pipe.transformer.blocks]
    with scene(pipe, rows([(0, 1)]), SceneConfig(background=background)) as handle:
        assert np.array_equal(run(pipe), stock)
        report = handle.report()
    assert report.scene.split_calls == 0 and report.scene.extra_flops == 0
    assert report.flops_spent == report.flops_full and report.steps_computed == 4
    assert state_of(pipe) == before and "encode_prompt" not in vars(pipe)
    assert [b.attn2.processor for b in pipe.transformer.blocks] == processors
    assert np.array_equal(run(pipe), stock)


def test_two_subjects_change_the_clip_and_the_report_says_what_was_done():
    pipe = tiny_wan()
    stock = run(pipe)
    with scene(pipe, rows([(0, 0.5), (0.5, 1)]), SceneConfig(steps=(0, 1))) as handle:
        split = run(pipe)
        found = handle.report()
    assert not np.array_equal(split, stock), "the control"
    assert found.scene.tokens == {"shot 1": {"background": 0, "1": 12, "2": 12}}
    assert found.scene.split_calls == 2 * 3 * 4 * 2  # classes, layers, steps, branches
    saved = 3 * 4 * 2 * 4 * 24 * (24**2 - 2 * 12**2)  # ... of 2 heads of 12, half of the pairs
    assert found.scene.extra_flops == -saved
    assert found.flops_spent == found.flops_full - saved
    assert "Scene: 1 shots, 48 split calls" in found.summary()
    assert np.array_equal(run(pipe), stock)


def test_settings_that_put_nothing_to_work_are_bit_equal():
    pipe = tiny_wan()
    stock = run(pipe)
    both = rows([(0, 0.5), (0.5, 1)])
    for config in (
        SceneConfig(isolate=False, text=0.0),
        SceneConfig(steps=(0, 0), text_steps=(0, 0)),
    ):
        with scene(pipe, both, config, texts=[("red", "blue")]):
            assert np.array_equal(run(pipe), stock), config


# --- isolation ---


def inputs(seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 16, 3, 4, 8, generator=generator),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=generator),
    }


def forward(pipe, given):
    pipe.scheduler.set_timesteps(2)
    given = given | {"timestep": pipe.scheduler.timesteps[:1].expand(len(given["timestep"]))}
    with torch.no_grad():
        return pipe.transformer(**given, return_dict=False)[0]


def leak(background, layers=3):
    """Change of the left subject's output by a change of the right one's input, relative."""
    pipe = tiny_wan()
    del pipe.transformer.blocks[layers:]
    given, changed = inputs(), inputs()
    changed["hidden_states"][..., 6:] += 1  # the right subject's latents
    made = rows([(0, 0.25), (0.75, 1)])
    with scene(pipe, made, SceneConfig(background=background)):
        one, other = forward(pipe, given), forward(pipe, changed)
    assert not torch.equal(one[..., 6:], other[..., 6:]), "the control"
    return float((one - other)[..., :2].abs().max() / one.abs().max())


def test_one_layer_leaks_exactly_nothing():
    assert leak("open", layers=1) == 0


def test_a_closed_background_leaks_exactly_nothing_through_all_layers():
    assert leak("closed") == 0


def test_an_open_background_leaks_through_it_and_less_than_stock():
    pipe = tiny_wan()
    given, changed = inputs(), inputs()
    changed["hidden_states"][..., 6:] += 1
    one, other = forward(pipe, given), forward(pipe, changed)
    stock = float((one - other)[..., :2].abs().max() / one.abs().max())
    assert 0 < leak("open") < stock


def test_only_the_chosen_steps_are_isolated():
    pipe = tiny_wan()
    both = rows([(0, 0.5), (0.5, 1)])
    with scene(pipe, both, SceneConfig(steps=(0.5, 1))) as handle:
        run(pipe)
        assert (
            handle.report().scene.split_calls == 2 * 3 * 2 * 2
        )  # classes, layers, steps, branches


# --- several shots ---


def test_rows_do_not_touch_each_other_and_a_plain_row_stays_stock():
    pipe = tiny_wan()
    stock = run(pipe, prompt=TWO, negative_prompt=None)
    with scene(pipe, rows([(0, 1)], [(0, 0.5), (0.5, 1)]), shots=2):
        ours = run(pipe, prompt=TWO, negative_prompt=None)
    assert np.array_equal(ours[0], stock[0])
    assert not np.array_equal(ours[1], stock[1])


def same_noise(pipe, **changes):
    """Two rows of the same noise and prompt."""
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    settings = {**CALL, **SPLIT, "prompt": TWO[:1] * 2, "negative_prompt": None, **changes}
    return pipe(generator=generators, **settings).frames


def test_a_clip_that_reads_all_of_itself_does_not_change():
    """Every key is there twice, so that each weight is halved and doubled: to rounding."""
    pipe = tiny_wan()
    stock = same_noise(pipe)
    made = rows([(0, 1)], [(0, 1)], readings={1: (ReferenceLink(0, 0, 0),)})
    for reposition in (True, False):
        with scene(pipe, made, SceneConfig(reposition=reposition), shots=2) as handle:
            ours = same_noise(pipe)
            found = handle.report().scene
            assert found.reference_tokens == {"shot 2": 24}
            assert found.reference_bytes == 2 * 24 * 24 * 4  # keys and values of 2 heads of 12
        assert np.array_equal(ours[0], stock[0]), "what is read from is stock"
        np.testing.assert_allclose(ours[1], stock[1], atol=2e-5)


def two_shots(first, second, config, pipe=None):
    pipe = pipe or tiny_wan()
    made = rows([first], [second], readings={1: (ReferenceLink(0, 0, 0),)})
    with scene(pipe, made, config, shots=2):
        return run(pipe, prompt=TWO, negative_prompt=None)


def test_equal_boxes_make_reposition_the_identity_bit_by_bit():
    box = (0.1, 0.6)
    moved = two_shots(box, box, SceneConfig())
    assert np.array_equal(moved, two_shots(box, box, SceneConfig(reposition=False)))
    unread = two_shots(box, box, SceneConfig(share=False))
    assert not np.array_equal(moved, unread), "the control: it reads"
    assert np.array_equal(moved[0], unread[0]), "what is read from is stock"


def test_reposition_and_share_each_have_an_effect():
    boxes = (0, 0.5), (0.5, 1)
    settings = {
        "moved": SceneConfig(),
        "native": SceneConfig(reposition=False),
        "half": SceneConfig(alpha=0.5),
        "unread": SceneConfig(share=False),
        "late": SceneConfig(share_steps=(0.5, 1)),
        "deep": SceneConfig(share_layers=(0.5, 1)),
        "as the source": SceneConfig(amplify=False),
    }
    found = {name: two_shots(*boxes, config) for name, config in settings.items()}
    names = sorted(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not np.array_equal(found[one][1], found[other][1]), (one, other)
    assert np.array_equal(found["moved"], two_shots(*boxes, SceneConfig(alpha=1.0)))
    zero = two_shots(*boxes, SceneConfig(alpha=0.0))
    assert np.array_equal(found["native"], zero), "no strength is no reposition"


class Moving:
    """Rows whose second shot's subject moves while the first one's stands."""

    def __call__(self, grid):
        still = cover(grid, (0, 0.5)).clone()
        moving = still.clone()
        moving[:, -1] = moving[:, -1].roll(1, -1)
        reading = (ReferenceLink(0, 0, 0),)
        return [ClipRow("shot 1", still, (0,)), ClipRow("shot 2", moving, (0,), reading)]


def test_a_moving_box_is_read_on_the_query_side():
    pipe = tiny_wan()
    outcomes = []
    for reposition in (True, False):
        config = SceneConfig(reposition=reposition)
        with scene(pipe, Moving(), config, shots=2) as handle:
            outcomes.append(run(pipe, prompt=TWO, negative_prompt=None))
            notes = handle.report().scene.notes
            assert (notes == ("References are repositioned on the query side.",)) == reposition
    assert not np.array_equal(*outcomes)


def test_both_sides_agree_in_a_run_where_boxes_are_shifted(monkeypatch):
    key_side = two_shots((0, 0.5), (0.5, 1), SceneConfig())
    monkeypatch.setattr("dit_accel.scenes.reposition.BoxMap.static", False)
    query_side = two_shots((0, 0.5), (0.5, 1), SceneConfig())
    np.testing.assert_allclose(key_side, query_side, atol=2e-5)


@pytest.mark.parametrize("made", [rows([(0, 0.5), (0.5, 1)]), Moving()], ids=["key", "query"])
def test_nothing_of_n_by_n_is_made_in_a_forward(made, monkeypatch):
    monkeypatch.setattr("dit_accel.attention.lse_merge.MAX_LOGITS", 2**14)
    pipe = tiny_wan()
    batch = 2 if isinstance(made, Moving) else 1
    given = inputs(batch=batch)
    given["hidden_states"] = given["hidden_states"].repeat(1, 1, 1, 4, 2)
    with scene(pipe, made, SceneConfig(), shots=batch), LargestTensor() as sizes:
        forward(pipe, given)
    assert sizes.largest < (3 * 8 * 8) ** 2


def test_the_reported_flops_are_those_that_were_spent():
    pipe = tiny_wan()
    prompts = {"prompt": TWO, "negative_prompt": None, "output_type": "latent"}
    with FlopMeter() as stock:
        run(pipe, **prompts)
    made = rows([(0, 0.5), (0.5, 1)], [(0.5, 1)], readings={1: (ReferenceLink(0, 0, 0),)})
    with scene(pipe, made, SceneConfig(), shots=2) as handle:
        with FlopMeter() as ours:
            run(pipe, **prompts)
        found = handle.report()
    assert ours.flops - stock.flops == found.scene.extra_flops
    assert found.flops_spent - found.flops_full == found.scene.extra_flops


# --- texts ---


def test_a_subjects_own_text_that_is_the_scenes_changes_nothing_but_rounding():
    pipe = tiny_wan()
    stock = run(pipe)
    same = [(CALL["prompt"],)]
    with scene(pipe, rows([(0, 0.5)]), SceneConfig(isolate=False), texts=same):
        ours = run(pipe)
    np.testing.assert_allclose(ours, stock, atol=2e-5)


@pytest.mark.parametrize("experts", [False, True], ids=["wan2.1", "wan2.2"])
def test_a_subjects_own_text_reaches_its_tokens_in_the_conditional_branch_only(experts):
    pipe = tiny_wan(transformer_2=experts)
    stock = run(pipe)
    settings = {"texts": [("a green triangle",)]}
    seen = {}
    with scene(
        pipe, rows([(0, 0.5)]), SceneConfig(isolate=False, steps=(0, 1)), **settings
    ) as handle:
        ours = run(pipe)
        assert handle.report().scene.extra_flops > 0
        scene_ = handle._scene
        for branch in ("cond", "uncond"):
            handle._session.branch = branch
            seen[branch] = scene_.subject_texts("transformer")
    assert not np.array_equal(ours, stock)
    assert len(seen["cond"]) == 1 and not seen["uncond"]
    ((row, tokens, text, weight),) = seen["cond"]
    assert (row, len(tokens), weight) == (0, 12, 0.9) and text.shape[-1] == 24


def test_amplified_references_are_read_in_the_conditional_branch_only():
    pipe = tiny_wan()
    made = rows([(0, 0.5)], [(0.5, 1)], readings={1: (ReferenceLink(0, 0, 0),)})
    calls = {}
    for amplify in (False, True):
        with scene(pipe, made, SceneConfig(isolate=False, amplify=amplify), shots=2) as handle:
            run(pipe, prompt=TWO, negative_prompt=None)
            calls[amplify] = handle.report().scene.split_calls
    assert calls[False] == 2 * calls[True] == 3 * 3 * 2 * 2  # of 3 layers, 2 of 4 steps, 2 branches


# --- references that are files ---


def with_file(pipe, config=None, frames=5):
    generator = torch.Generator().manual_seed(5)
    clip = torch.rand(frames, 20, 40, 3, generator=generator)

    def made(grid):
        file = ClipRow("file", cover(grid, (0, 0.5)), (0,))
        return [ClipRow("shot 1", cover(grid, (0.5, 1)), (0,), (ReferenceLink(0, 1, 0),)), file]

    return scene(
        pipe, made, config or SceneConfig(), clips=ReferenceClips([clip], ["a red circle"], 0, 1)
    )


@pytest.mark.parametrize("frames", [1, 5, 40])
def test_a_file_is_a_further_row_that_the_user_never_sees(frames):
    pipe = tiny_wan()
    stock, before = run(pipe), state_of(pipe)
    with with_file(pipe, frames=frames) as handle:
        ours = run(pipe)
        found = handle.report()
    assert ours.shape == stock.shape and not np.array_equal(ours, stock)
    assert found.scene.reference_rows == 1 and found.scene.table_bytes > 0
    assert found.flops_spent > 1.9 * found.flops_full
    assert state_of(pipe) == before and "prepare_latents" not in vars(pipe)
    with with_file(pipe, SceneConfig(share=False)):
        np.testing.assert_allclose(run(pipe), stock, atol=2e-5)
    assert np.array_equal(run(pipe), stock)


def test_a_file_needs_flow_matching():
    from diffusers import DDIMScheduler

    pipe = tiny_wan()
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="scheduler is DDIMScheduler; accepted"), with_file(pipe):
        pass
    assert "forward" not in vars(pipe.transformer), "nothing is left"


# --- with the caches ---


@pytest.mark.parametrize("site", ["attention", "block", "model"])
def test_threshold_zero_is_bit_equal_to_the_scene_alone(site):
    pipe = tiny_wan()
    made = rows([(0, 0.5), (0.5, 1)])
    with scene(pipe, made):
        alone = run(pipe)
    with scene(pipe, made, config=ThresholdConfig(0.0, site=site)):
        assert np.array_equal(run(pipe), alone)


@pytest.mark.parametrize("site", ["attention", "block", "model"])
def test_windows_cache_scenes_and_a_change_of_active_parts_forces_a_compute(site):
    pipe = tiny_wan()
    made = rows([(0, 0.5), (0.5, 1)])
    loose = ThresholdConfig(1e9, first=1, last=0, site=site)
    computed = {}
    for steps in ((0.0, 1.0), (0.0, 0.5)):
        with scene(pipe, made, SceneConfig(steps=steps), config=loose) as handle:
            run(pipe, num_inference_steps=12)
            computed[steps] = handle.report().sites[0].computed
    assert 6 not in computed[0.0, 1.0] and 6 in computed[0.0, 0.5]
    assert len(computed[0.0, 1.0]) < 12


def test_what_a_scene_does_not_have_forces_no_compute():
    """Isolation ends at step 5 of 12, reading at 6, texts at 9: of one subject the first cuts
    nothing, and the others are only where there are any."""
    pipe = tiny_wan()
    spans = SceneConfig(steps=(0, 0.4), share_steps=(0, 0.5), text_steps=(0, 0.75))
    loose = ThresholdConfig(1e9, first=1, last=0, site="model")
    found = {}
    made = {
        "one": rows([(0, 0.5)], [(0.5, 1)]),
        "reads": rows([(0, 0.5)], [(0.5, 1)], readings={1: (ReferenceLink(0, 0, 0),)}),
    }
    for name, scenes in made.items():
        with scene(pipe, scenes, spans, shots=2, config=loose) as handle:
            run(pipe, prompt=TWO, negative_prompt=None, num_inference_steps=12)
            found[name] = handle.report().sites[0].computed
    assert 6 in found["reads"]
    assert {5, 6, 9}.isdisjoint(found["one"])


def test_one_decision_covers_writing_and_reading():
    """Rows are cached together: a step at which the reference is not made, nothing reads it."""
    pipe = tiny_wan()
    made = rows([(0, 0.5)], [(0.5, 1)], readings={1: (ReferenceLink(0, 0, 0),)})
    loose = ThresholdConfig(1e9, first=1, last=0, site="attention")
    everywhere = SceneConfig(amplify=False, share_steps=(0, 1))
    with scene(pipe, made, everywhere, shots=2, config=loose) as handle:
        run(pipe, prompt=TWO, negative_prompt=None, num_inference_steps=8)
        found = handle.report()
    computed = sum(len(site.computed) for site in found.sites)
    assert computed < 8 * 6
    # shot 1 is one call; shot 2 two: its subject reads, its background does not
    assert found.scene.split_calls == 3 * computed


@pytest.mark.usefixtures("without_prior")
@pytest.mark.parametrize("config", [QualityConfig(30.0), SpeedupConfig(1.5)], ids=str)
def test_plans_extrapolate_the_scene(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe = tiny_wan()
    made = rows([(0, 0.5), (0.5, 1)])
    with scene(pipe, made):
        alone = run(pipe, num_inference_steps=12)
    with scene(pipe, made, config=config) as handle:
        assert np.array_equal(run(pipe, num_inference_steps=12), alone), "recorded, computed whole"
        run(pipe, num_inference_steps=12)
        assert handle.report().scene.tokens["shot 1"]["2"] == 12


def test_pruned_attention_is_refused_by_name():
    pipe = tiny_wan()
    before = state_of(pipe)
    made = rows([(0, 0.5), (0.5, 1)])
    with (
        pytest.raises(ValueError, match="pcas=None"),
        scene(pipe, made, config=UniCPConfig()),
    ):
        pass
    assert state_of(pipe) == before
    with scene(pipe, made, config=UniCPConfig(pcas=None, shift=None)) as handle:
        run(pipe)
        assert handle.report().scene.split_calls


# --- robustness ---


def test_another_number_of_prompts_is_refused_before_any_work():
    pipe = tiny_wan()
    with scene(pipe, rows([(0, 1)], [(0, 1)]), shots=2) as handle:
        encoder, pipe.text_encoder = pipe.text_encoder, None  # whoever encodes fails
        with pytest.raises(ValueError, match="call is for 1 clips; accepted: 2, one for each"):
            run(pipe)
        with pytest.raises(ValueError, match="call is for 4 clips"):
            run(pipe, prompt=TWO, num_videos_per_prompt=2)
        pipe.text_encoder = encoder
        assert handle._session.step < 0


def test_an_exception_in_mid_run_leaves_a_pipeline_that_runs_right():
    pipe = tiny_wan()
    made = rows([(0, 0.5), (0.5, 1)])
    with scene(pipe, made):
        right = run(pipe)

        def fail(pipe, step, timestep, tensors):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(pipe, callback_on_step_end=fail)
        broken = pipe.transformer.blocks[1].ffn.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(pipe)
        broken.remove()
        assert np.array_equal(run(pipe), right)


def test_installing_twice_raises_and_changes_nothing():
    pipe = tiny_wan()
    made = rows([(0, 0.5), (0.5, 1)])
    with scene(pipe, made):
        right, before = run(pipe), state_of(pipe)
        with pytest.raises(RuntimeError, match="accelerated already"), scene(pipe, made):
            pass
        with pytest.raises(RuntimeError, match="accelerated already"):
            accelerate(pipe)
        assert state_of(pipe) == before and np.array_equal(run(pipe), right)


def test_context_parallelism_and_other_rotary_tables_are_refused():
    pipe = tiny_wan()
    pipe.transformer.blocks[1].attn1.processor._parallel_config = object()
    made = rows([(0, 1)])
    with pytest.raises(ValueError, match="context parallelism is on"), scene(pipe, made):
        pass
    pipe = tiny_wan()
    with scene(pipe, made):
        pipe.transformer.blocks[2].attn1.processor._parallel_config = object()  # set afterwards
        with pytest.raises(ValueError, match="context parallelism is on"):
            run(pipe)
        pipe.transformer.blocks[2].attn1.processor._parallel_config = None
    pipe = tiny_wan()
    pipe.transformer.rope.freqs_cos += 0.1
    with pytest.raises(ValueError, match="other rotary angles"), scene(pipe, made):
        pass


def test_two_pipelines_with_scenes_do_not_touch_each_other():
    one, other = tiny_wan(), tiny_wan(seed=1)
    stock = run(other)
    made = rows([(0, 0.5), (0.5, 1)])
    with scene(one, made):
        right = run(one)
        assert np.array_equal(run(other), stock)
        with scene(other, rows([(0, 0.25), (0.25, 1)])):
            run(other)
            assert np.array_equal(run(one), right)


def test_group_offload_changes_nothing():
    from calls import offload

    made = rows([(0, 0.5)], [(0.5, 1)], readings={1: (ReferenceLink(0, 0, 0),)})
    clips = []
    for offloaded in (False, True):
        pipe = tiny_wan()
        if offloaded:
            offload(pipe)
        with scene(pipe, made, shots=2, texts=[("red",), ("blue",)]):
            clips.append(run(pipe, prompt=TWO, negative_prompt=None))
    assert np.array_equal(*clips)


def test_half_precision_and_a_compiled_transformer_run():
    pipe = tiny_wan()
    made = rows([(0, 0.5)], [(0.5, 1)], readings={1: (ReferenceLink(0, 0, 0),)})
    with scene(pipe, made, shots=2, texts=[("red",)]):
        right = run(pipe, prompt=TWO, negative_prompt=None)
    pipe.transformer.compile(backend="eager")
    with scene(pipe, made, shots=2, texts=[("red",)]):
        np.testing.assert_allclose(run(pipe, prompt=TWO, negative_prompt=None), right, atol=2e-5)
    half = tiny_wan()
    half.transformer.to(torch.bfloat16)
    with scene(half, made, shots=2):
        assert np.isfinite(run(half, prompt=TWO, negative_prompt=None)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"background": "ajar"}, "background is 'ajar'; accepted: open, closed"),
        ({"alpha": 1.1}, "alpha is 1.1; accepted: from 0 to 1"),
        ({"text": float("nan")}, "text is nan"),
        ({"steps": (0.5, 0.2)}, r"steps is \(0.5, 0.2\); accepted: two fractions"),
        ({"share_layers": (0,)}, "share_layers is"),
        ({"least": 0}, "least is 0; accepted: above 0, up to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"isolate": 1}, "isolate is 1; accepted: True, False"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SceneConfig(**settings)


@pytest.mark.composes("scene", "shared parts")
def test_a_pipeline_that_shares_the_transformer_has_no_scene():
    pipe = tiny_wan()
    sibling = WanPipeline(**pipe.components)
    sibling.set_progress_bar_config(disable=True)
    stock = run(sibling)
    with scene(pipe, rows([(0, 0.5)]), texts=[("a green triangle",)]):
        ours = run(pipe)
        assert np.array_equal(run(sibling), stock) and not np.array_equal(ours, stock)
        assert np.array_equal(run(pipe), ours)
