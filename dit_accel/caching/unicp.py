"""Carries out UniCP at the attentions: cache windows, pruned attention, and the shift of weight.

A step at which a site is not served from its kept value is computed in full, pruned, or blended
from both. The first steps are dense, and teach the bases; then one step is computed both ways,
which tells the errors of kept and pruned values, and from there on `caching/blend.py` chooses by
them.
While steps are pruned the error of the kept value is followed by its distance from the pruned one,
and after some steps all is measured again. Branches of guidance share decisions and errors; what is
measured is read with the windows' drifts, in the one transfer of a step.
Holds no formula: caching/windows.py, attention/pca.py, attention/block_sparse.py and
caching/blend.py do.

Source: UniCP (arXiv 2502.04393), our reading: windows where reuse is safe, PCAS where it is not,
DWS between the two.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_accel.attention import processor
from dit_accel.attention.block_sparse import tile_order
from dit_accel.attention.pca import Linear
from dit_accel.attention.pcas import (
    MAX_FLOPS_SHARE,
    PCAS,
    BlockSparseAttention,
    FlopShare,
    LowRankAttention,
)
from dit_accel.attention.processor import StagedAttnProcessor
from dit_accel.caching.blend import DWS, Choice, Errors, choose, kept_error
from dit_accel.caching.sites import Forward, Site, SiteCache
from dit_accel.caching.windows import EDCW
from dit_accel.core.families import Family
from dit_accel.core.patching import Patches
from dit_accel.core.session import Session, outside_graphs

COMPUTE_CHOICE = Choice("compute", 1.0, 0.0)
PRUNE_CHOICE = Choice("prune", 1.0, 0.0)
UNICP_FAMILIES = ("wan",)  # those with stages
WHERE = {"compute": "computed", "prune": "pruned", "blend": "blended"}


@dataclass(frozen=True)
class UniCP:
    """The three techniques; None switches one off.

    Args:
        windows: when a kept value is served.
        pcas: how a value is made that is not.
        shift: which of them, by their errors; None: after the dense steps every value that is not
            served is pruned.
    """

    windows: EDCW = field(default_factory=EDCW)
    pcas: PCAS | None = field(default_factory=PCAS)
    shift: DWS | None = field(default_factory=DWS)


PRESETS = {"unicp-paper": UniCP}


class PrunedSite(Site):
    """One self-attention: what it learned, what it is about to do, and why it would not prune."""

    cache: UniCPCache
    staged: StagedAttnProcessor
    means: BlockSparseAttention | LowRankAttention | None = None

    def begin(self, total: int | None) -> None:
        """Forget the last run."""
        super().begin(total)
        if self.means is not None:
            self.means.reset()
        self.choice, self.trying, self.stale = COMPUTE_CHOICE, False, False
        self.born: int | None = None  # the first step it ran at: a second expert begins late
        self.tried: int | None = None
        self.age = 0  # of the kept value, in steps
        self.errors: Errors | None = None  # at an age of one step
        self.off: str | None = None
        self.share = 0.0
        self.sums: list[tuple[float, ...]] = []
        self.trial: torch.Tensor | None = None

    def set_up(self, attn: Any, patches: Patches, config: PCAS, index: int) -> None:
        """Put stages on the module."""
        self.attn = attn
        self.staged = processor.install(attn, patches)
        self.staged.attend = self.attend
        self.dense_block = index < config.dense_blocks
        if config.mode == "prune":
            self.means = BlockSparseAttention(config)
            return
        layers = attn.to_v, attn.to_out[0]
        if not all(isinstance(layer, torch.nn.Linear) for layer in layers):
            raise ValueError("mode is 'slice'; accepted where projections are plain linear layers")
        value, out = (Linear(layer.weight, layer.bias) for layer in layers)
        self.means = LowRankAttention(config, value, out)

    # --- decisions, at the beginning of a step ---

    def decide(self, step: int) -> None:
        """What to do at this step, if the windows do not serve it."""
        self.choice, self.trying = COMPUTE_CHOICE, False
        self.age = step - self.windows.opened if self.windows.opened >= 0 else 0
        if self.means is None or self.reuses or self._stays_dense(step):
            return
        if self.stale:
            self._fit()
        if self.means.ready:
            self.choice = self._choose(step)
        self.reuses = self.choice.action == "reuse"

    def _stays_dense(self, step: int) -> bool:
        config, total = self.cache.preset.pcas, self.windows.num_steps or 0
        if config is None or self.off or self.dense_block:
            return True
        if self.share > MAX_FLOPS_SHARE and not config.always:
            self.off = f"it takes more than {MAX_FLOPS_SHARE:.0%} of dense attention's FLOPs"
        warm = max(1, round(config.first_dense * total))
        return self.off is not None or self.born is None or step < self.born + warm

    def _choose(self, step: int) -> Choice:
        shift, threshold = self.cache.preset.shift, self.windows.config.threshold
        if shift is None:
            return PRUNE_CHOICE
        choice = COMPUTE_CHOICE
        if self.errors is not None:
            choice = choose(self.errors.aged(max(self.age, 1)), threshold, shift)
        due = self.tried is None or step >= self.tried + shift.recheck
        self.trying = due and shift.allowed(threshold) > 0
        return COMPUTE_CHOICE if self.trying else choice

    def _fit(self) -> None:
        assert self.means is not None
        self.stale = False
        needed = self.means.fit()
        if needed is not None and isinstance(self.means, LowRankAttention):
            slicer = self.means

            def tell(numbers: list[float]) -> None:
                slicer.rank = int(numbers[0])

            self.cache.ask(needed, tell)

    # --- a call ---

    def wrap_attention(self, inner: Forward) -> Forward:
        """Serves, or computes as decided; tokens come first, as in every self-attention module."""

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            kept = self.serve(args[0] if args else kwargs["hidden_states"])
            if kept is not None:
                return kept
            if self.reuses:  # nothing was kept that fits: what stands in for it is computed
                self.choice, self.trying = COMPUTE_CHOICE, False
            self._fold()
            return self._finish(inner(*args, **kwargs))

        return outside_graphs(forward)

    def _fold(self) -> None:
        if isinstance(self.means, LowRankAttention) and self.means.folded is not None:
            pruned = self.choice.action != "compute"
            self.staged.value, self.staged.out = self.means.folded if pruned else (None, None)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The stage: `(B, N, H, D)` -> `(B, N, H, D)`; at a trial also the other way."""
        means = self.means
        if means is None or self.choice.action == "compute":
            mixed = self.staged.dense(query, key, value)
            if means is not None and not self._declines(means, query):
                means.learn(query, key, value)
                self.stale = True
                if self.trying:
                    order = self.cache.order(self.transformer, query)
                    self.trial, share = means.attend(query, key, value, order)
                    self._spend(share, 1.0)
            return mixed
        order = self.cache.order(self.transformer, query)
        mixed, share = means.attend(query, key, value, order)
        self._spend(share, 0.0)
        return mixed

    def _declines(
        self, means: BlockSparseAttention | LowRankAttention, query: torch.Tensor
    ) -> bool:
        step, config = self.cache.session.step, means.config
        self.born = step if self.born is None else self.born
        if self.off is None and config.neutral(query.shape[-1]):
            self.off = "its settings leave nothing out"
        elif self.off is None and not config.always:
            self.off = means.skip_reason(query)
        return self.off is not None or self.dense_block

    def _finish(self, output: torch.Tensor) -> torch.Tensor:
        """Measure, blend and keep."""
        before = self._fitting(output)
        kept = self._predict(before) if before else None
        if self.trial is not None:
            mixed = self.trial.flatten(2).type_as(output)
            self._compare(kept, self.staged.output(self.attn, mixed), output)
            self.trial, self.tried = None, self.cache.session.step
        action, fresh = self.choice.action, output
        if action != "compute" and kept is not None:
            square = _square(output - kept), _square(output)
            self.cache.ask(torch.stack(square), self._hear)
            if action == "blend":
                output = torch.lerp(kept, output, self.choice.weight)
        elif action == "blend":
            action = "prune"
        self.keep(output, WHERE[action], fresh)
        return output

    def _compare(self, kept: torch.Tensor | None, pruned: torch.Tensor, true: torch.Tensor) -> None:
        off = true - pruned
        old = torch.full_like(true, math.inf) if kept is None else true - kept
        both = (old.float() * off.float()).sum()
        sums = (_square(old), _square(off), both, _square(true))
        self.cache.ask(torch.stack(sums), self._hear)

    # --- what was read ---

    def _hear(self, numbers: list[float]) -> None:
        self.sums.append(tuple(numbers))

    def conclude(self) -> None:
        """All branches of the last step have been heard."""
        if self.sums and len(self.sums[0]) == 4:
            found = Errors.measured(self.sums)  # type: ignore[arg-type]
            self.errors = found.aged(1 / max(self.age, 1))
        elif self.sums:
            self._follow(*map(sum, zip(*self.sums, strict=True)))
        self.sums = []

    def _follow(self, gone: float, size: float) -> None:
        """The pruned value is so far from the kept one: squares, summed over the branches."""
        if not math.isfinite(gone + size):
            self.off = "a pruned value was not finite"
        elif self.errors is not None and size > 0:
            pruned, correlation = self.errors.pruned, self.errors.correlation
            kept = kept_error(math.sqrt(gone / size), pruned, correlation)
            self.errors = Errors(kept / max(self.age, 1), pruned, correlation)

    def _spend(self, share: FlopShare, beside: float) -> None:
        """Note the FLOPs of this call's attention, as shares of the dense one's."""
        trace, step = self._trace(), self.cache.session.step

        def tell(numbers: list[float]) -> None:
            self.share = numbers[0]
            trace.spent[step] = numbers[0] + beside

        if isinstance(share, torch.Tensor):
            self.cache.ask(share, tell)
        else:
            tell([share])


class UniCPCache(SiteCache):
    """All self-attentions of a pipeline's transformers under one preset."""

    def __init__(self, session: Session, family: Family, preset: UniCP) -> None:
        super().__init__(session, family, "attention", preset.windows)
        if family.name not in UNICP_FAMILIES:
            accepted = ", ".join(UNICP_FAMILIES)
            raise ValueError(
                f"family is {family.name!r}; accepted for pruned attention: {accepted}"
            )
        self.preset = preset
        self._orders: dict[Any, torch.Tensor] = {}

    def install(self, patches: Patches) -> None:
        """Wrap the modules, and put stages on them."""
        super().install(patches)
        if self.preset.pcas is None:
            return
        for index, site in enumerate(self.pruned_sites()):
            transformer = self.session.transformers[site.transformer]
            here = index % (len(self.sites) // len(self.session.transformers))
            site.set_up(transformer.get_submodule(site.name), patches, self.preset.pcas, here)

    def pruned_sites(self) -> list[PrunedSite]:
        return [site for site in self.sites if isinstance(site, PrunedSite)]

    def _site(self, transformer: str, name: str) -> Site:
        self.sites.append(PrunedSite(transformer, name, self))
        return self.sites[-1]

    def step_begins(self, step: int) -> None:
        super().step_begins(step)
        for site in self.pruned_sites():
            site.decide(step)

    def settle(self) -> None:
        super().settle()
        for site in self.pruned_sites():
            site.conclude()

    def order(self, transformer: str, query: torch.Tensor) -> torch.Tensor:
        """The tokens tile by tile, on the device of the queries; as they are where the grid of the
        call is not known."""
        session, config = self.session, self.preset.pcas
        args, kwargs = session.inputs[transformer, session.branch]
        grid = processor.grid_of(session.transformers[transformer], args, kwargs)
        if grid.tokens != query.shape[1] or config is None:
            return torch.arange(query.shape[1], device=query.device)
        key = grid, query.device
        if key not in self._orders:
            tile = config.blocks_of(grid.tokens).tile
            self._orders = {key: tile_order(grid, tile).to(query.device)}
        return self._orders[key]

    def notes(self) -> tuple[str, ...]:
        """Where attention was not pruned after all, and why."""
        reasons = Counter(site.off for site in self.pruned_sites() if site.off)
        sites = len(self.sites)
        return tuple(
            f"PCAS was off at {n} of {sites} attentions: {reason}." for reason, n in reasons.items()
        )

    def clear(self) -> None:
        super().clear()
        self._orders.clear()
        for site in self.pruned_sites():
            if site.means is not None:
                site.means.reset()


def _square(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dtype=torch.float32).square()
