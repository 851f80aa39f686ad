"""The times at which a sampler calls the model, and the multistep weights between them.

In: the times of a noise schedule. Out: fewer times, shifted times, and a `LinearSampler`, whose
states are weighted sums of the starting noise and the predictions.
Knows numbers; no model, no scheduler.

The prediction is the derivative of the latents over *time*, dx/dt = v:
    flow matching    x = (1 - t) x0 + t ε,        v = ε - x0,              t = sigma
    v-prediction     x = cos t x0 + sin t ε,      v = cos t ε - sin t x0,  t = arctan(sigma / alpha)
So the same multistep weights hold for both. Times fall from noise to clip; the last one is the end.
Source: Adams-Bashforth methods, with the integral of the Lagrange interpolant for uneven times;
its use as iPNDM for flows: arXiv 2202.09778, section 3. LinearSampler: BNS, arXiv 2403.01329.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dit_accel.core.extrapolation import lagrange_weights

Kind = Literal["flow", "v"]
FIRST_SIGMA = {"flow": 1 - 1e-6, "v": 4096.0}  # diffusers' solvers need a finite log sigma


@dataclass(frozen=True)
class Nodes:
    """The k times at which the model is called, and the end.

    Args:
        kind: "flow" or "v": the kind of prediction, and so of times.
        times: `(k + 1,)` float64, falling.
        labels: `(k,)` float64: the timesteps that are passed to the model.

    Raises:
        ValueError: the shapes do not fit, or the times do not fall.
    """

    kind: Kind
    times: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.times.ndim != 1 or len(self.labels) != len(self.times) - 1 or len(self.labels) < 1:
            shapes = tuple(self.times.shape), tuple(self.labels.shape)
            raise ValueError(f"times and labels have shapes {shapes}; accepted: (k + 1,), (k,)")
        if not bool((self.times.diff() < 0).all()):
            raise ValueError(f"times is {self.times.tolist()}; accepted: falling numbers")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def alphas(self) -> torch.Tensor:
        """`(k + 1,)`: factor of the clip in the latents."""
        return 1 - self.times if self.kind == "flow" else self.times.cos()

    @property
    def sigmas(self) -> torch.Tensor:
        """`(k + 1,)`: factor of the noise in the latents."""
        return self.times if self.kind == "flow" else self.times.sin()

    def solver_sigmas(self, first: float | None, last: float) -> torch.Tensor:
        """`(k + 1,)` float32: sigmas as diffusers' multistep schedulers use them.

        They are sigma for a flow, else sigma / alpha. They are clamped to `first` and `last`,
        because the schedulers use their logarithms.
        """
        ratios = self.times if self.kind == "flow" else self.times.tan()
        limit = FIRST_SIGMA[self.kind] if first is None else first
        bad = (ratios > limit) | (ratios < 0)  # beyond a right angle tan is negative
        return torch.where(bad, limit, ratios).clamp_min(last).float()

    def at(self, computed: Sequence[int]) -> Nodes:
        """The nodes at these indices, 0 first; the end is unchanged.

        Example:
            >>> stock = Nodes("flow", torch.tensor([1.0, 0.7, 0.3, 0.0]), torch.tensor([9.0, 7, 3]))
            >>> stock.at([0, 2]).times.tolist()[1:]
            [0.30000001192092896, 0.0]
        """
        index = list(computed)
        if not index or index != sorted(set(index)) or index[0] != 0 or index[-1] >= len(self):
            raise ValueError(
                f"computed is {index}; accepted: rising steps up to {len(self) - 1}, the first of "
                "them 0"
            )
        chosen = torch.tensor(index)
        times = torch.cat([self.times[:-1][chosen], self.times[-1:]])
        return Nodes(self.kind, times, self.labels[chosen])


def shifted(shares: torch.Tensor, shift: float) -> torch.Tensor:
    """Flow shift: shares of the noise in [0, 1] -> s σ / (1 + (s - 1) σ). Shifts multiply.

    Example:
        >>> shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist()
        [0.0, 0.75, 1.0]
    """
    return shift * shares / (1 + (shift - 1) * shares)


@dataclass(frozen=True)
class LinearSampler:
    """A sampler with k model calls whose states are weighted sums.

    x_0 is the starting noise, v_j the prediction at x_j, and

        x_{i+1} = noise_i x_0 + sum over j <= i of weights_ij v_j

    Args:
        labels: `(k,)` float64: the timesteps that are passed to the model.
        noise: `(k,)` float64.
        weights: `(k, k)` float64, lower triangular.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.
    """

    labels: torch.Tensor
    noise: torch.Tensor
    weights: torch.Tensor

    def __post_init__(self) -> None:
        k = len(self.labels)
        shapes = tuple(self.noise.shape), tuple(self.weights.shape)
        if k < 1 or shapes != ((k,), (k, k)):
            raise ValueError(
                f"noise and weights have shapes {shapes}; accepted: ({k},), ({k}, {k})"
            )
        if not all(bool(v.isfinite().all()) for v in (self.labels, self.noise, self.weights)):
            raise ValueError(
                "labels, noise or weights has NaN or infinity; accepted: finite numbers"
            )
        if bool(self.weights.triu(1).any()):
            raise ValueError(
                "weights has weights of later steps, above its diagonal; accepted: a lower "
                "triangular matrix"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def increments(self) -> torch.Tensor:
        """`(k, k)`: what each step adds, the difference of successive rows of `weights`."""
        return torch.diff(self.weights, dim=0, prepend=torch.zeros_like(self.weights[:1]))


def adams_bashforth(nodes: Nodes, order: int) -> LinearSampler:
    """Adams-Bashforth of a given order on uneven times; order 1 is Euler.

    Each step integrates the polynomial through the last `order` predictions exactly. The first
    steps have fewer predictions.

    Args:
        order: 1 to 4.

    Raises:
        ValueError: another order.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order is {order}; accepted: 1 to 4")
    k = len(nodes)
    weights = torch.zeros(k, k, dtype=torch.float64)
    for step in range(k):
        used = range(max(0, step - order + 1), step + 1)
        times = [float(nodes.times[s]) for s in used]
        added = integral_weights(times, float(nodes.times[step]), float(nodes.times[step + 1]))
        if step:
            weights[step] = weights[step - 1]
        weights[step, used.start : used.stop] += torch.tensor(added, dtype=torch.float64)
    return LinearSampler(nodes.labels.double(), torch.ones(k, dtype=torch.float64), weights)


def integral_weights(times: Sequence[float], start: float, end: float) -> list[float]:
    """The weights of values at `times` in the integral of their polynomial from `start` to `end`.

    Args:
        times: 1 to 4 different numbers.

    Example:
        >>> [round(w, 6) for w in integral_weights([0.0, 1.0], 1.0, 2.0)]
        [-0.5, 1.5]
    """
    # Gauss-Legendre with three points is exact up to degree 5.
    half, middle = (end - start) / 2, (end + start) / 2
    points = ((0.0, 8 / 9), (math.sqrt(0.6), 5 / 9), (-math.sqrt(0.6), 5 / 9))
    at = [(weight, lagrange_weights(times, middle + half * x)) for x, weight in points]
    return [half * sum(weight * shares[own] for weight, shares in at) for own in range(len(times))]
