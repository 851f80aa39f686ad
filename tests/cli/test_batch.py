"""Many prompts with one load: what is there already is not made again, and what is done stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import invoke, names
from typer.testing import Result

from dit_accel.cli.run import run
from dit_accel.core import measure
from dit_accel.models import setup

PROMPTS = ["a red circle", "a blue square", "a green triangle"]


@pytest.fixture
def batch(here: Path, model_folder: Path) -> Callable[..., Result]:
    """`dit-accel generate --prompt-file` of three prompts."""
    (here / "prompts.jsonl").write_text(
        "\n".join(json.dumps({"id": f"p{i}", "prompt": text}) for i, text in enumerate(PROMPTS))
    )

    def make(*options: str) -> Result:
        given = ["--prompt-file", "prompts.jsonl", "--model", str(model_folder)]
        return invoke("generate", *given, "--threshold", "1", *options)

    return make


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that ran."""
    found: list[str] = []
    accelerated = run.run_accelerated

    def recorded(pipe: Any, settings: Any, *rest: Any) -> Any:
        found.append(settings.prompt)
        return accelerated(pipe, settings, *rest)

    monkeypatch.setattr(run, "run_accelerated", recorded)
    return found


def test_a_clip_and_a_sidecar_for_each_prompt_with_one_load(
    batch: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    load = setup.load
    monkeypatch.setattr(setup, "load", lambda *a, **b: loads.append(a) or load(*a, **b))
    result = batch("--output-dir", "clips")
    assert result.exit_code == 0, result.stderr
    found = ["a-blue-square-p1.mp4", "a-green-triangle-p2.mp4", "a-red-circle-p0.mp4"]
    assert names(here / "clips") == sorted([*found, *(f"{name}.json" for name in found)])
    assert len(loads) == 1
    assert [line.partition("  ")[0] for line in result.stdout.splitlines()[:3]] == [
        f"clips/{name}" for name in (found[2], found[0], found[1])
    ]


def test_a_clip_that_is_there_is_not_made_again(
    batch: Callable[..., Result], here: Path, made: list[str]
) -> None:
    batch()
    (here / "prompts" / "a-blue-square-p1.mp4").unlink()
    (here / "prompts" / "a-blue-square-p1.mp4.json").unlink()
    result = batch()
    assert result.exit_code == 0, result.stderr
    assert made == [*PROMPTS, PROMPTS[1]]
    assert "2 of 3 clips are there already" in result.stderr


def test_a_clip_that_was_cut_off_or_lost_is_made_again(
    batch: Callable[..., Result], here: Path, made: list[str]
) -> None:
    batch()
    cut, lost = (
        here / "prompts" / f"{name}.mp4" for name in ("a-blue-square-p1", "a-red-circle-p0")
    )
    whole = cut.read_bytes()
    cut.write_bytes(whole[:100])
    lost.unlink()
    result = batch()
    assert result.exit_code == 0, result.stderr
    assert made[3:] == [PROMPTS[0], PROMPTS[1]]
    assert cut.read_bytes() == whole
    assert "3 of 3" in batch().stderr
    sidecar = cut.with_name(f"{cut.name}.json")
    content = json.loads(sidecar.read_text())
    assert content.pop("bytes") == {cut.name: len(whole)}
    sidecar.write_text(json.dumps(content))  # as of earlier versions
    assert "3 of 3" in batch().stderr


def test_stages_of_all_clips_are_shown_and_a_dry_run_leaves_no_folder(
    batch: Callable[..., Result], here: Path
) -> None:
    dry = batch("--steps", "5", "--dry-run")
    assert dry.exit_code == 0 and not (here / "prompts").exists()
    assert "0 of 3 clips are there already" in dry.stderr
    result = batch("--steps", "5")
    assert "5 steps: below 8, reuse gains nothing; the summary shows where" in result.stderr
    assert "\nby stage        text " in result.stdout and "write" in result.stdout
    assert "by stage" not in batch("--steps", "5").stdout  # nothing was made


def test_other_settings_are_refused_or_overwrite(
    batch: Callable[..., Result], made: list[str]
) -> None:
    batch()
    result = batch("--seed", "5")
    assert (result.exit_code, len(made)) == (2, 3)
    assert "a-red-circle-p0.mp4 exists; pass --overwrite" in result.stderr
    content = json.loads(batch("--seed", "5", "--overwrite", "--json").stdout)
    assert len(made) == 6
    assert {clip["settings"]["seed"] for clip in content["clips"].values()} == {5}


def test_after_an_interrupt_the_same_command_continues(
    batch: Callable[..., Result], here: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = run.run_accelerated

    def interrupted(pipe: Any, settings: Any, *rest: Any) -> Any:
        if settings.prompt == PROMPTS[1]:
            raise KeyboardInterrupt
        return recorded(pipe, settings, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_accelerated", interrupted)
        result = batch()
    assert result.exit_code == 130
    assert "1 of 3 clips are done; run it again to continue" in result.stderr
    assert names(here / "prompts") == ["a-red-circle-p0.mp4", "a-red-circle-p0.mp4.json"]
    assert batch().exit_code == 0
    assert made == PROMPTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a cat", "--prompt-file", "p.txt"], "PROMPT and --prompt-file are given"),
        (["--prompt-file", "p.txt", "-o", "a.mp4"], "accepted: one of them; pass --output-dir"),
        (["a cat", "--output-dir", "d"], "--output-dir is given; accepted: with --prompt-file"),
        (["--prompt-file", "no.txt"], "--prompt-file is 'no.txt': No such file"),
        (["--prompt-file", "empty.txt"], "--prompt-file: empty.txt has no prompt; accepted"),
    ],
)
def test_what_does_not_fit_is_refused(here: Path, options: list[str], message: str) -> None:
    (here / "empty.txt").write_text("\n")
    result = invoke("generate", *options)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


# --- where the time goes -----------------------------------------------------------------------


def test_seconds_by_stage_are_all_seconds(here: Path, model_folder: Path) -> None:
    result = invoke("generate", PROMPTS[0], "--model", str(model_folder), "--output", "a.npy")
    costs = json.loads((here / "a.npy.json").read_text())["costs"]
    stages = costs["stage_seconds"]
    assert list(stages) == ["text", "denoise", "decode", "write"]
    assert all(seconds > 0 for seconds in stages.values())
    assert stages["denoise"] == pytest.approx(costs["denoising_seconds"])
    whole = stages["text"] + stages["denoise"] + stages["decode"]
    assert whole == pytest.approx(costs["whole_seconds"], rel=0.01)
    assert "by stage        text " in result.stdout and "%)" in result.stdout


def test_below_8_steps_every_step_is_computed_and_that_is_said(
    here: Path, model_folder: Path
) -> None:
    few = ["--model", str(model_folder), "--steps", "4", "--output", "a.npy"]
    result = invoke("generate", PROMPTS[0], *few)
    assert "4 steps: below 8, reuse gains nothing" in result.stderr
    report = json.loads((here / "a.npy.json").read_text())["report"]
    assert report["steps_computed"] == 4
    typed = invoke("generate", PROMPTS[0], *few, "--threshold", "9", "--overwrite")
    assert typed.exit_code == 0 and "reuse gains nothing" in typed.stderr  # and yet carried out


# --- memory, before the run --------------------------------------------------------------------


@pytest.mark.usefixtures("traced")
def test_memory_is_said_before_the_run_and_recorded(here: Path, model_folder: Path) -> None:
    given = ["--model", str(model_folder), "--output", "a.npy"]
    result = invoke("generate", PROMPTS[0], *given)
    assert result.stderr.index("memory: text ") < result.stderr.index("accelerated: denoising")
    content = json.loads((here / "a.npy.json").read_text())["memory"]
    assert content["activations"].keys() == {"text_encoder", "transformer", "vae"}
    assert content["stages"]["decode"] > content["stages"]["denoise"] > 0
    assert content["why"] is None


@pytest.mark.usefixtures("traced")
def test_a_dry_run_loads_nothing_and_says_what_would_fit(
    here: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "load", lambda *a, **b: pytest.fail("weights were loaded"))
    dry = ["--model", str(model_folder), "--dry-run", "--height", "128", "--width", "128"]
    result = invoke("generate", PROMPTS[0], *dry)
    assert result.exit_code == 0, result.stderr
    assert names(here) == []
    assert "128x128" in result.stdout and "memory          text" in result.stdout
    plain = json.loads(invoke("generate", PROMPTS[0], *dry, "--json").stdout)["memory"]
    before = plain["stages"]["text"] - sum(plain["weights"].values())
    most = max(plain["stages"].values()) - before
    monkeypatch.setattr(measure, "free_memory", lambda device: most * 2 // 3)
    monkeypatch.setattr(measure, "peak_memory", lambda device: 0)
    result = invoke("generate", PROMPTS[0], *dry)
    assert "decode will not fit; would fit: " in result.stderr
