"""What is refused before the work: options without effect, sizes, weights that are missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from commands import PROMPT, invoke

from dit_accel.models import miniature


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan --cache-memory 1MiB", "--cache-memory is given; accepted: with --quality or --spee"),
        ("plan --no-learn", "--no-learn is given; accepted: with --quality or --speedup"),
        ("plan --dtype float16", "--dtype is given; accepted: with --quality or --speedup"),
        ("generate a --frames 1000", "--frames is 1000; accepted with this model: at most 253"),
    ],
)
def test_an_option_is_refused_by_name(here: Path, words: str, message: str) -> None:
    result = invoke(*words.split())
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("more", [["--variant", "fp16"], ["--speedup", "2", "--no-learn"]])
def test_options_of_a_model_are_refused_with_a_profile_alone(here: Path, more: list[str]) -> None:
    profile = miniature.path() / "dit-accel-profile.safetensors"
    result = invoke("plan", "--profile", str(profile), *more)
    assert result.exit_code == 2
    assert "is given with --profile alone; accepted: with --model too" in result.stderr


def test_weights_of_another_part_are_refused_by_name(here: Path, model_folder: Path) -> None:
    """Diffusers only warns, and the parameters have no data then."""
    folder = shutil.copytree(model_folder, here / "model")
    file = "diffusion_pytorch_model.safetensors"
    shutil.copy(folder / "vae" / file, folder / "transformer" / file)
    result = invoke("generate", PROMPT, "--model", str(folder), "--threshold", "1")
    assert result.exit_code == 1
    lacking = r"the files of its transformer lack (\d+) of \1 weights, such as \w+"
    assert re.search(lacking, result.stderr), result.stderr


def test_an_error_whose_reason_is_its_last_line_has_the_reason(
    here: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of diffusers, where a package that it imports is broken."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to import it because of this error (look up):\n\nno libfoo.so")

    monkeypatch.setattr("dit_accel.cli.run.run.run_accelerated", fail)
    result = invoke("generate", PROMPT, "--model", str(model_folder), "--threshold", "1")
    assert "this error (look up): no libfoo.so (--verbose shows where)" in result.stderr
