"""Finds the plan of a run from a profile, and notes how the run differs from the profile's clips.

Goes in: a profile, a target, and a run's sampler coefficients, latents and text. Comes out: a
`PlanChoice` from `planning/selection.py`, and notes. A plan that was chosen before the run is used
if it fits the run. Choices are cached, so that equal runs get the same plan. It knows where
pipelines have their sizes, and nothing of policies. Ours; there is no source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from dit_accel.core.families import Family, transformers_of
from dit_accel.core.guidance import conditional
from dit_accel.core.interceptor import RunInfo
from dit_accel.planning import selection
from dit_accel.planning.choice import PlanChoice
from dit_accel.planning.difficulty import pooled
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_file import ProfileError

MAX_CHOICES = 16  # cached choices (each prompt has its own); the oldest is dropped
Size = tuple[int, int, int]  # height, width and frames of a clip
Notes = tuple[str, ...]


class Chooser:
    """Finds plans for the runs of a pipeline.

    Args:
        static, force, use_text: see `RunController`.
        chosen: the plan that was chosen before the run, if any.
    """

    def __init__(
        self, pipe: Any, family: Family, target: selection.Target, *, static: bool, force: bool,
        use_text: bool, chosen: PlanChoice | None,
    ) -> None:  # fmt: skip
        self.pipe, self.family, self.target, self.chosen = pipe, family, target, chosen
        self.static, self.force, self.use_text = static, force, use_text
        self._profile: Profile | None = None  # the one that the cached choices were made from
        self._choices: dict[tuple[Any, ...], PlanChoice] = {}

    def choose(
        self, profile: Profile, coefficients: SamplerCoefficients, run: RunInfo
    ) -> tuple[PlanChoice, Notes]:
        """The plan of a run, and a note if it is not the one that was chosen before the run."""
        if self.chosen is not None and _is_of(self.chosen, coefficients):
            return self.chosen, ()
        if profile is not self._profile:
            self._profile, self._choices = profile, {}
        text, size = self._text_of(profile, run), self._size_of(run.latents)
        key: tuple[Any, ...] = (
            tuple(coefficients.timesteps.tolist()), tuple(coefficients.coefficients.tolist()),
            coefficients.branch_weights, coefficients.second,
            size is not None and not profile.key.of_size(*size),
            None if text is None else tuple(text.flatten().tolist()),
        )  # fmt: skip
        if key not in self._choices:
            if len(self._choices) >= MAX_CHOICES:
                del self._choices[next(iter(self._choices))]
            self._choices[key] = selection.choose(
                profile, coefficients, self.target, static=self.static, text=text, size=size,
                noise=keeps_noise(self.pipe, self.family),
            )  # fmt: skip
        other = "other timesteps" if coefficients.second is None else "a second expert"
        again = () if self.chosen is None else (f"The plan was chosen again: the run has {other}.",)
        return self._choices[key], again

    def notes(
        self, profile: Profile, coefficients: SamplerCoefficients, guidance: float | None,
        latents: torch.Tensor | None,
    ) -> Notes:  # fmt: skip
        """Notes on differences between calibration and a run that are transferred or forced.

        Raises:
            ProfileError: the profile has one branch, and another guidance than the run.
        """
        return self._guidance_notes(profile, guidance) + self._transfer_notes(
            profile, coefficients, guidance, self._size_of(latents)
        )

    def _text_of(self, profile: Profile, run: RunInfo) -> torch.Tensor | None:
        """`(B, T)`: the pooled text embeddings; None if the plan does not depend on the prompt."""
        if profile.difficulty is None or self.static or not self.use_text:
            return None
        text = conditional(run.text, run.guidance or 1.0, self.family.branches)
        return pooled(text) if text is not None else None

    def _guidance_notes(self, profile: Profile, here: float | None) -> Notes:
        """A profile with one branch is valid for one guidance: refuse another one, or note it if
        forced."""
        key = profile.key
        if key.parts > 1 or here is None or abs(key.guidance - here) < 1e-6:
            return ()
        difference = f"it was measured at guidance {key.guidance:g}, and this run has {here:g}"
        if not self.force:
            raise ProfileError(
                f"the profile has one branch: {difference}. Calibrate at this guidance, or pass "
                "force=True"
            )
        return (f"The profile was forced: {difference}.",)

    def _transfer_notes(
        self, profile: Profile, coefficients: SamplerCoefficients, guidance: float | None,
        size: Size | None,
    ) -> Notes:  # fmt: skip
        key = profile.key
        transformer = next(iter(transformers_of(self.pipe, self.family).values()))
        dtype = str(transformer.dtype).removeprefix("torch.") if key.dtype else ""
        guidance = guidance if guidance and key.parts > 1 and key.guidance else key.guidance
        here = dataclasses.replace(
            key, steps=coefficients.num_steps, guidance=guidance, dtype=dtype
        )
        if size is not None and not key.of_size(*size):
            height, width, frames = size
            here = dataclasses.replace(here, height=height, width=width, frames=frames)
        return tuple(f"The plan was transferred: {what}." for what in key.transfers(here))

    def _size_of(self, latents: torch.Tensor | None) -> Size | None:
        """The size of the clip in pixels, from latents `(B, C, F, h, w)` or `(B, F, C, h, w)`; None
        if the latents are packed."""
        scale = getattr(self.pipe, "vae_scale_factor_spatial", None)
        per_latent = getattr(self.pipe, "vae_scale_factor_temporal", None)
        if latents is None or latents.ndim != 5 or not scale or not per_latent:
            return None
        _, channels = _channels_of(_config_of(self.pipe, self.family))
        if channels not in latents.shape[1:3]:
            return None
        frames = (latents.shape[2 if latents.shape[1] == channels else 1] - 1) * per_latent + 1
        height, width = (int(side * scale) for side in latents.shape[-2:])
        return height, width, frames


def keeps_noise(pipe: Any, family: Family) -> bool:
    """Whether the denoiser's first input is the noise alone, in the shape of its predictions.

    It is not if further channels have a condition (image to video, Wan-Animate), or if a prediction
    has sound too (LTX-2). There is no noise for a plan that uses it then.
    """
    return gets_noise_alone(family, _config_of(pipe, family))


def gets_noise_alone(family: Family, config: Mapping[str, Any]) -> bool:
    """As `keeps_noise`, from the denoiser's config."""
    given, predicted = _channels_of(config)
    return family.audio is None and given == predicted


def _config_of(pipe: Any, family: Family) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(iter(transformers_of(pipe, family).values())).config
    return found


def _channels_of(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The channels of the denoiser's first input, and of its predictions."""
    given = config.get("in_channels")
    return given, config.get("out_channels") or given


def _is_of(choice: PlanChoice, coefficients: SamplerCoefficients) -> bool:
    """Whether a plan was chosen for these timesteps and branch weights."""
    pairs = (
        (choice.timesteps, coefficients.timesteps.tolist()),
        (choice.branch_weights, coefficients.branch_weights),
    )
    same = choice.second == coefficients.second
    return same and all(len(a) == len(b) and all(map(_is_close, a, b)) for a, b in pairs)


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-6)  # profiles round timesteps
