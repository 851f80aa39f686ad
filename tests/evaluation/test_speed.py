"""Denoisers by configuration: their true sizes, the contract of every family, and their timing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from small_denoisers import STEPS, latents, trial
from typer.testing import CliRunner

from dit_accel import accelerate
from dit_accel.caching.windows import EDCW
from dit_accel.cli.app import app
from dit_accel.core.families import FAMILIES
from dit_accel.evaluation import speed
from dit_accel.evaluation.methods import Setting, parse_list
from dit_accel.models.checkpoints import DENOISERS

BILLIONS = {
    "wan2.1-1.3b": 1.42,
    "wan2.1-14b": 14.29,
    "hunyuan-video": 12.82,
    "cogvideox-2b": 1.69,
    "cogvideox-5b": 5.57,
    "ltx-video": 1.92,
}
"""Parameters of the released denoisers."""
LOOSE = EDCW(threshold=10.0)
CASES = [
    (name, site) for name, row in DENOISERS.items() for site in FAMILIES[row.transformer].sites
]
runner = CliRunner()


@pytest.mark.parametrize("name", DENOISERS)
def test_the_full_configuration_has_the_released_number_of_parameters(name):
    with torch.device("meta"):
        transformer = speed._transformer(trial(name, small=False))
    count = sum(p.numel() for p in transformer.parameters())
    assert count / 1e9 == pytest.approx(BILLIONS[name], abs=0.01)


def test_every_family_has_a_denoiser():
    """But those whose call needs more than a denoiser: a VAE, connectors of the text, a guider."""
    more = {"wan-vace", "wan-animate", "ltx-2", "hunyuan-video-1.5"}
    found = {FAMILIES[row.transformer].name for row in DENOISERS.values()}
    assert found == {row.name for row in FAMILIES.values()} - more


@pytest.mark.parametrize(("name", "site"), CASES)
def test_contract_of_a_family(name, site):
    """Neutral is bit-equal; windows change the clip and say so; removal restores."""
    run = trial(name)
    pipe = speed.build(run)
    stock = latents(pipe, run)
    assert torch.isfinite(stock).all()
    with accelerate(pipe, threshold=0.0, site=site) as handle:
        assert torch.equal(latents(pipe, run), stock)
        assert handle.report().steps_computed == STEPS
    with accelerate(pipe, config=LOOSE, site=site) as handle:
        changed = latents(pipe, run)
        report = handle.report()
    assert not torch.equal(changed, stock)
    assert torch.isfinite(changed).all()
    assert report.steps_computed < STEPS
    assert torch.equal(latents(pipe, run), stock)


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "hunyuan-video", "cogvideox-5b", "ltx-video"])
def test_flops_of_the_report_are_those_that_were_dispatched(name):
    from dit_accel.evaluation.probe import Probe

    run = trial(name)
    pipe = speed.build(run)
    probe = Probe(pipe)
    with probe, accelerate(pipe, config=LOOSE) as handle:
        speed._call(pipe, run, {}, (probe,))
        report = handle.report()
    assert report.flops_spent == pytest.approx(sum(probe.flops or ()), rel=0.01)


def test_rounded_timesteps_do_not_confuse_the_steps():
    """Hunyuan's pipeline passes timesteps in bfloat16, where neighbours share one number."""
    run = trial("hunyuan-video", dtype="bfloat16", steps=50)
    pipe = speed.build(run)
    with accelerate(pipe, threshold=0.0) as handle:
        latents(pipe, run)
        (site,) = handle.report().sites
    assert site.computed == tuple(range(50))


def test_a_small_run_tells_computed_from_reused_steps():
    run = trial("wan2.1-1.3b", rounds=2)
    settings = parse_list("edcw:10,fewer-steps:3,diffusers/faster-cache:2")
    found = {row.method: row for row in speed.measure(run, settings)}
    assert list(found) == ["uncached", "edcw:10", "fewer-steps:3", "diffusers/faster-cache:2"]
    assert found["uncached"].steps_computed == found["uncached"].steps == STEPS
    assert found["uncached"].flops_kept == 1
    assert found["uncached"].seconds_per_reused_step is None
    windows = found["edcw:10"]
    assert windows.steps_computed is not None
    assert 0 < windows.steps_computed < STEPS
    assert windows.reused_flops is not None
    assert windows.reused_flops < 0.1
    assert windows.flops_kept == pytest.approx(
        (windows.steps_computed + windows.reused_flops * (STEPS - windows.steps_computed)) / STEPS
    )
    assert found["fewer-steps:3"].steps == 3
    assert found["fewer-steps:3"].flops_kept == pytest.approx(0.5)


def test_a_method_that_fails_is_reported_and_the_others_go_on():
    class Broken:
        own_process = False

        def apply(self, *_: Any) -> Any:
            raise ZeroDivisionError("on purpose")

    run = trial("wan2.1-1.3b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(speed.METHODS, "broken", Broken())
        found = speed.compare(run, (Setting("broken"), Setting("fewer-steps", 3)))
    assert found[1].error == "ZeroDivisionError: on purpose"
    assert found[2].seconds is not None


def test_weights_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(speed.stopwatch, "free_memory", lambda device: 2**30)
    with pytest.raises(speed.DoesNotFitError, match=r"wan2.1-14b in bfloat16 has 26.6 GiB of"):
        speed.build(trial("wan2.1-14b", small=False, dtype="bfloat16"))


def test_the_command_prints_a_table_or_json():
    words = [
        "bench", "--model", "ltx-video", "--small", "--height", "64", "--width", "64", "--frames",
        "9", "--steps", "4", "--rounds", "1", "--methods",
    ]  # fmt: skip
    result = runner.invoke(app, [*words, "edcw:10"])
    assert result.exit_code == 0, result.output
    assert "s/step" in result.stdout and "{" not in result.stdout
    result = runner.invoke(app, [*words, "edcw:10,fewer-steps", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    (model,) = record["results"]
    assert (model["model"], model["small"], model["frames"]) == ("ltx-video", True, 9)
    assert [row["method"] for row in model["methods"]] == ["uncached", "edcw:10", "fewer-steps:2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "sora"], "--model is 'sora'; accepted: wan2.1-1.3b"),
        (["--height", "65"], "--height is 65; accepted: a multiple of 16, e.g. 64 or 80"),
        (["--guidance", "nan"], "--guidance is nan; accepted: a finite number"),
        (["--steps", "1001"], "--steps is 1001; accepted: 1 to 1000"),
        (["--frames", "6"], "--frames is 6; accepted: 1 more than a multiple of 4"),
        (["--methods", "magic"], "--methods: method is 'magic'"),
        (["--dtype", "int8"], "--dtype is 'int8'; accepted: float32"),
        (["--device", "cuda:7"], "--device is 'cuda:7': this machine has cpu"),
    ],
)
def test_bad_input_is_named(options, message):
    result = runner.invoke(app, ["bench", "--small", *options])
    assert result.exit_code == 2
    assert message in result.stderr
