"""Improves a sampler's parameters, with Gauss-Newton steps or with Adam through its runs.

In: a `Sampler`, values of its parameters, and clips with their uncached final latents. Out: values.
Knows runs and errors, no prompts and no files. Both minimise the mean error in dB.
Source: Levenberg-Marquardt with a damping from clips that are left out; BNS, arXiv 2403.01329.
Shapes: as in `bound_samplers.py`; p parameters, N numbers of a clip's latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from bound_samplers import Clips, Model, Sampler, drive

from dit_accel.evaluation.methods.trained import fast_matmuls

DIFFERENCE = 1e-3  # step of finite differences, relative to the latents' size
DAMPINGS = tuple(10.0**power for power in range(-7, 2))
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03)  # shares of a Gauss-Newton step that are tried
FOLDS = 4


@torch.no_grad()
def gauss_newton(
    model: Model, sampler: Sampler, values: torch.Tensor, clips: Clips
) -> tuple[torch.Tensor, dict[str, float]]:
    """One step towards the least mean error in dB: better values, and how it was found.

    The damping is the one with which left-out clips are best by the linearised error.
    """
    final, known = drive(model, [clips.run(sampler, values[None])])[0]
    residual = (final[0] - clips.final).flatten(1)
    columns = torch.empty(len(values), *residual.shape, device=residual.device)
    for first in sorted(set(sampler.firsts.tolist())):
        for some in (sampler.firsts == first).nonzero().flatten().split(48):
            moved = values.repeat(len(some), 1)
            moved[torch.arange(len(some)), some] += DIFFERENCE
            made, _ = drive(model, [clips.run(sampler, moved, known[:first])])[0]
            columns[some] = (made - final).flatten(2) / DIFFERENCE
    size = clips.final.flatten(1).double().square().sum(1)
    rows = columns.transpose(0, 1)  # (R, p, N)
    products = torch.stack([one.double() @ one.double().T for one in rows]) / size[:, None, None]
    slopes = torch.stack([a.double() @ b.double() for a, b in zip(rows, residual, strict=True)])
    slopes, start = slopes / size[:, None], residual.double().square().sum(1) / size
    everyone = torch.arange(len(size), device=size.device)
    level = dict.fromkeys(DAMPINGS, 0.0)
    for fold in everyone.chunk(min(FOLDS, len(size))):
        others = everyone[~torch.isin(everyone, fold)] if len(fold) < len(size) else fold
        for damping in DAMPINGS:
            step = _solved(products[others], slopes[others], start[others], damping)
            left = start[fold] + 2 * slopes[fold] @ step + step @ products[fold] @ step
            level[damping] += float(left.clamp_min(1e-12).log10().sum())
    damping = min(level, key=lambda d: level[d])
    step = _solved(products, slopes, start, damping).to(values)
    tried = torch.stack([values, *(values + share * step for share in SHARES)])
    made, _ = drive(model, [clips.run(sampler, tried)])[0]
    errors = clips.errors(made).mean(1).nan_to_num(math.inf)
    best = int(errors.argmin())
    said = {"damping": damping, "share": (0.0, *SHARES)[best], "before_db": float(errors[0]),
            "after_db": float(errors[best]), "left_out_db": 10 * level[damping] / len(size),
            "parameters": float(len(values))}  # fmt: skip
    return tried[best], said


def _solved(
    products: torch.Tensor, slopes: torch.Tensor, start: torch.Tensor, damping: float
) -> torch.Tensor:
    """The step that lowers the mean logarithm of the clips' errors, to first order."""
    matrix = (products / start[:, None, None]).sum(0)
    slope = (slopes / start[:, None]).sum(0)
    damped = damping * matrix.diagonal().mean() * torch.eye(len(slope)).to(matrix)
    return -torch.linalg.solve(matrix + damped, slope)


@dataclass
class Job:
    """A sampler in training with Adam. The values that are best on `held_out` are used."""

    sampler: Sampler
    values: torch.Tensor
    train: Clips
    held_out: Clips
    best_db: float = math.inf
    first_db: float = math.inf

    def __post_init__(self) -> None:
        self.own = self.values.clone().requires_grad_(True)


def adam(
    model: Model, jobs: Sequence[Job], iterations: int, *, batch: int = 8, every: int = 10,
    rate: float = 0.02,
) -> None:  # fmt: skip
    """Train several samplers together.

    Args:
        rate: learning rate, relative to the initial error of a sampler; it falls to 0 like a
            cosine.
    """
    _look(model, jobs)
    groups = [{"params": [j.own], "lr": rate * 10 ** (j.first_db / 20)} for j in jobs]
    optimizer, device = torch.optim.Adam(groups), jobs[0].values.device
    rates = [group["lr"] for group in optimizer.param_groups]
    for iteration in range(iterations):
        for group, first in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = first * (1 + math.cos(math.pi * iteration / iterations)) / 2
        generator = torch.Generator().manual_seed(iteration)
        some = [j.train.at(torch.randperm(len(j.train.numbers), generator=generator)[:batch]
                           .to(device)) for j in jobs]  # fmt: skip
        optimizer.zero_grad()
        with torch.enable_grad(), fast_matmuls(device):
            runs = [c.run(j.sampler, j.own[None]) for c, j in zip(some, jobs, strict=True)]
            ends = drive(model, runs)
            losses = [c.errors(made).mean() for c, (made, _) in zip(some, ends, strict=True)]
            torch.stack(losses).sum().backward()
        for job in jobs:
            assert job.own.grad is not None
            job.own.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        if (iteration + 1) % every == 0 or iteration + 1 == iterations:
            _look(model, jobs)
            best = ", ".join(f"{job.first_db:.2f} to {job.best_db:.2f}" for job in jobs)
            print(f"Adam, {iteration + 1} iterations: {best} dB", flush=True)


@torch.no_grad()
def _look(model: Model, jobs: Sequence[Job]) -> None:
    runs = [job.held_out.run(job.sampler, job.own.detach()[None]) for job in jobs]
    for job, (made, _) in zip(jobs, drive(model, runs), strict=True):
        level = float(job.held_out.errors(made).mean())
        job.first_db = level if math.isinf(job.first_db) else job.first_db
        if level < job.best_db:
            job.best_db, job.values = level, job.own.detach().clone()
