"""Cheaper computes: how a computed step may be computed for less, and at which steps that pays.

A *level* is what a computed step leaves out: nothing (`full`), part of its self-attentions'
products (`prune`), a run of blocks, served by what their residual was (`block`), or all
self-attentions, served by what their outputs were (`attention`). Calibration measures the guided
relative error e that each level makes at a step, and its cost c, as a share of a full step's.

What an error of step s leaves in the final latents follows from how they are made (`planner`): the
prediction is added at s and, by the line, at the served steps of its own window (weight w) and of
the next (v); gain g tells how each grows, memory m how far the two still point the same way. Of the
prediction's energy P_s it leaves the share

    weight_s = (g_s w)^2 + 2 exp(-d / m) (g_s w)(g_d v) + (g_d v)^2      times e^2

over the squared norm of the final latents, where d is the step that opens the next window.

Exact: that final latents are linear in the predictions, the sums above given gain, memory and
lines, and the choice among levels on a grid of costs (`choose`: dynamic programming over steps,
cost and the last full step, from which the age of kept values counts). Not exact: that errors of
levels add in squares, to each other and to the plan's own (those of neighbouring steps point
alike), that windows are lines (refined ones differ), and that a level errs on an accelerated run as
it does on the uncached one.

A level pays where it leaves less than what it saves would have bought in further full steps:

    weight_s e^2  <  (1 - c) (-dE/dk)        (E: what a plan of k full steps leaves)

so that weight_s e^2 / (-dE/dk) is the share of a full step that it must save. Knows steps and
numbers; no model. Ours, after the aim of UniCP (arXiv 2502.04393): caching and pruning as one
decision.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dit_accel.plans import Schedule, lines, reads, windows

if TYPE_CHECKING:
    from dit_accel.planner import Field

KINDS = ("full", "prune", "block", "attention")
GRID = 0.01  # of a full step: costs are rounded up to it
FIRST = 2  # computed steps that stay full: lines of kept values go through two
_ACCEPTED = "full, prune:DENSITY, block:FIRST-END[:line], attention[:line]"


@dataclass(frozen=True)
class Level:
    """How a computed step is computed.

    Args:
        kind: of `KINDS`.
        density: "prune": share of the key blocks that every query block keeps, in (0, 1).
        span: "block": part of the depth that is served, half-open fractions in [0, 1], first < end.
        order: "block", "attention": served by the last kept value (0), or by the line through the
            last two (1).

    Raises:
        ValueError: a value is out of range.
    """

    kind: str = "full"
    density: float = 1.0
    span: tuple[float, float] = (0.0, 1.0)
    order: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.order not in (0, 1):
            raise ValueError(
                f"kind is {self.kind!r}, order is {self.order!r}; accepted: {', '.join(KINDS)}, "
                "and 0 or 1"
            )
        if self.kind == "prune" and not 0 < self.density < 1:
            raise ValueError(f"density is {self.density!r}; accepted: between 0 and 1")
        if self.kind == "block" and not 0 <= self.span[0] < self.span[1] <= 1:
            raise ValueError(f"span is {self.span!r}; accepted: 0 <= first < end <= 1")

    @property
    def name(self) -> str:
        """As `parse` reads it.

        >>> Level("block", span=(0.25, 0.75), order=1).name
        'block:0.25-0.75:line'
        """
        line = ":line" if self.order else ""
        if self.kind == "prune":
            return f"prune:{self.density:g}"
        if self.kind == "block":
            return f"block:{self.span[0]:g}-{self.span[1]:g}{line}"
        return self.kind + (line if self.kind == "attention" else "")

    def blocks(self, count: int) -> range:
        """Of so many blocks those that a "block" level serves; at least one.

        Raises:
            ValueError: the span holds no whole block of so many.
        """
        found = range(*(round(end * count) for end in self.span))
        if not found:
            raise ValueError(f"level {self.name}: no block of {count} lies in its span")
        return found


FULL = Level()


def parse(name: str) -> Level:
    """A level by its name.

    Raises:
        ValueError: there is no such level.
    """
    kind, *rest = name.split(":")
    try:
        order = int(rest[-1:] == ["line"])
        rest = rest[:-1] if order else rest
        if kind in ("full", "attention") and not rest and not (kind == "full" and order):
            return Level(kind, order=order)
        (value,) = rest
        if kind == "prune" and not order:
            return Level(kind, density=float(value))
        if kind == "block":
            first, end = value.split("-")
            return Level(kind, span=(float(first), float(end)), order=order)
    except ValueError as error:
        raise ValueError(f"level is {name!r}; accepted: {_ACCEPTED}") from error
    raise ValueError(f"level is {name!r}; accepted: {_ACCEPTED}")


CANDIDATES = tuple(
    parse(name)
    for name in (
        *("prune:0.5", "prune:0.25", "attention", "attention:line"),
        *("block:0.25-0.75", "block:0.25-0.75:line", "block:0.1-0.9:line"),
    )
)


@dataclass(frozen=True)
class LevelTable:
    """What calibration measured of L levels at A ages and n steps.

    Args:
        levels: L of them, none full.
        ages: steps since the last full step, from small to large.
        errors: `(L, A, n)` float64, guided error against the full compute from the same latents,
            relative to the guided prediction; a typical clip's (mean of logarithms over clips).
        flops: `(L,)` float64, cost as a share of a full step's FLOPs.
        seconds: `(L,)` float64, the same of its seconds on `device`.
        device: on which seconds were measured.
        clips: that were measured.

    Raises:
        ValueError: shapes do not fit, or a value is not finite or negative.
    """

    levels: tuple[Level, ...]
    ages: tuple[int, ...]
    errors: torch.Tensor
    flops: torch.Tensor
    seconds: torch.Tensor
    device: str
    clips: int

    def __post_init__(self) -> None:
        shape = len(self.levels), len(self.ages)
        many = tuple(self.flops.shape), tuple(self.seconds.shape)
        if self.errors.ndim != 3 or self.errors.shape[:2] != shape or many != (shape[:1],) * 2:
            raise ValueError(
                f"errors, flops and seconds have shapes {tuple(self.errors.shape)}, {many}; "
                f"accepted: {shape} and steps, {shape[:1]}"
            )
        if list(self.ages) != sorted({*self.ages}) or not self.ages or self.ages[0] < 1:
            raise ValueError(f"ages is {self.ages}; accepted: rising, from 1")
        if any(level.kind == "full" for level in self.levels):
            raise ValueError("levels has full; accepted: what is cheaper")
        for tensor in (self.errors, self.flops, self.seconds):
            if not (tensor.isfinite().all() and (tensor >= 0).all()):
                raise ValueError("errors, flops or seconds is not finite, or negative")

    def costs(self, device: str | None = None) -> torch.Tensor:
        """`(L,)` shares of a full step: of its seconds where they were measured on this device,
        else of its FLOPs."""
        return self.seconds if device is not None and device == self.device else self.flops

    @cached_property
    def by_age(self) -> torch.Tensor:
        """`(L, n, n)` guided relative errors by step and age, from 1 on: on straight lines in the
        logarithms of age and error, beyond the ends too."""
        known = self.errors.clamp_min(1e-12).log().transpose(1, 2)  # (L, n, A)
        steps = known.shape[1]
        if len(self.ages) == 1:
            return known.exp().expand(-1, -1, steps)
        places = torch.tensor(self.ages, dtype=torch.float64).log()
        wanted = torch.arange(1, steps + 1, dtype=torch.float64).log()
        high = torch.searchsorted(places, wanted).clamp(1, len(places) - 1)
        share = (wanted - places[high - 1]) / (places[high] - places[high - 1])
        return torch.lerp(known[..., high - 1], known[..., high], share).exp()

    def at(self, step: int, ages: Sequence[int]) -> torch.Tensor:
        """`(L, len(ages))` guided relative errors at a step.

        Args:
            ages: steps since the last full one, 1 to n.
        """
        return self.by_age[:, step, torch.tensor(ages) - 1]


def weights(computed: Sequence[int], field: Field) -> torch.Tensor:
    """`(k,)` float64: what a relative error of 1 of each computed step's guided prediction leaves,
    as squared relative error of the final latents.

    Args:
        computed: k steps in order, 0 first.
        field: of the calibrated steps and guidance.
    """
    schedule, total = field.schedule, field.total
    single = Schedule(schedule.shares, schedule.times)
    own = {step: float(schedule.shares[step]) for step in computed}  # w: at the step and its window
    after = dict.fromkeys(computed, 0.0)  # v: in the next window
    opens = dict(zip(computed, (*computed[1:], total), strict=True))
    for opened, closed in windows(computed, total):
        read = reads(computed, opened, 2)
        ends = torch.tensor([opened]), torch.tensor([closed])
        sums = lines(torch.tensor([read]), *ends, single)[0].tolist()
        own[opened] += sums[0]
        if len(read) > 1:
            after[read[1]] += sums[1]
    energy = guided_energy(field)
    found = []
    for step in computed:
        later = opens[step]
        here = float(field.gain[step]) * own[step]
        there = float(field.gain[min(later, total - 1)]) * after[step]
        alike = math.exp(-(later - step) / field.memory)
        left = here**2 + 2 * alike * here * there + there**2
        found.append(left * float(energy[step]))
    return torch.tensor(found, dtype=torch.float64)


def guided_energy(field: Field) -> torch.Tensor:
    """`(n,)` float64: squared norms of the guided predictions over that of the final latents."""
    n, mix = field.total, torch.tensor(field.schedule.mix, dtype=torch.float64)
    parts = len(mix)
    blocks = field.mean[: parts * n, : parts * n].view(parts, n, parts, n)
    return torch.einsum("a,b,asbs->s", mix, mix, blocks)


@dataclass(frozen=True)
class Choice:
    """Levels for some computed steps; all others are full.

    Args:
        levels: by step.
        cost: of all computed steps, in full ones.
        added: expected squared relative error of the final latents, beside the plan's own.
    """

    levels: Mapping[int, Level]
    cost: float
    added: float


def choose(
    computed: Sequence[int],
    weight: torch.Tensor,
    table: LevelTable,
    budget: float,
    device: str | None = None,
) -> Choice | None:
    """The levels that add the least error within a budget: dynamic programming, exact for errors
    that add in squares and costs rounded up to `GRID`. The first `FIRST` computed steps stay full.

    Args:
        computed: k steps in order.
        weight: `(k,)`, as `weights` gives it.
        table: what calibration measured.
        budget: full steps, > 0.
        device: whose seconds count, where they were measured on it.

    Returns:
        None where no choice is within the budget.
    """
    costs, steps = table.costs(device), list(computed)
    cells, whole = math.floor(budget / GRID + 1e-6), round(1 / GRID)
    prices = [max(1, math.ceil(float(cost) / GRID - 1e-6)) for cost in costs]
    first = min(FIRST, len(steps))
    if cells < first * whole:
        return None
    best = torch.full((first, cells + 1), math.inf, dtype=torch.float64)
    best[first - 1, first * whole] = 0.0  # by the last full step, and by cost
    trail: list[tuple[torch.Tensor, torch.Tensor]] = []
    for place in range(first, len(steps)):
        least, came = best.min(0)
        new = torch.full((place + 1, cells + 1), math.inf, dtype=torch.float64)
        new[place, whole:] = least[: cells + 1 - whole]
        picks = torch.full(new.shape, -1)
        ages = [steps[place] - last for last in steps[:place]]
        adds = float(weight[place]) * table.at(steps[place], ages).square()
        for index, price in enumerate(prices):
            if price > cells:
                continue
            moved = best[:, : cells + 1 - price] + adds[index, :, None]
            here = new[:place, price:]
            picks[:place, price:][moved < here] = index
            torch.minimum(here, moved, out=here)
        trail.append((picks, came))
        best = new
    added = float(best.min())
    if math.isinf(added):
        return None
    last, cell = divmod(int(best.argmin()), cells + 1)
    found: dict[int, Level] = {}
    spent = float(first)
    for place in range(len(steps) - 1, first - 1, -1):
        picks, came = trail[place - first]
        pick = int(picks[last, cell])
        if pick < 0:
            cell -= whole
            last, spent = int(came[cell]), spent + 1
        else:
            found[steps[place]], spent = table.levels[pick], spent + float(costs[pick])
            cell -= prices[pick]
    return Choice(dict(sorted(found.items())), spent, added)


def bound(
    computed: Sequence[int],
    weight: torch.Tensor,
    table: LevelTable,
    budget: float,
    device: str | None = None,
) -> float:
    """What `choose` adds at least: its relaxation by a price on cost, in a thousandth of the time.

    Args:
        as `choose`.
    """
    costs = torch.cat([table.costs(device), torch.ones(1, dtype=torch.float64)])
    added = torch.zeros(max(len(computed) - FIRST, 0), len(costs), dtype=torch.float64)
    for row, (before, step) in enumerate(itertools.pairwise(computed[FIRST - 1 :])):
        least = table.by_age[:, step, step - before - 1 : step].amin(1)
        added[row, :-1] = least.square() * float(weight[FIRST + row])
    prices = torch.cat([torch.zeros(1), torch.logspace(-9, 1, 81)]).double()
    paid = (added + prices[:, None, None] * costs).amin(2).sum(1)
    return float((paid - prices * (budget - FIRST)).max())
