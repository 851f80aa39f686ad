"""One clip on several ranks: every rank decides alike, and the clip is that of one process."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import process_groups
import pytest
import small_denoisers
import torch
import torch.distributed as dist
from rank_runs import divide, has_context_parallelism, latents, on_ranks
from small_denoisers import trial
from tiny import tiny_wan

from dit_accel import EDCW, accelerate
from dit_accel.core.families import SITES
from dit_accel.evaluation import speed
from dit_accel.layout.model import Keyframe, Layout, Shot, Subject

pytestmark = has_context_parallelism

THRESHOLDS = (0.0, 0.7, 1.0, 1e9)
TARGETS = (
    {"speedup": 2.0},
    {"speedup": 2.0, "static": True},
    {"speedup": 2.0, "cache_memory": 3000},
    {"quality": 15.0},
)


def decisions(handle):
    handle.executor.flush()
    sites = handle.executor.site_reports()
    return [(one.name, one.branch, one.computed, one.not_computed) for one in sites]


def run(pipe, calls=1, **keywords):
    """The last clip, and what was decided at every site and branch."""
    with accelerate(pipe, **keywords) as handle:
        for _ in range(calls):
            clip = latents(pipe)
        return clip, decisions(handle)


def reused(decided):
    return sum(len(steps) for *_, steps in decided)


def test_context_parallelism_changes_nothing_without_us():
    """What the others are compared with: diffusers' own plan gives the clip of one process."""

    def work(rank):
        pipe = tiny_wan()
        stock = latents(pipe)
        divide(pipe.transformer, ulysses_degree=2)
        return torch.equal(latents(pipe), stock)

    assert on_ranks(work) == [True, True]


@pytest.mark.composes("windows at attention", "context parallel")
@pytest.mark.composes("windows at block", "context parallel")
@pytest.mark.composes("windows at model", "context parallel")
def test_windows_at_every_site_and_threshold_are_those_of_one_process():
    """Each rank measures half of the tokens: without agreement one waits where the other reuses."""

    def work(rank):
        single, divided = tiny_wan(), tiny_wan()
        divide(divided.transformer, ulysses_degree=2)
        found = {}
        for site in SITES:
            for threshold in THRESHOLDS:
                clip, decided = run(divided, threshold=threshold, site=site)
                expected, decided_there = run(single, threshold=threshold, site=site)
                assert torch.equal(clip, expected), (site, threshold)
                assert decided == decided_there, (site, threshold)
                found[site, threshold] = reused(decided)
        return found

    first, second = on_ranks(work)
    assert first == second
    assert all(first[site, 0.0] == 0 < first[site, 1e9] for site in SITES)
    assert len({first["attention", threshold] for threshold in THRESHOLDS}) == len(THRESHOLDS)


@pytest.mark.composes("plan", "context parallel")
@pytest.mark.composes("static plan", "context parallel")
@pytest.mark.composes("packed plan", "context parallel")
def test_plans_are_those_of_one_process():
    def work(rank):
        single, divided = tiny_wan(), tiny_wan()
        divide(divided.transformer, ulysses_degree=2)
        for target in TARGETS:
            clip, decided = run(divided, calls=2, **target)
            expected, decided_there = run(single, calls=2, **target)
            assert torch.equal(clip, expected), target
            assert decided == decided_there and reused(decided), target

    on_ranks(work)


LATE = (
    *({"threshold": 1.0, "site": site} for site in SITES),
    {"config": EDCW(threshold=3.0, order=1), "site": "model"},
    {"speedup": 2.0},
)


def test_parallelism_may_be_enabled_after_accelerate():
    """The second call is divided; a plan's first run was recorded by each rank on its own."""

    def work(rank):
        for given in LATE:
            single, late = tiny_wan(), tiny_wan()
            expected, decided = run(single, calls=2, **given)
            with accelerate(late, **given) as handle:
                latents(late)
                divide(late.transformer, ulysses_degree=2)
                assert torch.equal(latents(late), expected), given
                assert decisions(handle) == decided, given

    on_ranks(work)


def test_the_first_rank_chooses_the_plan(tiny_profile):
    """Rank 1 lacks the profile's file, as on another machine: it would record, and wait."""

    def work(rank):
        pipe = tiny_wan()
        divide(pipe.transformer, ulysses_degree=2)
        profile = tiny_profile if rank == 0 else None
        return run(pipe, speedup=2.0, profile=profile)[1]

    first, second = on_ranks(work)
    assert first == second and reused(first)


def unmasked_ltx():
    """A tiny LTX, and its call. Diffusers' own run with Ulysses fails with the text's mask."""
    case = trial("ltx-video")
    wide = case.denoiser.small | {"num_attention_heads": 2, "cross_attention_dim": 128}
    case = dataclasses.replace(case, denoiser=dataclasses.replace(case.denoiser, small=wide))
    pipe = speed.build(case)
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"encoder_attention_mask": None}), with_kwargs=True
    )
    return pipe, lambda: small_denoisers.latents(pipe, case)


def test_tokens_may_be_split_before_the_first_block():
    """As LTX's plan does, at the transformer itself; Wan's splits them at the first block."""

    def work(rank):
        clips = {}
        for divided in (False, True):
            for site in SITES:
                pipe, call = unmasked_ltx()
                if divided:
                    divide(pipe.transformer, ulysses_degree=2)
                with accelerate(pipe, threshold=1e9, site=site) as handle:
                    clips[divided, site] = call()
                    assert reused(decisions(handle))
        return all(torch.equal(clips[True, site], clips[False, site]) for site in SITES)

    assert on_ranks(work) == [True, True]


@pytest.mark.parametrize("divided", [("transformer", "transformer_2"), ("transformer",)])
def test_two_experts_may_both_be_divided_or_one(divided):
    def work(rank):
        single, pipe = tiny_wan(transformer_2=True), tiny_wan(transformer_2=True)
        for name in divided:
            divide(getattr(pipe, name), ulysses_degree=2)
        for given in ({"threshold": 1.0, "site": "attention"}, {"speedup": 2.0}):
            clip, decided = run(pipe, calls=2, **given)
            expected, decided_there = run(single, calls=2, **given)
            assert torch.equal(clip, expected) and decided == decided_there, given

    on_ranks(work)


@pytest.mark.parametrize("given", [{"threshold": 0.7, "site": "attention"}, {"speedup": 2.0}])
def test_one_rank_alone_may_ask_for_the_report(given):
    """Usually the first one prints it; the others are not there to be asked."""

    def work(rank):
        pipe = tiny_wan()
        divide(pipe.transformer, ulysses_degree=2)
        with accelerate(pipe, **given) as handle:
            latents(pipe)
            drift = handle.report().sites[0].drift if rank == 0 else None
            latents(pipe)  # the other one did not wait
        return drift

    drift, nothing = on_ranks(work)
    assert nothing is None and (drift != {}) == ("threshold" in given)


def test_clips_on_ranks_beside_each_other_are_independent():
    """Four ranks, two for each clip: a clip with more calls does not wait for the other."""

    def work(rank):
        mesh = dist.init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("clip", "ring", "ulysses"))
        pipe = tiny_wan()
        clip = rank // 2
        expected = [run(pipe, threshold=0.7, site="attention")[0] for _ in range(1 + clip)]
        divide(pipe.transformer, ulysses_degree=2, mesh=mesh)
        found = [run(pipe, threshold=0.7, site="attention")[0] for _ in range(1 + clip)]
        return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    assert on_ranks(work, 4) == [True] * 4


def test_processes_without_a_group_do_not_reduce():
    def work(rank):
        pipe = tiny_wan()
        for _ in range(1 + rank):
            clip = run(pipe, threshold=0.7, site="attention")[0]
        return clip

    first, second = on_ranks(work)
    assert torch.equal(first, second)


@pytest.mark.composes("UniCP", "context parallel", limit="windows alone, no pruning")
def test_unicp_keeps_its_windows_and_says_that_it_does_not_prune():
    def work(rank):
        pipe = tiny_wan()
        plain, _ = run(pipe, threshold=0.85, site="attention")
        divide(pipe.transformer, ulysses_degree=2)
        with accelerate(pipe, threshold=0.85, accel="unicp-paper") as handle:
            clip = latents(pipe)
            return torch.equal(clip, plain), handle.report().notes

    for equal, notes in on_ranks(work):
        assert equal
        assert any("PCAS was off at 3 of 3 attentions" in n and "ranks" in n for n in notes)


@pytest.mark.composes("scene", "context parallel", refused="one process a clip")
def test_a_layout_is_refused_before_and_after():
    subject = Subject("a", "a red circle", (Keyframe(0.0, (0.0, 0.0, 0.5, 1.0)),))
    found = Layout((Shot("one", "a red circle", (subject,)),))

    def work(rank):
        pipe = tiny_wan()
        with accelerate(pipe, layout=found):
            divide(pipe.transformer, ulysses_degree=2)
            with pytest.raises(ValueError, match="context parallelism is on"):
                latents(pipe)
        with pytest.raises(ValueError, match="context parallelism is on"):
            accelerate(pipe, layout=found)

    on_ranks(work)


@pytest.mark.parametrize("name", ["cogvideox-5b", "hunyuan-video"])
def test_a_model_without_a_plan_is_refused_by_name(name):
    """Diffusers refuses it too, and leaves its attentions in parallel mode all the same."""

    def work(rank):
        pipe = speed.build(trial(name))
        with pytest.raises(ValueError, match="cp_plan"):
            divide(pipe.transformer, ulysses_degree=2)
        with pytest.raises(ValueError, match=r"Transformer3DModel has .* without a plan"):
            accelerate(pipe, threshold=0.1)

    on_ranks(work)


def threads_of_gloo():
    """Names of this process's threads, by Linux."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def test_no_thread_of_a_group_is_left_where_a_script_ends():
    """One that lets go of its last tensors while Python ends would abort the process."""

    def work(rank):
        def clip():
            pipe = tiny_wan()
            divide(pipe.transformer, ulysses_degree=2)
            latents(pipe)

        clip()
        during = threads_of_gloo()
        process_groups.end()
        return during, threads_of_gloo()

    assert all(during and not after for during, after in on_ranks(work))


def torchrun(script, *options):
    """What a script prints that is started as users start it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = Path(__file__).parents[1] / "scripts" / "experiments" / script
    done = subprocess.run(
        [*launcher, str(path), *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_script_finds_no_difference(monkeypatch):
    """Once through all techniques and sites; in forked processes, which have torch already."""
    import table_ranks

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    monkeypatch.setattr(sys, "argv", ["", "--rounds=1", "--short"])

    def work(rank):
        dist.destroy_process_group()  # the script makes its own, by torchrun's variables
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        os.environ.update(given | {"RANK": str(rank)})
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = table_ranks.main()
        return status, printed.getvalue()

    (status, printed), (other, nothing) = on_ranks(work, seconds=300)
    assert status == other == 0, printed
    assert "19 runs of two processes" in printed and nothing == ""


@pytest.mark.slow
def test_the_script_for_two_gpus_runs_on_a_cpu(tmp_path):
    out = tmp_path / "two.json"
    torchrun("table_two_gpus.py", "--small", "--steps=8", "--rounds=1", f"--output={out}")
    rows = json.loads(out.read_text())["rows"]
    assert [(row["setting"], row["gpus"]) for row in rows] == [
        ("uncached", 1), ("plan", 1), ("uncached", 2), ("plan", 2),
        ("uncached, a branch each", 2), ("plan, a branch each", 2),
    ]  # fmt: skip
    assert all(row["relative_error_to_one_gpu"] == 0 and row["finite"] for row in rows)
    assert rows[3]["computed_share"] < 1 and rows[3]["relative_error_to_uncached"] > 0
