"""Finds the transformers of a pipeline, and the row of the table that describes them.

In: a diffusers pipeline. Out: its `Family`, and its transformers by component name.
Knows: the table in `models/families.py`; the other packages read it through this module. Does not
know what a technique does with a transformer.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dit_accel.core.compiling import uncompiled
from dit_accel.models.families import EXPERTS, FAMILIES, SITES, Argument, Family

__all__ = [
    "FAMILIES", "SITES", "Argument", "Family", "blocks_of", "family_of", "transformers_of",
    "without_row",
]  # fmt: skip


def family_of(pipe: Any) -> Family:
    """The row of a pipeline's transformer; if its class has no row, one without sites is made.

    Raises:
        ValueError: the pipeline has no transformer, or its scheduler has no `timesteps`; or the
            transformer lacks the blocks of its row.
    """
    loaded = (getattr(pipe, name, None) for name in EXPERTS)
    transformer = next((module for module in loaded if module is not None), None)
    name = type(uncompiled(transformer)).__name__
    if transformer is None or not hasattr(getattr(pipe, "scheduler", None), "timesteps"):
        found = f"a {name}" if transformer is not None else "no transformer"
        raise ValueError(
            f"pipe is a {type(pipe).__name__} with {found}; accepted: a scheduler with timesteps, "
            f"and a transformer, best one of {', '.join(FAMILIES)}"
        )
    if name in FAMILIES:
        return _checked(FAMILIES[name], uncompiled(transformer))
    return without_row(name, type(pipe).__name__)


def _checked(row: Family, transformer: Any) -> Family:
    """The row, if the transformer has its blocks. It may not: users can add rows, and diffusers
    changes."""
    missing = [name for name in row.blocks if not hasattr(transformer, name)]
    if missing:
        lists = [n for n, m in transformer.named_children() if hasattr(m, "__len__")]
        raise ValueError(
            f"the row {row.name} has blocks {', '.join(missing)}, which {row.transformer} lacks; "
            f"accepted: some of {', '.join(lists) or 'its lists of blocks, but it has none'}"
        )
    return row


def without_row(transformer: str, pipeline: str) -> Family:
    """A row for a transformer that the table does not have.

    It has what is true of every transformer: plans work at its output. Its guidance weights are
    measured in the first step of a run.
    """
    return Family(
        name=transformer, transformer=transformer, pipelines=(pipeline,), components=EXPERTS,
        blocks=(), attention="", branches="embedded", sites=(), rows=(),
        notes="no row: plans only",
    )  # fmt: skip


def transformers_of(pipe: Any, family: Family) -> dict[str, Any]:
    """The pipeline's loaded transformers, by component name."""
    found = {name: getattr(pipe, name, None) for name in family.components}
    return {name: module for name, module in found.items() if module is not None}


def blocks_of(module: Any, family: Family) -> Iterator[Any]:
    """The blocks of a transformer and their attentions: the modules that techniques wrap."""
    for group in family.blocks:
        for block in getattr(module, group):
            yield block
            for name in (family.attention, family.cross_attention):
                yield getattr(block, name or "", None)
