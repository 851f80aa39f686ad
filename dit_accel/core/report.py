"""What an accelerated run did: the report of a handle. Plain data, no tensors, no models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SiteReport:
    """One site in one branch: `name` is the module's path, `drift` is by computed step.

    A step is in one of `computed` (in full), `reused` (served from one kept value), `forecast`
    (from several), `pruned` (computed with less attention) and `blended` (of pruned and kept).
    `spent` is, by step, the share of dense attention's products (of queries with keys, of weights
    with values) that was computed, where it is not 1.
    """

    transformer: str
    branch: str
    name: str
    computed: tuple[int, ...]
    reused: tuple[int, ...]
    drift: dict[int, float]
    forecast: tuple[int, ...] = ()
    pruned: tuple[int, ...] = ()
    blended: tuple[int, ...] = ()
    spent: dict[int, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps that the site was asked at."""
        parts = self.computed, self.reused, self.forecast, self.pruned, self.blended
        return sum(map(len, parts))

    @property
    def served(self) -> tuple[int, ...]:
        """Steps that were not computed, not even in part."""
        return tuple(sorted(self.reused + self.forecast))


@dataclass(frozen=True)
class SceneReport:
    """What a layout's isolation and references did in one run.

    `classes` are tokens by class ("background", subjects from "1") of every row, `reads` the keys
    of references that it reads. `further_rows` came from files; `calls` are of self-attention where
    rows were split. `extra_flops` is beside the stock pipeline's, negative where isolation saves
    more than reading costs; further rows are not in it. `held_bytes` are indices, tables and
    latents of files over the run, `gathered_bytes` the most keys and values of references at once.
    """

    classes: dict[str, dict[str, int]]
    reads: dict[str, int]
    further_rows: int
    calls: int
    extra_flops: int
    held_bytes: int
    gathered_bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """One run of an accelerated pipeline.

    FLOPs are of the transformers' forwards: `flops_full` as the stock pipeline would spend them,
    `flops_spent` as this run did; None, with the reason in `notes`, where they could not be
    counted. `threshold` is None where a plan decided. `seconds` spans the denoising loop.
    `peak_memory_bytes` is the device allocator's peak, or the process's high-water mark on a CPU.
    `kept_bytes` is the most that kept values held on the device; under a cap `packed_bytes` is the
    most of it that was in fewer bits, `packed_bits` the fewest (None: nothing was packed), and
    `offloaded_bytes` the most that waited in the CPU's memory. `quality` (dB) and `speedup` are
    what was asked for, `prediction` what is expected of this run, `planned` the steps that were to
    be computed. `config` is every setting of the acceleration, `asked` those that are not as by
    default.
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
    kept_bytes: int
    host_syncs: int
    notes: tuple[str, ...] = ()
    quality: float | None = None
    speedup: float | None = None
    prediction: dict[str, float | None] | None = None
    planned: tuple[int, ...] = ()
    scene: SceneReport | None = None
    offloaded_bytes: int = 0
    packed_bytes: int = 0
    packed_bits: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    asked: str = ""

    @property
    def flops_kept(self) -> float | None:
        """Share of the stock pipeline's FLOPs that was spent, 0 to 1."""
        return None if not self.flops_full else (self.flops_spent or 0) / self.flops_full

    @property
    def steps_computed(self) -> float:
        """Steps computed in full, mean over sites and branches; two experts' sites count once."""
        actions = [(len(s.computed), s.steps) for s in self.sites]
        done, total = map(sum, zip(*actions, strict=True)) if actions else (0, 0)
        return self.steps * done / total if total else 0.0

    @property
    def rule(self) -> str:
        """What decided: a threshold, or a plan made beforehand."""
        if self.quality is not None:
            return f"quality {self.quality:g} dB"
        if self.speedup is not None:
            return f"speedup {self.speedup:g}x"
        return "by plan" if self.threshold is None else f"threshold {self.threshold:g}"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data, derived figures included."""
        return asdict(self) | {"flops_kept": self.flops_kept, "steps_computed": self.steps_computed}

    def summary(self) -> str:
        """One paragraph for people."""
        kept, away = self.flops_kept, self.offloaded_bytes
        partly = sum(len(s.pruned) + len(s.blended) for s in self.sites)
        text = (
            f"{self.family}, site {self.site}, {self.rule}: computed "
            f"{self.steps_computed:.1f} of {self.steps} steps"
            + (f", pruned or blended {partly / len(self.sites):.1f}" if partly else "")
            + (f", {kept:.0%} of the FLOPs" if kept is not None else "")
            + f", {self.seconds:.2f} s, {self.kept_bytes / 2**20:.1f} MiB held by kept values"
            + (f", {self.packed_bytes / 2**20:.1f} of them packed" if self.packed_bytes else "")
            + (f" to {self.packed_bits} bits" if self.packed_bytes else "")
            + (f", {away / 2**20:.1f} MiB more on the CPU." if away else ".")
        )
        asked = (f"Asked for: {self.asked}.",) if self.asked else ()
        return " ".join((text, *asked, *self._scene_summary(), *self.notes))

    def _scene_summary(self) -> tuple[str, ...]:
        scene = self.scene
        if scene is None:
            return ()
        further = f", {scene.further_rows} further rows" if scene.further_rows else ""
        said = (
            f"Scene: {len(scene.classes) - scene.further_rows} shots{further}, {scene.calls} split "
            f"calls of self-attention, {scene.extra_flops / 1e9:+.2f} GFLOPs, "
            f"{scene.held_bytes / 2**20:.1f} MiB held, {scene.gathered_bytes / 2**20:.1f} MiB of "
            "references at once."
        )
        return (said, *scene.notes)


OUTPUT_SITE = "output"
