"""Options as the library's arguments: one map for messages, one dataclass for `accelerate`.

A worked example: `--deterministic` (once `--static`) is the field `static` of `AccelOptions`, the
keyword `static` of `accelerate`, and the name that a message about `static` is reworded to.
"""

from __future__ import annotations

import dataclasses
import inspect

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


def test_every_acceleration_option_is_a_keyword_of_accelerate_and_has_a_name() -> None:
    fields = {one.name for one in dataclasses.fields(AccelOptions)} - {"no_guard"} | {"guard"}
    assert fields <= inspect.signature(accelerate).parameters.keys() & OPTIONS.keys()
    settings = {one.name for one in dataclasses.fields(PlannedConfig) if one.compare}
    assert settings - {"layout", "scene"} <= fields


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
