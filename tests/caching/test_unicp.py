"""UniCP at the attentions: neutral, off with a reason, every action, true FLOPs, restored."""

import math

import numpy as np
import pytest
import torch
from calls import STEPS, call, state_of
from tiny import tiny_wan

from dit_accel import EDCW, FAMILIES, accelerate
from dit_accel.attention.block_sparse import BlockSizes
from dit_accel.attention.pcas import PCAS, BlockSparseAttention, LowRankAttention
from dit_accel.caching.blend import DWS, Errors
from dit_accel.caching.unicp import UniCP, UniCPCache
from dit_accel.core.measure import LoopTimer
from dit_accel.core.session import Session
from dit_accel.evaluation.methods import METHODS, MethodContext, parse
from dit_accel.evaluation.probe import Probe

NEVER = EDCW(threshold=0.0)
SMALL = {"always": True, "blocks": BlockSizes(4, 4, (1, 2, 2)), "rank": 16, "first_dense": 0.25}
SIZE = {"height": 64, "width": 64}  # 3 x 4 x 4 tokens
PRUNE = PCAS(keep_mass=0.5, cap=1.0, **SMALL)
SLICE = PCAS(mode="slice", value_rank=6, **{**SMALL, "rank": 6})


def run(pipe, preset, **changes):
    with accelerate(pipe, accel=preset) as handle:
        clip = call(pipe, **{**SIZE, **changes})
        return clip, handle.report()


def actions(site):
    return {
        name: getattr(site, name) for name in ("computed", "cached", "pruned", "blended")
        if getattr(site, name)
    }  # fmt: skip


@pytest.mark.parametrize(
    "preset",
    [
        UniCP(NEVER),
        UniCP(NEVER, PRUNE),  # a tolerance of 0 lets nothing pass
        UniCP(NEVER, PCAS(keep_mass=1.0, cap=1.0, always=True), None),
        UniCP(NEVER, PCAS(mode="slice", rank=12, value_rank=12, always=True), None),
        UniCP(NEVER, None, None),
    ],
    ids=["off", "zero tolerance", "keep all", "full rank", "no pcas"],
)
def test_neutral_is_bit_equal_and_removal_restores(preset):
    pipe = tiny_wan()
    stock, before = call(pipe, **SIZE), state_of(pipe)
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    clip, report = run(pipe, preset)
    assert np.array_equal(clip, stock)
    assert report.steps_computed == STEPS and report.flops_kept == 1.0
    assert state_of(pipe) == before
    assert [block.attn1.processor for block in pipe.transformer.blocks] == processors
    assert np.array_equal(call(pipe, **SIZE), stock)


@pytest.mark.parametrize("config", [PRUNE, SLICE], ids=["prune", "slice"])
@pytest.mark.parametrize("experts", [False, True], ids=["wan2.1", "wan2.2"])
def test_after_the_dense_steps_every_step_is_pruned(config, experts):
    pipe = tiny_wan(transformer_2=experts)
    stock, before = call(pipe, **SIZE), state_of(pipe)
    clip, report = run(pipe, UniCP(NEVER, config, None))
    assert not np.array_equal(clip, stock) and np.isfinite(clip).all()
    assert state_of(pipe) == before and np.array_equal(call(pipe, **SIZE), stock)
    for site in report.sites:
        first = site.computed[0]
        assert site.computed == tuple(range(first, first + 3)[: site.steps])  # a quarter of 12
        assert site.steps == len(site.computed) + len(site.pruned)
        assert set(site.attention_share) == set(site.pruned)
    assert report.host_syncs <= STEPS
    assert report.notes == ()


def test_a_rank_rule_finds_the_rank_with_the_steps_own_read():
    pipe = tiny_wan()
    preset = UniCP(NEVER, PCAS(mode="slice", **{**SMALL, "rank": None}, logit_rms=0.3), None)
    with accelerate(pipe, accel=preset) as handle:
        call(pipe, **SIZE)
        ranks = [site.pruned.rank for site in handle.executor.pruned_sites()]
        report = handle.report()
    assert all(1 <= rank <= 12 for rank in ranks)
    assert report.sites[0].computed == (0, 1, 2, 3)  # at the fourth the rank is on its way
    assert report.host_syncs <= STEPS


def test_windows_reuse_and_what_they_do_not_is_chosen():
    pipe = tiny_wan()
    _, report = run(pipe, UniCP(EDCW(threshold=0.6, first=2), PRUNE, DWS(0.6, recheck=4)))
    for site in report.sites:
        done = actions(site)
        assert sorted(step for steps in done.values() for step in steps) == list(range(STEPS))
        assert "computed" in done and len(done) > 1
    assert any(site.cached for site in report.sites)
    assert any(site.blended or site.pruned for site in report.sites)
    assert report.host_syncs <= STEPS
    both = {s.name: set() for s in report.sites}
    for site in report.sites:
        both[site.name].add(str(actions(site)))
    assert all(len(kinds) == 1 for kinds in both.values()), "branches share their decisions"


@pytest.mark.parametrize(
    ("errors", "done"),
    [
        (Errors(0.02, 0.02, 0.0), "blended"),
        (Errors(math.inf, 0.01, 0.0), "pruned"),
        (Errors(0.01, math.inf, 0.0), "cached"),
        (Errors(math.inf, math.inf, 0.0), "computed"),
    ],
)
def test_every_action_is_done(errors, done, monkeypatch):
    monkeypatch.setattr(Errors, "measured", classmethod(lambda cls, sums: errors))
    monkeypatch.setattr(Errors, "aged", lambda self, steps: self)
    monkeypatch.setattr("dit_accel.caching.unicp.cached_error", lambda distance, *_: errors.cached)
    pipe = tiny_wan()
    short = EDCW(threshold=0.1, max_window=1)  # the windows themselves cache nothing
    _, report = run(pipe, UniCP(short, PRUNE, DWS(tolerance=0.1, recheck=20)))
    for site in report.sites:
        assert site.computed[:4] == (0, 1, 2, 3)  # dense, and the one made both ways
        assert site.attention_share[3] > 1
        assert set(range(4, STEPS)) == set(getattr(site, done)) - {0, 1, 2, 3}


def test_flops_are_those_that_were_dispatched():
    pipe = tiny_wan()
    probe = Probe(pipe)  # counts from the loop's first forward, so without the text encoder
    timer = LoopTimer([pipe.transformer], steps=STEPS, listeners=(probe,))
    with probe, accelerate(pipe, accel=UniCP(NEVER, PRUNE, None)) as handle, timer:
        call(pipe, **SIZE, callback_on_step_end=timer.step_ended)
        report = handle.report()
    assert len(probe.flops) == STEPS
    assert report.flops_spent == pytest.approx(sum(probe.flops), rel=0.02)
    assert report.flops_spent != report.flops_full, "the control: something must have changed"


def test_where_it_does_not_pay_it_is_off_and_says_so():
    pipe = tiny_wan()
    windows = call_with_windows(pipe)
    with accelerate(pipe, accel="unicp-paper", threshold=0.3) as handle:
        clip = call(pipe, **SIZE)
        report = handle.report()
    assert report.notes == ("PCAS was off at 3 of 3 attentions: there is no kernel for cpu.",)
    assert not any(site.pruned or site.blended for site in report.sites)
    assert np.array_equal(clip, windows), "what remains is windows at the attentions"
    assert "PCAS was off" in report.summary()


def call_with_windows(pipe):
    with accelerate(pipe, threshold=0.3, site="attention"):
        return call(pipe, **SIZE)


@pytest.mark.parametrize("shift", [None, DWS()], ids=["no shift", "shift"])
def test_a_value_that_is_not_finite_ends_the_pruning(shift, monkeypatch):
    real, calls = BlockSparseAttention.attend, []

    def broken(self, *rows):
        mixed, share = real(self, *rows)
        calls.append(1)
        return (mixed * math.nan if len(calls) > 6 else mixed), share

    monkeypatch.setattr(BlockSparseAttention, "attend", broken)
    with np.errstate(invalid="ignore"):
        _, report = run(tiny_wan(), UniCP(EDCW(threshold=10.0, max_window=1), PRUNE, shift))
    assert any("a pruned value was not finite" in note for note in report.notes)
    assert report.sites[0].computed[-1] == STEPS - 1


def test_first_blocks_can_stay_dense():
    _, report = run(tiny_wan(), UniCP(NEVER, PCAS(**SMALL, cap=1.0, dense_blocks=2), None))
    assert [bool(site.pruned) for site in report.sites] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("config", [PRUNE, SLICE], ids=["prune", "slice"])
def test_the_second_run_forgets_the_first_and_another_size_is_taken(config):
    pipe = tiny_wan()
    with accelerate(pipe, accel=UniCP(NEVER, config, None)) as handle:
        first = call(pipe, **SIZE)
        call(pipe)
        assert np.array_equal(call(pipe, **SIZE), first)
        assert handle.report().sites[0].pruned


@pytest.mark.parametrize("name", [n for n in METHODS if n.startswith(("unicp-paper", "pcas/"))])
def test_every_row_runs_and_reports(name):
    pipe = tiny_wan()
    setting = parse(f"{name}:{6 if name == 'pcas/slice' else 0.6}")
    with METHODS[name].apply(pipe, setting.number, MethodContext(None, None)) as effect:
        call(pipe, **SIZE)
        report = effect.report()
    assert report.flops_kept is not None
    assert report.steps_computed < STEPS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "cut"}, "mode is 'cut'; accepted: 'prune', 'slice'"),
        ({"rank": 20}, "rank is 20 and samples 8; accepted: powers of two"),
        ({"keep_mass": 0}, "keep_mass is 0; accepted: above 0, up to 1"),
        ({"cap": 2}, "cap is 2; accepted: from 0 to 1"),
        ({"value_rank": 0, "mode": "slice"}, "value_rank is 0; accepted: an integer >= 1, or None"),
        ({"dense_blocks": -1}, "dense_blocks is -1; accepted: at least 0"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        PCAS(**given)


def test_bad_calls_are_named_and_change_nothing():
    pipe = tiny_wan()
    before = state_of(pipe)
    with pytest.raises(ValueError, match="accel is 'magic'; accepted: unicp, unicp-paper, or a"):
        accelerate(pipe, accel="magic")
    with pytest.raises(ValueError, match="accel is given with site; accepted: with threshold"):
        accelerate(pipe, accel="unicp-paper", site="block")
    pipe.transformer.blocks[1].attn1.processor = stranger = lambda *args: None
    with pytest.raises(ValueError, match="processor is function; accepted: WanAttnProcessor"):
        accelerate(pipe, accel="unicp-paper")
    assert state_of(pipe) == before and pipe.transformer.blocks[1].attn1.processor is stranger


def test_a_family_without_stages_is_refused():
    ltx = next(row for row in FAMILIES.values() if row.name == "ltx")
    with pytest.raises(ValueError, match="family is 'ltx'; accepted for pruned attention: wan, "):
        UniCPCache(Session(None, {}), ltx, UniCP())


@pytest.mark.parametrize(
    "make", [lambda: BlockSparseAttention(PRUNE), lambda: slicer()], ids=["prune", "slice"]
)
def test_learned_attention_comes_close_to_attention(make):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, 48, 2, 12, generator=generator) for _ in range(3)]
    means = make()
    means.learn(*rows)
    means.fit()
    out, share = means.attend(*rows, torch.arange(48))
    q, k, v = (x.transpose(1, 2) for x in rows)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert out.shape == exact.shape
    assert (out - exact).norm() < 0.8 * exact.norm()
    assert float(share) > 0


def slicer():
    from dit_accel.attention.pca import Linear

    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 24, generator=generator)
    return LowRankAttention(
        PCAS(mode="slice", rank=9, value_rank=9), Linear(weight, None), Linear(weight, None)
    )
