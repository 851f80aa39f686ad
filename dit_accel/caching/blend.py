"""Dynamic weight shift (DWS): chooses the pruned value, the cached one or a blend of both.

Goes in: the root mean square errors of two estimates of one value, σ_c of the cached and σ_p of the
pruned one, and the correlation ρ of the errors. Comes out: which estimate to use, and the weight of
a blend w pruned + (1 - w) cached. Its expected squared error is smallest at (docs/how-it-works.md,
section 9)

    w* = (σ_c² - ρ σ_c σ_p) / (σ_c² + σ_p² - 2 ρ σ_c σ_p),   clamped to [0, 1].

It knows numbers; no tensors, sites or models. Source: UniCP (arXiv 2502.04393, DWS) switches
between pruned and cached outputs; its rule is not public. The blend is our reading.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dit_accel.core.checks import check_types, is_integer, require

# The tolerance as a share of the windows' threshold. It is below 1, because pruning has an error at
# every step. A window has none at its first step, and at most the threshold at its last.
STRICTER = 0.25  # measured: research/LOG.md


@dataclass(frozen=True)
class DWS:
    """Settings of the choice.

    Args:
        tolerance: largest expected relative error (root mean square), >= 0; None: `STRICTER` times
            the threshold of the cache windows.
        margin: a blend is used if its squared error is smaller than that of the better value by at
            least this share, in [0, 1).
        recheck: after how many steps the errors are measured again, at a computed step; >= 1.

    Raises:
        ValueError: a value is out of range.
    """

    tolerance: float | None = None
    margin: float = 0.05
    recheck: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        valid = self.tolerance is None or 0 <= self.tolerance < math.inf
        require(valid, "tolerance", self.tolerance, "a number >= 0, or None")
        require(0 <= self.margin < 1, "margin", self.margin, "a number from 0 to below 1")
        require(is_integer(self.recheck, 1), "recheck", self.recheck, "an integer >= 1")

    def allowed(self, threshold: float) -> float:
        """The largest expected error beside windows of this threshold."""
        return STRICTER * threshold if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class Errors:
    """Relative root mean square errors of a cached and a pruned value, and their correlation."""

    cached: float
    pruned: float
    correlation: float

    @classmethod
    def measured(cls, sums: Iterable[tuple[float, float, float, float]]) -> Errors:
        """The errors from sums, one tuple per branch: of e_c², e_p², e_c e_p and value².

        >>> Errors.measured([(4.0, 1.0, 1.0, 100.0)])
        Errors(cached=0.2, pruned=0.1, correlation=0.5)
        """
        cached, pruned, both, size = map(sum, zip(*sums, strict=True))
        if size <= 0 or not math.isfinite(cached + pruned + both + size):
            return cls(math.inf, math.inf, 0.0)
        product = math.sqrt(cached * pruned)
        correlation = both / product if product > 0 else 0.0
        return cls(math.sqrt(cached / size), math.sqrt(pruned / size), correlation)

    def aged(self, steps: float) -> Errors:
        """The errors for a cached value that is `steps` times as old: σ_c grows in proportion."""
        return Errors(self.cached * steps, self.pruned, self.correlation)


@dataclass(frozen=True)
class Choice:
    """What to do, and its expected error."""

    action: str  # "compute", "prune", "blend" or "reuse"
    weight: float  # of the pruned value
    error: float


def blend_weight(errors: Errors) -> float:
    """w*, the weight of the pruned value, in [0, 1].

    >>> blend_weight(Errors(cached=2.0, pruned=1.0, correlation=0.0))
    0.8
    """
    c, p, both = errors.cached**2, errors.pruned**2, _both(errors)
    between = c + p - 2 * both  # mean square of e_c - e_p
    if not math.isfinite(between):
        return 0.0 if errors.pruned > errors.cached else 1.0
    if between <= 0:  # both values have the same error, so any weight is right
        return 1.0
    return min(max((c - both) / between, 0.0), 1.0)


def blend_error(errors: Errors, weight: float) -> float:
    """Relative root mean square error of the blend at a weight.

    >>> round(blend_error(Errors(cached=2.0, pruned=1.0, correlation=0.0), 0.8) ** 2, 12)
    0.8
    """
    old = 1 - weight
    square = 2 * weight * old * _both(errors) if weight and old else 0.0
    square += (weight * errors.pruned) ** 2 if weight else 0.0
    square += (old * errors.cached) ** 2 if old else 0.0
    return math.sqrt(max(square, 0.0))


def cached_error(distance: float, pruned: float, correlation: float) -> float:
    """σ_c, from the distance d between the two values: d² = σ_c² + σ_p² - 2 ρ σ_c σ_p.

    The larger root of the equation, at least 0. If d is too small for this σ_p and ρ, the smallest
    d with a solution is used.

    >>> cached_error(distance=0.5, pruned=0.3, correlation=0.0)
    0.4
    """
    room = max(distance**2 - pruned**2 * (1 - correlation**2), 0.0)
    return max(correlation * pruned + math.sqrt(room), 0.0)


def choose(errors: Errors, threshold: float, config: DWS) -> Choice:
    """Choose the best of pruned, cached and blended; compute if its expected error is too large.

    Args:
        errors: the current errors of the two values.
        threshold: of the cache windows.
    """
    weight = blend_weight(errors)
    alone = min(errors.cached, errors.pruned)
    if blend_error(errors, weight) ** 2 > (1 - config.margin) * alone**2:
        weight = 0.0 if errors.cached <= errors.pruned else 1.0
    error = blend_error(errors, weight)
    if not error <= config.allowed(threshold):
        return Choice("compute", 1.0, 0.0)
    action = {0.0: "reuse", 1.0: "prune"}.get(weight, "blend")
    return Choice(action, weight, error)


def _both(errors: Errors) -> float:
    """ρ σ_c σ_p."""
    return errors.correlation * errors.cached * errors.pruned
