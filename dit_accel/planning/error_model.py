"""Predicts the error that a plan leaves in the final latents, without a run of the model.

In: a `Plan`, and what calibration measured: inner products, and how errors grow and change their
direction.
Out: the plan's expected squared error relative to the final latents; the error that noise on cached
values adds.
Knows numbers and matrices; no tensors of a model, no scheduler. `search.py` finds plans with it.

A window is a computed step i and the extrapolated steps up to the next computed step j. It adds an
error to the latents. This error is a weighted sum of rows: the predictions and the noise. Their
inner products are the Gram matrix G. Let w be the weights of the rows in this window's error, and v
those in the errors of all windows before it. From window to window:

    growth = gain_i / gain_j
    fade = growth · exp(-(j - i) / memory)
    E ← growth² E + 2 fade vᵀ G w + wᵀ G w                    E: expected squared error
    v ← fade v + w

So a window can cancel only the part of the earlier errors that still has its direction.
docs/how-it-works.md, section 2, derives this and says what is not exact.
Shapes: P prompts; n, B, R as in `plan.py`.
Source: ours, not UniCP (arXiv 2502.04393); section 1 there names the published relatives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from dit_accel.planning.plan import Plan, SamplerCoefficients


@dataclass(frozen=True)
class ErrorModel:
    """The measurements that predict the final error of a plan.

    Args:
        sampler: its n steps, and the B components of the guided prediction.
        gram: `(P, R, R)` float64: for each of P prompts, the inner products of R = B n + 1 rows,
            over the squared norm of the final latents. The rows are the predictions of the first
            component by step, then those of the next, then the noise that the run starts from.
        error_gain: `(n,)`, > 0: the factor by which an error made at a step has grown at the end,
            root mean square over prompts.
        error_memory: > 0: steps after which the direction of an error has decayed by a factor of e.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite or out of range.
    """

    sampler: SamplerCoefficients
    gram: torch.Tensor
    error_gain: torch.Tensor
    error_memory: float
    mean_gram: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n, rows = self.num_steps, self.sampler.num_rows
        shapes = tuple(self.gram.shape), tuple(self.error_gain.shape)
        if self.gram.ndim != 3 or shapes != ((len(self.gram), rows, rows), (n,)):
            raise ValueError(
                f"gram and error_gain have shapes {shapes}; accepted: (P, {rows}, {rows}), ({n},)"
            )
        if not (self.gram.isfinite().all() and self.error_gain.isfinite().all()):
            raise ValueError("gram or error_gain has NaN or infinity; accepted: finite numbers")
        if not (self.error_memory > 0 and bool((self.error_gain > 0).all())):
            least = float(self.error_gain.min())
            raise ValueError(
                f"error_memory is {self.error_memory:g}, and the least error_gain is {least:g}; "
                "accepted: numbers above 0"
            )
        object.__setattr__(self, "mean_gram", self.gram.mean(0))

    @property
    def num_steps(self) -> int:
        """Steps of the sampler."""
        return self.sampler.num_steps

    def growth(self, opened: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """The factor by which the norm of an error grows from step `opened` to step `closed`.

        n, the end of the run, counts as the last step.
        """
        last = self.num_steps - 1
        return self.error_gain[opened.clamp_max(last)] / self.error_gain[closed.clamp_max(last)]

    def fade(self, opened: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """As `growth`, for the part of the error that still has its direction at `closed`."""
        return self.growth(opened, closed) * torch.exp(-(closed - opened) / self.error_memory)


def gram_of(rows: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """`(R, R)` float64: inner products of rows `(R, N)`, over the squared norm of `final`."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for piece in torch.split(rows, 1 << 18, dim=1):  # a float64 copy of all needs too much memory
        gram += piece.double() @ piece.double().T
    return gram / final.double().square().sum()


def energies(plan: Plan, error_model: ErrorModel) -> torch.Tensor:
    """The plan's expected squared errors `(P,)`, by prompt, relative to the final latents."""
    *_, last = window_energies(plan, error_model).values()  # step 0 always opens a window
    return last


def window_energies(plan: Plan, error_model: ErrorModel) -> dict[int, torch.Tensor]:
    """Expected squared errors `(P,)` of the latents after each window, by the step that opens it.

    They are relative to the final latents. This is the recursion of the module's docstring, written
    out; tests compare `search.py` with it.
    """
    sampler = error_model.sampler
    v = torch.zeros(sampler.num_rows, dtype=torch.float64)
    error, found = torch.zeros(len(error_model.gram), dtype=torch.float64), {}
    for opened, closed in plan.windows:
        ends = torch.tensor(opened), torch.tensor(closed)
        error = error * error_model.growth(*ends) ** 2
        v = v * error_model.fade(*ends)
        w = sampler.omitted(*(end[None] for end in ends))[0]
        for step in range(opened + 1, closed):
            _add_weights(w, plan, step, sampler, sampler.coefficients[step])
        error = error + error_model.gram @ (w + 2 * v) @ w
        v = v + w
        found[opened] = error.clamp_min(0.0)
    return found


def noise_energy(plan: Plan, error_model: ErrorModel) -> float:
    """The squared relative error of the final latents if all cached values have independent noise.

    The estimate is of first order. It is for noise as large as the values themselves: noise of ε
    times their size leaves ε² times this error.
    """
    sampler = error_model.sampler
    weights = torch.zeros(sampler.num_rows, dtype=torch.float64)
    for step in plan.extrapolations:
        grown = sampler.coefficients[step] * error_model.error_gain[step]
        _add_weights(weights, plan, step, sampler, grown)
    return float((weights.square() * error_model.mean_gram.diagonal()).sum())


def _add_weights(
    rows: torch.Tensor, plan: Plan, step: int, sampler: SamplerCoefficients, scale: torch.Tensor
) -> None:
    """Add the weights of `scale` times a step's extrapolated guided prediction to `rows`, in place.

    Args:
        rows: `(R,)`, one weight for each row of the Gram matrix.
    """
    extrapolation = plan.extrapolations[step]
    rows[-1] += scale * extrapolation.noise_weight
    components = zip(sampler.weights_at(step), extrapolation.weights, strict=True)
    for component, (branch_weight, weights) in enumerate(components):
        for used, weight in weights.items():
            rows[component * sampler.num_steps + used] += scale * branch_weight * weight
