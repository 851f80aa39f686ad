"""Finds a forward's step from its timestep, and its branch from its text embedding.

Goes in: a forward's timestep and the scheduler's timesteps, or its text. Comes out: the steps to
which it may belong, or the branch's name. It knows no pipeline. `core/session.py` uses it if
diffusers does not report the step or the branch. Ours; there is no source.
"""

from __future__ import annotations

from typing import Any

import torch


class Texts:
    """The text embeddings of a run. They stay the same during the run; the first is `cond`."""

    def __init__(self) -> None:
        self._known: list[torch.Tensor | None] = []

    def branch_of(self, text: torch.Tensor | None) -> str:
        """The name of the branch with this text. A new tensor may be a copy of a known one, so its
        values are compared."""
        known = self._known
        index = next((i for i, one in enumerate(known) if one is text), None)
        if index is None:
            index = next((i for i, one in enumerate(known) if _same_text(one, text)), len(known))
        if index == len(known):
            known.append(text)
        return ("cond", "uncond")[index] if index < 2 else f"branch{index}"


def _same_text(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return False
    kinds = [(tensor.shape, tensor.dtype, tensor.device) for tensor in (one, other)]
    return kinds[0] == kinds[1] and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))


def positions(timestep: torch.Tensor, timesteps: torch.Tensor) -> list[int]:
    """The steps that a forward's timestep may belong to.

    A timestep that is a view of the scheduler's tensor (diffusers' pipelines pass one) is located
    by its place in memory, without a host sync. Any other is located by its value, as its dtype
    rounds it: bfloat16 has one number for 994 and 997, so there can be several.

    Args:
        timestep: any shape; all elements equal, or zero where a frame is given (Wan 2.2 TI2V).
        timesteps: shape (steps,).

    Returns:
        0-based steps, at least one.

    Raises:
        ValueError: the value is none of the timesteps.
    """
    if timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr():
        behind = timestep.storage_offset() - timesteps.storage_offset()
        return [int(behind // timesteps.stride(0))]
    value = timestep.max().to(timesteps.device)
    schedule = timesteps.to(value.dtype).float()
    *gaps, now = torch.cat([(schedule - value).abs(), value.float()[None]]).tolist()
    if min(gaps) > 1e-3 * max(1.0, abs(now)):
        known = f"the scheduler's {len(timesteps)} timesteps"
        raise ValueError(f"timestep {now:g} is not one of {known}")
    return [step for step, gap in enumerate(gaps) if gap == min(gaps)]


class Positions:
    """As `positions`, for one forward after another. A timestep tensor that the forwards of a step
    share is read from the device only once."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] = None, None, 0, []

    def of(self, timestep: Any, scheduler: Any) -> list[int]:
        """The steps that a forward may belong to. If the model's timestep is not one of the
        scheduler's, the scheduler's own count decides."""
        timesteps = scheduler.timesteps
        if not isinstance(timestep, torch.Tensor):
            return [counted_position(scheduler)]
        version = 0 if timestep.is_inference() else timestep._version  # rises with every write
        known, schedule, known_version, found = self._last
        if known is not timestep or schedule is not timesteps or known_version != version:
            try:
                found = positions(timestep, timesteps)
            except ValueError:
                return [counted_position(scheduler)]
            self._last = timestep, timesteps, version, found
        return found


def next_position(found: list[int], scheduler: Any, now: int, *, seen: bool) -> int:
    """The position that comes next, among several with the same rounded timestep.

    Args:
        found: the positions.
        now: the run's current position.
        seen: whether the current step already had this forward. If not, it may still belong to it.
    """
    if len(found) == 1:
        return found[0]
    if getattr(scheduler, "step_index", 0) is None:
        # The scheduler has not stepped yet, so this is the run's first step.
        begin = getattr(scheduler, "begin_index", None)
        return begin if begin in found else found[0]
    if now in found and not seen:
        return now
    return next((place for place in found if place > now), found[0])


def boundary_of(pipe: Any) -> float | None:
    """The timestep below which a pipeline uses its second transformer; None: it has none."""
    share = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
    experts = getattr(pipe, "transformer", None), getattr(pipe, "transformer_2", None)
    if share is None or None in experts:
        return None
    return float(share) * pipe.scheduler.config.num_train_timesteps


def counted_position(scheduler: Any) -> int:
    """The step by the scheduler's own count, which it increases at each step.

    Raises:
        ValueError: the scheduler has no such count. The message names the scheduler.
    """
    if not hasattr(scheduler, "step_index"):
        raise ValueError(
            f"the transformer's timestep is none of the {len(scheduler.timesteps)} timesteps of "
            f"{type(scheduler).__name__}; accepted: one of them, or a scheduler with a step_index"
        )
    index = scheduler.step_index
    return int(index if index is not None else getattr(scheduler, "begin_index", None) or 0)


def are_unset(scheduler: Any) -> bool:
    """Whether `set_timesteps` was not called yet: the timesteps are still those of training."""
    config = getattr(scheduler, "config", None)
    number = getattr(config, "num_train_timesteps", None)
    asked_for = getattr(scheduler, "num_inference_steps", None)
    return asked_for is None and len(scheduler.timesteps) == number
