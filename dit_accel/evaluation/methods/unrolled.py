"""Samplers with trained weights: their parameters, and differentiable runs.

In: the first nodes, and the parts that are trained. Out: tables of weights; differentiable final
latents.
Knows: a sampler is weighted sums (`LinearSampler`). If training finds the best weights, no other
weights of k predictions are better, so BNS is the bound of that family. Several samplers run
together, as rows of the same forwards and sums. Every forward is checkpointed: the backward pass
computes its activations again.
Source: BNS, arXiv 2403.01329: noise term, weights of all predictions, times free or on the grid,
PSNR to the final latents. DyWeight, arXiv 2603.11607: weights of the last three, times that move by
their sum, labels rescaled by 0.5 to 1.5. Our difference: both begin with Adams-Bashforth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from dit_accel.planning.nodes import LinearSampler, Nodes, adams_bashforth


@dataclass(frozen=True)
class Variant:
    """The parts of a sampler that are trained.

    Args:
        depth: maximal number of predictions in a step's sum; None: all.
        noise: whether the starting noise has a weight.
        labels: whether the timesteps that the model gets are trained.
        moving: whether the timesteps follow the sum of the weights.
    """

    depth: int | None = None
    noise: bool = True
    labels: bool = True
    moving: bool = False


VARIANTS = {
    "bns": Variant(),
    "bns/grid": Variant(labels=False),
    "dyweight": Variant(depth=3, noise=False, moving=True),
}


class Trainable:
    """The parameters of one sampler, as differences from the sampler that it begins with.

    Args:
        nodes: the nodes at which the sampler calls the model before training.
        variant: what is trained.
        order: the order of Adams-Bashforth with which it begins.
    """

    def __init__(
        self, nodes: Nodes, variant: Variant, device: Any, scale: float, order: int = 2
    ) -> None:
        self.variant, k = variant, len(nodes)
        self.steps = nodes.times.diff().float().to(device)
        self.times, self.labels = (v.float().to(device) for v in (nodes.times, nodes.labels))
        self.scale = scale  # the label of time 1
        base = adams_bashforth(nodes, min(order, k)).increments.float().to(device)
        self.base = base / self.steps[:, None]
        used = torch.ones(k, k, device=device).tril()
        self.mask = used if variant.depth is None else used.triu(1 - variant.depth)
        self.parameters = {
            "weights": torch.zeros(k, k, device=device, requires_grad=True),
            "noise": torch.zeros(k, device=device, requires_grad=True),
            "labels": torch.zeros(k, device=device, requires_grad=True),
        }

    def tables(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Increments `(k, k)`, the share of the noise that each step adds `(k,)`, and labels
        `(k,)`."""
        own = self.parameters
        shares = self.base + own["weights"] * self.mask
        noise = own["noise"] if self.variant.noise else torch.zeros_like(own["noise"])
        labels = self.labels
        if self.variant.moving:
            moved = torch.cumsum(self.steps * (shares * self.mask).sum(1), 0)
            times = self.times[0] + torch.cat([torch.zeros_like(moved[:1]), moved[:-1]])
            labels = labels + self.scale * (times - self.times[:-1])
        if self.variant.labels:
            labels = (labels * (1 + 0.5 * torch.tanh(own["labels"]))).clamp_max(self.labels[0])
        return shares * self.steps[:, None], noise, labels

    @torch.no_grad()
    def sampler(self) -> LinearSampler:
        """The sampler with the present parameters, as numbers."""
        added, noise, labels = (table.double().cpu() for table in self.tables())
        return LinearSampler(labels, 1 + noise.cumsum(0), added.cumsum(0).tril())


def unrolled(
    trainables: Sequence[Trainable], predict: Any, noise: torch.Tensor, clips: torch.Tensor
) -> list[torch.Tensor]:
    """The final latents `(R, ...)` of every sampler, from the same noise.

    Args:
        predict: (latents, labels, clips) -> guided predictions.
        noise: `(R, ...)`.
        clips: `(R,)`: the clip of each row.
    """
    # The longest is first, so that the samplers that still run are the first rows.
    order = sorted(range(len(trainables)), key=lambda i: -len(trainables[i].labels))
    lengths = [len(trainables[i].labels) for i in order]
    tables = [trainables[i].tables() for i in order]
    added, of_noise, labels = (_padded([table[n] for table in tables]) for n in range(3))
    states = noise.expand(len(order), *noise.shape)
    ends: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    for step in range(lengths[0]):
        active = sum(length > step for length in lengths)
        if active < len(states):
            ends += reversed(states[active:].unbind())
            states, found = states[:active], [one[:active] for one in found]
        times = labels[:active, step].repeat_interleave(len(clips))
        given = states.flatten(0, 1), times, clips.repeat(active)
        if torch.is_grad_enabled():
            made = checkpoint(predict, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            made = predict(*given)
        found = [*found, made.unflatten(0, (active, len(clips)))]
        # One product for all samplers instead of a matmul, which might use TF32.
        weights = added[:active, step, : step + 1].T
        terms = torch.stack(found) * _spread(weights, noise.ndim)
        states = states + _spread(of_noise[:active, step], noise.ndim) * noise + terms.sum(0)
    ends += reversed(states.unbind())
    of = dict(zip(reversed(order), ends, strict=True))
    return [of[i] for i in range(len(of))]


def _padded(tables: list[torch.Tensor]) -> torch.Tensor:
    """Tables of falling sizes as one table, padded with zeros."""
    longest = len(tables[0])
    return torch.stack([
        torch.nn.functional.pad(one, (0, longest - len(one)) * one.ndim) for one in tables
    ])  # fmt: skip


def _spread(weights: torch.Tensor, count: int) -> torch.Tensor:
    """The tensor with this number of dimensions of size 1 added at its end."""
    return weights.view(*weights.shape, *[1] * count)


def errors_db(made: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """`(R,)`: the squared error relative to the final latents, in dB; lower is better."""
    error = (made - final).flatten(1).square().sum(1) / final.flatten(1).square().sum(1)
    return 10 * error.clamp_min(1e-12).log10()
