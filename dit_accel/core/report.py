"""The report of a handle: what an accelerated run did.

Goes in: steps, drifts, FLOPs, seconds and bytes. Comes out: a `Report`, as JSON or as one
paragraph. It is plain data: no tensors, no models. Ours; there is no source.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# The denoiser's prediction; the residual of the whole block stack; the residual of each block; the
# output of each self-attention.
CacheSite = Literal["output", "model", "block", "attention"]


@dataclass(frozen=True)
class SiteReport:
    """What one branch did at one site.

    Args:
        transformer, branch: names.
        name: of the site: "output", "model" or the path of a module.
        computed, cached, extrapolated, pruned, blended: steps. Each step is in one of these.
        drift: by computed step, the relative error of the value that was cached before.
        attention_share: by step, the share of dense attention's products that was computed, if it
            is not 1. The products are queries with keys, and weights with values.
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
        """The number of steps at which the site was called."""
        return len(self.called)

    @property
    def called(self) -> tuple[int, ...]:
        """The steps at which the site was called."""
        return tuple(sorted((*self.computed, *self.not_computed, *self.pruned, *self.blended)))

    @property
    def not_computed(self) -> tuple[int, ...]:
        """The steps at which it was cached or extrapolated."""
        return tuple(sorted(self.cached + self.extrapolated))


@dataclass(frozen=True)
class SceneReport:
    """What a layout's isolation and references did in one run.

    Args:
        tokens: number of tokens, by row and class: "background", and the subjects from "1" on.
        reference_tokens: by row, the number of reference keys that the row reads.
        reference_rows: number of rows that came from reference files.
        split_calls: number of self-attention calls on a part of the tokens.
        extra_flops: in addition to the stock pipeline's, without the reference rows; may be
            negative.
        table_bytes: bytes of indices, tables and latents of files during the run.
        reference_bytes: peak bytes of the references' keys and values.
        notes: what a reader must know.
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
    """What one run of an accelerated pipeline did.

    Args:
        family: name of the pipeline's family.
        site: where values were cached, a `CacheSite`.
        threshold: of the windows; None if a plan decided.
        steps: of the whole run. An interrupted run made fewer (`steps_run`).
        branches: names of the guidance branches.
        sites: what each branch did at each site.
        flops_full, flops_spent: FLOPs of the transformers' forwards, in the stock pipeline and in
            this run; None if they are not counted (`notes` says why).
        seconds: of the denoising loop, as far as it ran.
        peak_memory_bytes: peak of the device's allocator; on a CPU, of the process.
        cached_bytes: peak bytes of cached values on the device.
        packed_bytes: peak bytes of those that were quantized.
        packed_bits: the fewest bits to which values were quantized.
        offloaded_bytes: peak bytes of cached values in the CPU's memory.
        host_syncs: how often the host waited to read our measurements from the device.
        notes: what a reader must know.
        quality, speedup: the target: in dB, or as all steps / computed steps.
        prediction: the expected PSNR of this run.
        planned: the steps that the plan computes.
        scene: what the layout did.
        config: all settings.
        requested: the settings that differ from the defaults, as text.
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
        """Share of the stock pipeline's FLOPs that this run spent, 0 to 1; None: not known."""
        return None if not self.flops_full else (self.flops_spent or 0) / self.flops_full

    @property
    def steps_run(self) -> int:
        """Number of steps that the run made, computed or not."""
        return len({step for site in self.sites for step in site.called})

    @property
    def steps_computed(self) -> float:
        """Number of steps computed in full, as a mean over sites and branches. The sites of two
        experts count as one."""
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
        """The report as JSON-able data, with the derived numbers."""
        derived = ("flops_kept", "steps_computed", "steps_run")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def summary(self) -> str:
        """One paragraph for people."""
        partly = sum(len(s.pruned) + len(s.blended) for s in self.sites)
        text = (
            f"{self.family}, site {self.site}, {self.rule}: computed "
            f"{round(self.steps_computed, 1):g} of {self.steps_run} steps"
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
