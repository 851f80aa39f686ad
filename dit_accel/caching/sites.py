"""Caches outputs inside the transformers, by error-aware windows (EDCW).

Goes in: forwards of the wrapped attentions or blocks. Comes out: fresh outputs, cached ones, or
ones that are extrapolated from cached ones. A `Site` wraps one attention, one block, or the whole
block stack, and has its values by role and branch. One decision a step is made for a site, before
its first forward, for all branches. The drifts stay on the device and are read in one host sync a
step. It holds no formula: `core/drift.py` measures, `caching/windows.py` decides. Source: UniCP
(arXiv 2502.04393, EDCW), our reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dit_accel.caching.engine import CacheMemory, Engine
from dit_accel.caching.ranks import Ranks
from dit_accel.caching.windows import EDCW, Windows
from dit_accel.core import drift, extrapolation
from dit_accel.core.families import Family
from dit_accel.core.patching import Patches, local_arguments
from dit_accel.core.report import CacheSite, SiteReport
from dit_accel.core.session import Session

ModuleForward = Callable[..., Any]  # returns tokens, or tokens and text


@dataclass
class Trace:
    """What one branch did at one site; fields as of `SiteReport`."""

    computed: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    extrapolated: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)
    blended: list[int] = field(default_factory=list)
    drift: dict[int, float] = field(default_factory=dict)
    attention_share: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CachedValue:
    """A value and the timestep that it is of."""

    time: float
    value: torch.Tensor


class Site:
    """One place whose output can be cached: a window, and values and a trace per branch."""

    def __init__(self, transformer: str, name: str, cache: SiteCache) -> None:
        self.transformer, self.name, self.cache = transformer, name, cache
        self.reset(None)

    def reset(self, num_steps: int | None) -> None:
        """A run begins: forget the last one."""
        self.windows = Windows(self.cache.config, num_steps)
        self.uses_cache = False  # at this step
        self.cached: dict[tuple[str, str], list[CachedValue]] = {}  # by role and branch
        self.traces: dict[str, Trace] = {}

    def fetch(self, like: torch.Tensor) -> torch.Tensor | None:
        """The value of this step from the cached ones; None: it has to be computed."""
        cached = self._fitting(like) if self.uses_cache else []
        if not cached:
            return None
        trace = self._trace()
        (trace.extrapolated if len(cached) > 1 else trace.cached).append(self.cache.session.step)
        return self._predict(cached)

    def store(
        self, value: torch.Tensor, action: str = "computed", fresh: torch.Tensor | None = None
    ) -> None:
        """Cache a value, and measure the drift of the cached ones from it, or from `fresh`.

        `action` names the list of `Trace` that this step belongs to.
        """
        session, config = self.cache.session, self.cache.config
        before = self._fitting(value)
        fresh = value if fresh is None else fresh
        sums = drift.l1_sums(self._predict(before), fresh) if before else None
        now = CachedValue(session.time if config.order else 0.0, value)
        older = [one for one in before if one.time != now.time]
        self.cached[session.role, session.branch] = [now, *older][: config.order + 1]
        trace = self._trace()
        getattr(trace, action).append(session.step)
        self.cache.pending.append((self, trace, session.step, sums))

    def _fitting(self, like: torch.Tensor) -> list[CachedValue]:
        """The values of this role and branch, latest first; none of another size or device."""
        session = self.cache.session
        cached = self.cached.get((session.role, session.branch), [])
        fits = all(c.value.shape == like.shape and c.value.device == like.device for c in cached)
        return cached if fits else []

    def _predict(self, cached: list[CachedValue]) -> torch.Tensor:
        if len(cached) == 1:
            return cached[0].value
        factors = extrapolation.lagrange_weights([c.time for c in cached], self.cache.session.time)
        return extrapolation.weighted_sum(factors, [c.value for c in cached])

    def _trace(self) -> Trace:
        return self.traces.setdefault(self.cache.session.branch, Trace())

    # --- the three kinds of site ---

    def wrap_attention(self, inner: ModuleForward) -> ModuleForward:
        """Cache the attention's output; tokens come first, as in every self-attention module."""

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            tokens = args[0] if args else kwargs["hidden_states"]
            cached = self.fetch(tokens)
            if cached is not None:
                return cached
            output: torch.Tensor = inner(*args, **kwargs)
            self.store(output)
            return output

        return forward

    def wrap_stack(
        self, blocks: list[torch.nn.Module], family: Family
    ) -> Callable[[int, ModuleForward], ModuleForward]:
        """Cache the residual of a run of blocks: of one block, or of the whole stack.

        The first block decides. From the cache, it returns its input plus the residual, and the
        others return their input. Text that comes with the tokens is returned as it came.
        """
        entered: list[torch.Tensor] = []  # the stack's input while it is being computed
        last, text = len(blocks) - 1, family.text

        def wrap(index: int, inner: ModuleForward) -> ModuleForward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                def passed(tokens: torch.Tensor) -> Any:
                    return tokens if text is None else (tokens, _argument(text, *here))

                # Context parallelism may split the tokens at this block, below us.
                here = local_arguments(blocks[index], args, kwargs)
                tokens = _argument(family.hidden, *here)
                if index == 0:
                    entered.clear()  # also after a run that was aborted inside the stack
                    cached = self.fetch(tokens)
                    if cached is not None:
                        return passed(tokens + cached)
                    entered.append(tokens)
                if not entered:
                    return passed(tokens)
                output = inner(*args, **kwargs)
                if index == last:
                    self.store((output if text is None else output[0]) - entered.pop())
                return output

            return forward

        return wrap


class SiteCache(Engine):
    """All sites of one kind in a pipeline's transformers; "output" is none of them."""

    def __init__(self, session: Session, family: Family, site: CacheSite, config: EDCW) -> None:
        self.session, self.family, self.site, self.config = session, family, site, config
        self.sites: list[Site] = []
        self.pending: list[tuple[Site, Trace, int, torch.Tensor | None]] = []  # to read
        self.reads: list[tuple[torch.Tensor, Callable[[list[float]], None]]] = []
        self._peak_bytes = 0
        self.ranks = Ranks()

    def install(self, patches: Patches) -> None:
        self.sites = []
        for name, module in self.session.transformers.items():
            blocks = [
                (f"{group}.{i}", block)
                for group in self.family.blocks
                for i, block in enumerate(getattr(module, group))
            ]
            if self.site == "model":
                self._wrap_stack(
                    patches, self._add(name, "model"), module, [block for _, block in blocks]
                )
                continue
            for path, block in blocks:
                if self.site == "block":
                    self._wrap_stack(patches, self._add(name, path), module, [block])
                    continue
                attention = self.family.attention
                site = self._add(name, f"{path}.{attention}")
                patches.around(
                    getattr(block, attention), site.wrap_attention, callers=(module, block)
                )

    def _add(self, transformer: str, name: str) -> Site:
        self.sites.append(Site(transformer, name, self))
        return self.sites[-1]

    def _wrap_stack(
        self, patches: Patches, site: Site, root: torch.nn.Module, blocks: list[torch.nn.Module]
    ) -> None:
        wrap = site.wrap_stack(blocks, self.family)
        for index, block in enumerate(blocks):
            patches.around(block, partial(wrap, index), callers=(root,))

    # --- runs and steps ---

    def run_begins(self, num_steps: int | None) -> None:
        self.pending.clear()
        self.reads.clear()
        self._peak_bytes = self.host_syncs = 0
        self.ranks = Ranks(self.session.groups)
        for site in self.sites:
            site.reset(num_steps)

    def step_begins(self, step: int) -> None:
        """Decide for every site; the branches share its decision."""
        self._read(self.ranks)
        changed = self.session.changes_denoiser(step)
        for site in self.sites:
            if changed:
                site.cached.clear()
            site.uses_cache = not changed and not site.windows.computes(step)

    def run_ends(self, steps: int) -> None:
        if self.ranks:  # while all of them are here: a report may be asked of one alone
            self._read(self.ranks)

    def flush(self) -> None:
        """Read the drifts of the last step: this rank's alone, as others may not be asked."""
        self._read(Ranks())

    def _read(self, ranks: Ranks) -> None:
        """Read the drifts of a step, in one host sync, and give them to the windows."""
        values = (one.value for s in self.sites for cached in s.cached.values() for one in cached)
        self._peak_bytes = max(self._peak_bytes, sum(value.nbytes for value in values))
        sums = [sums for *_, sums in self.pending if sums is not None]
        numbers = iter(self._to_host(ranks, sums, [tensor for tensor, _ in self.reads]))
        worst: dict[Site, tuple[int, float | None]] = {}  # over the branches
        for site, trace, step, measured in self.pending:
            value = None if measured is None else next(numbers)
            if value is not None:
                trace.drift[step] = value
            worst[site] = (step, _larger(worst.get(site, (step, None))[1], value))
        self.pending.clear()
        for tensor, callback in self.reads:
            callback([next(numbers) for _ in range(tensor.numel())])
        self.reads.clear()
        for site, (step, value) in worst.items():
            site.windows.observe(step, value)

    def read_later(self, tensor: torch.Tensor, callback: Callable[[list[float]], None]) -> None:
        """Read a tensor with the step's drifts, and give its numbers to the callback."""
        self.reads.append((tensor, callback))

    def _to_host(
        self, ranks: Ranks, sums: list[torch.Tensor], others: list[torch.Tensor]
    ) -> list[float]:
        """The drifts of pairs of sums, and other numbers: those of all ranks together."""
        if not sums and not others:
            return []
        self.host_syncs += 1
        device = (sums + others)[0].device
        flat = [tensor.to(device, torch.float32).flatten() for tensor in sums + others]
        numbers = ranks.mean(torch.cat(flat))
        drifts = drift.ratio(numbers[: 2 * len(sums)].view(-1, 2))
        found: list[float] = torch.cat([drifts, numbers[2 * len(sums) :]]).tolist()
        return found

    def clear(self) -> None:
        for site in self.sites:
            site.cached.clear()

    # --- for the report ---

    @property
    def memory(self) -> CacheMemory:
        return CacheMemory(self._peak_bytes)

    def site_reports(self) -> tuple[SiteReport, ...]:
        return tuple(
            SiteReport(
                site.transformer, branch, site.name,
                tuple(trace.computed), tuple(trace.cached), dict(trace.drift),
                tuple(trace.extrapolated), tuple(trace.pruned), tuple(trace.blended),
                dict(trace.attention_share),
            )
            for site in self.sites
            for branch, trace in [*site.traces.items()]
        )  # fmt: skip


def _argument(where: tuple[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An argument of a call by its name, or by its position where it was given so."""
    name, place = where
    return kwargs[name] if name in kwargs else args[place]


def _larger(a: float | None, b: float | None) -> float | None:
    """The worse drift of two branches; anything not finite counts as infinite."""
    drifts = [x if math.isfinite(x) else math.inf for x in (a, b) if x is not None]
    return max(drifts, default=None)
