"""Options as the library's arguments: one map for messages, one dataclass for `accelerate`.

A worked example: `--deterministic` (once `--static`) is the field `static` of `AccelOptions`, the
keyword `static` of `accelerate`, and the name that a message about `static` is reworded to.
"""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
from commands import invoke

from dit_accel import accelerate
from dit_accel.cli.common.errors import OPTIONS, as_option
from dit_accel.cli.common.options import AccelOptions
from dit_accel.cli.run.request import Request
from dit_accel.config import PlannedConfig, QualityConfig, ThresholdConfig


def test_an_option_from_the_command_line_to_the_config() -> None:
    config = Request(prompt="a cat", static=True, cache_memory="1KiB").accel_config()
    assert config == QualityConfig(36, static=True, cache_memory=1024)
    assert OPTIONS["static"] == "--deterministic"
    message = invoke("generate", "a cat", "--static", "--threshold", "1").stderr  # its old name
    assert message == "error: --deterministic is given; accepted: with --quality or --speedup\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("generate a --quality abc", "--quality is 'abc'; accepted: a number"),
        ("generate a --seed 1e3", "--seed is '1e3'; accepted: a whole number"),
        ("bench --steps 1", "--steps is '1'; accepted: a whole number, at least 4"),
        ("calibrate --minutes -1", "--minutes is '-1'; accepted: a number, at least 0"),
        ("evaluate x --output y --limit 0", "--limit is '0'; accepted: a whole number, at least 1"),
    ],
)
def test_a_text_that_is_no_number_is_named(words: str, message: str) -> None:
    result = invoke(*words.split())
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_every_acceleration_option_is_a_keyword_of_accelerate_and_has_a_name() -> None:
    fields = {one.name for one in dataclasses.fields(AccelOptions)} - {"no_guard", "no_learn"}
    fields |= {"guard", "learn"}
    assert fields <= inspect.signature(accelerate).parameters.keys() & OPTIONS.keys()
    settings = {one.name for one in dataclasses.fields(PlannedConfig) if one.compare}
    assert settings - {"layout", "scene", "branch_parallel"} <= fields


def test_without_an_option_the_config_is_the_default_quality() -> None:
    request = Request(prompt="a cat")
    assert request.accel_config() == QualityConfig(36) and not request.wants_acceleration
    assert Request(prompt="a cat", site="block").accel_config() == ThresholdConfig(site="block")
    assert Request(prompt="a cat", accel="unicp").accel_config() == QualityConfig(36)


@pytest.mark.parametrize(
    ("message", "reworded"),
    [
        ("quality is -1.0; accepted: a", "--quality is -1.0; accepted: a"),
        ("quality=30 and speedup=2 are given", "--quality 30 and --speedup 2 are given"),
        (
            "profile is given; accepted: with quality",
            "--profile is given; accepted: with --quality",
        ),
        (
            "a and b differ; pass allow_mixed=True to",
            "a and b differ; pass --allow-mixed-codecs to",
        ),
        ("no weights: pass lpips_weights", "no weights: pass --lpips-weights"),
        ("another static (True before)", "another --deterministic (True before)"),
        ("without a model, the miniature", "without --model, the miniature"),
        ("accepted: accel=UniCP(pcas=None)", "accepted: accel=UniCP(pcas=None)"),
        (
            "the profile is of a model whose steps differ",
            "the profile is of a model whose steps differ",
        ),
    ],
)
def test_messages_name_options_for_arguments_and_leave_words_alone(
    message: str, reworded: str
) -> None:
    assert as_option(message) == reworded


CHECKED_VERBS = [
    ("generate",), ("calibrate",), ("plan",), ("evaluate",), ("report",), ("score",), ("bench",),
    ("models",), ("layout", "validate"), ("layout", "preview"),
]  # fmt: skip


@pytest.mark.parametrize("verb", CHECKED_VERBS, ids=" ".join)
def test_every_verb_names_its_options_in_one_way(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    short, long = invoke(*verb, "-h"), invoke(*verb, "--help")
    assert short.exit_code == 0 and short.stdout == long.stdout
    for strange in ("<bool>", "<int>", "<float>", "<str>", "<path>", "[[", "{"):
        assert strange not in short.stdout, strange
    assert "--out " not in short.stdout and "--prompts" not in short.stdout
    assert "--json" in short.stdout and "-h" in short.stdout
    if "--output" in short.stdout:
        assert re.search(r"--output +-o ", short.stdout)


def test_old_names_are_still_accepted(tmp_path):
    for old in ("--out", "--output", "-o"):
        result = invoke("calibrate", old, str(tmp_path / "a.json"))
        assert "--output is" in result.stderr
        assert "accepted: a name that ends in .safetensors" in result.stderr
    for words in (("no.txt",), ("--prompts", "no.txt")):
        assert "PROMPTS is 'no.txt'" in invoke("calibrate", *words).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "a", "--output", ""), "--output is '.'; accepted: a path with a file name"),
        (("generate", "a\0b"), "PROMPT is 'a\\x00b'; accepted: text without NUL"),
        (("generate", "a\udcffb"), "PROMPT is 'a\\udcffb'; accepted: text without NUL"),
        (("generate", "a", "--height", "9" * 400), "--height is a whole number of over 40 digits"),
        (("generate", "a", "--steps", "1000000"), "--steps is 1000000; accepted: 1 to 1000"),
        (("plan", "--steps", "1001", "--quality", "30"), "--steps is 1001; accepted: 1 to 1000"),
        (("plan", "--guidance", "nan", "--quality", "30"), "--guidance is nan; accepted: a finite"),
        (("calibrate", "--seed", "-1"), "--seed is -1; accepted: 0"),
        (
            ("calibrate", "--batch", str(2**63)),
            "--batch is 9223372036854775808; accepted: a whole number below",
        ),
    ],
)
def test_values_that_no_verb_accepts(words, said):
    result = invoke(*words)
    assert result.exit_code == 2 and said in result.stderr, result.stderr


def test_a_table_is_whole_in_a_pipe_and_on_a_narrow_terminal(monkeypatch, capsys):
    from rich.table import Table

    from dit_accel.cli.common import text

    table = Table("method", "PSNR\ndB", title="a title", caption="a note")
    table.add_row("a-long-name/of-a-method:0.25", "54.8 [47.1, 68.0]")
    monkeypatch.setenv("COLUMNS", "30")
    text.print_table(table)
    assert "a-long-name/of-a-method:0.25 │ 54.8 [47.1, 68.0]" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    monkeypatch.setenv("TERM", "xterm")
    text.print_table(table)
    plain = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    lines = [line.rstrip() for line in plain.split("\n")]
    assert lines[:4] == [
        "a title",
        "a-long-name/of-a-method:0.25",
        "  PSNR dB  54.8 [47.1, 68.0]",
        "a note",
    ]
