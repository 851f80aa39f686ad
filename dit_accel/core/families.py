"""Finds the transformers of a pipeline, and the table's row that describes them.

In: a diffusers pipeline. Out: its `Family`, and its transformers by component name.
Knows: the table in `models/families.py`, which the other packages read through this module. Does
not know what a technique does with a transformer.
Source: ours.
"""

from __future__ import annotations

from typing import Any

from dit_accel.core.patching import uncompiled
from dit_accel.models.families import FAMILIES, SITES, Family

__all__ = ["FAMILIES", "SITES", "Family", "family_of", "transformers_of"]


def family_of(pipe: Any) -> Family:
    """The row of a pipeline's transformer.

    Raises:
        ValueError: the pipeline has no transformer, or its class is in no row.
    """
    loaded = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    transformer = next((module for module in loaded if module is not None), None)
    name = type(uncompiled(transformer)).__name__
    if transformer is None or name not in FAMILIES:
        found = f"a {name}" if transformer is not None else "no transformer"
        raise ValueError(
            f"pipe is a {type(pipe).__name__} with {found}; "
            f"accepted transformers: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def transformers_of(pipe: Any, family: Family) -> dict[str, Any]:
    """The pipeline's transformers by component name, those that are loaded."""
    found = {name: getattr(pipe, name, None) for name in family.components}
    return {name: module for name, module in found.items() if module is not None}
