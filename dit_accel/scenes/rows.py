"""What a scene asks of every row of a batch: whose each token is, what it reads, and from where.

A layout's shots are the rows of one batch, in order, and references that are files are further rows
behind them. So a reference runs in lockstep with what reads it: at each step and layer the row that
is read has just made the keys and values that are read from it, and no bank of them is kept.

`SceneConfig` holds the settings; a `ClipRow` is one of those clips in tokens; `plan` is what one
of its
attentions computes at one step. Knows no model, no pipeline and no file. Shapes: `core/tokens.py`.

Source: IR-Diffusion (arXiv 2411.19261) runs references and target as one batch too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dit_accel.core.tokens import TokenGrid
from dit_accel.scenes import masks
from dit_accel.scenes import reposition as reposition_maps
from dit_accel.scenes.masks import GatherPlan
from dit_accel.scenes.reposition import Rotary

BACKGROUNDS = ("open", "closed")
Fractions = tuple[float, float]


@dataclass(frozen=True)
class SceneConfig:
    """Settings of isolation, of references and of subjects' own texts.

    Args:
        isolate: subjects do not attend to each other.
        background: "open": it sees everything; "closed": it does not see the subjects, so that
            nothing of one subject reaches another through it.
        share: subjects read their references.
        reposition: references are read as if they stood in the target's box.
        alpha: strength of it, 0 to 1.
        amplify: references are read in the conditional branch only, so that guidance amplifies what
            they add, as it does with the prompt; False: in both branches, as in the source.
        text: weight of a subject's own prompt over the scene's, in its tokens, 0 to 1.
        steps, text_steps, share_steps: part of the run at which subjects are isolated, at which
            they have their own texts, and at which references are read: half-open fractions. Who
            is where and of which colour is decided early; isolated after it, subjects lose their
            shapes, and reading after it, they take on the reference's motion (docs/scenes.md).
        share_layers: part of the depth of the denoiser in which references are read. The source's
            code reads in its second half only; on the miniature that has a quarter of the effect.
        least: share of a token that a subject must cover to own it, above 0.
        seed: of our own draws: the noise of references that are files.

    Raises:
        ValueError: a value is out of range.
    """

    isolate: bool = True
    background: str = "open"
    share: bool = True
    reposition: bool = True
    alpha: float = 1.0
    amplify: bool = True
    text: float = 0.9
    steps: Fractions = (0.0, 0.4)
    text_steps: Fractions = (0.0, 1.0)
    share_steps: Fractions = (0.0, 0.4)
    share_layers: Fractions = (0.0, 1.0)
    least: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("isolate", "share", "reposition", "amplify"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: True, False")
        if self.background not in BACKGROUNDS:
            accepted = ", ".join(BACKGROUNDS)
            raise ValueError(f"background is {self.background!r}; accepted: {accepted}")
        for name in ("alpha", "text"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: from 0 to 1")
        for name in ("steps", "text_steps", "share_steps", "share_layers"):
            span = getattr(self, name)
            if len(span) != 2 or not 0 <= span[0] <= span[1] <= 1:
                accepted = "two fractions, 0 <= first <= end <= 1"
                raise ValueError(f"{name} is {span!r}; accepted: {accepted}")
        if not 0 < self.least <= 1:
            raise ValueError(f"least is {self.least!r}; accepted: above 0, up to 1")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}; accepted: an integer >= 0")

    @property
    def isolation(self) -> str:
        """As `visibility` calls it."""
        return self.background if self.isolate else "off"


@dataclass(frozen=True)
class ActiveParts:
    """What is at work at one step or layer: isolation, reading, the subjects' own texts."""

    isolation: bool
    reads_references: bool
    own_text: bool

    def __bool__(self) -> bool:
        return self.isolation or self.reads_references or self.own_text

    def __and__(self, other: ActiveParts) -> ActiveParts:
        return ActiveParts(
            self.isolation and other.isolation,
            self.reads_references and other.reads_references,
            self.own_text and other.own_text,
        )


def active_at_step(config: SceneConfig, step: int, total: int) -> ActiveParts:
    """What is at work at a step of a run of so many."""
    spans = config.steps, config.share_steps, config.text_steps
    own, read, told = (within(span, step, total) for span in spans)
    return ActiveParts(config.isolate and own, config.share and read, config.text > 0 and told)


def active_in_layer(config: SceneConfig, layer: int, layers: int) -> ActiveParts:
    """What is at work in a layer of so many; isolation and texts are in all."""
    return ActiveParts(True, within(config.share_layers, layer, layers), True)


def within(span: Fractions, index: int, count: int) -> bool:
    """Whether an index is in a half-open part of so many; its ends are rounded to whole ones."""
    return round(span[0] * count) <= index < round(span[1] * count)


@dataclass(frozen=True)
class ReferenceLink:
    """A subject of one row that is read from a subject of another: both count from 0."""

    subject: int
    row: int
    source: int


@dataclass(frozen=True)
class ClipRow:
    """One clip of the batch.

    Args:
        name: for people.
        coverage: `(S, F, rows, columns)`, shares from 0 to 1.
        z: one number a subject: the highest has what several cover.
        readings: what its subjects read.
    """

    name: str
    coverage: torch.Tensor
    z: tuple[int, ...]
    readings: tuple[ReferenceLink, ...] = ()


@dataclass(frozen=True)
class ReferenceTokens:
    """Tokens of a row that a subject reads, and where it finds them.

    Args:
        label: class of the subject that reads.
        row: of the batch, that is read.
        tokens: `(n,)` int64, indices in that row.
        keys: rotary embedding of their keys, `(1, n, 1, D)` each.
        queries: that of the queries that read them, `(1, N, 1, D)` each; None: their own.
    """

    label: int
    row: int
    tokens: torch.Tensor
    keys: Rotary
    queries: Rotary | None


@dataclass(frozen=True)
class TokenRow:
    """One row in tokens: how many subjects, classes `(N,)` int64, and what it reads."""

    name: str
    subjects: int
    labels: torch.Tensor
    sources: tuple[ReferenceTokens, ...]

    @property
    def references(self) -> torch.Tensor:
        """Classes of the keys that are read, `(R,)`, source by source."""
        parts = [torch.full_like(source.tokens, source.label) for source in self.sources]
        return torch.cat(parts) if parts else self.labels.new_zeros(0)

    def tokens_of(self, label: int) -> torch.Tensor:
        """Indices of a class."""
        return (self.labels == label).nonzero().flatten()

    def counts(self) -> dict[str, int]:
        """Tokens by class: "background", then subjects by their number from 1."""
        found = torch.bincount(self.labels, minlength=self.subjects + 1).tolist()
        return {("background" if i == 0 else str(i)): n for i, n in enumerate(found)}

    def to(self, device: torch.device, dtype: torch.dtype) -> TokenRow:
        """The same with what an attention reads on a device, tables in the model's own dtype."""

        def move(table: Rotary) -> Rotary:
            return table[0].to(device, dtype), table[1].to(device, dtype)

        sources = tuple(
            replace(
                s, tokens=s.tokens.to(device), keys=move(s.keys),
                queries=None if s.queries is None else move(s.queries),
            )
            for s in self.sources
        )  # fmt: skip
        return replace(self, sources=sources)

    @property
    def held_bytes(self) -> int:
        """Bytes of indices and tables."""
        held = [self.labels]
        for source in self.sources:
            held += [source.tokens, *source.keys, *(source.queries or ())]
        return sum(tensor.nbytes for tensor in held)


def token_rows(
    rows: Sequence[ClipRow], grid: TokenGrid, config: SceneConfig, width: int
) -> tuple[TokenRow, ...]:
    """All rows in tokens.

    Args:
        rows: of the batch, in order.
        grid: of one row.
        config: the settings.
        width: D.

    Raises:
        ValueError: a row's coverage is not of this grid, or has no token for a subject.
    """
    shape = (grid.frames, grid.height, grid.width)
    classes = []
    for row in rows:
        if tuple(row.coverage.shape[1:]) != shape:
            raise ValueError(
                f"{row.name} covers {tuple(row.coverage.shape[1:])} tokens; accepted: {shape}"
            )
        try:
            classes.append(masks.labels(row.coverage, row.z, config.least))
        except ValueError as error:
            raise ValueError(f"{row.name}: {error}") from error
    where = reposition_maps.token_positions(grid)
    return tuple(
        TokenRow(
            row.name, len(row.z), classes[i],
            tuple(_source(rows, i, r, classes, where, config, width) for r in row.readings),
        )
        for i, row in enumerate(rows)
    )  # fmt: skip


def _source(
    rows: Sequence[ClipRow], row: int, reading: ReferenceLink, classes: Sequence[torch.Tensor],
    where: torch.Tensor, config: SceneConfig, width: int,
) -> ReferenceTokens:  # fmt: skip
    tokens = (classes[reading.row] == reading.source + 1).nonzero().flatten()
    native = reposition_maps.rotary(where[tokens], width)
    made = ReferenceTokens(reading.subject + 1, reading.row, tokens, native, None)
    seen = bool((classes[row] == reading.subject + 1).any())
    if not config.reposition or not len(tokens) or not seen:
        return made  # nothing is moved, or nobody is there to read or to be read
    source = reposition_maps.subject_boxes(rows[reading.row].coverage[reading.source])
    target = reposition_maps.subject_boxes(rows[row].coverage[reading.subject])
    laid = reposition_maps.box_map(source, target, config.alpha)
    if laid.static:
        return replace(made, keys=reposition_maps.rotary(laid(where[tokens]), width))
    return replace(made, queries=reposition_maps.rotary(laid.inverse()(where), width))


def gather_plan_for(row: TokenRow, active: ActiveParts, config: SceneConfig) -> GatherPlan:
    """What a row's attention computes where this is at work."""
    isolation = config.isolation if active.isolation else "off"
    if not active.reads_references or not row.sources:
        return masks.gather_plan(row.labels, isolation)
    return masks.gather_plan(row.labels, isolation, row.references)
