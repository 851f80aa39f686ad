"""Plans as samplers with trained weights, with levers, for `table_bound.py`.

In: a plan, and the impulse response of its scheduler. Out: a `Sampler`, and its run on any clips. A
sampler is a list of evaluations of the model. The latents between them are weighted sums of their
results and of the noise. The parameters are what the steps of a window add to the plan, as one
number for each direction. Directions are orthonormal over the training clips: one of length 1
changes the latents by their own size, so a finite difference is equally exact in each of them.
Knows tensors and evaluations, no prompts and no files. Shapes: V values of the parameters, R clips,
E evaluations, B components, G groups of latents, L the shape of a clip's latents.
Source: docs/how-it-works.md, sections 1 and 4; BNS, arXiv 2403.01329, for runs with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import ModuleList
from torch.utils.checkpoint import checkpoint

from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.generation import ClipSpec
from dit_accel.evaluation.methods.denoiser import GuidedDenoiser
from dit_accel.evaluation.methods.unrolled import errors_db
from dit_accel.planning.plan import Plan, used_steps
from dit_accel.planning.sampler import Response

FULL, KEEPS, CHEAP = "full", "keeps residual", "first block alone"
LABEL_SCALE = 30.0  # a parameter of 1e-3 changes a timestep by 1.5 %
Split = Callable[[torch.Tensor], torch.Tensor]  # (..., L) -> its first group
Answer = tuple[torch.Tensor, ...]


class Model:
    """A pipeline's transformer on clips, with gradients, and also its first block alone.

    Args:
        weights: B, of the components in the guided prediction.
    """

    def __init__(self, pipe: Any, clips: Sequence[ClipSpec], weights: tuple[float, ...]) -> None:
        family = family_of(pipe)
        self.denoiser, self.weights = GuidedDenoiser(pipe, clips), weights
        self.module = next(iter(transformers_of(pipe, family).values()))
        self.blocks = family.blocks[0]
        self.most_rows = 512

    def answer(self, kind: str, inputs: Sequence[torch.Tensor]) -> Answer:
        """The components `(R, B, L)` for rows of latents, timesteps and clips (and residuals)."""
        if torch.is_grad_enabled():
            made: Answer = checkpoint(
                self._compute, kind, *inputs, use_reentrant=False, preserve_rng_state=False
            )
            return made
        pieces = zip(*(value.split(self.most_rows) for value in inputs), strict=True)
        parts = [self._compute(kind, *piece) for piece in pieces]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _compute(self, kind: str, *inputs: torch.Tensor) -> Answer:
        latents, labels, clips, *residuals = inputs
        if kind == FULL:
            return (self._components(latents, labels, clips),)
        blocks = getattr(self.module, self.blocks)
        if kind == CHEAP:
            added = [value.transpose(0, 1).flatten(0, 1) for value in residuals]
            self.module._modules[self.blocks] = ModuleList([blocks[0], _Added(added)])
            try:
                return (self._components(latents, labels, clips),)
            finally:
                self.module._modules[self.blocks] = blocks
        ends: list[Answer] = []
        hooks = [
            blocks[place].register_forward_hook(lambda _, __, out: ends.append(_streams(out)))
            for place in (0, -1)
        ]
        try:
            made = self._components(latents, labels, clips)
        finally:
            for hook in hooks:
                hook.remove()
        rows = (self.denoiser.rows, len(latents))
        added = (b - a for a, b in zip(*ends, strict=True))
        return made, *(value.unflatten(0, rows).transpose(0, 1) for value in added)

    def _components(self, *inputs: torch.Tensor) -> torch.Tensor:
        if len(self.weights) == 1:
            return self.denoiser(*inputs)[:, None]
        cond, uncond = self.denoiser.branches(*inputs)
        return torch.stack([cond, uncond - cond], 1)


class _Added(torch.nn.Module):
    """Replaces blocks: adds what they added to each stream at another step."""

    def __init__(self, residuals: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.residuals = residuals

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        streams = [*args, *(kwargs[n] for n in ("hidden_states", "encoder_hidden_states")
                            if n in kwargs)]  # fmt: skip
        made = tuple(a + b for a, b in zip(streams, self.residuals, strict=False))
        return made if len(made) > 1 else made[0]


def _streams(output: Any) -> Answer:
    return output if isinstance(output, tuple) else (output,)


# --- samplers ---


@dataclass
class Sampler:
    """Evaluations, and the weighted sums between them.

    Args:
        kinds: E.
        labels: `(E,)` timesteps.
        base: `(E, E, B)`: weights of all evaluations in the latents after each.
        base_noise: `(E,)`.
        spread: `(E, E)`: what a window's correction weighs in the latents after each evaluation.
        allowed: by evaluation the features of its correction.
        split: into two groups of latents with weights of their own.
        free_labels: whether timesteps are parameters too.
    """

    kinds: list[str]
    labels: torch.Tensor
    base: torch.Tensor
    base_noise: torch.Tensor
    spread: torch.Tensor
    allowed: list[list[int]]
    split: Split | None = None
    free_labels: bool = False
    directions: torch.Tensor = field(init=False)  # (p, G, E, E B + 1)
    firsts: torch.Tensor = field(init=False)  # (p + labels,): the first evaluation that changes

    @property
    def groups(self) -> int:
        return 1 if self.split is None else 2

    def start(self) -> torch.Tensor:
        """The plan's parameters: none is changed."""
        return torch.zeros(len(self.firsts), device=self.base.device)

    def tables(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Parameters `(V, p)` -> `(V, G, E, E, B)`, `(V, G, E)`, and labels `(V, E)`."""
        count, size = len(self.directions), self.base.shape
        # In float64: directions cancel, and matmuls in float32 may be in TF32.
        changes = values[:, :count].double() @ self.directions.flatten(1)
        changes = changes.view(len(values), self.groups, size[0], -1)
        after = torch.einsum("ei,vgif->vgef", self.spread, changes)
        weights = self.base + after[..., :-1].unflatten(-1, size[1:])
        labels = self.labels.float().expand(len(values), -1)
        if self.free_labels:
            factors = 1 + 0.5 * torch.tanh(LABEL_SCALE * values[:, count:])
            labels = (labels * factors).clamp_max(float(self.labels[0]))
        return weights.float(), (self.base_noise + after[..., -1]).float(), labels

    @torch.no_grad()
    def orient(self, model: Model, noise: torch.Tensor, rows: torch.Tensor, final: torch.Tensor,
               ) -> None:  # fmt: skip
        """Find the directions, from a run of the plan on these clips."""
        count, b = self.base.shape[0], self.base.shape[2]
        shape = (self.groups, count, count * b + 1)
        self.directions = torch.zeros(0, *shape, dtype=torch.float64, device=self.base.device)
        self.firsts = torch.zeros(count if self.free_labels else 0, dtype=torch.long)
        _, known = drive(model, [unroll(self, self.start()[None], noise, rows)])[0]
        found, firsts = [self.directions], []
        for place in range(count):
            scale = float(self.spread[:, place].abs().max())
            if scale < 1e-9:
                continue
            at = [j * b + c for j in self.allowed[place] for c in range(b)]
            features = [known[j][0][0, :, c] for j in self.allowed[place] for c in range(b)]
            if self.kinds[place] != CHEAP:
                at, features = [*at, count * b], [*features, noise]
            for group in range(self.groups):
                axes = _orthonormal(self._group(torch.stack(features), group), final) / scale
                one = torch.zeros(len(axes), *shape, dtype=torch.float64, device=axes.device)
                one[:, group, place, at] = axes
                found.append(one)
                firsts += [place + 1] * len(axes)
        self.directions = torch.cat(found)
        labels = list(range(count)) if self.free_labels else []
        self.firsts = torch.tensor(firsts + labels)

    def _group(self, value: torch.Tensor, group: int) -> torch.Tensor:
        if self.split is None:
            return value
        return self.split(value) if group == 0 else value - self.split(value)


def _orthonormal(features: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """Weights `(d, F)` of features `(F, R, L)` that are orthonormal over the clips."""
    rows = features.flatten(2).transpose(0, 1).double()
    size = final.flatten(1).double().square().sum(1)
    gram = (rows @ rows.transpose(1, 2) / size[:, None, None]).mean(0)
    values, vectors = torch.linalg.eigh(gram)
    large = values > 1e-9 * values[-1]  # the rest is rounding error
    return (vectors[:, large] / values[large].sqrt()).T


def sampler_of(
    plan: Plan, response: Response, weights: tuple[float, ...], depth: int, *, wide: bool = False,
    cheap: bool = False, **levers: Any,
) -> Sampler:  # fmt: skip
    """A plan's evaluations.

    Args:
        response: of the scheduler.
        weights: of the components.
        depth: computed steps that a window weighs.
        wide: every window weighs all steps before it, and the computed step's own prediction too.
        cheap: in the middle of every window the first block is computed.
    """
    n, computed, states = plan.num_steps, plan.computed, response.states
    owner = {step: step for step in computed}  # by evaluated step, that of its window
    if cheap:
        owner |= {(a + c + 1) // 2: a for a, c in plan.windows if c - a > 1}
    steps = sorted(owner)
    kinds = [(KEEPS if cheap else FULL) if s in computed else CHEAP for s in steps]
    closed, count, parts = dict(plan.windows), len(steps), len(weights)
    base = torch.zeros(count, count, parts, dtype=torch.float64)
    base_noise, spread = torch.zeros(count).double(), torch.zeros(count, count).double()
    place = {step: index for index, step in enumerate(steps)}
    for after, end in enumerate([*steps[1:], n]):
        base_noise[after] = states[end, -1]
        for step in range(end):
            unit = float(states[end, step])
            extrapolation = plan.extrapolations.get(step)
            if extrapolation is None:
                base[after, place[step]] += unit * torch.tensor(weights)
                continue
            base_noise[after] += unit * float(extrapolation.noise_weight)
            for part, shares in enumerate(extrapolation.weights):
                for at, weight in shares.items():
                    base[after, place[at], part] += unit * weights[part] * float(weight)
        for index, step in enumerate(steps):
            own = step in computed and not wide
            within = range(step + own, min(closed[owner[step]], end))
            spread[after, index] = sum(float(states[end, s]) for s in within)
    allowed = []
    for step in steps:
        used = used_steps(computed, step, len(steps) if wide else depth)
        allowed.append([place[s] for s in used] if step in computed else [place[step]])
    labels = response.timesteps[steps]
    return Sampler(kinds, labels, base, base_noise, spread, allowed, **levers)


def to(sampler: Sampler, device: Any) -> Sampler:
    """The sampler with its tables on a device."""
    for name in ("labels", "base", "base_noise", "spread"):
        setattr(sampler, name, getattr(sampler, name).to(device))
    return sampler


# --- runs ---


@dataclass
class Ask:
    """Rows that a run asks the model to compute."""

    kind: str
    inputs: list[torch.Tensor]


History = list[Answer]  # by evaluation `(V, R, B, L)`, and residuals
Run = Generator[Ask, Answer, tuple[torch.Tensor, History]]


def unroll(
    sampler: Sampler, values: torch.Tensor, noise: torch.Tensor, clips: torch.Tensor,
    known: History = (),  # type: ignore[assignment]
) -> Run:  # fmt: skip
    """A run for V values of the parameters: final latents `(V, R, L)`, and what was evaluated.

    Args:
        noise: `(R, L)`.
        clips: `(R,)`: which they are.
        known: of the first evaluations, which the values do not change.
    """
    weights, of_noise, labels = sampler.tables(values)
    v, r = len(values), len(clips)
    history = [tuple(one.expand(v, *one.shape[1:]) for one in e) for e in known]

    def after(e: int) -> torch.Tensor:
        stacked = torch.stack([one[0] for one in history[: e + 1]], 2)  # (V, R, e, B, L)
        parts = []
        for group in range(sampler.groups):
            by = _spread(weights[:, None, group, e, : e + 1], stacked.ndim)
            scaled = _spread(of_noise[:, group, e], noise.ndim + 1) * noise
            parts.append((by * stacked).sum((2, 3)) + scaled)
        if sampler.split is None:
            return parts[0]
        return parts[1] + sampler.split(parts[0] - parts[1])

    residuals: Answer = ()
    for e, kind in enumerate(sampler.kinds):
        if e >= len(history):
            latents = after(e - 1) if e else noise.expand(v, *noise.shape)
            rows = [latents.flatten(0, 1), labels[:, e].repeat_interleave(r), clips.repeat(v)]
            more = [one.flatten(0, 1) for one in residuals] if kind == CHEAP else []
            made = yield Ask(kind, rows + more)
            found = tuple(one.unflatten(0, (v, r)) for one in made)
            if kind == CHEAP:  # the result of the step before with the same blocks
                found = (found[0] - history[e - 1][0],)
            history.append(found)
        if kind != CHEAP:
            residuals = history[e][1:]
    return after(len(sampler.kinds) - 1), history


def _spread(weights: torch.Tensor, ndim: int) -> torch.Tensor:
    """With dimensions of one entry at the end, up to so many."""
    return weights.view(*weights.shape, *[1] * (ndim - weights.ndim))


def drive(model: Model, runs: Sequence[Run]) -> list[tuple[torch.Tensor, History]]:
    """The final latents of several runs. Rows that they request at the same time are computed
    together."""
    ends: dict[int, tuple[torch.Tensor, History]] = {}
    waiting: dict[int, Ask] = {}

    def go_on(place: int, answer: Answer | None) -> None:
        try:
            waiting[place] = runs[place].send(answer)  # type: ignore[arg-type]
        except StopIteration as stop:
            waiting.pop(place, None)
            ends[place] = stop.value

    for place in range(len(runs)):
        go_on(place, None)
    while waiting:
        kind = next(iter(waiting.values())).kind
        mine = [place for place, ask in waiting.items() if ask.kind == kind]
        inputs = [torch.cat(c) for c in zip(*(waiting[p].inputs for p in mine), strict=True)]
        sizes = [len(waiting[p].inputs[0]) for p in mine]
        parts = [made.split(sizes) for made in model.answer(kind, inputs)]
        for number, place in enumerate(mine):
            go_on(place, tuple(part[number] for part in parts))
    return [ends[place] for place in range(len(runs))]


@dataclass
class Clips:
    """Clips, by their numbers among the model's: noise and uncached final latents `(R, L)`."""

    numbers: torch.Tensor
    noise: torch.Tensor
    final: torch.Tensor

    def at(self, rows: Any) -> Clips:
        return Clips(self.numbers[rows], self.noise[rows], self.final[rows])

    def run(self, sampler: Sampler, values: torch.Tensor, known: History | None = None) -> Run:
        return unroll(sampler, values, self.noise, self.numbers, known or [])

    def errors(self, made: torch.Tensor) -> torch.Tensor:
        """`(V, R, L)` -> `(V, R)` in dB."""
        return torch.stack([errors_db(one, self.final) for one in made])
