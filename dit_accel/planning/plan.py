"""What a plan is: which steps are computed, and the weighted sums that serve the others.

The guided prediction is a sum of *parts*. With classifier-free guidance s the first part is the
conditional prediction c and the second the difference u - c of the unconditional one, mixed as
c + (1 - s)(u - c); without, the prediction itself is the only one. A forecast gives every part
weights of its own over the steps that were computed, and may add some of the noise that the run
started from, which every prediction of a flow contains.

What a window (a computed step and the served ones after it) adds to the latents depends only on the
sums of its forecasts' weights, times what one unit of a prediction adds (`shares`). So a window is
the line through the last two computed predictions, which is what every forecast starts from, plus a
*change*: one number a feature, spread evenly over the served steps.

Shapes: C candidates, n steps, B parts, R = B n + 1 rows (parts by step, then the noise), D computed
steps that are read, latest first; features are B D + 1: the parts of these steps, then the noise.
Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dit_accel.core import extrapolation

Weights = Mapping[int, Any]  # by computed step: a number, or one a row of the batch
Changes = Mapping[int, torch.Tensor]  # by the step that opens a window: one number a feature


@dataclass(frozen=True)
class SamplerCoefficients:
    """What is known of a sampler before a run.

    Args:
        shares: `(n,)` float64, what one unit of each guided prediction adds to the final latents.
        times: `(n,)` float64, the scheduler's timesteps, falling: where forecasts are read.
        mix: weight of every part in the guided prediction.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.
    """

    coefficients: torch.Tensor
    timesteps: torch.Tensor
    branch_weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        shapes = tuple(self.coefficients.shape), tuple(self.timesteps.shape)
        if self.coefficients.ndim != 1 or shapes[0] != shapes[1] or not self.branch_weights:
            raise ValueError(f"shares and times have shapes {shapes}; accepted: (n,), (n,)")
        if not (self.coefficients.isfinite().all() and self.timesteps.isfinite().all()):
            raise ValueError("shares or times is not finite")

    @property
    def num_steps(self) -> int:
        """Steps."""
        return len(self.coefficients)

    @property
    def rows(self) -> int:
        """Rows of a Gram matrix: every part by step, and the noise."""
        return len(self.branch_weights) * self.num_steps + 1

    def feature_rows(self, read: torch.Tensor) -> torch.Tensor:
        """`(C, D)` computed steps -> `(C, B D + 1)`: the rows that forecasts read."""
        parts = [read + part * self.num_steps for part in range(len(self.branch_weights))]
        return torch.cat([*parts, torch.full_like(read[:, :1], self.rows - 1)], 1)

    def missing(self, opened: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """`(C, R)`: what the served steps would have added, with the sign of an error."""
        steps = torch.arange(self.num_steps)
        served = (steps > opened[:, None]) & (steps < closed[:, None])
        added = torch.where(served, self.coefficients, 0.0)
        parts = [-mix * added for mix in self.branch_weights]
        return torch.cat([*parts, torch.zeros(len(opened), 1, dtype=torch.float64)], 1)


def line_sums(
    read: torch.Tensor, opened: torch.Tensor, closed: torch.Tensor, schedule: SamplerCoefficients
) -> torch.Tensor:
    """What the served steps of windows add when a line serves them: `(C, B D + 1)` by feature.

    Args:
        read: `(C, D)` computed steps, latest first; the line goes through the first two.
        opened, closed: `(C,)`.
    """
    steps, times = torch.arange(schedule.num_steps), schedule.timesteps
    served = (steps > opened[:, None]) & (steps < closed[:, None])
    shares = torch.where(served, schedule.coefficients, 0.0)
    sums = torch.zeros(read.shape, dtype=torch.float64)
    sums[:, 0] = shares.sum(1)
    if read.shape[1] > 1:
        here, before = times[read[:, 0]], times[read[:, 1]]
        slope = (times - here[:, None]) / (here - before)[:, None]
        forward = (shares * slope).sum(1)
        sums[:, 0] += forward
        sums[:, 1] -= forward
    parts = [mix * sums for mix in schedule.branch_weights]
    return torch.cat([*parts, torch.zeros(len(read), 1, dtype=torch.float64)], 1)


@dataclass(frozen=True)
class Extrapolation:
    """A served step: of every part, the weights of computed steps; and of the noise.

    A weight is a number, or one number a row of the batch, `(P,)`.
    """

    weights: tuple[Weights, ...]
    noise_weight: float | torch.Tensor = 0.0


@dataclass(frozen=True)
class Plan:
    """Every step of a run: computed, or a weighted sum of what was computed before it.

    Args:
        total: steps of the run.
        forecasts: by served step; all others are computed.

    Raises:
        ValueError: the first step is served, or a forecast reads what is not computed before it.
    """

    num_steps: int
    extrapolations: Mapping[int, Extrapolation]

    def __post_init__(self) -> None:
        for step, served in self.extrapolations.items():
            if not 0 < step < self.num_steps:
                raise ValueError(f"step {step} is served; accepted: 1 to {self.num_steps - 1}")
            for weights in served.weights or ({},):
                wrong = [s for s in weights if not 0 <= s < step or s in self.extrapolations]
                if wrong or not weights:
                    raise ValueError(
                        f"the forecast of step {step} reads {wrong or 'nothing'}; "
                        "accepted: steps computed before it"
                    )

    @classmethod
    def of(
        cls, computed: Sequence[int], schedule: SamplerCoefficients, changes: Changes, depth: int
    ) -> Plan:
        """The plan of computed steps and of what changes each window's line.

        Args:
            computed: in order, 0 first.
            changes: by the step that opens a window, `(B D + 1,)`; a window without one is a line.
            depth: computed steps that a forecast reads at most.
        """
        forecasts: dict[int, Extrapolation] = {}
        for opened, closed in windows(computed, schedule.num_steps):
            read = steps_read(computed, opened, depth)
            change = changes.get(opened, torch.zeros(len(schedule.branch_weights) * len(read) + 1))
            forecasts |= distribute_change(read, range(opened + 1, closed), change, schedule)
        return cls(schedule.num_steps, forecasts)

    @property
    def computed(self) -> tuple[int, ...]:
        """The computed steps, in order."""
        return tuple(step for step in range(self.num_steps) if step not in self.extrapolations)

    @property
    def windows(self) -> Iterator[tuple[int, int]]:
        """(computed step, the next one or the end): what lies between is served."""
        return windows(self.computed, self.num_steps)

    def needed_steps(self, step: int) -> tuple[int, ...]:
        """Computed steps that a served step after `step` still reads."""
        later = (f.weights for served, f in self.extrapolations.items() if served > step)
        found = {read for parts in later for weights in parts for read in weights if read <= step}
        return tuple(sorted(found))


def windows(computed: Sequence[int], total: int) -> Iterator[tuple[int, int]]:
    """(computed step, the next one or the end) for every computed step."""
    return zip(computed, (*computed[1:], total), strict=True)


def steps_read(computed: Sequence[int], opened: int, depth: int) -> list[int]:
    """The last `depth` computed steps up to the one that opens a window, latest first."""
    return [step for step in computed if step <= opened][::-1][:depth]


def distribute_change(
    read: Sequence[int], served: range, change: torch.Tensor, schedule: SamplerCoefficients
) -> dict[int, Extrapolation]:
    """A window's change, evenly over its served steps, on top of the line: one forecast a step.

    Args:
        read: computed steps that the forecasts read, latest first.
        served: steps.
        change: `(F,)`; or `(P, F)`, one a row of the batch.
    """
    if not served:
        return {}
    whole = float(schedule.coefficients[served.start : served.stop].sum())
    parts = [
        part / (mix * whole)
        for part, mix in zip(
            change[..., :-1].double().chunk(len(schedule.branch_weights), -1),
            schedule.branch_weights,
            strict=True,
        )
    ]
    start = change[..., -1] / whole
    places = schedule.timesteps[list(read[:2])].tolist()
    found = {}
    for step in served:
        line = extrapolation.lagrange_weights(places, float(schedule.timesteps[step]))
        whole_line = torch.tensor([*line, *[0.0] * (len(read) - len(line))], dtype=torch.float64)
        by_part = tuple(dict(zip(read, _numbers(part + whole_line), strict=True)) for part in parts)
        found[step] = Extrapolation(by_part, float(start) if start.ndim == 0 else start)
    return found


def _numbers(weights: torch.Tensor) -> list[Any]:
    return weights.tolist() if weights.ndim == 1 else list(weights.unbind(-1))


def window_sums(
    plan: Plan, read: Sequence[int], served: range, schedule: SamplerCoefficients
) -> torch.Tensor:
    """What a plan's window adds to the latents, by feature: `(F,)` float64.

    Args:
        read: computed steps that its forecasts read, latest first.
        served: its steps.
    """
    sums = torch.zeros(len(schedule.branch_weights), len(read), dtype=torch.float64)
    start = 0.0
    for step in served:
        share, made = float(schedule.coefficients[step]), plan.extrapolations[step]
        start += share * float(made.noise_weight)
        for part, weights in enumerate(made.weights):
            for place, at in enumerate(read):
                sums[part, place] += share * schedule.branch_weights[part] * weights.get(at, 0.0)
    return torch.cat([sums.flatten(), torch.tensor([start], dtype=torch.float64)])
