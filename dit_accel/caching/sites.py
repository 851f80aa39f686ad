"""Caches outputs inside the transformers, by error-aware windows (EDCW).

Goes in: forwards of the wrapped attentions or blocks. Comes out: outputs that are fresh, cached, or
extrapolated from cached ones. A `Site` wraps one attention, one block, or the whole block stack,
and stores its values by role and branch. A value has one tensor per stream: video, and text or
audio if the module returns them too. Each step has one decision per site, made before the step's
first forward, for all branches and streams; the largest drift counts. The drifts stay on the device
and are read in one host sync per step. The module has no formula: `core/drift.py` measures,
`caching/windows.py` decides. Source: UniCP (arXiv 2502.04393, EDCW), our reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dit_accel.caching.engine import CacheMemory, Engine
from dit_accel.caching.monitor import TextWatch
from dit_accel.caching.ranks import Ranks
from dit_accel.caching.windows import EDCW, Windows
from dit_accel.core import drift, extrapolation
from dit_accel.core.families import Argument, Family
from dit_accel.core.interceptor import Forward, ForwardCall
from dit_accel.core.patching import Patches
from dit_accel.core.private_names import local_arguments
from dit_accel.core.report import CacheSite, SiteReport
from dit_accel.core.session import Session

Streams = tuple[Argument | None, ...]  # see `Family.streams`
ModuleForward = Callable[..., Any]  # returns a tensor, or a tuple with one tensor per stream
Value = tuple[torch.Tensor, ...]  # one tensor for each stream


@dataclass
class Trace:
    """What one branch did at one site. The fields are those of `SiteReport`."""

    computed: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    extrapolated: list[int] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)
    blended: list[int] = field(default_factory=list)
    drift: dict[int, float] = field(default_factory=dict)
    attention_share: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CachedValue:
    """A value and its timestep."""

    time: float
    value: Value


class Site:
    """One site: its window, and for each branch the cached values and a trace."""

    def __init__(self, transformer: str, name: str, cache: SiteCache) -> None:
        self.transformer, self.name, self.cache = transformer, name, cache
        self.reset(None)

    def reset(self, num_steps: int | None) -> None:
        """A run begins: forget the last one."""
        self.windows = Windows(self.cache.config, num_steps)
        self.uses_cache = False  # at this step
        self.cached: dict[tuple[str, str], list[CachedValue]] = {}  # by role and branch
        self.traces: dict[str, Trace] = {}

    def fetch(self, like: torch.Tensor) -> Value | None:
        """This step's value, from the cached values; None: compute it.

        Args:
            like: a tensor with the shape and the device of the first stream. Other cached values
                are not used.
        """
        cached = self._fitting(like) if self.uses_cache else []
        if not cached:
            return None
        trace = self._trace()
        (trace.extrapolated if len(cached) > 1 else trace.cached).append(self.cache.session.step)
        return self._predict(cached)

    def store(self, value: Value, action: str = "computed", fresh: Value | None = None) -> None:
        """Cache a value, and measure how far the cached ones had drifted from it.

        Args:
            action: the list of `Trace` that the step is added to.
            fresh: the computed value, if `value` is a blend. The drift is measured against it.
        """
        session, config = self.cache.session, self.cache.config
        before = self._fitting(value[0])
        sums = None
        if before:
            pairs = zip(self._predict(before), value if fresh is None else fresh, strict=True)
            sums = torch.stack([drift.l1_sums(*pair) for pair in pairs])
        now = CachedValue(session.time if config.order else 0.0, value)
        older = [one for one in before if one.time != now.time]
        self.cached[session.role, session.branch] = [now, *older][: config.order + 1]
        trace = self._trace()
        getattr(trace, action).append(session.step)
        self.cache.pending.append((self, trace, session.step, sums))

    def _fitting(self, like: torch.Tensor) -> list[CachedValue]:
        """The cached values of this role and branch, latest first; empty if their shape or device
        differs from that of `like`."""
        session = self.cache.session
        cached = self.cached.get((session.role, session.branch), [])
        firsts = [one.value[0] for one in cached]
        fits = all(own.shape == like.shape and own.device == like.device for own in firsts)
        return cached if fits else []

    def _predict(self, cached: list[CachedValue]) -> Value:
        if len(cached) == 1:
            return cached[0].value
        factors = extrapolation.lagrange_weights([c.time for c in cached], self.cache.session.time)
        streams = zip(*(one.value for one in cached), strict=True)
        return tuple(extrapolation.weighted_sum(factors, stream) for stream in streams)

    def _trace(self) -> Trace:
        return self.traces.setdefault(self.cache.session.branch, Trace())

    # --- the three kinds of site ---

    def wrap_attentions(self, count: int) -> Callable[[int, ModuleForward], ModuleForward]:
        """Cache the outputs of `count` attentions that run one after another; mostly it is one.

        The first attention decides for all. The streams of a value are video and text of one
        attention, or video and audio of two. Tokens are the first argument of every self-attention.
        """
        cached: list[torch.Tensor] = []  # in this forward: the outputs that come from the cache
        made: list[torch.Tensor] = []  # in this forward: the outputs computed so far

        def wrap(index: int, inner: ModuleForward) -> ModuleForward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if index == 0:  # also after a forward that was aborted
                    made.clear()
                    cached[:] = self.fetch(args[0] if args else kwargs["hidden_states"]) or ()
                if cached:
                    own = len(cached) // count
                    return as_output(cached[index * own : (index + 1) * own])
                output = inner(*args, **kwargs)
                made.extend(as_value(output))
                if index == count - 1:
                    self.store(tuple(made))
                    made.clear()
                return output

            return forward

        return wrap

    def wrap_stack(
        self, blocks: list[torch.nn.Module], streams: Streams, cached_streams: int
    ) -> Callable[[int, ModuleForward], ModuleForward]:
        """Cache the residual of one block, or of the whole block stack.

        The first block decides for all. If the cache is used, the first block returns its input
        plus the residual, and the others return their input. For a stream without an input, the
        output itself is cached. Only the first `cached_streams` streams are cached; the others are
        returned unchanged.
        """
        entered: list[torch.Tensor | None] = []  # the first block's input, while they are computed

        def wrap(index: int, inner: ModuleForward) -> ModuleForward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                # Context parallelism may split the tokens at this block, inside of our wrapper.
                here = local_arguments(blocks[index], args, kwargs)
                came = [None if one is None else _argument(one, *here) for one in streams]
                if index == 0:
                    entered.clear()  # it may be left over from a forward that was aborted
                    cached = self.fetch(next(one for one in came if one is not None))
                    if cached is not None:
                        residuals = zip(came, cached, strict=False)
                        new = [own if old is None else old + own for old, own in residuals]
                        return as_output([*new, *came[len(new) :]])
                    entered.extend(came[:cached_streams])
                if not entered:
                    return as_output(came)
                output = inner(*args, **kwargs)
                if index == len(blocks) - 1:
                    both = zip(as_value(output), entered, strict=False)
                    self.store(tuple(new if old is None else new - old for new, old in both))
                    entered.clear()
                return output

            return forward

        return wrap


class SiteCache(Engine):
    """All sites of one kind in a pipeline's transformers: "attention", "block" or "model"."""

    def __init__(self, session: Session, family: Family, site: CacheSite, config: EDCW) -> None:
        self.session, self.family, self.site, self.config = session, family, site, config
        self.sites: list[Site] = []
        self.pending: list[tuple[Site, Trace, int, torch.Tensor | None]] = []  # to read
        self.reads: list[tuple[torch.Tensor, Callable[[list[float]], None]]] = []
        self._peak_bytes = 0
        self.ranks, self.texts = Ranks(), TextWatch(session)
        self._new_text: int | None = None  # the first step with another text

    def install(self, patches: Patches) -> None:
        self.sites = []
        for name, module in self.session.transformers.items():
            blocks = [
                (group, f"{group}.{i}", block)
                for group in self.family.blocks
                for i, block in enumerate(getattr(module, group))
            ]
            if self.site == "model":
                group, every = self.family.blocks[0], [block for *_, block in blocks]
                self._wrap_stack(patches, self._add(name, "model"), module, group, every)
                continue
            for group, path, block in blocks:
                if self.site == "block":
                    self._wrap_stack(patches, self._add(name, path), module, group, [block])
                    continue
                site = self._add(name, f"{path}.{self.family.attention}")
                paths = self.family.attention, self.family.audio_attention
                attentions = [getattr(block, one) for one in paths if one is not None]
                wrap = site.wrap_attentions(len(attentions))
                for index, attention in enumerate(attentions):
                    patches.around(attention, partial(wrap, index), callers=(module, block))

    def _add(self, transformer: str, name: str) -> Site:
        self.sites.append(Site(transformer, name, self))
        return self.sites[-1]

    def _wrap_stack(
        self, patches: Patches, site: Site, root: torch.nn.Module, group: str,
        blocks: list[torch.nn.Module],
    ) -> None:  # fmt: skip
        streams = self.family.streams(group)
        # Nothing uses the text that the last block of the stack returns.
        unread = self.site == "model" and self.family.text is not None
        wrap = site.wrap_stack(blocks, streams, len(streams) - unread)
        for index, block in enumerate(blocks):
            patches.around(block, partial(wrap, index), callers=(root,))

    # --- runs and steps ---

    def run_begins(self, num_steps: int | None) -> None:
        self.pending.clear()
        self.reads.clear()
        self._peak_bytes = self.host_syncs = 0
        self.ranks = Ranks(self.session.groups)
        self.texts.reset(self.ranks)
        self._new_text = None
        for site in self.sites:
            site.reset(num_steps)

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """The forward. Cached values of an earlier text, which a callback changed, are dropped."""
        session = self.session
        if self.texts.changed(session.branch):
            self._new_text = session.step if self._new_text is None else self._new_text
            for site in self.sites:
                site.cached.pop((session.role, session.branch), None)
        return forward(call)

    def step_begins(self, step: int) -> None:
        """Decide for every site, for all branches together."""
        self._read(self.ranks)
        changed = self.session.changes_denoiser(step)
        for site in self.sites:
            if changed:
                site.cached.clear()
            site.uses_cache = not changed and not site.windows.computes(step)

    def run_ends(self, steps: int) -> None:
        if self.ranks:  # all ranks are here now; the report may be made on one of them only
            self._read(self.ranks)

    def flush(self) -> None:
        """Read the drifts of the last step. Only this rank's: others may not take part."""
        self._read(Ranks())

    def _read(self, ranks: Ranks) -> None:
        """Read the drifts of a step, in one host sync, and give them to the windows."""
        known = (one for site in self.sites for cached in site.cached.values() for one in cached)
        size = sum(stream.nbytes for one in known for stream in one.value)
        self._peak_bytes = max(self._peak_bytes, size)
        sums = [sums for *_, sums in self.pending if sums is not None]
        numbers = iter(self._to_host(ranks, sums, [tensor for tensor, _ in self.reads]))
        worst: dict[Site, tuple[int, float | None]] = {}  # over the branches
        for site, trace, step, measured in self.pending:
            value = None if measured is None else _worst([next(numbers) for _ in measured])
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
        """Read a tensor in the same host sync as the step's drifts; the callback gets its
        numbers."""
        self.reads.append((tensor, callback))

    def _to_host(
        self, ranks: Ranks, sums: list[torch.Tensor], others: list[torch.Tensor]
    ) -> list[float]:
        """The drifts from pairs of sums `(S, 2)`, then the other numbers, as means over all
        ranks."""
        if not sums and not others:
            return []
        self.host_syncs += 1
        device = (sums + others)[0].device
        flat = [tensor.to(device, torch.float32).flatten() for tensor in sums + others]
        numbers, count = ranks.mean(torch.cat(flat)), sum(pairs.numel() for pairs in sums)
        drifts = drift.ratio(numbers[:count].view(-1, 2))
        found: list[float] = torch.cat([drifts, numbers[count:]]).tolist()
        return found

    def clear(self) -> None:
        for site in self.sites:
            site.cached.clear()

    # --- for the report ---

    @property
    def memory(self) -> CacheMemory:
        return CacheMemory(self._peak_bytes)

    def notes(self) -> tuple[str, ...]:
        if self._new_text is None:
            return ()
        return (f"The text changed at step {self._new_text}: values cached before were dropped.",)

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


def as_value(output: Any) -> Value:
    """The streams of what a module returned."""
    return output if isinstance(output, tuple) else (output,)


def as_output(streams: Sequence[torch.Tensor | None]) -> Any:
    """Streams in the form in which a module returns them: a tensor, or a tuple of tensors."""
    return streams[0] if len(streams) == 1 else tuple(streams)


def _argument(where: Argument, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An argument of a call, given by name or by position."""
    name, place = where
    return kwargs[name] if name in kwargs else args[place]


def _worst(drifts: list[float]) -> float:
    """The largest drift among a value's streams. One that is not finite counts as the largest, and
    is returned as it is."""
    return max(drifts, key=lambda drift: drift if math.isfinite(drift) else math.inf)


def _larger(a: float | None, b: float | None) -> float | None:
    """The larger drift of two branches; one that is not finite counts as infinite."""
    drifts = [x if math.isfinite(x) else math.inf for x in (a, b) if x is not None]
    return max(drifts, default=None)
