"""Carries out levels: what a computed step leaves out of the blocks and the attentions.

At a full step every site that a planned level needs keeps its value, and pruning learns its bases;
at a step with a level the sites of that level serve or prune, and all others compute. What is
served was kept at the last full step, or goes by the line through the last two. Where nothing is
kept yet (a second expert begins, say) the site computes. Nothing is measured: the device is not
read. Without levels in the plan nothing is kept.

Holds no formula: levels.py decides, caching.py keeps and serves, pcas.py prunes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from dit_accel import attention
from dit_accel.caching import Cache, Kept, Site
from dit_accel.families import Family
from dit_accel.levels import FULL, Level
from dit_accel.patching import Patches
from dit_accel.pcas import PCAS, Pruner
from dit_accel.pruning import tile_order
from dit_accel.session import Session
from dit_accel.unicp import FAMILIES
from dit_accel.windows import EDCW

RANK = 16  # of the scores, at most the heads' width


class Source(Protocol):
    """What knows the levels of the run that is under way."""

    @property
    def levels(self) -> Mapping[int, Level]:
        """By step; all other computed steps are full."""


class Fixed:
    """A source whose levels whoever holds it sets."""

    def __init__(self) -> None:
        self.levels: Mapping[int, Level] = {}


class LevelSite(Site):
    """A place that keeps at full steps, and serves at those whose level says so."""

    cache: Leveling

    def serve(self, like: torch.Tensor) -> torch.Tensor | None:
        """As every site, where the level of the step says so."""
        served = super().serve(like)
        if served is not None:
            self.cache.note()
        return served

    def keep(
        self, value: torch.Tensor, done: str = "computed", fresh: torch.Tensor | None = None
    ) -> None:
        """Keep the last two values of full steps, and measure nothing."""
        session = self.cache.session
        getattr(self._trace(), done).append(session.step)
        if self.cache.keeps and any(self.serves(level) for level in self.cache.used):
            fitting = super()._fitting(value)
            older = [kept for kept in fitting if kept.time != session.time]
            self.kept[session.role, session.branch] = [Kept(session.time, value), *older][:2]

    def serves(self, level: Level) -> bool:
        """Whether it serves at steps of this level."""
        return level.kind == "attention"

    def _fitting(self, like: torch.Tensor) -> list[Kept]:
        """As many of the kept values as the level reads."""
        return super()._fitting(like)[: self.cache.level.order + 1]


class Blocks(LevelSite):
    """A run of blocks and its residual."""

    def __init__(self, transformer: str, paths: Sequence[str], span: Any, cache: Leveling) -> None:
        super().__init__(transformer, f"{paths[0]}..{paths[-1]}", cache)
        self.paths, self.span = tuple(paths), span

    def serves(self, level: Level) -> bool:
        """The levels that leave these blocks out."""
        return level.kind == "block" and level.span == self.span


class Attention(LevelSite):
    """A self-attention: its output, and its pruning."""

    pruner: Pruner | None = None

    def begin(self, total: int | None) -> None:
        """Forget the last run."""
        super().begin(total)
        self.stale = False
        if self.pruner is not None:
            self.pruner.forget()

    def set_up(self, attn: Any, patches: Patches) -> None:
        """Put stages on the module."""
        self.staged = attention.install(attn, patches)
        self.staged.attend = self.attend
        self.pruner = Pruner(PCAS(rank=RANK, always=True))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The stage: `(B, N, H, D)` -> `(B, N, H, D)`."""
        pruner, cache = self.pruner, self.cache
        assert pruner is not None
        level = cache.level
        if level.kind == "prune" and (self.stale or pruner.ready):
            if self.stale:
                pruner.fit()
                self.stale = False
            share = level.density
            pruner.config = replace(pruner.config, keep_mass=1.0, floor=share, cap=share)
            mixed, spent = pruner.attend(query, key, value, cache.order(query, pruner))
            if isinstance(spent, torch.Tensor):
                spent = share  # about: it would have to be read from the device
            self._trace().spent[cache.session.step] = spent
            cache.note()
            return mixed
        if cache.keeps and any(used.kind == "prune" for used in cache.used):
            pruner.learn(query, key, value)
            self.stale = True
        return self.staged.dense(query, key, value)


class Leveling(Cache):
    """All places of a pipeline's transformers at which its levels leave something out; an observer
    of its session, behind the one that knows the plan.

    Args:
        levels: that may be asked for.
        source: tells them by step.

    Raises:
        ValueError: a level cannot be carried out on this family, or spans of blocks overlap without
            one lying in the other.
    """

    def __init__(
        self, session: Session, family: Family, levels: Sequence[Level], source: Source
    ) -> None:
        super().__init__(session, family, "levels", EDCW(order=1))
        self.levels = tuple(dict.fromkeys(levels))
        for level in self.levels:
            needed = "attention" if level.kind == "prune" else level.kind
            pruned = level.kind != "prune" or family.name in FAMILIES
            if level != FULL and (needed not in family.sites or not pruned):
                raise ValueError(
                    f"level is {level.name!r}; accepted for {family.name}: those of sites "
                    f"{', '.join(family.sites)}"
                )
        self.source = source
        self.level, self.keeps = FULL, False
        self.used: tuple[Level, ...] = ()
        self.done: dict[int, str] = {}  # by step, the level's name, where it left something out
        self._orders: dict[Any, torch.Tensor] = {}

    def install(self, patches: Patches) -> None:
        """Make the sites and wrap their modules."""
        kinds = {level.kind for level in self.levels}
        for name, module in self.session.transformers.items():
            blocks = {
                f"{group}.{i}": block
                for group in self.family.blocks
                for i, block in enumerate(getattr(module, group))
            }
            if kinds & {"prune", "attention"}:
                for path, block in blocks.items():
                    attn = getattr(block, self.family.attention)
                    site = Attention(name, f"{path}.{self.family.attention}", self)
                    self.sites.append(site)
                    if "prune" in kinds:
                        site.set_up(attn, patches)
                    patches.wrap(attn, "forward", site.wrap_attention)
            if "block" in kinds:
                self._wrap_blocks(name, blocks, patches)

    def _wrap_blocks(
        self, transformer: str, blocks: Mapping[str, torch.nn.Module], patches: Patches
    ) -> None:
        """Every span's residual: the inner spans first, so that the outer ones hold them."""
        paths, forwards = list(blocks), [block.forward for block in blocks.values()]
        spans = {level.span: level.blocks(len(paths)) for level in self.levels
                 if level.kind == "block"}  # fmt: skip
        _check_nested([*spans.values()])
        for span, inside in sorted(spans.items(), key=lambda pair: len(pair[1])):
            here = slice(inside.start, inside.stop)
            site = Blocks(transformer, paths[here], span, self)
            self.sites.append(site)
            forwards[here] = site.wrap_stack(forwards[here], self.family)
        within = {index for span in spans.values() for index in span}
        for index, block in enumerate(blocks.values()):
            if index in within:
                patches.wrap(block, "forward", _replaced(forwards[index]))

    # --- observer of the session ---

    def run_begins(self, total: int | None) -> None:
        """Forget the last run."""
        super().run_begins(total)
        self.level, self.keeps = FULL, False
        self.used = ()
        self.done.clear()
        self._orders.clear()

    def step_begins(self, step: int) -> None:
        """Take the level of the step."""
        self.settle()
        planned = self.source.levels
        self.used = tuple(dict.fromkeys(planned.values()))
        if self.session.changes(step):
            for site in self.sites:
                site.kept.clear()
        level = FULL if self.session.changes(step) else planned.get(step, FULL)
        self.take(level, keeps=level == FULL)

    def take(self, level: Level, *, keeps: bool) -> None:
        """Compute at this level from now on; `keeps`: whether values are kept and learned from."""
        self.level, self.keeps = level, keeps
        for site in self.sites:
            site.reuses = isinstance(site, LevelSite) and site.serves(level)

    def note(self) -> None:
        """The level of this step left something out."""
        self.done[self.session.step] = self.level.name

    def order(self, query: torch.Tensor, pruner: Pruner) -> torch.Tensor:
        """The tokens tile by tile; as they are where the grid of the call is not known."""
        session, tokens = self.session, query.shape[1]
        transformer = session.transformers[session.transformer]
        args, kwargs = session.inputs[session.transformer, session.branch]
        grid = attention.grid_of(transformer, args, kwargs)
        key = grid, query.device
        if key not in self._orders:
            order = torch.arange(tokens)
            if grid.tokens == tokens:
                order = tile_order(grid, pruner.config.blocks_of(tokens).tile)
            self._orders = {key: order.to(query.device)}
        return self._orders[key]

    # --- for the report ---

    def saved(self, costs: Mapping[str, int], transformer: str, branch: str) -> float:
        """FLOPs that one branch of the last run did not spend.

        Args:
            costs: FLOPs of one full forward by module path (`bench.count_flops`).
        """
        found = 0.0
        for site in self.sites:
            trace = site.traces.get(branch) if site.transformer == transformer else None
            if trace is None:
                continue
            paths = site.paths if isinstance(site, Blocks) else (site.name,)
            served = len(trace.reused) + len(trace.forecast)
            found += served * sum(costs[path] for path in paths)
            left = sum(1 - share for share in trace.spent.values())
            found += left * products(costs, site.name) if left else 0
        return found

    def clear(self) -> None:
        """Free what is kept."""
        super().clear()
        self._orders.clear()
        for site in self.sites:
            if isinstance(site, Attention) and site.pruner is not None:
                site.pruner.forget()


def products(costs: Mapping[str, int], attention: str) -> int:
    """FLOPs of an attention less those of the projections inside it.

    Args:
        costs: by module path, of one forward.
        attention: its path.
    """
    inside = [path for path in costs if path.startswith(f"{attention}.")]
    tops = (p for p in inside if not any(p.startswith(f"{other}.") for other in inside))
    return costs[attention] - sum(costs[path] for path in tops)


def _check_nested(spans: Sequence[range]) -> None:
    for one in spans:
        for other in spans:
            shared = set(one) & set(other)
            if shared and shared != set(one) and shared != set(other):
                raise ValueError(
                    f"levels span the blocks {one.start} to {one.stop} and {other.start} to "
                    f"{other.stop}; accepted: apart, or one inside the other"
                )


def _replaced(forward: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
    def make(_: Any) -> Callable[..., Any]:
        return forward

    return make
