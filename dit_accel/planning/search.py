"""Which steps are computed, and what serves the others, decided before the first step.

What a sampler adds to the latents is linear in the model's predictions, and so is every forecast
made of kept predictions. So the error that a *window* (a computed step and the served ones after
it) leaves in the latents is a weighted sum of the predictions themselves, and its size follows from
their inner products alone (the Gram matrix G of an uncached run): a quadratic form, no model run.

Two things happen to that error on the way to the last step. It grows or shrinks (the `gain`), and
it turns away from where it pointed: after some tens of steps its direction is lost. Both are to be
measured, and both matter: on G alone, a plan whose late windows pay back the errors of its early
ones looks far better than it is. Here every window pays back what is *still there* of them:

    carried  <- fade x carried + window          weights of the rows of G
    energy   <- growth^2 x energy + 2 fade <carried, window>_G + <window, window>_G

A window's forecasts start as the line through the last two computed predictions. The *change* of
its weights is found by ridge regression, for the least energy after the window: here over G
(`fit`), or over what accelerated runs really left (`refine`).

Exact in this model: everything above. Not exact: that a perturbed trajectory has the predictions of
the uncached one (first order), and that growth and fading are the same for all directions and
prompts.

Knows numbers, steps and matrices; no tensors of a model, no scheduler. Ours; the Gram form and the
fit to what a window leaves, rather than to each step, are not from UniCP (arXiv 2502.04393).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dit_accel.planning.plan import Plan, SamplerCoefficients, line_sums

PLAN_DEPTH = 4  # computed predictions that a forecast reads
PLAN_RIDGE = 1e-2  # how strongly a change fitted on uncached runs is held back


@dataclass(frozen=True)
class ErrorModel:
    """What calibration knows of a sampler and its model.

    Args:
        schedule: of n steps and B parts of the guided prediction.
        gram: `(P, R, R)` float64: of each of P prompts the inner products of R = B n + 1 rows, the
            predictions of the first part by step, those of the next, and the noise that the run
            started from; over the squared norm of the final latents.
        gain: `(n,)` how much larger an error made at a step is at the end, root mean square, > 0.
        memory: steps after which an error has turned away by e, > 0; infinite: never.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite or out of range.
    """

    schedule: SamplerCoefficients
    gram: torch.Tensor
    error_gain: torch.Tensor
    error_memory: float
    mean: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n, rows = self.schedule.num_steps, self.schedule.rows
        shapes = tuple(self.gram.shape), tuple(self.error_gain.shape)
        if self.gram.ndim != 3 or shapes != ((len(self.gram), rows, rows), (n,)):
            raise ValueError(
                f"gram and gain have shapes {shapes}; accepted: (P, {rows}, {rows}), ({n},)"
            )
        if not (self.gram.isfinite().all() and self.error_gain.isfinite().all()):
            raise ValueError("gram or gain is not finite")
        if not (self.error_memory > 0 and bool((self.error_gain > 0).all())):
            raise ValueError("memory or gain is not above 0")
        object.__setattr__(self, "mean", self.gram.mean(0))

    @property
    def num_steps(self) -> int:
        """Steps of the sampler."""
        return self.schedule.num_steps

    def growth(self, opened: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """Factor on the norm of an error over the steps from `opened` to `closed`."""
        last = self.num_steps - 1
        return self.error_gain[opened.clamp_max(last)] / self.error_gain[closed.clamp_max(last)]

    def fade(self, opened: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """Factor on the part of it that still points the same way."""
        return self.growth(opened, closed) * torch.exp(-(closed - opened) / self.error_memory)


def gram_of(rows: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """`(R, R)` float64: inner products of rows `(R, N)`, over the squared norm of `final`."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for piece in torch.split(rows, 1 << 18, dim=1):  # in pieces: no copy of all in float64
        gram += piece.double() @ piece.double().T
    return gram / final.double().square().sum()


def noise_energy(plan: Plan, field: ErrorModel) -> float:
    """What independent noise on every kept value leaves in the final latents, by a plan.

    Returns:
        the squared error over the final latents' squared norm, for noise as large as the values
        themselves; of noise e times as large e^2 of it. To first order, over the mean of prompts.
    """
    n, energy = field.num_steps, field.mean.diagonal()
    factors = torch.zeros(field.schedule.rows, dtype=torch.float64)
    for step, served in plan.extrapolations.items():
        share = field.schedule.coefficients[step] * field.error_gain[step]
        factors[-1] += share * served.noise_weight
        for part, (mix, weights) in enumerate(
            zip(field.schedule.branch_weights, served.weights, strict=True)
        ):
            for read, weight in weights.items():
                factors[part * n + read] += share * mix * weight
    return float((factors.square() * energy).sum())


def fit(
    computed: Sequence[int],
    field: ErrorModel,
    *,
    depth: int = PLAN_DEPTH,
    ridge: float = PLAN_RIDGE,
) -> tuple[Plan, float]:
    """The plan that computes these steps, its forecasts fitted, and the energy it leaves.

    Args:
        computed: steps, 0 among them.
        field: what calibration knows.
        depth: computed predictions that a forecast may read, >= 1; 1 is reuse.
        ridge: how strongly changes are held back, >= 0, as a share of the predictions' size.

    Returns:
        the plan, and the expected squared error of the final latents over their squared norm.

    Raises:
        ValueError: step 0 is not among the computed ones, or one is out of range.
    """
    steps = sorted(set(computed))
    if not steps or steps[0] != 0 or steps[-1] >= field.num_steps:
        raise ValueError(f"computed is {steps}; accepted: 0 and steps below {field.num_steps}")
    energy, changes = _walk(torch.tensor([steps]), field, depth, ridge)
    by_window = {opened: change[0] for opened, change in zip(steps, changes, strict=True)}
    return Plan.of(steps, field.schedule, by_window, depth), float(energy[0])


def _walk(
    computed: torch.Tensor, field: ErrorModel, depth: int, ridge: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Energies `(C,)` of C candidates with k computed steps each `(C, k)`, and every window's
    changes `(C, features)`; the candidates go along together."""
    schedule, gram = field.schedule, field.mean
    count, total = len(computed), schedule.num_steps
    carried = torch.zeros(count, schedule.rows, dtype=torch.float64)
    energy = torch.zeros(count, dtype=torch.float64)
    changes = []
    ends = torch.cat([computed[:, 1:], torch.full((count, 1), total)], 1)
    for place in range(computed.shape[1]):
        opened, closed = computed[:, place], ends[:, place]
        energy = energy * field.growth(opened, closed) ** 2
        carried = carried * field.fade(opened, closed)[:, None]
        read = computed[:, max(0, place - depth + 1) : place + 1].flip(1)
        rows = schedule.feature_rows(read)  # (C, features): rows of G that the forecasts read
        window = schedule.missing(opened, closed)
        window = window.scatter_add(1, rows, line_sums(read, opened, closed, schedule))
        among = gram[rows[:, :, None], rows[:, None, :]]
        held = among + torch.diag_embed(ridge * torch.diagonal(among, dim1=1, dim2=2) + 1e-30)
        wanted = -((window + carried) @ gram).gather(1, rows)
        change = torch.linalg.solve(held, wanted) * (closed - opened > 1)[:, None]
        window = window.scatter_add(1, rows, change)
        energy = energy + torch.einsum("cr,cr->c", window @ gram, window + 2 * carried)
        carried = carried + window
        changes.append(change)
    return energy.clamp_min(0.0), changes


def energies(plan: Plan, field: ErrorModel) -> torch.Tensor:
    """Expected squared relative errors `(P,)` of the final latents, prompt by prompt.

    The written-out form of what `fit` adds up on the way, for any plan.
    """
    schedule = field.schedule
    carried = torch.zeros(schedule.rows, dtype=torch.float64)
    energy = torch.zeros(len(field.gram), dtype=torch.float64)
    for opened, closed in plan.windows:
        ends = torch.tensor(opened), torch.tensor(closed)
        energy = energy * field.growth(*ends) ** 2
        carried = carried * field.fade(*ends)
        window = torch.zeros_like(carried)
        for step in range(opened + 1, closed):
            share = schedule.coefficients[step]
            forecast = plan.extrapolations[step]
            for part, (mix, weights) in enumerate(
                zip(schedule.branch_weights, forecast.weights, strict=True)
            ):
                window[part * plan.num_steps + step] -= share * mix
                for read, weight in weights.items():
                    window[part * plan.num_steps + read] += share * mix * weight
            window[-1] += share * forecast.noise_weight
        energy = energy + field.gram @ (window + 2 * carried) @ window
        carried = carried + window
    return energy.clamp_min(0.0)


def search(
    field: ErrorModel,
    count: int,
    *,
    depth: int = PLAN_DEPTH,
    ridge: float = PLAN_RIDGE,
    rounds: int = 120,
    candidates: int = 48,
    start: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[Plan, float]:
    """The best plan found that computes `count` steps: annealing over which ones.

    Every round looks at many plans that differ from the present one in one computed step, all at
    once, and goes on with one of the better ones.

    Args:
        count: steps to compute, 1 to all.
        rounds, candidates: how many times so many plans are looked at.
        start: computed steps to begin with; spread evenly where none are given.
        seed: of a private generator: the same field gives the same plan.

    Returns:
        as `fit`.

    Raises:
        ValueError: `count` is out of range.
    """
    total = field.num_steps
    if not 1 <= count <= total:
        raise ValueError(f"count is {count}; accepted: 1 to {total}")
    even = [0, *(1 + step for step in evenly(total - 1, count - 1))] if count > 1 else [0]
    now = torch.tensor([_filled(start or even, total, count)])
    if count in (1, total):
        return fit(now[0].tolist(), field, depth=depth, ridge=ridge)
    draw = torch.Generator().manual_seed(seed)
    best, least = now, _walk(now, field, depth, ridge)[0]
    for number in range(rounds):
        moved = _moved(now, total, candidates, draw)
        energy, _ = _walk(moved, field, depth, ridge)
        heat = 0.2 * (1 - number / rounds) + 1e-3
        odds = torch.softmax(-energy.clamp_min(1e-300).log() / heat, 0)
        now = moved[torch.multinomial(odds, 1, generator=draw)]
        if energy.min() < least:
            best, least = moved[energy.argmin()][None], energy.min()
    return fit(best[0].tolist(), field, depth=depth, ridge=ridge)


def evenly(total: int, count: int) -> tuple[int, ...]:
    """`count` of `total` steps, the first among them, as even as whole numbers are."""
    return tuple(sorted({round(place * total / count) for place in range(count)}))


def _filled(steps: Sequence[int], total: int, count: int) -> list[int]:
    """Exactly `count` steps, 0 among them: the last ones left out, the first missing ones added."""
    kept = sorted({*steps, 0})[:count]
    missing = (step for step in range(total) if step not in kept)
    return sorted(kept + [next(missing) for _ in range(count - len(kept))])


def _moved(now: torch.Tensor, total: int, candidates: int, draw: torch.Generator) -> torch.Tensor:
    """`(C, k)`: plans with one computed step of `now` `(1, k)` elsewhere, mostly near where it was;
    step 0 stays. The present plan is among them."""
    count = now.shape[1]
    leaves = torch.randint(1, count, (candidates,), generator=draw)
    near = now[0, leaves] + torch.randint(0, 4, (candidates,), generator=draw) - 2
    near = torch.where(near >= now[0, leaves], near + 1, near)  # -2, -1, 1, 2
    far = torch.randint(1, total, (candidates,), generator=draw)
    comes = torch.where(torch.rand(candidates, generator=draw) < 0.6, near, far)
    taken = (now == comes[:, None]).any(1) | (comes < 1) | (comes >= total)
    moved = now.repeat(candidates, 1)
    moved[torch.arange(candidates), leaves] = comes
    return torch.cat([moved[~taken].sort(1).values, now])
