"""Samplers whose weights are trained: their parameters, and runs that gradients go back through.

In: nodes to begin with, and what is trained. Out: tables of weights; final latents, differentiable.
Knows: a sampler is weighted sums (`LinearSampler`), so no other way to weigh k predictions does
better where training finds the best: BNS is the bound of that family. Several samplers run
together, as rows of the same forwards. Every forward is a checkpoint: its activations are computed
again by the backward pass.
Source: BNS, arXiv 2403.01329: noise term, weights of all predictions, times free or on the grid,
PSNR to the final latents. DyWeight, arXiv 2603.11607: weights of the last three, times that move by
their sum, labels rescaled by 0.5 to 1.5. We depart: both begin from Adams-Bashforth.
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
    """What of a sampler is trained.

    Args:
        depth: predictions that a step weighs at most; None: all.
        noise: whether the start noise has a weight.
        labels: whether the timesteps that the model gets are free.
        moving: whether these follow the sum of the weights.
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
        nodes: where the first sampler calls the model.
        variant: what is trained.
        order: of Adams-Bashforth, that it begins with.
    """

    def __init__(
        self, nodes: Nodes, variant: Variant, device: Any, scale: float, order: int = 2
    ) -> None:
        self.variant, k = variant, len(nodes)
        self.steps = nodes.times.diff().float().to(device)
        self.times, self.labels = (v.float().to(device) for v in (nodes.times, nodes.labels))
        self.scale = scale  # of labels, for a time of 1
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
        """Increments `(k, k)`, what each step adds of the noise `(k,)`, and labels `(k,)`."""
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
        """As numbers."""
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
    tables = [one.tables() for one in trainables]
    states = [noise for _ in trainables]
    found: list[list[torch.Tensor]] = [[] for _ in trainables]
    for step in range(max(len(labels) for _, _, labels in tables)):
        active = [i for i, (_, _, labels) in enumerate(tables) if step < len(labels)]
        given = torch.cat([states[i] for i in active])
        labels = torch.cat([tables[i][2][step].expand(len(noise)) for i in active])
        rows = clips.repeat(len(active))
        if torch.is_grad_enabled():
            predictions = checkpoint(predict, given, labels, rows, use_reentrant=False)
        else:
            predictions = predict(given, labels, rows)
        for i, prediction in zip(active, predictions.chunk(len(active)), strict=True):
            found[i].append(prediction)
            added, of_noise, _ = tables[i]
            terms = (added[step, j] * v for j, v in enumerate(found[i]))
            states[i] = states[i] + of_noise[step] * noise + sum(terms)
    return states


def errors_db(made: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """`(R,)`: the squared error relative to the final latents, in dB; lower is nearer."""
    error = (made - final).flatten(1).square().sum(1) / final.flatten(1).square().sum(1)
    return 10 * error.clamp_min(1e-12).log10()
