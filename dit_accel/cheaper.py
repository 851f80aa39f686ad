"""Whether cheaper computes pay, by a profile: fewer full steps against more steps at levels.

The comparison is at equal cost. On one side the plan of the ladder that computes as many full steps
as the budget has; on the other the best of all plans of the ladder that compute more, with levels
that bring them within the budget. What a plan of the ladder leaves was measured; what levels add is
`levels.choose`'s. Levels are taken only where the profile expects at least `MARGIN` dB of them.

Knows numbers; no tensors of a model. Ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dit_accel import levels, targets
from dit_accel.carrying import COVERAGE
from dit_accel.levels import FIRST, Choice, Level, LevelTable
from dit_accel.outlook import Decision, Outlook
from dit_accel.profile import Profile, Rung

Weights = Mapping[tuple[int, ...], torch.Tensor]
MARGIN = 3.0  # dB that levels must be expected to gain at equal cost: they gave 2 to 5 dB less than
# expected where they were carried out (docs/planning.md)


@dataclass(frozen=True)
class Offer:
    """A plan of the ladder, with levels; `left` is what it leaves with all of its steps full, as
    squared relative error of the final latents."""

    rung: Rung
    choice: Choice
    left: float

    @property
    def loss_db(self) -> float:
        """What the levels are expected to cost."""
        return 10 * math.log10(1 + self.choice.added / self.left)

    @property
    def psnr_db(self) -> float:
        """What a typical clip is expected to get."""
        return float(self.rung.psnr_db.mean()) - self.loss_db


@dataclass(frozen=True)
class Verdict:
    """The comparison at a budget of full steps, with the plan that computes just these."""

    budget: int
    plain: Rung
    offer: Offer | None

    @property
    def gain_db(self) -> float:
        """Of levels over the plain plan, in PSNR; minus infinity where no plan with levels is
        within the budget."""
        plain = float(self.plain.psnr_db.mean())
        return self.offer.psnr_db - plain if self.offer is not None else -math.inf


@dataclass(frozen=True)
class Margin:
    """One level at the best of a plan's own steps.

    Args:
        step: that step.
        error: guided relative error there, at the age that the plan's full steps give.
        needed: what it leaves, over what one more full step takes away: the share of a full step
            that it must save to pay there; above 1, nothing is enough.
    """

    step: int
    error: float
    needed: float

    @property
    def break_even(self) -> float:
        """Cost, as a share of a full step, below which it pays there; below 0, none is."""
        return 1 - self.needed


def left(rung: Rung) -> float:
    """What a plan leaves of a typical clip: squared relative error of the final latents."""
    return float(10 ** (-rung.latents_db.mean() / 10))


def weights_of(profile: Profile) -> Weights:
    """What errors of every plan's computed steps weigh (`levels.weights`), by the plan's steps."""
    field = profile.field
    return {rung.computed: levels.weights(rung.computed, field) for rung in profile.rungs}


def best_offer(
    profile: Profile, budget: float, device: str | None = None, least_db: float = -math.inf,
    known: Weights | None = None,
) -> Offer | None:  # fmt: skip
    """Of all plans of the ladder that compute more than a budget, the best with levels that bring
    it within; None where there is none, or no level was measured.

    Args:
        budget: full steps.
        device: whose seconds count, where they were measured on it; else FLOPs do.
        least_db: PSNR below which an offer is of no use.
        known: as `weights_of` gives them, where several budgets are asked for.
    """
    table, known = profile.levels, weights_of(profile) if known is None else known
    best: Offer | None = None
    for rung in profile.rungs if table is not None else ():
        here, computed = left(rung), rung.computed
        most = here * (10 ** ((float(rung.psnr_db.mean()) - least_db) / 10) - 1)
        if table is None or len(computed) <= budget or most < 0:
            continue
        given = computed, known[computed], table, budget, device
        choice = levels.choose(*given) if levels.bound(*given) <= most else None
        if choice is not None and choice.added <= most:
            best = Offer(rung, choice, here)
            least_db = best.psnr_db
    return best


def verdicts(profile: Profile, device: str | None = None) -> tuple[Verdict, ...]:
    """The comparison at the cost of every plan of the ladder but the slowest."""
    known = weights_of(profile)
    budgets = ((rung, len(rung.computed)) for rung in profile.rungs[1:])
    return tuple(
        Verdict(budget, rung, best_offer(profile, budget, device, known=known))
        for rung, budget in budgets
    )


def paying(profile: Profile, device: str | None = None) -> dict[int, Offer]:
    """Offers that pay, by budget; in a fraction of the time where none does."""
    if profile.levels is None:
        return {}
    found, known = {}, weights_of(profile)
    for rung in profile.rungs[1:]:
        least_db = float(rung.psnr_db.mean()) + MARGIN
        offer = best_offer(profile, len(rung.computed), device, least_db, known)
        if offer is not None:
            found[len(rung.computed)] = offer
    return found


def worth(profile: Profile, rung: Rung) -> float | None:
    """What one more full step takes away from what a plan leaves: -dE/dk, to the next plan of the
    ladder that leaves less; None where there is none."""
    count, here = len(rung.computed), left(rung)
    slower = [r for r in profile.rungs if len(r.computed) > count and left(r) < here]
    if not slower:
        return None
    near = min(slower, key=lambda other: len(other.computed))
    return (here - left(near)) / (len(near.computed) - count)


def margins(profile: Profile, rung: Rung, table: LevelTable) -> tuple[Margin, ...] | None:
    """Every level at that step of a plan where it leaves least; None where what a full step is
    worth is not known, or the plan has too few steps."""
    gained = worth(profile, rung)
    if gained is None or len(rung.computed) <= FIRST:
        return None
    weights, ways = levels.weights(rung.computed, profile.field), []
    for place in range(FIRST, len(rung.computed)):
        before, step = rung.computed[place - 1], rung.computed[place]
        errors = table.at(step, [step - before])[:, 0].tolist()
        ways.append([(float(weights[place]) * error**2, error, step) for error in errors])
    found = (min(column) for column in zip(*ways, strict=True))
    return tuple(Margin(step, error, added / gained) for added, error, step in found)


# --- decisions ---


def improved(
    profile: Profile, decision: Decision, offers: Mapping[int, Offer], *, quality: float | None
) -> Decision:
    """A decision for this profile's own steps, with levels where they pay.

    Args:
        decision: of a plan of the ladder; any other is returned as it is.
        offers: by budget, as `paying` gives them.
        quality: that was asked for, in dB; None: a speed was, and its cost is kept.
    """
    count = len(decision.plan.computed)
    own = any(rung.computed == decision.plan.computed for rung in profile.rungs)
    if not own or decision.careful is not None:
        return decision
    if quality is None:
        return _with(profile, offers[count], None) if count in offers else decision
    for budget, offer in sorted(offers.items()):
        reach = Outlook.of(_moved(profile, offer)).promise(quality)
        if budget < count and reach >= COVERAGE:
            return _with(profile, offer, reach)
    return decision


def _moved(profile: Profile, offer: Offer) -> Rung:
    """The plan as this profile knows it, which may be shifted to a text, less the levels' loss."""
    rung = next(r for r in profile.rungs if r.computed == offer.rung.computed)
    return dataclasses.replace(rung, psnr_db=rung.psnr_db - offer.loss_db)


def _with(profile: Profile, offer: Offer, reach: float | None) -> Decision:
    """The decision for a plan of the ladder with levels; its promise is moved by what they cost."""
    total, count = profile.schedule.total, len(offer.rung.computed)
    base = targets.for_speedup(profile, total / count)
    assert base.prediction is not None
    outlook, choice = Outlook.of(_moved(profile, offer)), offer.choice
    low, high = outlook.interval
    promised = dataclasses.replace(
        base.prediction, speedup=total / choice.cost, computed=choice.cost,
        psnr_db=base.prediction.psnr_db - offer.loss_db, low_db=low, high_db=high, reach=reach,
    )  # fmt: skip
    note = (
        f"{len(choice.levels)} of {count} computed steps are computed for less, at the cost of "
        f"{choice.cost:.1f} full ones: expected to take {offer.loss_db:.1f} dB. No run of this "
        "plan with its levels was made in calibration."
    )
    return dataclasses.replace(
        base, plan=dataclasses.replace(base.plan, levels=dict(choice.levels)),
        prediction=promised, notes=(*base.notes, note), outlooks=(),
    )  # fmt: skip


def names(levels: Mapping[int, Level]) -> str:
    """Levels by step in one line: every name, and its steps after it."""
    by_name: dict[str, list[int]] = {}
    for step, level in levels.items():
        by_name.setdefault(level.name, []).append(step)
    return "; ".join(f"{name} at {', '.join(map(str, steps))}" for name, steps in by_name.items())


def mean_errors(table: LevelTable) -> Sequence[Sequence[float]]:
    """Of every level the errors by age, mean of logarithms over the steps."""
    logs: list[list[float]] = table.errors.clamp_min(1e-12).log().mean(2).exp().tolist()
    return logs


__all__ = [
    "MARGIN",
    "Margin",
    "Offer",
    "Verdict",
    "best_offer",
    "improved",
    "left",
    "margins",
    "mean_errors",
    "names",
    "paying",
    "verdicts",
    "worth",
]
