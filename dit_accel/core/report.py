"""Holds what an accelerated run did: the report of a handle.

Goes in: steps, drifts, FLOPs, seconds and bytes. Comes out: a `Report`, as JSON or as one
paragraph. It is plain data: no tensors, no models. Ours; there is no source.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# The denoiser's prediction; the residual of the block stack, or of each block; each self-attention.
CacheSite = Literal["output", "model", "block", "attention"]


@dataclass(frozen=True)
class SiteReport:
    """One site in one branch.

    Args:
        transformer, branch, name: which; `name` is "output", "model" or the path of a module.
        computed, cached, extrapolated, pruned, blended: steps; each is in one of these.
        drift: by computed step, the relative error of the value that was cached before.
        attention_share: by step, the share of dense attention's products that was computed, where
            it is not 1: of queries with keys, and of weights with values.
    """

    transformer: str
    branch: str
    name: str
    computed: tuple[int, ...]
    cached: tuple[int, ...] = ()
    drift: dict[int, float] = field(default_factory=dict)
    extrapolated: tuple[int, ...] = ()
    pruned: tuple[int, ...] = ()
    blended: tuple[int, ...] = ()
    attention_share: dict[int, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps the site was called at."""
        return len(self.called)

    @property
    def called(self) -> tuple[int, ...]:
        """The steps that the site was called at."""
        return tuple(sorted((*self.computed, *self.not_computed, *self.pruned, *self.blended)))

    @property
    def not_computed(self) -> tuple[int, ...]:
        """Steps that were cached or extrapolated."""
        return tuple(sorted(self.cached + self.extrapolated))


@dataclass(frozen=True)
class SceneReport:
    """What a layout's isolation and references did in one run.

    Args:
        tokens: of every row by class: "background", and subjects from "1".
        reference_tokens: keys of references that a row reads.
        reference_rows: rows that came from files.
        split_calls: calls of self-attention on a part of the tokens.
        extra_flops: against the stock pipeline, without the reference rows; may be negative.
        table_bytes: of indices, tables and latents of files, during the run.
        reference_bytes: the most that keys and values of references took at once.
    """

    tokens: dict[str, dict[str, int]]
    reference_tokens: dict[str, int]
    reference_rows: int
    split_calls: int
    extra_flops: int
    table_bytes: int
    reference_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """One run of an accelerated pipeline.

    Args:
        site: a `CacheSite`.
        steps: of the whole run; an interrupted one made fewer (`steps_run`).
        threshold: of the windows; None where a plan decided.
        flops_full, flops_spent: of the transformers' forwards, as the stock pipeline spends them
            and as this run did; None where they are not counted (`notes` says why).
        seconds: of the denoising loop, as far as it came.
        peak_memory_bytes: the device allocator's peak, or the process's on a CPU.
        cached_bytes: the most that cached values took on the device; `packed_bytes` of it were
            quantized, to `packed_bits` at least, and `offloaded_bytes` were in the CPU's memory.
        host_syncs: how often the host waited for numbers of ours on the device.
        notes: what a reader must know.
        quality, speedup: the target, in dB or as steps over computed steps.
        prediction: the PSNR that was expected of this run.
        planned: steps that were to be computed.
        config, requested: all settings; those that are not the defaults.
    """

    family: str
    site: str
    threshold: float | None
    steps: int
    branches: tuple[str, ...]
    sites: tuple[SiteReport, ...]
    flops_full: int | None
    flops_spent: int | None
    seconds: float
    peak_memory_bytes: int | None
    cached_bytes: int
    host_syncs: int
    notes: tuple[str, ...] = ()
    quality: float | None = None
    speedup: float | None = None
    prediction: dict[str, Any] | None = None
    planned: tuple[int, ...] = ()
    scene: SceneReport | None = None
    offloaded_bytes: int = 0
    packed_bytes: int = 0
    packed_bits: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    requested: str = ""

    @property
    def flops_kept(self) -> float | None:
        """Share of the stock pipeline's FLOPs that was spent, 0 to 1; None: not known."""
        return None if not self.flops_full else (self.flops_spent or 0) / self.flops_full

    @property
    def steps_run(self) -> int:
        """Steps that were made, computed or not."""
        return len({step for site in self.sites for step in site.called})

    @property
    def steps_computed(self) -> float:
        """Steps computed in full, mean over sites and branches; two experts' sites count once."""
        counts = [(len(s.computed), s.steps) for s in self.sites]
        computed, called = map(sum, zip(*counts, strict=True)) if counts else (0, 0)
        return self.steps_run * computed / called if called else 0.0

    @property
    def rule(self) -> str:
        """What decided: a target, a plan or a threshold."""
        if self.quality is not None:
            return f"quality {self.quality:g} dB"
        if self.speedup is not None:
            return f"speedup {self.speedup:g}x"
        return "by plan" if self.threshold is None else f"threshold {self.threshold:g}"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data, with what is derived from it."""
        derived = ("flops_kept", "steps_computed", "steps_run")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def summary(self) -> str:
        """One paragraph for people."""
        partly = sum(len(s.pruned) + len(s.blended) for s in self.sites)
        text = (
            f"{self.family}, site {self.site}, {self.rule}: computed "
            f"{self.steps_computed:.1f} of {self.steps_run} steps"
            + (f", pruned or blended {partly / len(self.sites):.1f}" if partly else "")
            + (f", {self.flops_kept:.0%} of the FLOPs" if self.flops_kept is not None else "")
            + f", {self.seconds:.2f} s, {_mib(self.cached_bytes)} of cached values"
            + (f", {_mib(self.packed_bytes)} of them packed" if self.packed_bytes else "")
            + (f" to {self.packed_bits} bits" if self.packed_bytes else "")
            + (f", {_mib(self.offloaded_bytes)} on the CPU." if self.offloaded_bytes else ".")
        )
        requested = (f"Requested: {self.requested}.",) if self.requested else ()
        stopped = f"The run stopped after {self.steps_run} of {self.steps} steps."
        stopped_early = (stopped,) if self.steps_run < self.steps else ()
        return " ".join((text, *stopped_early, *requested, *self._scene_summary(), *self.notes))

    def _scene_summary(self) -> tuple[str, ...]:
        scene = self.scene
        if scene is None:
            return ()
        rows = f", {scene.reference_rows} reference rows" if scene.reference_rows else ""
        text = (
            f"Scene: {len(scene.tokens) - scene.reference_rows} shots{rows}, {scene.split_calls} "
            f"split calls of self-attention, {scene.extra_flops / 1e9:+.2f} GFLOPs, "
            f"{_mib(scene.table_bytes)} of tables, {_mib(scene.reference_bytes)} of references at "
            "once."
        )
        return (text, *scene.notes)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
