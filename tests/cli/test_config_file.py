"""Options from a file: the names of the flags, checked like them; what is typed goes before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROMPT, invoke


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_stands_for_options_and_typed_ones_go_before(
    here: Path, model_folder: Path, suffix: str
) -> None:
    content = {"prompt": PROMPT, "model": str(model_folder), "steps": 9, "guidance": 2.5}
    content |= {"dry_run": True, "attention-backend": "_native_math"}
    Path(f"c.{suffix}").write_text(json.dumps(content))  # JSON is YAML
    result = invoke("generate", "--config", f"c.{suffix}", "--steps", "10", "--json")
    assert result.exit_code == 0, result.stderr
    settings = json.loads(result.stdout)["settings"]
    assert (settings["prompt"], settings["steps"], settings["guidance"]) == (PROMPT, 10, 2.5)
    assert settings["setup"] == {"attention_backend": "_native_math"}


def test_an_option_that_is_given_again_is_a_list(here: Path, model_folder: Path) -> None:
    Path("c.yaml").write_text("lora: [a.safetensors, 'b.safetensors:0.5']\n")
    result = invoke("generate", PROMPT, "--model", str(model_folder), "--config", "c.yaml")
    assert "a.safetensors': no such file" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stepz: 3", "it has 'stepz', which is no option of this verb; did you mean steps?"),
        ("config: other.yaml", "it has 'config', which is no option"),
        ("steps: [3]", "steps is a list of 1 entries; accepted: one value"),
        ("compare: 3", "compare is '3'; accepted: true or false"),
        ("steps: 8\nsteps: 9", "it has 'steps' twice; accepted: once"),
        ("guidance-2: 3\nguidance_2: 4", "it has 'guidance_2' under two names; accepted: one"),
        ("a: &a [1, 1]\ncompare: &b [*a, *a]", "it has 'a', which is no option"),
        ("- steps", "accepted: a file of names and values"),
        ("a: b: c", "which is neither YAML nor JSON"),
        ("x: !!python/object:os.system {}", "which is neither YAML nor JSON"),
        ("steps: 0", "--steps is 0; accepted: 1 to 1000"),
    ],
)
def test_a_wrong_file_is_refused_by_name(here: Path, content: str, message: str) -> None:
    Path("c.yaml").write_text(content)
    result = invoke("generate", PROMPT, "--config", "c.yaml")
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("text", ["no", "010", "1:30", "1e3", "2024-01-01", "0x1F", "'null'"])
def test_a_value_is_the_text_that_is_written(here: Path, model_folder: Path, text: str) -> None:
    """YAML itself would read `no` as false, `010` as 8 and `1:30` as 90."""
    Path("c.yaml").write_text(f"negative: {text}\n")
    words = ["--model", str(model_folder), "--config", "c.yaml", "--dry-run", "--json"]
    result = invoke("generate", PROMPT, *words)
    assert json.loads(result.stdout)["settings"]["negative"] == text.strip("'"), result.stderr


@pytest.mark.parametrize("text", ["true", "True", "yes", "on"])
def test_a_flag_is_true_in_all_of_yamls_words(here: Path, model_folder: Path, text: str) -> None:
    Path("c.yaml").write_text(f"dry-run: {text}\nsteps:\nseed: 3\n")  # no steps: the default
    words = ["--model", str(model_folder), "--config", "c.yaml", "--json"]
    settings = json.loads(invoke("generate", PROMPT, *words).stdout)["settings"]
    assert (settings["steps"], settings["seed"]) == (8, 3)


def test_a_value_of_another_type_is_refused(here: Path) -> None:
    Path("c.yaml").write_text("steps: 5.5")
    result = invoke("generate", PROMPT, "--config", "c.yaml")
    assert (result.exit_code, "--steps" in result.stderr) == (2, True)
    missing = invoke("generate", PROMPT, "--config", "no.yaml")
    assert "--config is 'no.yaml': No such file" in missing.stderr


def test_the_shell_completes_verbs_and_options() -> None:
    def completed(words: str) -> str:
        more = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        end = subprocess.run(
            [sys.executable, "-m", "dit_accel.cli"], capture_output=True, text=True, check=False,
            env=os.environ | more | {"_DIT_ACCEL_COMPLETE": "complete_bash"},
        )  # fmt: skip
        return end.stdout

    assert completed("dit-accel gen").split() == ["generate"]
    assert "--prompt-file" in completed("dit-accel generate --pr").split()
