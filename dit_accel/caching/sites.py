"""Carries out windows at the sites of a model: compute and keep, or reuse.

A `Site` wraps one attention, one block, or the whole block stack, and holds what it kept, per role
and branch. The decision of a step is made once, before its first forward, for all sites and
branches together; the drifts measured on the way stay on the device and are read in one transfer a
step. Holds no formula: core/drift.py measures, caching/windows.py decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_accel.caching.windows import EDCW, Windows
from dit_accel.core import extrapolation
from dit_accel.core.drift import relative_l1
from dit_accel.core.families import Family
from dit_accel.core.patching import Patches
from dit_accel.core.report import SiteReport
from dit_accel.core.session import Session, outside_graphs

Forward = Callable[..., Any]  # a module's forward: tokens, or tokens and text


@dataclass
class Trace:
    """What one branch did at one site: steps, drifts by computed step, `spent` as in a report."""

    computed: list[int] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)
    forecast: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)
    blended: list[int] = field(default_factory=list)
    drift: dict[int, float] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CachedValue:
    """A value and the timestep that it is of."""

    time: float
    value: torch.Tensor


class Site:
    """One place whose output can be kept: windows, kept values and a trace per branch."""

    def __init__(self, transformer: str, name: str, cache: SiteCache) -> None:
        self.transformer, self.name, self.cache = transformer, name, cache
        self.begin(None)

    def begin(self, total: int | None) -> None:
        """Forget the last run."""
        self.windows = Windows(self.cache.config, total)
        self.reuses = False
        self.kept: dict[tuple[str, str], list[CachedValue]] = {}
        self.traces: dict[str, Trace] = {}

    def serve(self, like: torch.Tensor) -> torch.Tensor | None:
        """What the kept values make of this step, if it is served and they fit; else None."""
        kept = self._fitting(like) if self.reuses else []
        if not kept:
            return None
        trace = self._trace()
        (trace.forecast if len(kept) > 1 else trace.reused).append(self.cache.session.step)
        return self._predict(kept)

    def keep(
        self, value: torch.Tensor, done: str = "computed", fresh: torch.Tensor | None = None
    ) -> None:
        """Keep a value, and measure how far the kept ones would have been off it, or off `fresh`.

        `done` names the trace's list of steps that this one belongs to.
        """
        session, config = self.cache.session, self.cache.config
        before = self._fitting(value)
        fresh = value if fresh is None else fresh
        drift = relative_l1(self._predict(before), fresh) if before else None
        now = CachedValue(session.time if config.order else 0.0, value)
        older = [kept for kept in before if kept.time != now.time]
        self.kept[session.role, session.branch] = [now, *older][: config.order + 1]
        trace = self._trace()
        getattr(trace, done).append(session.step)
        self.cache.pending.append((self, trace, session.step, drift))

    def _fitting(self, like: torch.Tensor) -> list[CachedValue]:
        """The kept values of this role and branch, latest first; none if they are of another run's
        size or device."""
        session = self.cache.session
        kept = self.kept.get((session.role, session.branch), [])
        fits = all(k.value.shape == like.shape and k.value.device == like.device for k in kept)
        return kept if fits else []

    def _predict(self, kept: list[CachedValue]) -> torch.Tensor:
        if len(kept) == 1:
            return kept[0].value
        factors = extrapolation.lagrange_weights([k.time for k in kept], self.cache.session.time)
        return extrapolation.weighted_sum(factors, [k.value for k in kept])

    def _trace(self) -> Trace:
        return self.traces.setdefault(self.cache.session.branch, Trace())

    # --- the three kinds of site ---

    def wrap_attention(self, inner: Forward) -> Forward:
        """Keeps the attention's output; tokens come first, as in every self-attention module."""

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            tokens = args[0] if args else kwargs["hidden_states"]
            kept = self.serve(tokens)
            if kept is not None:
                return kept
            output = inner(*args, **kwargs)
            self.keep(output)
            return output

        return outside_graphs(forward)

    def wrap_stack(self, forwards: list[Forward], family: Family) -> list[Forward]:
        """Keeps the residual of a run of blocks: of one block, or of the whole stack.

        The first block decides. When it reuses, it returns its input plus the residual and the
        others pass that on untouched. Text that goes along is passed on as it came in.
        """
        entered: list[torch.Tensor] = []  # the stack's input while it is being computed
        last, text = len(forwards) - 1, family.text

        def wrap(index: int, inner: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                def passed(tokens: torch.Tensor) -> Any:
                    return tokens if text is None else (tokens, _argument(text, args, kwargs))

                tokens = _argument(family.hidden, args, kwargs)
                if index == 0:
                    entered.clear()
                    kept = self.serve(tokens)
                    if kept is not None:
                        return passed(tokens + kept)
                    entered.append(tokens)
                if not entered:
                    return passed(tokens)
                output = inner(*args, **kwargs)
                if index == last:
                    self.keep((output if text is None else output[0]) - entered.pop())
                return output

            return outside_graphs(forward)

        return [wrap(index, inner) for index, inner in enumerate(forwards)]


class SiteCache:
    """All sites of one kind in a pipeline's transformers; an observer of its session."""

    def __init__(self, session: Session, family: Family, kind: str, config: EDCW) -> None:
        self.session, self.family, self.kind, self.config = session, family, kind, config
        self.sites: list[Site] = []
        self.pending: list[tuple[Site, Trace, int, torch.Tensor | None]] = []
        self.questions: list[tuple[torch.Tensor, Callable[[list[float]], None]]] = []
        self.kept_bytes = self.host_syncs = 0

    def install(self, patches: Patches) -> None:
        """Make the sites and wrap their modules."""
        for name, module in self.session.transformers.items():
            blocks = [
                (f"{group}.{i}", block)
                for group in self.family.blocks
                for i, block in enumerate(getattr(module, group))
            ]
            if self.kind == "attention":
                for path, block in blocks:
                    site = self._site(name, f"{path}.{self.family.attention}")
                    patches.wrap(
                        getattr(block, self.family.attention), "forward", site.wrap_attention
                    )
            elif self.kind == "block":
                for path, block in blocks:
                    self._wrap_stack(patches, self._site(name, path), [block])
            else:
                self._wrap_stack(patches, self._site(name, "stack"), [block for _, block in blocks])

    def _site(self, transformer: str, name: str) -> Site:
        self.sites.append(Site(transformer, name, self))
        return self.sites[-1]

    def _wrap_stack(self, patches: Patches, site: Site, blocks: list[torch.nn.Module]) -> None:
        wrapped = iter(site.wrap_stack([block.forward for block in blocks], self.family))
        for block in blocks:
            patches.wrap(block, "forward", lambda _: next(wrapped))

    # --- observer of the session ---

    def run_begins(self, total: int | None) -> None:
        self.pending.clear()
        self.questions.clear()
        self.kept_bytes = self.host_syncs = 0
        for site in self.sites:
            site.begin(total)

    def step_begins(self, step: int) -> None:
        self.settle()
        changed = self.session.changes(step)
        for site in self.sites:
            if changed:
                site.kept.clear()
            site.reuses = not changed and not site.windows.computes(step)

    def forward_ends(self, transformer: str) -> None:
        """Nothing to do between the branches: they share the step's decision."""

    def settle(self) -> None:
        """Read the drifts of the last step, all in one transfer, and let the windows see them."""
        values = (kept.value for site in self.sites for many in site.kept.values() for kept in many)
        held = sum(value.nbytes for value in values)
        self.kept_bytes = max(self.kept_bytes, held)
        tensors = [drift for *_, drift in self.pending if drift is not None]
        numbers = iter(self._read(tensors + [asked for asked, _ in self.questions]))
        worst: dict[Site, tuple[int, float | None]] = {}
        for site, trace, step, drift in self.pending:
            value = None if drift is None else next(numbers)
            if value is not None:
                trace.drift[step] = value
            worst[site] = (step, _larger(worst.get(site, (step, None))[1], value))
        self.pending.clear()
        for asked, tell in self.questions:
            tell([next(numbers) for _ in range(asked.numel())])
        self.questions.clear()
        for site, (step, value) in worst.items():
            site.windows.observe(step, value)

    def ask(self, numbers: torch.Tensor, tell: Callable[[list[float]], None]) -> None:
        """Have numbers read from the device with the step's drifts, and told."""
        self.questions.append((numbers, tell))

    def _read(self, tensors: list[torch.Tensor]) -> list[float]:
        if not tensors:
            return []
        self.host_syncs += 1
        home = tensors[0].device
        flat = [tensor.to(home, torch.float32).flatten() for tensor in tensors]
        numbers: list[float] = torch.cat(flat).tolist()
        return numbers

    def notes(self) -> tuple[str, ...]:
        """Nothing to add."""
        return ()

    def clear(self) -> None:
        """Free what is kept."""
        for site in self.sites:
            site.kept.clear()

    # --- for the report ---

    def site_reports(self) -> tuple[SiteReport, ...]:
        """What every site did in every branch of the last run."""
        return tuple(
            SiteReport(
                site.transformer, branch, site.name,
                tuple(trace.computed), tuple(trace.reused), dict(trace.drift),
                tuple(trace.forecast), tuple(trace.pruned), tuple(trace.blended),
                dict(trace.spent),
            )
            for site in self.sites
            for branch, trace in site.traces.items()
        )  # fmt: skip


def _argument(where: tuple[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An argument of a call by its name, or by its position where it was given so."""
    name, place = where
    return kwargs[name] if name in kwargs else args[place]


def _larger(a: float | None, b: float | None) -> float | None:
    """The worse drift of two branches; anything not finite counts as infinite."""
    drifts = [x if math.isfinite(x) else math.inf for x in (a, b) if x is not None]
    return max(drifts, default=None)
