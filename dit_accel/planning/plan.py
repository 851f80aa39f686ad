"""What a plan is: which steps are computed, and the weighted sums that replace the others.

In: computed steps, and a correction for each window. Out: a `Plan`, with one `Extrapolation` for
each step that is not computed.
Knows numbers; no model, no scheduler.

A window is a computed step and the extrapolated steps after it. The line through the last two
computed predictions extrapolates these steps. A *correction* is added: one number per feature,
distributed over the window's steps. A feature is a row that the window extrapolates from: a
component of a computed prediction, or the noise. Each component of the guided prediction has its
own weights (docs/how-it-works.md, section 1).

Shapes: C plans; n steps; B components; R = B n + 1 rows (components by step, then the noise); D
computed steps that a window uses, latest first; F = B D + 1 features (components of these steps,
then the noise).
Source: ours; the same section names the published relatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from dit_accel.core import extrapolation

StepWeights = Mapping[int, float]  # by computed step
Corrections = Mapping[int, torch.Tensor]  # by the step that opens a window: `(F,)`


@dataclass(frozen=True)
class SecondExpert:
    """The second transformer of a run, as in Wan 2.2. No window reaches from one to the other.

    Args:
        begin: its first step, which is always computed.
        share: factor on the branch weights of the differences between branches, from `begin` on:
            (1 - second expert's guidance scale) / (1 - first expert's guidance scale).
    """

    begin: int
    share: float = 1.0


@dataclass(frozen=True)
class SamplerCoefficients:
    """What is known of a sampler before a run.

    Args:
        coefficients: `(n,)` float64, what one unit of each guided prediction adds to the final
            latents.
        timesteps: `(n,)` float64, the scheduler's, falling (Mochi's rise); predictions are
            extrapolated over these.
        branch_weights: B numbers, the weights of the components in the guided prediction.
        second: the second expert; None: one transformer makes all steps.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.
    """

    coefficients: torch.Tensor
    timesteps: torch.Tensor
    branch_weights: tuple[float, ...] = (1.0,)
    second: SecondExpert | None = None

    def __post_init__(self) -> None:
        shapes = tuple(self.coefficients.shape), tuple(self.timesteps.shape)
        if self.coefficients.ndim != 1 or shapes[0] != shapes[1] or not self.branch_weights:
            raise ValueError(
                f"coefficients and timesteps have shapes {shapes}; accepted: (n,), (n,), and at "
                "least one of branch_weights"
            )
        if not (self.coefficients.isfinite().all() and self.timesteps.isfinite().all()):
            raise ValueError(
                "coefficients or timesteps has NaN or infinity; accepted: finite numbers"
            )
        if self.second is not None and not 0 < self.second.begin < self.num_steps:
            raise ValueError(
                f"second begins at step {self.second.begin}; accepted: 1 to {self.num_steps - 1}"
            )

    @property
    def num_steps(self) -> int:
        """n, the steps of the run."""
        return len(self.coefficients)

    @property
    def num_rows(self) -> int:
        """R, the rows of a Gram matrix."""
        return len(self.branch_weights) * self.num_steps + 1

    @property
    def fixed_steps(self) -> tuple[int, ...]:
        """Steps that every plan computes: the first one of each expert."""
        return (0,) if self.second is None else (0, self.second.begin)

    def since(self, step: int) -> int:
        """The first step whose prediction an extrapolation at this step may use."""
        return since(step, self.second)

    def weights_at(self, step: int) -> tuple[float, ...]:
        """B weights of the components in the guided prediction of a step."""
        return weights_at(step, self.branch_weights, self.second)

    @cached_property
    def step_weights(self) -> torch.Tensor:
        """`(B, n)` float64: `weights_at` of all steps."""
        rows = [self.weights_at(step) for step in range(self.num_steps)]
        return torch.tensor(rows, dtype=torch.float64).T

    @property
    def guide(self) -> torch.Tensor:
        """`(n + 1, R)` float64: the guided prediction of every step, and the noise, by rows."""
        found = torch.zeros(self.num_steps + 1, self.num_rows, dtype=torch.float64)
        found[:-1, :-1] = torch.cat([weights.diag() for weights in self.step_weights], 1)
        found[-1, -1] = 1.0
        return found

    @property
    def final_weights(self) -> torch.Tensor:
        """`(R,)` float64: the weights of the rows in the final latents."""
        added = self.step_weights * self.coefficients
        return torch.cat([added.flatten(), torch.ones(1, dtype=torch.float64)])

    def feature_rows(self, used: torch.Tensor) -> torch.Tensor:
        """Indices of the rows `(C, F)` that are the features of computed steps `(C, D)`."""
        components = [used + b * self.num_steps for b in range(len(self.branch_weights))]
        return torch.cat([*components, torch.full_like(used[:, :1], self.num_rows - 1)], 1)

    def omitted(self, opened: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """`(C, R)` weights of rows: the error of windows whose extrapolated steps add nothing."""
        added = self._extrapolated(opened, closed)
        components = [-weights * added for weights in self.step_weights]
        return torch.cat([*components, torch.zeros(len(opened), 1, dtype=torch.float64)], 1)

    def _extrapolated(self, opened: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """`(C, n)`: the coefficients of the extrapolated steps, 0 elsewhere."""
        steps = torch.arange(self.num_steps)
        between = (steps > opened[:, None]) & (steps < closed[:, None])
        return torch.where(between, self.coefficients, 0.0)


def line_sums(
    used: torch.Tensor, opened: torch.Tensor, closed: torch.Tensor, sampler: SamplerCoefficients
) -> torch.Tensor:
    """What windows add to the latents when a line extrapolates their steps: `(C, F)`.

    Args:
        used: `(C, D)` computed steps, latest first; the line goes through the first two. If both
            are the same step, because there is no other, its prediction is reused unchanged.
        opened, closed: `(C,)`, the computed step of a window, and the next one or the end.
    """
    coefficients = sampler._extrapolated(opened, closed)
    sums = torch.zeros(used.shape, dtype=torch.float64)
    sums[:, 0] = coefficients.sum(1)
    if used.shape[1] > 1:  # p̂ = p0 + slope (p0 - p1)
        times = sampler.timesteps
        here, before = times[used[:, 0]], times[used[:, 1]]
        slope = (times - here[:, None]) / (here - before)[:, None]
        slope = torch.where((here == before)[:, None], 0.0, slope)  # there is only one step
        forward = (coefficients * slope).sum(1)
        sums[:, 0] += forward
        sums[:, 1] -= forward
    # One expert makes all steps of a window, so the branch weights at its first step apply to all.
    components = [weights[:, None] * sums for weights in sampler.step_weights[:, opened]]
    return torch.cat([*components, torch.zeros(len(used), 1, dtype=torch.float64)], 1)


@dataclass(frozen=True)
class Extrapolation:
    """An extrapolated step: for each component the weights of computed steps; and the noise's
    weight in the guided prediction."""

    weights: tuple[StepWeights, ...]
    noise_weight: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Each step of a run: computed, or extrapolated as a weighted sum of computed predictions.

    Args:
        num_steps: of the run.
        extrapolations: by step; all other steps are computed.

    Raises:
        ValueError: the first step is extrapolated, or an extrapolation uses a step that is not
            computed before it.
    """

    num_steps: int
    extrapolations: Mapping[int, Extrapolation]

    def __post_init__(self) -> None:
        for step, planned in self.extrapolations.items():
            if not 0 < step < self.num_steps:
                raise ValueError(
                    f"step {step} is extrapolated; accepted: 1 to {self.num_steps - 1}"
                )
            for weights in planned.weights or ({},):
                wrong = [s for s in weights if not 0 <= s < step or s in self.extrapolations]
                if wrong or not weights:
                    raise ValueError(
                        f"the extrapolation of step {step} uses {wrong or 'no step'}; "
                        "accepted: steps computed before it"
                    )

    @classmethod
    def of(
        cls, computed: Sequence[int], sampler: SamplerCoefficients, corrections: Corrections,
        depth: int,
    ) -> Plan:  # fmt: skip
        """The plan from its computed steps and the corrections of its windows.

        Args:
            computed: steps in order, 0 first.
            corrections: by the step that opens a window; a window without one is a line.
            depth: the most computed steps that an extrapolation uses.
        """
        planned: dict[int, Extrapolation] = {}
        for opened, closed in windows(computed, sampler.num_steps):
            used = used_steps(computed, opened, depth, sampler.since(opened))
            none = torch.zeros(len(sampler.branch_weights) * len(used) + 1)
            correction = corrections.get(opened, none)
            planned |= distribute_correction(used, range(opened + 1, closed), correction, sampler)
        return cls(sampler.num_steps, planned)

    @property
    def computed(self) -> tuple[int, ...]:
        """The computed steps, in order."""
        return tuple(step for step in range(self.num_steps) if step not in self.extrapolations)

    @property
    def windows(self) -> Iterator[tuple[int, int]]:
        """(computed step, the next one or the end); the steps between are extrapolated."""
        return windows(self.computed, self.num_steps)

    @property
    def weighs_noise(self) -> bool:
        """Whether an extrapolation uses the noise that the run starts from."""
        return any(planned.noise_weight for planned in self.extrapolations.values())

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """The computed steps, up to this one, that later extrapolations use."""
        later = (e.weights for at, e in self.extrapolations.items() if at > step)
        found = {used for all_ in later for weights in all_ for used in weights if used <= step}
        return tuple(sorted(found))


def windows(computed: Sequence[int], num_steps: int) -> Iterator[tuple[int, int]]:
    """(computed step, the next one or the end) for every computed step."""
    return zip(computed, (*computed[1:], num_steps), strict=True)


def reuse_plan(computed: Sequence[int], num_steps: int) -> Plan:
    """The plan that reuses the last computed prediction at every other step."""
    reused = {
        step: Extrapolation(({opened: 1.0},))
        for opened, closed in windows(computed, num_steps)
        for step in range(opened + 1, closed)
    }
    return Plan(num_steps, reused)


def used_steps(computed: Sequence[int], opened: int, depth: int, since: int = 0) -> list[int]:
    """The last `depth` computed steps up to the one that opens a window, latest first.

    Steps before `since`, the first step of the window's expert, are left out.
    """
    return [step for step in computed if since <= step <= opened][::-1][:depth]


def feature_count(
    computed: Sequence[int], opened: int, depth: int, sampler: SamplerCoefficients
) -> int:
    """F, the features of the window that a step opens."""
    used = used_steps(computed, opened, depth, sampler.since(opened))
    return len(sampler.branch_weights) * len(used) + 1


def weights_at(
    step: int, branch_weights: tuple[float, ...], second: SecondExpert | None
) -> tuple[float, ...]:
    """The branch weights at a step.

    The second expert's share applies to all but the first: the others weigh differences between
    branches.
    """
    if second is None or step < second.begin:
        return branch_weights
    first, *differences = branch_weights
    return (first, *(weight * second.share for weight in differences))


def since(step: int, second: SecondExpert | None) -> int:
    """The first step of the expert that makes this step."""
    return 0 if second is None or step < second.begin else second.begin


def distribute_correction(
    used: Sequence[int], steps: range, correction: torch.Tensor, sampler: SamplerCoefficients
) -> dict[int, Extrapolation]:
    """The extrapolations of a window: the line, plus the correction in equal weights at each step.

    Args:
        used: computed steps, latest first.
        steps: the extrapolated ones.
        correction: `(F,)`, what is added to the latents over the whole window.
    """
    if not steps:
        return {}
    # The correction is divided by the sum of the coefficients. If that is 0, the window adds
    # nothing to the latents and no correction can act: dividing by infinity leaves the line alone.
    total = float(sampler.coefficients[steps.start : steps.stop].sum())
    total = total if abs(total) > 1e-12 else math.inf
    by_component = correction[:-1].double().chunk(len(sampler.branch_weights))
    branch_weights = sampler.weights_at(steps.start)
    components = [  # a component with branch weight 0 has no correction
        component / (branch_weight * total) if branch_weight else 0.0 * component
        for component, branch_weight in zip(by_component, branch_weights, strict=True)
    ]
    noise = float(correction[-1]) / total
    times = sampler.timesteps[list(used[:2])].tolist()
    found = {}
    for step in steps:
        line = extrapolation.lagrange_weights(times, float(sampler.timesteps[step]))
        padded = torch.tensor([*line, *[0.0] * (len(used) - len(line))], dtype=torch.float64)
        weights = tuple(dict(zip(used, (c + padded).tolist(), strict=True)) for c in components)
        found[step] = Extrapolation(weights, noise)
    return found


def window_sums(
    plan: Plan, used: Sequence[int], steps: range, sampler: SamplerCoefficients
) -> torch.Tensor:
    """What the extrapolations of a window add to the latents: `(F,)` float64.

    Args:
        used: computed steps that the extrapolations use, latest first.
        steps: the extrapolated ones.
    """
    sums = torch.zeros(len(sampler.branch_weights), len(used), dtype=torch.float64)
    noise = 0.0
    for step in steps:
        coefficient, planned = float(sampler.coefficients[step]), plan.extrapolations[step]
        noise += coefficient * float(planned.noise_weight)
        for component, weights in enumerate(planned.weights):
            scale = coefficient * sampler.weights_at(step)[component]
            for place, step_used in enumerate(used):
                sums[component, place] += scale * weights.get(step_used, 0.0)
    return torch.cat([sums.flatten(), torch.tensor([noise], dtype=torch.float64)])
