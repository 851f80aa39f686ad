"""Carries out UniCP at the attentions: cache windows, pruned attention, and the weight shift.

Goes in: forwards of all self-attentions. Comes out: cached, pruned, blended or computed outputs.
The first steps are dense; the pruned attention is fitted to them. Then one step is computed both
ways, dense and pruned, to measure the errors that `caching/blend.py` needs for its choice. The
measurement is repeated after some steps. The guidance branches share decisions and errors. The
measurements are read together with the windows' drifts, in the one host sync of a step.
`windows.py` and `blend.py` decide, `attention/` prunes. Source: UniCP (arXiv 2502.04393), our
reading: windows where reuse is safe, PCAS where it is not, DWS to choose or blend between the two.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_accel.attention import processor
from dit_accel.attention.block_sparse import tile_order
from dit_accel.attention.joint import JointText
from dit_accel.attention.pca import Linear, linear_of
from dit_accel.attention.pcas import (
    MAX_FLOPS_SHARE,
    PCAS,
    BlockSparseAttention,
    FlopShare,
    LowRankAttention,
)
from dit_accel.attention.processor import Heads, JointAttnProcessor, StagedAttnProcessor
from dit_accel.caching.blend import DWS, Choice, Errors, cached_error, choose
from dit_accel.caching.ranks import Ranks
from dit_accel.caching.sites import ModuleForward, Site, SiteCache, as_output, as_value
from dit_accel.caching.windows import EDCW
from dit_accel.core.compiling import outside_graphs
from dit_accel.core.families import FAMILIES, Family
from dit_accel.core.patching import Patches
from dit_accel.core.session import Session

_PLAIN = "projections are plain linear layers"
COMPUTE_CHOICE = Choice("compute", 1.0, 0.0)
PRUNE_CHOICE = Choice("prune", 1.0, 0.0)
TRACE_LISTS = {"compute": "computed", "prune": "pruned", "blend": "blended"}
Pruned = BlockSparseAttention | LowRankAttention


@dataclass(frozen=True)
class UniCP:
    """The settings of the three techniques.

    Args:
        windows: when a cached value is used.
        pcas: how attention is pruned; None: it is never pruned.
        shift: how to choose or blend pruned and cached values. None: after the dense steps, every
            value that the windows do not take from the cache is pruned.
    """

    windows: EDCW = field(default_factory=EDCW)
    pcas: PCAS | None = field(default_factory=PCAS)
    shift: DWS | None = field(default_factory=DWS)


PRESETS = {"unicp-paper": UniCP}


class PrunedSite(Site):
    """One self-attention: how it is pruned, the choice at this step, and why it is not pruned."""

    cache: UniCPCache
    staged: StagedAttnProcessor
    pruned: Pruned | None = None

    def reset(self, num_steps: int | None) -> None:
        super().reset(num_steps)
        if self.pruned is not None:
            self.pruned.reset()
            self.staged.value = self.staged.out = None  # the last step may have been pruned
        self.choice, self.measures, self.stale = COMPUTE_CHOICE, False, False
        self.first_step: int | None = None  # its first call; a second expert begins late
        self.measured_at: int | None = None  # the last step that was computed both ways
        self.age = 0  # of the cached value, in steps
        self.errors: Errors | None = None  # for a cached value that is one step old
        self.off: str | None = None  # why it is not pruned in this run
        self.share = 0.0  # FLOPs of the last pruned call, as a share of dense attention's
        self.sums: list[tuple[float, ...]] = []  # sums of squares, one tuple per branch
        # In a step computed both ways: the pruned value, before the output projection.
        self.trial: tuple[torch.Tensor, JointText | None] | None = None

    def set_up(self, attn: Any, patches: Patches, config: PCAS, index: int) -> None:
        """Install a staged processor on the module, and make its pruned attention."""
        self.attn = attn
        self.staged = processor.install(attn, patches)
        self.staged.attend = self.attend
        self.dense_block = index < config.dense_blocks
        if config.mode == "prune":
            self.pruned = BlockSparseAttention(config)
            return
        value, out = self._projections()
        if not self.is_joint and (value is None or out is None):
            raise ValueError(
                f"mode is 'slice'; accepted only where {_PLAIN}, without LoRA or quantization"
            )
        self.pruned = LowRankAttention(config, value, out)

    @property
    def is_joint(self) -> bool:
        """Whether the sequence also has text. Then the bases are not folded into the
        projections."""
        return isinstance(self.staged, JointAttnProcessor)

    def _projections(self, like: torch.Tensor | None = None) -> tuple[Linear | None, Linear | None]:
        """The current projections of values and of the output. Since the last run they may have
        been offloaded, or a LoRA may have been fused."""
        layers = self.attn.to_out  # None if the block projects the output itself
        out = None if layers is None else linear_of(layers[0], like)
        return None if self.is_joint else linear_of(self.attn.to_v, like), out

    # --- decisions, at the beginning of a step ---

    def decide(self, step: int) -> None:
        """Choose what to do at this step, unless the window takes the value from the cache."""
        self.choice, self.measures = COMPUTE_CHOICE, False
        self.age = step - self.windows.opened if self.windows.opened >= 0 else 0
        if self.pruned is None or self.uses_cache or self._stays_dense(step):
            return
        if self.stale:
            self._fit()
        if self.pruned.ready:
            self.choice = self._choose(step)
        self.uses_cache = self.choice.action == "reuse"

    def _stays_dense(self, step: int) -> bool:
        config, total = self.cache.preset.pcas, self.windows.num_steps or 0
        if config is None or self.off or self.dense_block:
            return True
        if self.share > MAX_FLOPS_SHARE and not config.always:
            self.off = f"it takes more than {MAX_FLOPS_SHARE:.0%} of dense attention's FLOPs"
        warm = max(1, round(config.first_dense * total))
        return self.off is not None or self.first_step is None or step < self.first_step + warm

    def _choose(self, step: int) -> Choice:
        shift, threshold = self.cache.preset.shift, self.windows.config.threshold
        if shift is None:
            return PRUNE_CHOICE
        choice = COMPUTE_CHOICE
        if self.errors is not None:
            choice = choose(self.errors.aged(max(self.age, 1)), threshold, shift)
        due = self.measured_at is None or step >= self.measured_at + shift.recheck
        self.measures = due and shift.allowed(threshold) > 0
        return COMPUTE_CHOICE if self.measures else choice

    def _fit(self) -> None:
        assert self.pruned is not None
        self.stale = False
        if not isinstance(self.pruned, LowRankAttention):
            self.pruned.fit()
            return
        low_rank = self.pruned
        value, out = self._projections(low_rank.like)
        if not self.is_joint and (value is None or out is None):
            self.off = f"values are sliced only where {_PLAIN}"
            return
        low_rank.value, low_rank.out = value, out
        needed = low_rank.fit()
        if needed is not None:

            def set_rank(numbers: list[float]) -> None:
                low_rank.rank = int(numbers[0])

            self.cache.read_later(needed, set_rank)

    # --- a call ---

    def wrap_attentions(self, count: int) -> Callable[[int, ModuleForward], ModuleForward]:
        return lambda _, inner: self._wrap(inner)

    def _wrap(self, inner: ModuleForward) -> ModuleForward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            cached = self.fetch(args[0] if args else kwargs["hidden_states"])
            if cached is not None:
                return as_output(cached)
            if self.uses_cache:  # no cached value fits
                self.choice, self.measures = COMPUTE_CHOICE, False
            self._fold()
            return self._finish(inner(*args, **kwargs))

        return outside_graphs(forward)

    def _fold(self) -> None:
        """Put the low-rank bases into the projections, where this step is pruned."""
        if isinstance(self.pruned, LowRankAttention):  # also removes those of the last run
            folded = self.pruned.folded if self.choice.action != "compute" else None
            self.staged.value, self.staged.out = folded or (None, None)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        text: JointText | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The attention stage of the processor, with inputs `(B, N, H, D)`. In some steps it
        computes both ways."""
        pruned, rows = self.pruned, (query, key, value)
        if pruned is None or self.choice.action == "compute":
            mixed = self.staged.dense(*rows, text)
            if pruned is not None:
                self._learn(pruned, rows, text)
            return mixed
        order = self.cache.order(self.transformer, query, text)
        mixed, share = pruned.attend(*rows, order, text)
        self._count_flops(share, 0.0)
        return mixed

    def _learn(self, pruned: Pruned, rows: Heads, text: JointText | None) -> None:
        """Fit the pruning to a call that is computed in full. If the errors are due to be measured,
        also compute the pruned value."""
        step = self.cache.session.step
        self.first_step = step if self.first_step is None else self.first_step
        if self._skip_reason(pruned, rows[0], text) is not None:
            return
        pruned.learn(*(rows if text is None else map(text.video, rows)))
        self.stale = True
        if self.measures:
            order = self.cache.order(self.transformer, rows[0], text)
            trial, share = pruned.attend(*rows, order, text)
            self.trial = trial, text
            self._count_flops(share, 1.0)

    def _skip_reason(
        self, pruned: Pruned, query: torch.Tensor, text: JointText | None
    ) -> str | None:
        """Why this attention is never pruned in this run; None: it may be pruned."""
        config = pruned.config
        if self.off is None and config.neutral(query.shape[-1]):
            self.off = "its settings prune nothing"
        elif self.off is None and not config.always:
            self.off = pruned.skip_reason(query, text)
        dense = "this block stays dense (dense_blocks)"
        return dense if self.off is None and self.dense_block else self.off

    def _finish(self, found: Any) -> Any:
        """Measure, blend and cache an output. The text that may come with it is never pruned, and
        so never blended."""
        output, *text = as_value(found)
        before = self._fitting(output)
        cached = self._predict(before)[0] if before else None
        if self.trial is not None:
            mixed, words = self.trial
            pruned = self.staged.output(self.attn, mixed.flatten(2).type_as(output), words)
            self._compare(cached, as_value(pruned)[0], output)
            self.trial, self.measured_at = None, self.cache.session.step
        action, fresh = self.choice.action, output
        if action != "compute" and cached is not None:
            squares = _square(output - cached), _square(output)
            self.cache.read_later(torch.stack(squares), self._collect)
            if action == "blend":
                output = torch.lerp(cached, output, self.choice.weight)
        elif action == "blend":
            action = "prune"
        value = output, *text
        self.store(value, TRACE_LISTS[action], (fresh, *text))
        return as_output(value)

    def _compare(
        self, cached: torch.Tensor | None, pruned: torch.Tensor, true: torch.Tensor
    ) -> None:
        """Measure the errors of both values: sums of squares, and of their product, for the host to
        read later."""
        pruned_off = true - pruned
        cached_off = torch.full_like(true, math.inf) if cached is None else true - cached
        both = (cached_off.float() * pruned_off.float()).sum()
        sums = (_square(cached_off), _square(pruned_off), both, _square(true))
        self.cache.read_later(torch.stack(sums), self._collect)

    # --- what was read ---

    def _collect(self, numbers: list[float]) -> None:
        self.sums.append(tuple(numbers))

    def finish_step(self) -> None:
        """Update the errors from the sums of all branches of the last step, which were just
        read."""
        if self.sums and len(self.sums[0]) == 4:
            found = Errors.measured(self.sums)  # type: ignore[arg-type]
            self.errors = found.aged(1 / max(self.age, 1))
        elif self.sums:
            self._update_cached_error(*map(sum, zip(*self.sums, strict=True)))
        self.sums = []

    def _update_cached_error(self, distance: float, size: float) -> None:
        """Update σ_c from the squared distance between the pruned and the cached value, and the
        squared size of the pruned one, both summed over the branches."""
        if not math.isfinite(distance + size):
            self.off = "a pruned value was not finite"
        elif self.errors is not None and size > 0:
            pruned, correlation = self.errors.pruned, self.errors.correlation
            cached = cached_error(math.sqrt(distance / size), pruned, correlation)
            self.errors = Errors(cached / max(self.age, 1), pruned, correlation)

    def _count_flops(self, share: FlopShare, dense: float) -> None:
        """Note the FLOPs of this call's attention, as a share of dense attention's.

        Args:
            share: of the pruned attention.
            dense: 1 if dense attention was computed too, else 0.
        """
        trace, step = self._trace(), self.cache.session.step

        def note(numbers: list[float]) -> None:
            self.share = numbers[0]
            trace.attention_share[step] = numbers[0] + dense

        if isinstance(share, torch.Tensor):
            self.cache.read_later(share, note)
        else:
            note([share])


class UniCPCache(SiteCache):
    """All self-attentions of a pipeline's transformers, with the settings of a `UniCP`."""

    def __init__(self, session: Session, family: Family, preset: UniCP) -> None:
        super().__init__(session, family, "attention", preset.windows)
        if not family.stages:
            names = [row.name for row in FAMILIES.values() if row.stages]
            accepted = f"accepted for pruned attention: {', '.join(names)}"
            raise ValueError(f"family is {family.name!r}; {accepted}")
        self.preset = preset
        self._orders: dict[Any, torch.Tensor] = {}

    def install(self, patches: Patches) -> None:
        super().install(patches)
        if self.preset.pcas is None:
            return
        for index, site in enumerate(self.pruned_sites()):
            transformer = self.session.transformers[site.transformer]
            here = index % (len(self.sites) // len(self.session.transformers))
            site.set_up(transformer.get_submodule(site.name), patches, self.preset.pcas, here)

    def run_begins(self, num_steps: int | None) -> None:
        super().run_begins(num_steps)
        if self.ranks and self.preset.pcas is not None:
            for site in self.pruned_sites():
                site.off = "several ranks share its tokens or its heads"

    def pruned_sites(self) -> list[PrunedSite]:
        return [site for site in self.sites if isinstance(site, PrunedSite)]

    def _add(self, transformer: str, name: str) -> Site:
        self.sites.append(PrunedSite(transformer, name, self))
        return self.sites[-1]

    def step_begins(self, step: int) -> None:
        super().step_begins(step)
        for site in self.pruned_sites():
            site.decide(step)

    def _read(self, ranks: Ranks) -> None:
        super()._read(ranks)
        for site in self.pruned_sites():
            site.finish_step()

    def order(self, transformer: str, query: torch.Tensor, text: JointText | None) -> torch.Tensor:
        """`(N,)` int64: the order of tokens that has them tile by tile, with the text last; if the
        grid is not known, their own order."""
        session, config, tokens = self.session, self.preset.pcas, query.shape[1]
        args, kwargs = session.inputs[transformer, session.branch]
        module = session.transformers[transformer]
        grid = processor.grid_of(module, args, kwargs, self.family.frames)
        if text is not None:
            grid = dataclasses.replace(grid, text=text.tokens)
        key = grid, tokens, query.device
        if key not in self._orders:
            order = torch.arange(tokens)
            if grid.tokens == tokens and config is not None:
                order = tile_order(grid, config.blocks_of(tokens).tile)
            order = order if text is None else text.text_last(order)
            self._orders = {key: order.to(query.device)}
        return self._orders[key]

    def notes(self) -> tuple[str, ...]:
        reasons = Counter(site.off for site in self.pruned_sites() if site.off)
        where = f"of {len(self.sites)} attentions"
        off = (f"PCAS was off at {n} {where}: {why}." for why, n in reasons.items())
        return (*super().notes(), *off)

    def clear(self) -> None:
        super().clear()
        self._orders.clear()
        for site in self.pruned_sites():
            if site.pruned is not None:
                site.pruned.reset()


def _square(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dtype=torch.float32).square()
