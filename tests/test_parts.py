"""Parts that pipelines share, and parts that are replaced while a pipeline is accelerated."""

from __future__ import annotations

import copy
import threading
import time
from functools import partial
from unittest import mock

import diffusers
import numpy as np
import pytest
import small_denoisers
import tiny
import torch
from calls import LOOSE, STEPS, call, state_of
from diffusers import WanPipeline, WanVideoToVideoPipeline
from profiles import profile_of
from tiny import CALL
from torch._dynamo.testing import CompileCounter

from dit_accel import UniCP, accelerate
from dit_accel.attention.pcas import PCAS
from dit_accel.core.families import SITES
from dit_accel.core.generation import call_arguments
from dit_accel.evaluation import speed
from dit_accel.layout import Keyframe, Layout, Shot, Subject
from dit_accel.models.checkpoints import DENOISERS
from dit_accel.planning.lookup import profile_key
from dit_accel.planning.parts import parts_of
from dit_accel.planning.profile_file import ProfileError
from dit_accel.planning.sampler import planned_coefficients

WAYS = {
    "plan": {"speedup": 2.0},
    "model": {"config": LOOSE},
    "block": {"config": LOOSE, "site": "block"},
    "attention": {"config": LOOSE, "site": "attention"},
    "pruned": {"config": UniCP(windows=LOOSE, pcas=PCAS(mode="slice"), shift=None)},
}
TECHNIQUES = {
    "plan": "plan", "pruned": "UniCP", **{site: f"windows at {site}" for site in SITES},
}  # fmt: skip


def ways(*companions, these=tuple(WAYS)):
    """A test of these ways, each of which then goes together with the companions."""
    marks = {
        way: [pytest.mark.composes(TECHNIQUES[way], companion) for companion in companions]
        for way in these
    }
    return pytest.mark.parametrize("way", [pytest.param(way, marks=marks[way]) for way in these])


def accelerated(pipe, way):
    """The handle, and a clip of a run that is accelerated."""
    handle = accelerate(pipe, **WAYS[way])
    if way == "plan":
        call(pipe)  # computed in full, and recorded
    return handle, call(pipe)


# --- shared: a pipeline that has the same transformer ---


@ways("shared parts")
def test_a_pipeline_of_the_same_components_stays_as_it_was(way):
    pipe = tiny.tiny_wan()
    sibling = WanPipeline(**pipe.components)
    sibling.set_progress_bar_config(disable=True)
    stock = call(pipe)
    handle, fast = accelerated(pipe, way)
    assert not np.array_equal(fast, stock)
    for _ in range(2):
        before = handle.report()
        assert np.array_equal(call(sibling), stock)
        assert np.array_equal(call(sibling, num_inference_steps=5).shape, stock.shape)
        assert handle.report() == before
        assert np.array_equal(call(pipe), fast)
    handle.remove()
    assert np.array_equal(call(sibling), stock) and np.array_equal(call(pipe), stock)


def test_a_pipeline_that_is_called_in_the_midst_of_a_run_stays_as_it_was():
    pipe = tiny.tiny_wan()
    sibling = WanPipeline(**{**pipe.components, "scheduler": type(pipe.scheduler)(shift=3.0)})
    sibling.set_progress_bar_config(disable=True)
    stock, clips = call(sibling), []
    handle, fast = accelerated(pipe, "model")

    def meanwhile(_, step, __, tensors):
        if step in (3, 4):
            clips.append(call(sibling))
        return tensors

    assert np.array_equal(call(pipe, callback_on_step_end=meanwhile), fast)
    assert len(clips) == 2 and all(np.array_equal(clip, stock) for clip in clips)
    handle.remove()


@pytest.mark.parametrize("way", ["plan", "attention"])
def test_a_pipeline_in_another_thread_stays_as_it_was_in_the_midst_of_a_forward(way):
    pipe = tiny.tiny_wan()
    sibling = WanPipeline(**{**pipe.components, "scheduler": type(pipe.scheduler)(shift=3.0)})
    sibling.set_progress_bar_config(disable=True)
    stock, clips = call(sibling), []
    handle, fast = accelerated(pipe, way)

    def meanwhile(*_):
        if threading.current_thread() is threading.main_thread() and not clips:
            thread = threading.Thread(target=lambda: clips.append(call(sibling)))
            thread.start()
            thread.join()

    hook = pipe.transformer.blocks[1].attn1.register_forward_pre_hook(meanwhile)
    assert np.array_equal(call(pipe), fast)
    hook.remove()
    handle.remove()
    assert len(clips) == 1 and np.array_equal(clips[0], stock)


def test_a_pipeline_made_by_from_pipe_stays_as_it_was():
    pipe = tiny.tiny_wan()
    other = WanVideoToVideoPipeline.from_pipe(pipe, torch_dtype=torch.float32)
    other.set_progress_bar_config(disable=True)
    video = [np.zeros((16, 16, 3), np.uint8)] * 9

    def theirs():
        return other(
            video, "a red circle", height=16, width=16, num_inference_steps=8, strength=0.8,
            generator=torch.Generator().manual_seed(0),
        ).frames  # fmt: skip

    stock = theirs()
    handle, fast = accelerated(pipe, "plan")
    assert np.array_equal(theirs(), stock)
    assert np.array_equal(call(pipe), fast)
    handle.remove()
    with accelerate(other, threshold=0.0):
        assert np.array_equal(theirs(), stock)


@pytest.mark.parametrize("way", ["plan", "block"])
def test_a_shallow_copy_stays_as_it_was(way):
    """`copy.copy` takes over what stands in place of the pipeline's methods."""
    pipe = tiny.tiny_wan()
    stock = call(pipe)
    handle, fast = accelerated(pipe, way)
    sibling = copy.copy(pipe)
    calls = handle._session.calls
    assert np.array_equal(call(sibling), stock) and handle._session.calls == calls
    assert np.array_equal(call(pipe), fast)
    handle.remove()
    assert np.array_equal(call(sibling), stock)
    handle, again = accelerated(sibling, way)
    assert np.array_equal(again, fast)
    handle.remove()
    assert np.array_equal(call(sibling), stock)


def test_a_transformer_is_accelerated_for_one_pipeline_at_a_time():
    """As a model of diffusers has one cache at a time (`enable_cache`)."""
    pipe = tiny.tiny_wan()
    sibling = WanPipeline(**pipe.components)
    handle, fast = accelerated(pipe, "block")
    before, own = state_of(pipe), sorted(vars(sibling))
    with pytest.raises(RuntimeError, match=r"call remove\(\) on the earlier handle"):
        accelerate(sibling, config=LOOSE)
    assert state_of(pipe) == before and sorted(vars(sibling)) == own
    assert np.array_equal(call(pipe), fast)
    handle.remove()
    with accelerate(sibling, config=LOOSE, site="block"):
        assert np.array_equal(call(sibling), fast)


# --- replaced ---


@ways("replaced parts")
def test_a_transformer_that_is_replaced_is_accelerated_from_the_next_call_on(way):
    pipe, other = tiny.tiny_wan(), tiny.tiny_wan()
    other.transformer = tiny.tiny_wan(seed=1).transformer
    stock, _ = call(other), call(pipe)  # the first call leaves attributes of diffusers'
    first, before = pipe.transformer, [state_of(pipe), sorted(vars(pipe))]
    handle, fast = accelerated(other, way)
    handle.remove()
    handle, _ = accelerated(pipe, way)
    pipe.transformer = other.transformer
    assert np.array_equal(call(pipe), fast)
    report = handle.report()
    assert report.steps_run == STEPS and report.steps_computed < STEPS
    handle.remove()
    assert np.array_equal(call(pipe), stock)
    pipe.transformer = first
    assert [state_of(pipe), sorted(vars(pipe))] == before


def swap(pipe, what):
    """Put parts of other weights in the transformer, or leave one out."""
    blocks, others = pipe.transformer.blocks, tiny.tiny_wan(seed=1).transformer.blocks
    if what == "block":
        blocks[1] = others[1]
    elif what == "block left out":
        del blocks[1]
    else:
        for block, other in zip(blocks, others, strict=True):
            block.attn1 = other.attn1


REPLACED = ("block", "block left out", "attention")
QUICK = (("model", "block"), ("block", "block left out"), ("attention", "attention"))


@pytest.mark.parametrize(
    ("way", "what"),
    [
        pytest.param(way, what, marks=[] if (way, what) in QUICK else [pytest.mark.slow])
        for way in WAYS for what in REPLACED
    ],
)  # fmt: skip
def test_blocks_that_are_replaced_are_accelerated_from_the_next_call_on(way, what):
    pipe, other = tiny.tiny_wan(), tiny.tiny_wan()
    swap(other, what)
    stock = call(other)
    handle, fast = accelerated(other, way)
    handle.remove()
    assert not np.array_equal(fast, stock)
    handle, _ = accelerated(pipe, way)
    before = [*pipe.transformer.blocks]
    swap(pipe, what)
    if way == "plan":
        call(pipe)  # computed in full, and recorded
    assert np.array_equal(call(pipe), fast)
    assert handle.report().steps_computed < STEPS
    handle.remove()
    assert np.array_equal(call(pipe), stock)
    own = vars(tiny.tiny_wan().transformer.blocks[1]).keys()
    assert all(vars(block).keys() == own for block in before)


@pytest.mark.parametrize("what", ["pruned", "scene"])
def test_processors_that_are_replaced_are_theirs_and_are_wrapped_from_the_next_call_on(what):
    pipe = tiny.tiny_wan()
    parts = [
        Subject(name, f"{name} circle", (Keyframe(0.0, (x, 0.0, x + 0.5, 1.0)),))
        for name, x in (("a", 0.0), ("b", 0.5))
    ]
    given = {"scene": {"layout": Layout((Shot("one", CALL["prompt"], tuple(parts)),))}} | WAYS
    sizes = {"height": 32, "width": 64}
    stock = call(pipe, **sizes)
    handle = accelerate(pipe, **given[what])
    fast = call(pipe, **sizes)
    assert not np.array_equal(fast, stock)
    attentions = [one for block in pipe.transformer.blocks for one in (block.attn1, block.attn2)]
    own = [type(tiny.tiny_wan().transformer.blocks[0].attn1.processor)() for _ in attentions]
    for attention, processor in zip(attentions, own, strict=True):
        attention.set_processor(processor)
    assert np.array_equal(call(pipe, **sizes), fast)
    handle.remove()
    assert np.array_equal(call(pipe, **sizes), stock)
    assert [attention.processor for attention in attentions] == own


def test_a_transformer_of_another_family_is_refused_in_words():
    pipe = tiny.tiny_wan()
    handle, fast = accelerated(pipe, "model")
    first = pipe.transformer
    pipe.transformer = speed.build(small_denoisers.trial("ltx-video")).transformer
    with pytest.raises(ValueError, match="has a LTXVideoTransformer3DModel now, but was acceler"):
        call(pipe)
    pipe.transformer = first
    assert np.array_equal(call(pipe), fast)
    handle.remove()


@pytest.mark.slow
@ways("assigned compile", these=("plan",))
def test_a_transformer_that_is_compiled_and_assigned_afterwards(way):
    pipe = tiny.tiny_wan()
    stock = call(pipe)
    handle, fast = accelerated(pipe, way)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert np.array_equal(call(pipe), fast)
    assert handle.report().steps_computed < STEPS
    handle.remove()
    assert np.array_equal(call(pipe), stock)


@pytest.mark.parametrize(
    ("way", "whole"),
    [
        ("plan", False), ("model", False), ("block", False),
        *(pytest.param(way, True, marks=pytest.mark.slow) for way in ("plan", "block")),
        *(pytest.param("attention", whole, marks=pytest.mark.slow) for whole in (True, False)),
        pytest.param("pruned", False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_compilation_past_our_place_is_noticed_at_the_next_call(way, whole):
    """`compile` was fetched before accelerate(), or is called on the class."""
    torch._dynamo.reset()  # else a limit of compilations is reached
    pipe = tiny.tiny_wan()
    stock = call(pipe)
    modules = [pipe.transformer] if whole else [*pipe.transformer.blocks]
    fetched = [module.compile for module in modules]
    handle, fast = accelerated(pipe, way)
    counter = CompileCounter()
    fetched[0](backend=counter)
    for module in modules[1:]:
        torch.nn.Module.compile(module, backend=counter)
    assert np.array_equal(call(pipe), fast)
    assert counter.frame_count > 0, "the control: it is compiled"
    assert handle.report().steps_computed < STEPS
    handle.remove()
    assert np.array_equal(call(pipe), stock)


FULLGRAPH = {
    "model": {"limit": "compiled blocks, not the whole"},
    "block": {"limit": "compiled blocks, not the whole"},
    "attention": {"refused": "a plan, windows at block or model, or fullgraph=False"},
}


@pytest.mark.parametrize(
    "site",
    [
        pytest.param(s, marks=pytest.mark.composes(f"windows at {s}", "fullgraph", **FULLGRAPH[s]))
        for s in SITES
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "blocks"])
def test_a_graph_that_must_not_break_is_named(site, whole):
    torch._dynamo.reset()
    pipe = tiny.tiny_wan()
    stock = call(pipe)
    how = pipe.transformer.compile if whole else pipe.transformer.compile_repeated_blocks
    with accelerate(pipe, config=LOOSE, site=site) as handle:
        how(backend="eager", fullgraph=True)
        if whole or site == "attention":
            with pytest.raises(RuntimeError, match="compiled with fullgraph=True, but decisions"):
                call(pipe)
        else:
            call(pipe)
            assert handle.report().steps_computed < STEPS
    assert np.array_equal(call(pipe), stock)


# --- changed ---


def changes():
    """What is changed after accelerate(); how it is undone, where rounding permits; the words."""

    def shift(pipe, value):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=value)

    def merge(pipe, change):
        """As `fuse_lora` followed by `unload_lora_weights` leaves it: `weight.data += B @ A`."""
        pipe.transformer.blocks[1].attn2.to_v.weight.data += change

    return {
        "another scheduler": (lambda p: shift(p, 5.0), lambda p: shift(p, 3.0), "scheduler"),
        "merged": (lambda p: merge(p, 0.01), None, "weights"),
        "another dtype": (
            lambda p: p.to(torch.bfloat16), None, "weights and dtype"
        ),
    }  # fmt: skip


@pytest.mark.usefixtures("without_prior")
@pytest.mark.parametrize("what", list(changes()))
def test_what_changes_is_recorded_anew_and_the_old_plan_is_used_where_it_fits(what):
    change, undo, words = changes()[what]
    changed, pipe = tiny.tiny_wan(), tiny.tiny_wan()
    change(changed)
    expected = call(changed)
    handle, fast = accelerated(pipe, "plan")
    change(pipe)
    assert np.array_equal(call(pipe), expected)
    report = handle.report()
    assert report.steps_computed == STEPS
    assert report.notes[0] == f"The {words} changed since the last run."
    assert not np.array_equal(call(pipe), expected)
    assert handle.report().steps_computed < STEPS
    if undo is not None:
        undo(pipe)
        assert np.array_equal(call(pipe), fast)
    handle.remove()


def test_a_profile_of_the_weights_before_is_refused_in_words():
    pipe = tiny.tiny_wan()
    mix = (1.0, -3.0)  # of the branches at a guidance of 4
    schedule = planned_coefficients(pipe.scheduler, STEPS, mix)
    key = profile_key(
        pipe, steps=STEPS, guidance=4.0, parts=2, height=16, width=16, frames=9, dtype="float32"
    )
    profile = profile_of(schedule=schedule, key=key)
    handle = accelerate(pipe, speedup=2.0, profile=profile)
    fast = call(pipe)
    other = tiny.tiny_wan(seed=1).transformer
    first, pipe.transformer = pipe.transformer, other
    for _ in range(2):
        with pytest.raises(ProfileError, match=r"weights is .* in the profile, .* here"):
            call(pipe)
    pipe.transformer = first
    assert np.array_equal(call(pipe), fast)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=9.0)
    with pytest.raises(ProfileError, match=r"sampler is .* in the profile, .* here"):
        call(pipe)
    handle.remove()
    call(pipe)
    with accelerate(pipe, speedup=2.0, profile=profile, force=True) as handle:
        call(pipe)
        assert "forced. It is of another pipeline: sampler is" in handle.report().notes[0]
        pipe.transformer = other
        call(pipe)
        assert "forced. It is of another pipeline: weights is" in handle.report().notes[0]
        assert "weights changed after accelerate()" in handle.report().notes[1]


@pytest.mark.usefixtures("without_prior")
@pytest.mark.parametrize("way", ["model", "plan"])
def test_a_scheduler_whose_settings_change(way):
    pipe, other = tiny.tiny_wan(), tiny.tiny_wan()
    other.scheduler.set_shift(5.0)
    handle, fast = accelerated(other, way)
    handle.remove()
    handle, before = accelerated(pipe, way)
    pipe.scheduler.set_shift(5.0)
    if way == "plan":
        call(pipe)
        assert handle.report().notes[0] == "The scheduler changed since the last run."
    assert np.array_equal(call(pipe), fast) and not np.array_equal(fast, before)
    handle.remove()


class Adapted(torch.nn.Module):
    """A linear layer with a LoRA, as peft's are built."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.scaling, self.merged_adapters = base_layer, {"one": 1.0}, []

    def forward(self, tokens):
        return self.base_layer(tokens) * (1 + 0.1 * self.scaling["one"])


def test_parts_are_the_same_until_something_changes():
    pipe = tiny.tiny_wan()
    one = parts_of(pipe)
    call(pipe)
    assert parts_of(pipe) == one == parts_of(tiny.tiny_wan())
    attention = pipe.transformer.blocks[0].attn1
    attention.to_q = Adapted(attention.to_q)
    loaded = parts_of(pipe)
    attention.to_q.scaling["one"] = 0.5
    scaled = parts_of(pipe)
    attention.to_q.merged_adapters.append("one")
    merged = parts_of(pipe)
    pipe._attention_kwargs = {"scale": 0.3}
    assert len({one, loaded, scaled, merged, parts_of(pipe)}) == 5
    assert loaded.changed_since(one) == ("weights",)
    pipe.to(torch.bfloat16)
    assert parts_of(pipe).changed_since(one) == ("weights", "dtype")


def test_a_module_that_was_replaced_for_a_moment_is_the_same_part():
    """It stands last among its like then: cache-dit replaces the blocks in each forward."""
    pipe = tiny.tiny_wan()
    before, order = parts_of(pipe), [*pipe.transformer._modules]
    with mock.patch.object(pipe.transformer, "blocks", torch.nn.ModuleList()):
        assert parts_of(pipe) != before
    assert [*pipe.transformer._modules] != order and parts_of(pipe) == before


def test_parts_of_a_model_of_true_size_take_milliseconds():
    row = DENOISERS["wan2.1-14b"]
    with torch.device("meta"):
        module = getattr(diffusers, row.transformer)(**row.config).to(torch.bfloat16)
    for owner in module.modules():  # a row of each matrix, spread over all others
        for name, weight in owner._parameters.items():
            if weight is not None:
                rows = torch.randn(1, *weight.shape[1:], dtype=weight.dtype)
                owner._parameters[name] = torch.nn.Parameter(rows.expand(weight.shape), False)
    pipe, seconds = tiny.tiny_wan(), []
    pipe.transformer = module
    for _ in range(3):
        start = time.perf_counter()
        parts_of(pipe)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # some milliseconds alone on a machine


# --- other calls without a profile ---


def denoiser_of(name):
    """A pipeline of this family, its call, and changes of its arguments by name."""
    if name == "wan":
        pipe = tiny.tiny_wan()
        changes = {
            "no guidance": {"guidance_scale": 1.0}, "guidance": {"guidance_scale": 6.0},
            "no negative prompt": {"negative_prompt": None}, "steps": {"num_inference_steps": 16},
            "size": {"height": 32}, "batch": {"num_videos_per_prompt": 2},
        }  # fmt: skip
        return pipe, partial(call, pipe), changes
    checkpoint = {"cogvideox": "cogvideox-2b", "ltx": "ltx-video"}.get(name, name)
    case = small_denoisers.trial(checkpoint, steps=12)
    pipe = speed.build(case)
    given = speed.embeddings(case.prompt, case.guidance, "cpu", torch.float32)
    given = call_arguments(pipe, case.clip) | given | {"output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)

    def call_(**changes):
        generator = torch.Generator().manual_seed(0)
        return pipe(**given | {"generator": generator} | changes).frames

    twice = {"height": 2 * given["height"]}
    changes = {
        "guidance": {"guidance_scale": case.guidance + 2}, "steps": {"num_inference_steps": 16},
        "size": twice,
    }  # fmt: skip
    if name == "cogvideox":  # with given embeddings, the others repeat no masks
        changes["batch"] = {"num_videos_per_prompt": 2}
    return pipe, call_, changes


@pytest.mark.parametrize("name", ["wan", "cogvideox", "ltx", "hunyuan-video"])
def test_calls_that_differ_are_planned_or_recorded_anew_with_a_note(name):
    pipe, call_, more = denoiser_of(name)
    with accelerate(pipe, speedup=2.0) as handle:
        call_()
        call_()
        planned = handle.report()
        assert planned.steps_computed < planned.steps
        for what, changes in more.items():
            call_(**changes)
            first = handle.report()
            call_(**changes)
            second = handle.report()
            assert second.steps_computed < second.steps, what
            if first.steps_computed == first.steps:
                assert "recorded" in " ".join(first.notes), what
        call_()
        assert handle.report().planned == planned.planned
