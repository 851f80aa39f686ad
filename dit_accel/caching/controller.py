"""A quality or a speed that the user named -> the course of each run, from the pipeline's profile.

What a run needs to know is there when it begins: the number of steps, the guidance and the
scheduler's timesteps. A profile of just these serves its measured plans; one of others is carried
over by its timesteps, and the report says so. Without a profile the first run is computed whole and
recorded; the runs after it are planned from that record, with a margin for what was not measured.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from dit_accel.caching.guard import GuardedPolicy
from dit_accel.core.families import Family, transformers_of
from dit_accel.core.guidance import conditional, guided
from dit_accel.core.quantization import BITS
from dit_accel.planning import selection
from dit_accel.planning.difficulty import pooled
from dit_accel.planning.first_run import FirstRunRecorder
from dit_accel.planning.lookup import identify
from dit_accel.planning.plan import Extrapolation, Plan, SamplerCoefficients
from dit_accel.planning.prediction import PlanChoice
from dit_accel.planning.profile import Profile, ProfileError, ProfileKey
from dit_accel.planning.sampler import coefficients_of

DECISIONS = 16  # that are kept, the oldest goes: every prompt has one of its own


class RunController:
    """A course (`courses.Course`) that decides when a run begins.

    Args:
        pipe, family: what it runs on.
        profile: None: the first run is recorded.
        quality, speedup: one of them.
        guard: whether the guard may override plans.
        static: whether every run of the same steps does exactly the same: no guard.
        force: whether a profile of one part serves a run of another guidance.
        remarks: what the report says of every run.
    """

    def __init__(
        self, pipe: Any, family: Family, profile: Profile | None, *,
        quality: float | None, speedup: float | None, guard: bool = True, static: bool = False,
        force: bool = False, remarks: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.pipe, self.family, self.profile = pipe, family, profile
        self.quality, self.speedup, self.static = quality, speedup, static
        self.guard = guard and not static
        self.force, self.remarks = force, remarks
        self.choice: PlanChoice | None = None
        self.guarded = GuardedPolicy(Plan(1, {}), [0.0])
        self._decisions: dict[tuple[Any, ...], PlanChoice] = {}
        self._text: torch.Tensor | None = None  # pooled, of the run's prompts
        self._size: tuple[int, int, int] | None = None  # height, width, frames of the run's clips
        self._carried: tuple[str, ...] = ()
        self._recorder: FirstRunRecorder | None = None

    @property
    def needs_error(self) -> bool:
        """As the run's steering."""
        return self.guarded.needs_error

    @property
    def checks_finite(self) -> bool:
        """Unless it is static."""
        return not self.static

    @property
    def branch_weights(self) -> tuple[float, ...]:
        """Of the run that is under way."""
        return self.guarded.branch_weights

    @property
    def min_bits(self) -> int:
        """That kept values of the run under way may be packed into."""
        return self.choice.min_bits if self.choice is not None else BITS[0]

    def begin(self, total: int | None) -> None:
        """Decide for the run that begins.

        Raises:
            ValueError: the target or the profile does not suit this run.
        """
        schedule = coefficients_of(self.pipe.scheduler, self._mix())
        self._carried = ()
        selection.check_num_steps(schedule.num_steps)
        if self.profile is None and self._recorder is not None and self._recorder.whole:
            self.profile = self._recorder.profile()
        if self.profile is None:
            self._recorder = FirstRunRecorder(schedule, self._identity(schedule))
            self.choice = None
            self.guarded = GuardedPolicy(
                Plan(schedule.num_steps, {}),
                schedule.timesteps.tolist(),
                schedule.branch_weights,
                guard=False,
            )
            return
        self._recorder = None
        self._check_guidance(self.profile.key)
        text = self._text if self.profile.difficulty is not None else None
        resized = self._size is not None and not self.profile.key.of_size(*self._size)
        key: tuple[Any, ...] = (
            tuple(schedule.timesteps.tolist()), tuple(schedule.coefficients.tolist()),
            schedule.branch_weights, resized,
            None if text is None else tuple(text.flatten().tolist()),
        )  # fmt: skip
        if key not in self._decisions:
            if len(self._decisions) >= DECISIONS:
                del self._decisions[next(iter(self._decisions))]
            self._decisions[key] = selection.choose(
                self.profile, schedule, selection.Target(self.quality, self.speedup),
                static=self.static, text=text, size=self._size,
            )  # fmt: skip
        self.choice = self._decisions[key]
        self.guarded = GuardedPolicy.of(self.choice, guard=self.guard)
        self.guarded.trusted = not self.remarks
        self.guarded.begin(total)
        self._carry(self.profile.key, schedule)

    def hear(self, part: int, value: torch.Tensor) -> None:
        """A fresh part of the guided prediction."""
        if self._recorder is not None:
            self._recorder.hear(part, guided(value, self._guidance(), self.family.branches))

    def hear_text(self, text: Any) -> None:
        """What the run's first forward is given, before it is decided."""
        self._text = None
        if self.profile is not None and self.profile.difficulty is not None:
            said = conditional(text, self._guidance(), self.family.branches)
            self._text = pooled(said) if said is not None else None

    def hear_latents(self, latents: torch.Tensor) -> None:
        """What the run's first forward is given, before it is decided: its clips' size."""
        self._size = self._size_of(latents)

    def hear_start(self, latents: torch.Tensor) -> None:
        """The noise that the run starts from."""
        if self._recorder is not None:
            start = guided(latents, self._guidance(), self.family.branches)
            self._recorder.start = start.detach().float().cpu().flatten()

    def extrapolation_at(self, step: int) -> Extrapolation | None:
        """As steered."""
        return self.guarded.extrapolation_at(step)

    def observe(
        self, step: int, extrapolation_error: float | None, lean: float | None = None
    ) -> None:
        """To the steering."""
        self.guarded.observe(step, extrapolation_error, lean)

    def on_lost_value(self, step: int, why: str) -> None:
        """To the steering."""
        self.guarded.on_lost_value(step, why)

    def on_suspicious(self, step: int, why: str) -> None:
        """To the steering."""
        self.guarded.on_suspicious(step, why)

    def on_invalid(self, step: int, why: str) -> None:
        """To the steering."""
        self.guarded.on_invalid(step, why)

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """As steered."""
        return self.guarded.needed_steps(step)

    def notes(self) -> tuple[str, ...]:
        """What was carried over or overridden."""
        found = [*self.remarks, *self._carried]
        if self._recorder is not None:
            found.append(
                "No profile was found: this run was computed whole and recorded; the next ones are "
                "planned from it. `dit-accel calibrate` measures a profile once for all."
            )
        if self.choice is not None:
            found += self.choice.notes
        return (*found, *self.guarded.notes())

    def prediction(self) -> dict[str, float | None] | None:
        """What is expected of the run; JSON-able: None where exact.

        Nothing is, where no profile is there yet, or the guard has left the plan or its weights.
        """
        left = self.guarded.tripped is not None or self.guarded.distrusts
        if self.choice is None or self.choice.prediction is None or left:
            return None
        found: dict[str, float | None] = dataclasses.asdict(self.choice.prediction)
        return {k: v if v is not None and math.isfinite(v) else None for k, v in found.items()}

    def _guidance(self) -> float:
        return float(getattr(self.pipe, "guidance_scale", 1.0) or 1.0)

    def _check_guidance(self, mine: ProfileKey) -> None:
        """A profile of one part is of one guidance."""
        here = self._guidance()
        if mine.parts > 1 or abs(mine.guidance - here) < 1e-6:
            return
        difference = f"guidance is {mine.guidance:g} in the profile, {here:g} here"
        if not self.force:
            raise ProfileError(
                f"{difference}, and plans of one part do not carry over: calibrate at this "
                "guidance, or force it"
            )
        self._carried = (f"The profile was forced: {difference}.",)

    def _carry(self, mine: ProfileKey, schedule: SamplerCoefficients) -> None:
        """Note over what the profile is carried."""
        transformer = next(iter(transformers_of(self.pipe, self.family).values()))
        dtype = str(transformer.dtype).removeprefix("torch.") if mine.dtype else ""
        guidance = self._guidance() if mine.parts > 1 and mine.guidance else mine.guidance
        here = dataclasses.replace(mine, steps=schedule.num_steps, guidance=guidance, dtype=dtype)
        if self._size is not None and not mine.of_size(*self._size):
            height, width, frames = self._size
            here = dataclasses.replace(here, height=height, width=width, frames=frames)
        self._carried += tuple(f"Carried over: {what}." for what in mine.carried(here))

    def _size_of(self, latents: torch.Tensor) -> tuple[int, int, int] | None:
        """Of a clip with latents `(B, C, F, h, w)` or `(B, F, C, h, w)`; None where these do not
        tell."""
        scale = getattr(self.pipe, "vae_scale_factor_spatial", None)
        frames = self._frames(latents) if latents.ndim == 5 else None  # else packed
        if not scale or frames is None:
            return None
        height, width = (int(side * scale) for side in latents.shape[-2:])
        return height, width, frames

    def _frames(self, latents: torch.Tensor) -> int | None:
        """Of a clip with latents `(B, C, F, h, w)` or `(B, F, C, h, w)`, where it is known."""
        scale = getattr(self.pipe, "vae_scale_factor_temporal", None)
        transformer = next(iter(transformers_of(self.pipe, self.family).values()))
        channels = getattr(transformer.config, "out_channels", None)
        channels = channels or getattr(transformer.config, "in_channels", None)
        if not scale or channels not in latents.shape[1:3]:
            return None
        return (latents.shape[2 if latents.shape[1] == channels else 1] - 1) * scale + 1

    def _mix(self) -> tuple[float, ...]:
        return selection.branch_weights(
            self.profile,
            self._guidance(),
            separate=self.family.branches == "separate",
            force=True,  # another guidance is refused, or noted, by `_check_guidance`
        )

    def _identity(self, schedule: SamplerCoefficients) -> ProfileKey:
        return identify(
            self.pipe,
            steps=schedule.num_steps,
            parts=len(schedule.branch_weights),
            guidance=self._guidance(),
        )
