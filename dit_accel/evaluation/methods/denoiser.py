"""A pipeline's guided prediction as a function of latents and timestep, with gradients.

In: a pipeline and clips. Out: a function of rows of latents. Each row has its own timestep and
clip.
Knows: how guidance runs in each family (`core/families.py`). The arguments of a first forward are
recorded from the pipeline itself. So text, masks and sizes are those of a run. It refuses pipelines
with two experts, because the timestep decides which expert predicts.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.generation import ClipSpec, batch_arguments
from dit_accel.core.patching import Patches

# arguments with one row for each clip
_BY_ROW = ("encoder_", "pooled_", "guidance", "attention_mask")


class GuidedDenoiser:
    """The guided prediction of several clips.

    Args:
        pipe: a pipeline with one transformer.
        clips: all with the same steps, guidance and size.

    Raises:
        ValueError: the pipeline has two transformers.
    """

    def __init__(self, pipe: Any, clips: Sequence[ClipSpec]) -> None:
        family = family_of(pipe)
        parts = list(transformers_of(pipe, family).values())
        if len(parts) != 1:
            raise ValueError(f"pipe has {len(parts)} transformers; accepted: one")
        self._module, self._guidance = parts[0], clips[0].guidance
        branches = family.branches if self._guidance > 1 else "one"
        self._cond_first = branches == "separate"
        self.rows = 2 if branches in ("separate", "batched") else 1
        count = 2 if branches == "separate" else 1
        calls = [_first_forwards(pipe, self._module, clip, count) for clip in clips]
        self.noise = torch.cat([call[0]["hidden_states"][:1] for call in calls]).float()
        self._arguments = {name: _by_row(name, calls, self.rows) for name in calls[0][0]}

    def __call__(
        self, latents: torch.Tensor, labels: torch.Tensor, clips: torch.Tensor
    ) -> torch.Tensor:
        """The guided prediction.

        Args:
            latents: `(R, ...)`.
            labels: `(R,)`: the timestep of each row.
            clips: `(R,)` whole numbers: the clip of each row.

        Returns:
            `(R, ...)` float32.
        """
        cond, *others = self.branches(latents, labels, clips)
        return others[0] + self._guidance * (cond - others[0]) if others else cond

    def branches(
        self, latents: torch.Tensor, labels: torch.Tensor, clips: torch.Tensor
    ) -> list[torch.Tensor]:
        """The predictions that guidance weighs, that of the prompt first. They are rows of one
        forward. Arguments: see `__call__`."""
        arguments = {
            name: torch.cat([part[clips] for part in value]) if isinstance(value, list) else value
            for name, value in self._arguments.items()
        } | {
            "hidden_states": torch.cat([latents] * self.rows).to(self._module.dtype),
            "timestep": torch.cat([labels] * self.rows),
            "return_dict": False,
        }  # fmt: skip
        found = self._module(**arguments)[0].float().chunk(self.rows)
        return list(found if self._cond_first else reversed(found))


class _Recorded(Exception):
    """Raised to end a run once its first forwards were recorded."""


def _first_forwards(pipe: Any, module: Any, clip: ClipSpec, count: int) -> list[dict[str, Any]]:
    """The keyword arguments of a run's first forwards, one for each branch."""
    calls: list[dict[str, Any]] = []
    patches = Patches()

    def around(inner: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if args:
                kwargs = {"hidden_states": args[0], **kwargs}
            calls.append(kwargs)
            if len(calls) == count:
                raise _Recorded
            return inner(*args, **kwargs)

        return forward

    patches.around(module, around)
    try:
        pipe(**batch_arguments(pipe, [clip]) | {"output_type": "latent"})
    except _Recorded:
        pass
    finally:
        patches.undo()
    return calls


def _by_row(name: str, calls: list[list[dict[str, Any]]], branches: int) -> Any:
    """An argument for all clips: a list of `(P, ...)`, one for each branch; or the first clip's
    value if the argument has no rows."""
    first = calls[0][0][name]
    if not (isinstance(first, torch.Tensor) and name.startswith(_BY_ROW)):
        return first
    parts = [[part for one in call for part in one[name]] for call in calls]
    return [torch.stack([rows[branch] for rows in parts]) for branch in range(branches)]
