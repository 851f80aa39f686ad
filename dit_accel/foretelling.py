"""What a layout will cost, told without a model: tokens by class, attention calls, memory, FLOPs.

Counted from the plans that the run itself would carry out (`staging.plan`), and from the sizes in a
denoiser's configuration. FLOPs are of matrix products, a multiplication with its addition being
two; embeddings, norms, VAE and text encoder are left out. Time is not foretold: unmasked calls run
at about the speed of plain attention where they are large, and slower where they are small.

Shapes: `tokens.py`; R keys of references, L tokens of a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dit_accel import blending, scenes, staging
from dit_accel.layout import Layout
from dit_accel.staging import Acts, SceneConfig, Stage
from dit_accel.tokens import TokenGrid


@dataclass(frozen=True)
class Sizes:
    """Of a denoiser: blocks, heads, their width, feed-forward width, text tokens, value bytes."""

    layers: int
    heads: int
    head: int
    feed_forward: int
    text: int
    value_bytes: int

    @property
    def width(self) -> int:
        """Heads times their width."""
        return self.heads * self.head

    def flops(self, tokens: int) -> int:
        """Of one forward of one clip."""
        d, n = self.width, tokens
        own = 8 * n * d**2 + 4 * n**2 * d
        other = 4 * n * d**2 + 4 * self.text * d**2 + 4 * n * self.text * d
        return self.layers * (own + other + 4 * n * d * self.feed_forward)


@dataclass(frozen=True)
class RowCost:
    """Of one clip of the batch.

    Args:
        name: the shot's id, or the file.
        tokens: by class: "background", then the subjects' ids.
        reads: keys of references that its subjects read.
        calls: unmasked calls of one attention where all is at work; 1 is plain attention.
        pairs: of query and key there, as a share of plain attention's.
    """

    name: str
    tokens: dict[str, int]
    reads: int
    calls: int
    pairs: float


@dataclass(frozen=True)
class Foretold:
    """What a run of a layout will cost.

    Args:
        rows: shots, then files that are read.
        stock_flops, scene_flops: of the denoiser over all steps and both branches, for all shots.
        read_bytes: keys and values that one attention reads from references, at most.
        raw_bytes: queries and keys before rotation that one attention notes for them.
        table_bytes: indices and tables, for the whole run.
        bank_bytes: what a bank of all layers, steps and branches would hold instead.
        mask_bytes: what one dense mask of a row would hold instead.
    """

    rows: tuple[RowCost, ...]
    stock_flops: int
    scene_flops: int
    read_bytes: int
    raw_bytes: int
    table_bytes: int
    bank_bytes: int
    mask_bytes: int

    @property
    def extra(self) -> float:
        """FLOPs over the stock pipeline's on the same shots, as a share of them."""
        return self.scene_flops / self.stock_flops - 1


def foretell(
    layout: Layout, grid: TokenGrid, sizes: Sizes, config: SceneConfig, *, steps: int, branches: int
) -> Foretold:
    """What a run will cost.

    Args:
        grid: of one clip.
        steps: denoising steps, >= 1.
        branches: 2 with guidance, else 1.

    Raises:
        ValueError: the layout does not fit the grid: a subject has no token, or a mask no frame.
    """
    files = scenes.files_of(layout) if config.share else {}
    lengths = [len(scenes.read_frames(ref, field)) for ref, (_, field) in files.items()]
    rows = scenes.rows_of(layout, [*files], lengths, grid, config)
    stages = staging.stages(rows, grid, config, sizes.head)
    shots = len(layout.shots)
    at_work = _acts(config, steps, sizes.layers, branches)
    stock = sizes.flops(grid.video_tokens) * steps * branches
    spent = stock * len(stages)
    for row, stage in enumerate(stages):
        for acts, times in at_work.items():
            plan = staging.plan(stage, acts, config, 0, row)
            spent += times * 4 * sizes.width * (plan.pairs - plan.tokens**2)
        if row < shots:
            spent += _texts(stage, sizes, config, steps)
    reads = max((len(stage.references) for stage in stages), default=0)
    pair = 2 * sizes.width * sizes.value_bytes
    total_reads = sum(len(stage.references) for stage in stages)
    return Foretold(
        rows=tuple(_row(layout, stage, row, config) for row, stage in enumerate(stages)),
        stock_flops=stock * shots,
        scene_flops=spent,
        read_bytes=reads * pair,
        raw_bytes=pair * grid.video_tokens * len(stages) if total_reads else 0,
        table_bytes=sum(stage.held_bytes for stage in stages),
        bank_bytes=total_reads * pair * sizes.layers * steps * branches,
        mask_bytes=grid.video_tokens * (grid.video_tokens + reads),
    )


def _acts(config: SceneConfig, steps: int, layers: int, branches: int) -> Counter[Acts]:
    """How many attentions of a run have which parts at work; texts apart."""
    found: Counter[Acts] = Counter()
    for step in range(steps):
        for layer in range(layers):
            acts = staging.acts_at(config, step, steps) & staging.acts_in(config, layer, layers)
            for branch in range(branches):
                shares = acts.shares and not (config.amplify and branch == 1)
                found[Acts(acts.isolates, shares, False)] += 1
    return found


def _texts(stage: Stage, sizes: Sizes, config: SceneConfig, steps: int) -> int:
    """FLOPs of the subjects' own texts, which the conditional branch reads."""
    told = sum(staging.acts_at(config, step, steps).tells for step in range(steps))
    counts = [len(stage.tokens_of(label)) for label in range(1, stage.subjects + 1)]
    once = sum(blending.flops(count, sizes.text, sizes.width) for count in counts)
    return told * sizes.layers * once


def _row(layout: Layout, stage: Stage, row: int, config: SceneConfig) -> RowCost:
    full = staging.plan(stage, Acts(config.isolate, config.share, False), config, 0, row)
    ids: Sequence[str] = layout.shots[row].ids if row < len(layout.shots) else ["subject"]
    names = ["background", *ids]
    tokens = dict(zip(names, stage.counts().values(), strict=True))
    share = full.pairs / full.tokens**2
    return RowCost(stage.name, tokens, len(stage.references), len(full.groups), share)
