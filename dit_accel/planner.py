"""Which steps are computed, and what serves the others, decided before the first step.

What a sampler adds to the latents is linear in the model's predictions, and so is every forecast
made of kept predictions. So the error that a *window* (the served steps between two computed ones)
leaves in the latents is a weighted sum of the predictions themselves, and its size follows from
their inner products alone (the Gram matrix G of an uncached run): a quadratic form, no model run.

Two things happen to that error on the way to the last step. It grows or shrinks (the `gain`), and
it turns away from where it pointed: after some tens of steps its direction is lost. Both are to be
measured, and both matter: on G alone, a plan whose late windows pay back the errors of its early
ones looks far better than it is. Here every window pays back what is *still there* of them:

    carried  <- fade x carried + window          weights of predictions, one per step
    energy   <- growth^2 x energy + 2 fade <carried, window>_G + <window, window>_G

The weights of a window's forecasts start as the line through the last two computed predictions, and
are corrected by ridge regression, over the last `depth` of them, for the least energy after the
window. Exact in this model: everything above. Not exact: that a perturbed trajectory has the
predictions of the uncached one (first order), and that growth and fading are the same for all
directions and prompts.

Knows numbers, steps and matrices; no tensors of a model, no scheduler. Ours; the Gram form and the
fit to what a window leaves, rather than to each step, are not from UniCP (arXiv 2502.04393).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dit_accel import forecast

Weights = Mapping[int, float]


@dataclass(frozen=True)
class Field:
    """What calibration knows of a sampler and its model. n is the number of steps.

    Args:
        gram: `(P, n, n)` float64: of each of P prompts, the inner products of its predictions
            (after guidance) over the squared norm of its final latents.
        shares: `(n,)` what one unit of each prediction adds to the final latents, by the sampler.
        times: `(n,)` the scheduler's timesteps, falling: where forecasts are read.
        gain: `(n,)` how much larger an error made at a step is at the end, root mean square, > 0.
        memory: steps after which an error has turned away by e, > 0; infinite: never.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite or out of range.
    """

    gram: torch.Tensor
    shares: torch.Tensor
    times: torch.Tensor
    gain: torch.Tensor
    memory: float
    mean: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = self.total
        shapes = [tuple(t.shape) for t in (self.gram, self.shares, self.times, self.gain)]
        if self.gram.ndim != 3 or shapes != [(len(self.gram), n, n), (n,), (n,), (n,)]:
            raise ValueError(
                f"gram, shares, times and gain have shapes {shapes}; "
                "accepted: (P, n, n), (n,), (n,), (n,)"
            )
        if not all(t.isfinite().all() for t in (self.gram, self.shares, self.times, self.gain)):
            raise ValueError("gram, shares, times or gain is not finite")
        if not (self.memory > 0 and bool((self.gain > 0).all())):
            raise ValueError("memory or gain is not above 0")
        object.__setattr__(self, "mean", self.gram.mean(0))

    @property
    def total(self) -> int:
        """Steps of the sampler."""
        return int(self.gram.shape[-1])

    def growth(self, opened: int, closed: int) -> float:
        """Factor on the norm of an error over the steps from `opened` to `closed`."""
        last = self.total - 1
        return float(self.gain[min(opened, last)] / self.gain[min(closed, last)])

    def fade(self, opened: int, closed: int) -> float:
        """Factor on the part of it that still points the same way."""
        return self.growth(opened, closed) * math.exp(-(closed - opened) / self.memory)


@dataclass(frozen=True)
class Plan:
    """Every step of a run: computed, or a weighted sum of what was computed before it.

    Args:
        total: steps of the run.
        forecasts: by served step, the weights of computed steps before it; all others are computed.

    Raises:
        ValueError: the first step is served, or a forecast reads what is not computed before it.
    """

    total: int
    forecasts: Mapping[int, Weights]

    def __post_init__(self) -> None:
        for step, weights in self.forecasts.items():
            if not 0 < step < self.total:
                raise ValueError(f"step {step} is served; accepted: 1 to {self.total - 1}")
            wrong = [s for s in weights if not 0 <= s < step or s in self.forecasts]
            if wrong or not weights:
                raise ValueError(
                    f"the forecast of step {step} reads {wrong or 'nothing'}; "
                    "accepted: steps computed before it"
                )

    @property
    def computed(self) -> tuple[int, ...]:
        """The computed steps, in order."""
        return tuple(step for step in range(self.total) if step not in self.forecasts)

    @property
    def windows(self) -> Iterator[tuple[int, int]]:
        """(computed step, the next one or the end): what lies between is served."""
        opened = self.computed
        return zip(opened, (*opened[1:], self.total), strict=True)

    def reads(self, step: int) -> tuple[int, ...]:
        """Computed steps that a served step after `step` still reads."""
        later = (weights for served, weights in self.forecasts.items() if served > step)
        return tuple(sorted({read for weights in later for read in weights if read <= step}))


def fit(
    computed: Sequence[int], field: Field, *, depth: int = 3, ridge: float = 1e-2
) -> tuple[Plan, float]:
    """The plan that computes these steps, its forecasts fitted, and the energy it leaves.

    Args:
        computed: steps, 0 among them.
        field: what calibration knows.
        depth: computed predictions that a forecast may read, >= 1; 1 is reuse.
        ridge: how strongly corrections are held back, >= 0, as a share of the predictions' size.

    Returns:
        the plan, and the expected squared error of the final latents over their squared norm.

    Raises:
        ValueError: step 0 is not among the computed ones, or one is out of range.
    """
    steps = sorted(set(computed))
    if not steps or steps[0] != 0 or steps[-1] >= field.total:
        raise ValueError(f"computed is {steps}; accepted: 0 and steps below {field.total}")
    gram, carried = field.mean, torch.zeros(field.total, dtype=torch.float64)
    forecasts: dict[int, Weights] = {}
    energy = 0.0
    for place, opened in enumerate(steps):
        closed = steps[place + 1] if place + 1 < len(steps) else field.total
        energy *= field.growth(opened, closed) ** 2
        carried *= field.fade(opened, closed)
        if closed - opened == 1:
            continue
        read = steps[max(0, place - depth + 1) : place + 1][::-1]
        rows = _lines(read, range(opened + 1, closed), field.times)
        shares = field.shares[opened + 1 : closed]
        window = torch.zeros_like(carried)
        window[opened + 1 : closed] = -shares
        window[read] += shares @ rows
        among = gram[read][:, read]
        held = among + ridge * torch.diag(among.diagonal())
        wanted = -(gram[read] @ (window + carried))
        change = torch.linalg.lstsq(held, wanted[:, None], driver="gelsd").solution[:, 0]
        window[read] += change
        rows = rows + change / shares.sum()
        energy += float(window @ gram @ (window + 2 * carried))
        carried = carried + window
        for step, row in zip(range(opened + 1, closed), rows.tolist(), strict=True):
            forecasts[step] = dict(zip(read, row, strict=True))
    return Plan(field.total, forecasts), max(energy, 0.0)


def _lines(read: Sequence[int], served: range, times: torch.Tensor) -> torch.Tensor:
    """Weights `(served, read)` of the line through the last two computed; of reuse, where one."""
    rows = torch.zeros(len(served), len(read), dtype=torch.float64)
    places = times[list(read[:2])].tolist()
    for row, step in enumerate(served):
        weights = forecast.weights(places, float(times[step]))
        rows[row, : len(weights)] = torch.tensor(weights, dtype=torch.float64)
    return rows


def energies(plan: Plan, field: Field) -> torch.Tensor:
    """Expected squared relative errors `(P,)` of the final latents, prompt by prompt.

    The written-out form of what `fit` adds up on the way, for any plan.
    """
    carried = torch.zeros(field.total, dtype=torch.float64)
    energy = torch.zeros(len(field.gram), dtype=torch.float64)
    for opened, closed in plan.windows:
        energy = energy * field.growth(opened, closed) ** 2
        carried = carried * field.fade(opened, closed)
        window = torch.zeros_like(carried)
        for step in range(opened + 1, closed):
            window[step] -= field.shares[step]
            for read, weight in plan.forecasts[step].items():
                window[read] += field.shares[step] * weight
        energy = energy + field.gram @ (window + 2 * carried) @ window
        carried = carried + window
    return energy.clamp_min(0.0)


def search(
    field: Field,
    count: int,
    *,
    depth: int = 3,
    ridge: float = 1e-2,
    trials: int = 1500,
    start: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[Plan, float]:
    """The best plan found that computes `count` steps: simulated annealing over which ones.

    Args:
        count: steps to compute, 1 to all.
        trials: plans that are looked at.
        start: computed steps to begin with; spread evenly where none are given.
        seed: of a private generator: the same field gives the same plan.

    Returns:
        as `fit`.

    Raises:
        ValueError: `count` is out of range.
    """
    total = field.total
    if not 1 <= count <= total:
        raise ValueError(f"count is {count}; accepted: 1 to {total}")
    draw = random.Random(seed)
    now = _filled(set(start or evenly(total, count)), total, count)
    plan, least = fit(sorted(now), field, depth=depth, ridge=ridge)
    level = least
    for trial in range(trials if 1 < count < total else 0):
        candidate = _moved(now, total, draw)
        if candidate is None:
            continue
        found, energy = fit(sorted(candidate), field, depth=depth, ridge=ridge)
        heat = 0.3 * (1 - trial / trials) + 1e-3
        worse = math.log(max(energy, 1e-300) / max(level, 1e-300))
        if worse < 0 or draw.random() < math.exp(-worse / heat):
            now, level = candidate, energy
        if energy < least:
            plan, least = found, energy
    return plan, least


def evenly(total: int, count: int) -> tuple[int, ...]:
    """`count` of `total` steps, the first among them, as even as whole numbers are."""
    return tuple(sorted({round(place * total / count) for place in range(count)}))


def _filled(steps: set[int], total: int, count: int) -> frozenset[int]:
    """Exactly `count` steps, 0 among them: the last ones left out, the first missing ones added."""
    kept = sorted(steps | {0})[:count]
    missing = (step for step in range(total) if step not in kept)
    return frozenset(kept + [next(missing) for _ in range(count - len(kept))])


def _moved(steps: frozenset[int], total: int, draw: random.Random) -> frozenset[int] | None:
    """One computed step elsewhere, mostly near where it was; None if that place is taken."""
    leaves = draw.choice(sorted(steps - {0}))
    near = leaves + draw.choice((-2, -1, 1, 2))
    comes = near if draw.random() < 0.6 else draw.randrange(1, total)
    if comes in steps or not 0 < comes < total:
        return None
    return (steps - {leaves}) | {comes}
