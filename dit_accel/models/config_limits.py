"""Refuses a model's folder whose configurations have numbers that no model has.

In: a folder in the diffusers format. Out: nothing, or a `ValueError` that names file and field.
Knows: classes make one module a layer and one entry a timestep or position when they are built,
even without weights. So a number such as 10**9 would fill the memory before any error.
Source: ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dit_accel.models.json_file import read_object

_MOST = (  # names of fields, and the largest number: far above that of any model
    (re.compile("layers|blocks|depth|timesteps"), 10_000),
    (re.compile("seq_len|max_size|position"), 2**21),
)


def check_limits(folder: Path) -> None:
    """Check the configurations of all components.

    Raises:
        ValueError: a number is too large, or a file is not a JSON object.
    """
    for source in (*folder.glob("*/config.json"), *folder.glob("*/scheduler_config.json")):
        for name, value in _numbers("", read_object(source)):
            most = next((most for names, most in _MOST if names.search(name)), value)
            if value > most:
                shown = f"{value:.3g}" if value < 10**300 else "over 300 digits long"
                raise ValueError(f"{name} is {shown} in {source}; accepted: at most {most}")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """The whole numbers in a configuration, with the names of their fields."""
    if isinstance(value, dict):
        for inner, one in value.items():
            yield from _numbers(inner, one)
    elif isinstance(value, list):
        for one in value:
            yield from _numbers(name, one)
    elif isinstance(value, int):
        yield name, value
